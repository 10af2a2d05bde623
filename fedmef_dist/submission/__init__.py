"""Batch scripts for Slurm: what `fedmef-dist submit` writes, and the ready ones in the repository's folder slurm/."""
