"""Measured scaling: how a run's rounds grow with ranks, cohorts and clients, and what larger clusters would take."""
