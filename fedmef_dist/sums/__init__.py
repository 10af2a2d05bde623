"""Exact sums over clients and ranks, and which rank trains which client."""
