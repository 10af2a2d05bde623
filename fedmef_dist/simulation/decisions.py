"""What a method has decided, looked at before it is used: much of what is wrong would not fail, but be saved."""

from collections.abc import Container, Mapping
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.transfer import fetched
from fedmef_dist.methods.base import Method
from fedmef_dist.runs.summary import is_number

# Numbers that the device computes are tensors until the host has waited for it.
Unread = dict[str, float | int | str | Tensor]
# Not known in every round, or behind all else: a method's numbers of these names would be lost, or stand for the run's.
_MEASURED_LATER = (
    "round",
    "eval/loss",
    "eval/accuracy",
    "cluster/reduce_bytes",
    "memory/device_bytes",
    "memory/activation_bytes",
    "memory/peak_bytes",
    "sap/dropped_mass",
    "sap/dropped_nonzeros",
)


def checked_mask(method: Method[Any], hook: str, active: Any) -> Tensor:
    """A mask that the method has given, bool (n_prunable,). Raises UserError where it is anything else."""
    length = method.space.n_prunable
    if isinstance(active, Tensor) and active.dtype == torch.bool and active.shape == (length,):
        return active
    found = f"{active.dtype} {tuple(active.shape)}" if isinstance(active, Tensor) else f"a {type(active).__name__}"
    raise _wrong(method, hook, f"gives {found}, not a mask, torch.bool ({length},)")


def own_metrics(method: Method[Any], given: Any) -> Unread:
    """What :meth:`Method.metrics` has given, with numbers of numpy as Python's and tensors on their way to the host.

    Raises UserError where it is no mapping from names to single numbers or texts.
    """
    if not isinstance(given, Mapping):
        raise _wrong(method, "metrics", f"gives a {type(given).__name__}, not numbers under names")
    return {_name(method, name): _value(method, name, value) for name, value in given.items()}


def refuse_taken(method: Method[Any], own: Mapping[str, Any], taken: Container[str]) -> None:
    """Raises UserError where a metric of the method has the name of one that the run measures, now or later."""
    clash = [name for name in own if name in taken or name in _MEASURED_LATER]
    if clash:
        raise _wrong(method, "metrics", f"gives {clash[0]}, which the run measures itself")


def _name(method: Method[Any], name: Any) -> str:
    if not isinstance(name, str):
        raise _wrong(method, "metrics", f"gives a number under {name!r}, which is no text")
    return name


def _value(method: Method[Any], name: str, value: Any) -> float | int | str | Tensor:
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex():
        return fetched(value.long() if value.dtype == torch.bool else value)
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str) and is_number(name):
        raise _wrong(method, "metrics", f"gives {name} as a text, where names that begin so are those of numbers")
    if isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 2**63):
        return int(value) if isinstance(value, bool) else value
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor | np.ndarray) else ""
    raise _wrong(method, "metrics", f"gives {name} as a {type(value).__name__}{shape}, not as a number")


def finite(metrics: Mapping[str, float | int | str]) -> dict[str, float | int | str]:
    """Those that a checkpoint can hold: without NaN and infinity."""
    return {name: value for name, value in metrics.items() if not isinstance(value, float) or isfinite(value)}


def _wrong(method: Method[Any], hook: str, what: str) -> UserError:
    return UserError(
        f"{type(method).__name__}.{hook} {what}", where="method.name", mend=f"see fedmef_dist.api.Method.{hook}"
    )
