"""Model registry and conversion."""

from fedmef_dist.models.convert import prunable_weights
from fedmef_dist.models.registry import ModelSettings, build_model, stock_model

__all__ = ["ModelSettings", "build_model", "prunable_weights", "stock_model"]
