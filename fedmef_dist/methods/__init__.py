"""Federated algorithms, one a file."""

from typing import Annotated

from pydantic import Field

from fedmef_dist.methods.base import Method
from fedmef_dist.methods.fedavg import FedAvg, FedAvgSettings
from fedmef_dist.methods.fedmef import FedMef, FedMefSettings
from fedmef_dist.sparsity import ParameterSpace

MethodSettings = Annotated[FedAvgSettings | FedMefSettings, Field(discriminator="name")]


def create_method(settings: FedAvgSettings | FedMefSettings, space: ParameterSpace, base_rate: float) -> Method:
    """The algorithm that ``settings`` names, over ``space``; ``base_rate`` is the optimiser's eta_0."""
    if isinstance(settings, FedMefSettings):
        return FedMef(settings, space, base_rate)
    return FedAvg(space)


__all__ = ["Method", "MethodSettings", "create_method"]
