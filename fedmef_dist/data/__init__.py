"""Data sets, partitions, populations and batches."""
