"""Model registry and conversion."""
