"""Objects that a program gives to its own run, in the place of what a configuration would name."""

import copy
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from fedmef_dist.base.guests import OBJECT, Kind, qualified_name
from fedmef_dist.base.notices import tell
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.group import Group
from fedmef_dist.config import Config, parse_config, to_tree
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.text import TextDataset
from fedmef_dist.methods.base import Method
from fedmef_dist.methods.registry import METHODS, name_of, settings_of
from fedmef_dist.tracking.callbacks import OWN_CALLBACKS

Model = nn.Module | Callable[..., nn.Module]


class Loan:
    """What a program gives, each under the name that the run's configuration records.

    Args:
        method: a class.
        model: a module, or what makes one.
        dataset: images or text.
        trackers: objects or classes.
        callbacks: objects or classes.

    Attributes:
        objects: (kind, name) -> what :func:`fedmef_dist.base.guests.lent` takes.
    """

    def __init__(
        self,
        method: type[Method[Any]] | None,
        model: Model | None,
        dataset: Dataset | TextDataset | None,
        trackers: Sequence[Any],
        callbacks: Sequence[Any],
    ) -> None:
        self.objects: dict[tuple[Kind, str], Any] = {}
        self._method = name_of(method) if method is not None else None
        if method is not None and self._method not in METHODS:
            self.objects[Kind.METHOD, name_of(method)] = method
        self._model = self._lend(Kind.MODEL, _called(model), _maker(model)) if model is not None else None
        self._dataset = None
        if dataset is not None:
            self._dataset = self._lend(Kind.DATASET, OBJECT + dataset.name, lambda root: dataset)
        self._trackers = [self._lend_part(Kind.TRACKER, tracker) for tracker in trackers]
        self._callbacks = [self._lend_part(Kind.CALLBACK, callback) for callback in callbacks]

    def apply(self, config: Config) -> Config:
        """The configuration that names what is lent; for inside of ``lent(self.objects)``.

        Raises:
            UserError: what it says does not fit what is lent.
        """
        tree = to_tree(config)
        if self._method is not None:
            tree["method"] = _method_section(config, self._method)
        if self._model is not None:
            tree["model"] |= {"name": self._model, "width": 1.0}  # the width was that of the model it replaces
        if self._dataset is not None:
            tree["data"] |= {"dataset": self._dataset, "options": {}}
        tree["tracking"]["trackers"] += self._trackers
        tree["callbacks"] += self._callbacks
        return parse_config(tree, "fedmef_dist.run")

    def _lend(self, kind: Kind, name: str, maker: Any) -> str:
        """Keeps ``maker`` under a name that nothing else has, and returns that."""
        number = 1
        unique = name
        while (kind, unique) in self.objects:
            number += 1
            unique = f"{name}#{number}"
        self.objects[kind, unique] = maker
        return unique

    def _lend_part(self, kind: Kind, given: Any) -> dict[str, Any]:
        """A tracker's or a callback's entry in the configuration."""
        if isinstance(given, type):
            return {"name": self._lend(kind, _short_name(given), given)}
        name = self._lend(kind, _short_name(type(given)), lambda **options: given)
        return {"name": name, **_options(given)}


def share_weights(model: Model | None, group: Group) -> Model | None:
    """A copy of a module with rank 0's weights and buffers on every rank; anything else as it is."""
    if not isinstance(model, nn.Module):
        return model
    own = copy.deepcopy(model).cpu()
    for tensor in own.state_dict().values():
        buffer = tensor.contiguous()
        group.broadcast(buffer)
        tensor.copy_(buffer)
    return own


def _method_section(config: Config, name: str) -> dict[str, Any]:
    """Section ``method`` under another name, with the keys that the configuration gives and the method has."""
    given = {key: value for key, value in to_tree(config)["method"].items() if key in config.method.model_fields_set}
    given.pop("name", None)
    known = settings_of(name).model_fields
    dropped = [key for key in given if key not in known]
    if dropped and detect(os.environ).rank == 0:
        tell(f"note: method {name} has no {', '.join(dropped)}; left out")
    return {"name": name, **{key: value for key, value in given.items() if key in known}}


def _called(model: Model) -> str:
    """A model's name; with a colon, so that it never is one of the package's own."""
    return qualified_name(type(model) if isinstance(model, nn.Module) or not hasattr(model, "__qualname__") else model)


def _maker(model: Model) -> Callable[..., nn.Module]:
    if not isinstance(model, nn.Module):
        return model
    return lambda *, classes, shape, **options: copy.deepcopy(model)


def _short_name(cls: type) -> str:
    own = {known: name for name, known in OWN_CALLBACKS.items()}
    return own.get(cls) or qualified_name(cls)


def _options(given: Any) -> Mapping[str, Any]:
    """What a dataclass shows of what it was made with, as far as JSON has it, so that config.yaml tells it.

    A field with ``repr=False``, such as a token, is not shown.
    """
    if not dataclasses.is_dataclass(given):
        return {}
    values = {part.name: getattr(given, part.name) for part in dataclasses.fields(given) if part.init and part.repr}
    return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False
