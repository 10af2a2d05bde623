"""Federated algorithms, one a file; ``registry`` has them by name."""
