"""Launchers, process group, exact sums and packed collectives."""
