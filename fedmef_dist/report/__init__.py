"""Tables and plots over finished runs."""

from fedmef_dist.report.compare import compare

__all__ = ["compare"]
