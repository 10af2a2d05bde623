"""Networks from outside of the package."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.guests import Kind, call, find
from fedmef_dist.models.convert import weighted_layers

_KEY = "model.name"


def build_guest(name: str, options: Mapping[str, Any], width: float, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """The network that a guest makes, in training mode; it draws its weights from torch's current generator.

    Args:
        name: of a callable ``(*, classes: int, shape: tuple[int, ...], **options) -> nn.Module``.
        options: what it is called with, in addition to ``classes`` and ``shape``.
        width: of the configuration, which only our own networks have.
        classes: outputs.
        shape: of a sample: (channels, height, width) of images, (tokens,) of text.

    Raises:
        UserError: there is no such guest, it fails, or what it makes is no network that can be trained here.
    """
    if width != 1.0:
        raise UserError(f"{name} has no width", where=f"model.width={width}", mend="give it as one of model.options")
    model = call(name, find(Kind.MODEL, name, _KEY), "model.options", options, {"classes": classes, "shape": shape})
    if not isinstance(model, nn.Module):
        raise _unfit(name, f"gave a {type(model).__name__}, not a torch.nn.Module")
    if not weighted_layers(model):
        raise _unfit(name, "has no convolution and no linear layer")
    _check_outputs(name, model, classes, shape)
    return model.train()


def _check_outputs(name: str, model: nn.Module, classes: int, shape: tuple[int, ...]) -> None:
    is_text = len(shape) == 1
    example = torch.zeros(1, *shape, dtype=torch.int64 if is_text else torch.float32)
    expected = (1, *shape, classes) if is_text else (1, classes)
    model.eval()
    with torch.no_grad():
        outputs = call(f"{name}, given a sample of shape {shape},", lambda: model(example), _KEY, {})
    found = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if found != expected:
        raise _unfit(name, f"gives {found} for one sample, not logits of shape {expected}")


def _unfit(name: str, what: str) -> UserError:
    return UserError(f"{name} {what}", where=_KEY, mend="see docs/extending.md")
