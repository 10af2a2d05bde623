"""Parameter space, mask, allocation, schedule and selection."""
