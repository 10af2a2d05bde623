"""The cohort of a round, and what one simulated client does in it."""
