"""The federated algorithms by name."""

from typing import Annotated, Any

from pydantic import Field

from fedmef_dist.methods.base import Method, MethodContext
from fedmef_dist.methods.fedavg import FedAvg, FedAvgSettings
from fedmef_dist.methods.feddst import FedDst, FedDstSettings
from fedmef_dist.methods.fedmef import FedMef, FedMefSettings
from fedmef_dist.methods.fedsgc import FedSgc, FedSgcSettings
from fedmef_dist.sparsity import ParameterSpace

MethodSettings = Annotated[
    FedAvgSettings | FedDstSettings | FedMefSettings | FedSgcSettings, Field(discriminator="name")
]

_METHODS: dict[type[Any], type[Method[Any]]] = {
    FedAvgSettings: FedAvg,
    FedDstSettings: FedDst,
    FedMefSettings: FedMef,
    FedSgcSettings: FedSgc,
}
# What the section ``method`` is called -> the keys that it may have.
SETTINGS = {settings.model_fields["name"].default: settings for settings in _METHODS}


def create_method(settings: MethodSettings, space: ParameterSpace, context: MethodContext) -> Method[Any]:
    """The algorithm that ``settings`` names, over ``space``."""
    return _METHODS[type(settings)](settings, space, context)
