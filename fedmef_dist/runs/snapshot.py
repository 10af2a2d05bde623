"""The whole state of a run as a dictionary of parts: each gives what it remembers, and takes it back.

Tensors of a part go to the checkpoint under ``<part>/<name>``, its plain values under ``parts`` in the state.
"""

import json
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from fedmef_dist.base.settings import Settings
from fedmef_dist.runs.checkpoint import Checkpoint, check_values, explain, misfit

_LARGEST = 2**31 - 1


class Stateful(Protocol):
    """Something that the next round depends on."""

    def state(self) -> Mapping[str, Any]:
        """Tensors, and plain values that JSON holds; names, types and shapes are the same over a whole run."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state` gave (tensors on the CPU). Raises ValueError where a value is impossible."""


class Content(Settings):
    """The plain values of a checkpoint that :func:`take` has made.

    Attributes:
        round: behind which it was taken.
        parts: plain values of each part.
        tracker: what trackers must find again.
    """

    round: int = Field(ge=1, le=_LARGEST)
    parts: dict[str, dict[str, Any]]
    tracker: dict[str, str]


def contents(checkpoint: Checkpoint) -> Content:
    """The plain values that :func:`take` has written. Raises UserError where it has not."""
    return check_values(checkpoint, Content, checkpoint.state)


def take(round: int, parts: Mapping[str, Stateful], tracker: Mapping[str, str]) -> Checkpoint:
    """The parts' states after a round, and what trackers must find again. Every rank must call it."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for name, part in parts.items():
        state = part.state()
        tensors |= {f"{name}/{key}": value.cpu() for key, value in state.items() if isinstance(value, Tensor)}
        plain[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    return Checkpoint(tensors, {"round": round, "parts": plain, "tracker": dict(tracker)})


def restore(checkpoint: Checkpoint, parts: Mapping[str, Stateful], *, whole: bool = True) -> None:
    """Lets the parts go on where the checkpoint was taken, one after another, in their order.

    Args:
        checkpoint: what :func:`take` gave.
        parts: of the same run.
        whole: whether these are all of its parts.

    Raises:
        UserError: it is another run's.
    """
    plain = contents(checkpoint).parts
    names = {name.partition("/")[0] for name in checkpoint.tensors} | plain.keys()
    if parts.keys() - plain.keys() or (whole and names - parts.keys()):
        raise misfit(checkpoint, f"parts missing or too many: {', '.join(sorted(names ^ parts.keys()))[:200]}")
    for name, part in parts.items():
        # Asked for each one in its turn: the shapes of a later part may depend on what an earlier one took.
        state = {**tensors_of(checkpoint, name), **plain[name]}
        _check(checkpoint, name, state, part.state())
        try:
            part.restore(state)
        except ValidationError as error:
            raise misfit(checkpoint, explain(error, name)) from None
        except ValueError as error:
            raise misfit(checkpoint, f"{name}: {error}") from None


def tensors_of(checkpoint: Checkpoint, part: str) -> dict[str, Tensor]:
    """A part's tensors under their own names."""
    prefix = f"{part}/"
    return {name.removeprefix(prefix): tensor for name, tensor in checkpoint.tensors.items() if name.startswith(prefix)}


def _check(checkpoint: Checkpoint, part: str, state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Names, types, shapes and finite numbers, as the part gives them."""
    if state.keys() != expected.keys():
        names = ", ".join(sorted(state.keys() ^ expected.keys()))
        raise misfit(checkpoint, f"{part}: missing or too many: {names[:200]}")
    for name, wanted in expected.items():
        found = state[name]
        if isinstance(wanted, Tensor) != isinstance(found, Tensor):
            raise misfit(checkpoint, f"{part}: {name} is not of the right kind")
        if isinstance(wanted, Tensor):
            _check_tensor(checkpoint, f"{part}/{name}", found, wanted)
        else:
            _check_plain(checkpoint, f"{part}.{name}", found, wanted)


def _check_plain(checkpoint: Checkpoint, name: str, found: Any, wanted: Any) -> None:
    check_values(checkpoint, type(wanted), found, name)
    try:
        json.dumps(found, allow_nan=False)
    except ValueError:  # JSON has no such number, but 1e999 is read as one
        raise misfit(checkpoint, f"{name}: a value is not finite") from None


def _check_tensor(checkpoint: Checkpoint, name: str, found: Tensor, wanted: Tensor) -> None:
    if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
        pair = f"{found.dtype} {tuple(found.shape)} instead of {wanted.dtype} {tuple(wanted.shape)}"
        raise misfit(checkpoint, f"tensor {name}: {pair}")
    if found.is_floating_point() and not torch.isfinite(found).all():
        raise misfit(checkpoint, f"tensor {name}: a value is not finite")
