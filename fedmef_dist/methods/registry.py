"""The federated algorithms by name."""

from typing import Annotated, Any

from pydantic import Field

from fedmef_dist.methods.base import Method, MethodContext
from fedmef_dist.methods.fedavg import FedAvg, FedAvgSettings
from fedmef_dist.methods.fedmef import FedMef, FedMefSettings
from fedmef_dist.methods.fedrts import FedRts, FedRtsSettings
from fedmef_dist.methods.prunefl import PruneFl, PruneFlSettings
from fedmef_dist.sparsity import ParameterSpace

MethodSettings = Annotated[
    FedAvgSettings | FedMefSettings | FedRtsSettings | PruneFlSettings, Field(discriminator="name")
]

_METHODS: dict[type[Any], type[Method[Any]]] = {
    FedAvgSettings: FedAvg,
    FedMefSettings: FedMef,
    FedRtsSettings: FedRts,
    PruneFlSettings: PruneFl,
}
# What the section ``method`` is called -> the keys that it may have.
SETTINGS = {settings.model_fields["name"].default: settings for settings in _METHODS}


def create_method(settings: MethodSettings, space: ParameterSpace, context: MethodContext) -> Method[Any]:
    """The algorithm that ``settings`` names, over ``space``."""
    return _METHODS[type(settings)](settings, space, context)
