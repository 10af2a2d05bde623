"""What simulated devices compute and hold: FLOPs and memory."""
