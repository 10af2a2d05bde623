"""The federated algorithms by name."""

from typing import Annotated, Any

from pydantic import Field

from fedmef_dist.methods.base import Method, MethodContext
from fedmef_dist.methods.ditto import Ditto, DittoSettings
from fedmef_dist.methods.fedavg import FedAvg, FedAvgSettings
from fedmef_dist.methods.feddst import FedDst, FedDstSettings
from fedmef_dist.methods.feddyn import FedDyn, FedDynSettings
from fedmef_dist.methods.fedmef import FedMef, FedMefSettings
from fedmef_dist.methods.fedrts import FedRts, FedRtsSettings
from fedmef_dist.methods.fedsgc import FedSgc, FedSgcSettings
from fedmef_dist.methods.fedtiny import FedTiny, FedTinySettings
from fedmef_dist.methods.prunefl import PruneFl, PruneFlSettings
from fedmef_dist.methods.scaffold import Scaffold, ScaffoldSettings
from fedmef_dist.methods.static import Static, StaticSettings
from fedmef_dist.sparsity import ParameterSpace

MethodSettings = Annotated[
    DittoSettings
    | FedAvgSettings
    | FedDstSettings
    | FedDynSettings
    | FedMefSettings
    | FedRtsSettings
    | FedSgcSettings
    | FedTinySettings
    | PruneFlSettings
    | ScaffoldSettings
    | StaticSettings,
    Field(discriminator="name"),
]

_METHODS: dict[type[Any], type[Method[Any]]] = {
    DittoSettings: Ditto,
    FedAvgSettings: FedAvg,
    FedDstSettings: FedDst,
    FedDynSettings: FedDyn,
    FedMefSettings: FedMef,
    FedRtsSettings: FedRts,
    FedSgcSettings: FedSgc,
    FedTinySettings: FedTiny,
    PruneFlSettings: PruneFl,
    ScaffoldSettings: Scaffold,
    StaticSettings: Static,
}
# What the section ``method`` is called -> the keys that it may have.
SETTINGS = {settings.model_fields["name"].default: settings for settings in _METHODS}


def create_method(settings: MethodSettings, space: ParameterSpace, context: MethodContext) -> Method[Any]:
    """The algorithm that ``settings`` names, over ``space``."""
    return _METHODS[type(settings)](settings, space, context)
