"""What simulated devices send, compute and keep."""
