"""The federated algorithms by name: the package's own, and those of guests."""

import inspect
from functools import cache
from typing import Annotated, Any, Literal, cast

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    SerializeAsAny,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from fedmef_dist.base import guests
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.guests import Kind
from fedmef_dist.base.settings import Settings
from fedmef_dist.methods.base import Method, MethodContext
from fedmef_dist.methods.ditto import Ditto, DittoSettings
from fedmef_dist.methods.fedavg import FedAvg, FedAvgSettings
from fedmef_dist.methods.feddst import FedDst, FedDstSettings
from fedmef_dist.methods.feddyn import FedDyn, FedDynSettings
from fedmef_dist.methods.fedmef import FedMef, FedMefSettings
from fedmef_dist.methods.fedrts import FedRts, FedRtsSettings
from fedmef_dist.methods.fedsgc import FedSgc, FedSgcSettings
from fedmef_dist.methods.fedtiny import FedTiny, FedTinySettings
from fedmef_dist.methods.flash import Flash, FlashSettings
from fedmef_dist.methods.prunefl import PruneFl, PruneFlSettings
from fedmef_dist.methods.scaffold import Scaffold, ScaffoldSettings
from fedmef_dist.methods.sparsyfed import SparsyFed, SparsyFedSettings
from fedmef_dist.methods.static import Static, StaticSettings
from fedmef_dist.sparsity import ParameterSpace

_KEY = "method.name"
# The short name in section ``method`` -> the class.
METHODS: dict[str, type[Method[Any]]] = {
    method.Settings.model_fields["name"].default: method
    for method in (
        *(Ditto, FedAvg, FedDst, FedDyn, FedMef, FedRts, FedSgc, FedTiny, Flash, PruneFl, Scaffold, SparsyFed, Static),
    )
}
# Papers whose idea is no method here, but a key that goes with every method.
_ELSEWHERE = {
    "fedprox": "did you mean method.name=fedavg optimizer.prox_mu=0.01? any method takes prox_mu",
    "fedavgm": "did you mean method.name=fedavg server_optimizer.name=avgm? any method takes it",
    "fedadam": "did you mean method.name=fedavg server_optimizer.name=adam? any method takes it",
    "fedyogi": "did you mean method.name=fedavg server_optimizer.name=yogi? any method takes it",
}
_METHOD_OF: dict[type[Settings], type[Method[Any]]] = {method.Settings: method for method in METHODS.values()}


def settings_of(name: str) -> type[Settings]:
    """The keys that section ``method`` may have under this name.

    Raises:
        UserError: there is no such method, or the guest is none.
    """
    if not is_known(name):
        mend = _ELSEWHERE.get(name) or guests.nearest(name, METHODS)
        raise UserError(f"unknown method {name[:80]!r}", where="method.name", mend=mend)
    return METHODS[name].Settings if name in METHODS else _named_settings(_find(name), name)


def method_of(settings: Settings) -> type[Method[Any]]:
    """The class of the method that has these settings."""
    return _METHOD_OF[type(settings)]


def method_named(name: str) -> type[Method[Any]]:
    """The class that a configuration calls so. Errors: see :func:`settings_of`."""
    return _METHOD_OF[settings_of(name)]


def name_of(method: type[Method[Any]]) -> str:
    """What a configuration calls a method that a program has: its short name, or that of a guest."""
    own = {cls: name for name, cls in METHODS.items()}
    return own.get(method) or guests.qualified_name(method)


def is_known(name: str) -> bool:
    """Whether the name is one of the package's own or that of a guest, which may turn out to be missing."""
    return name in METHODS or guests.is_guest(Kind.METHOD, name)


def create_method(settings: Settings, space: ParameterSpace, context: MethodContext) -> Method[Any]:
    """The algorithm that ``settings`` are of, over ``space``."""
    return method_of(settings)(settings, space, context)


def _find(name: str) -> type[Method[Any]]:
    method = guests.find(Kind.METHOD, name, _KEY)
    where = f"{_KEY}={name}"
    if not (inspect.isclass(method) and issubclass(method, Method)):
        raise UserError(f"{name} is no method", where=where, mend="name a subclass of fedmef_dist.api.Method")
    missing = sorted(getattr(method, "__abstractmethods__", ()))
    if missing:
        raise UserError(f"{name} lacks {', '.join(missing)}", where=where, mend="define what a method must decide")
    if not (inspect.isclass(method.Settings) and issubclass(method.Settings, Settings)):
        raise UserError(f"{name}.Settings are no settings", where=where, mend="subclass fedmef_dist.api.Settings")
    return method


@cache
def _named_settings(method: type[Method[Any]], name: str) -> type[Settings]:
    """A guest's keys, under the name that the configuration gives it."""
    about = (inspect.getdoc(method) or name).splitlines()[0]
    literal: Any = Literal[name]
    fields: Any = {"name": (literal, Field(name, description=about))}
    settings = cast(type[Settings], create_model(method.Settings.__name__, __base__=method.Settings, **fields))
    _METHOD_OF[settings] = method
    return settings


def _validate(given: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    if type(given) in _METHOD_OF:
        return given
    if not isinstance(given, dict) or "name" not in given:
        return handler(given)
    name = given["name"]
    if not isinstance(name, str) or not is_known(name):
        error = guests.unknown_name(Kind.METHOD, str(name), METHODS, _ELSEWHERE)
        raise ValidationError.from_exception_data("method", [{"type": error, "loc": ("name",), "input": name}])
    return handler(given) if name in METHODS else settings_of(name).model_validate(given)


class _AlsoGuests:
    """Lets the schema allow what it cannot know: the keys of one's own methods."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        guest = {"type": "object", "properties": {"name": {"type": "string", "pattern": ":"}}, "required": ["name"]}
        return {"anyOf": [handler(schema), guest]}


MethodSettings = Annotated[
    SerializeAsAny[
        DittoSettings
        | FedAvgSettings
        | FedDstSettings
        | FedDynSettings
        | FedMefSettings
        | FedRtsSettings
        | FedSgcSettings
        | FedTinySettings
        | FlashSettings
        | PruneFlSettings
        | ScaffoldSettings
        | SparsyFedSettings
        | StaticSettings
    ],
    Field(discriminator="name"),
    WrapValidator(_validate),
    _AlsoGuests(),
]
