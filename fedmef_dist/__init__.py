"""Federated learning with sparse training, simulated on torch.distributed."""

__version__ = "0.1.0"
