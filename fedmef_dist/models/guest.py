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
    _check_parameters(name, model)
    with torch.no_grad():
        _check_outputs(name, model.eval(), classes, shape)
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    _check_outputs(name, model.train(), classes, shape)
    for key, buffer in model.named_buffers():  # such as the statistics of batch normalisation
        if key in buffers:
            buffer.copy_(buffers[key])
    return model


def _check_parameters(name: str, model: nn.Module) -> None:
    """All of them become parts of one float32 vector, which is trained as a whole."""
    for key, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise _unfit(name, f"has {key} in {parameter.dtype}; parameters are torch.float32")
        if not parameter.requires_grad:
            raise _unfit(name, f"has {key} frozen (requires_grad=False), and a run trains all parameters")


def _check_outputs(name: str, model: nn.Module, classes: int, shape: tuple[int, ...]) -> None:
    """One sample for a model in evaluation mode, two for one in training mode."""
    is_text, samples = len(shape) == 1, 2 if model.training else 1
    example = torch.zeros(samples, *shape, dtype=torch.int64 if is_text else torch.float32)
    expected = (samples, *shape, classes) if is_text else (samples, classes)
    given = f"two samples of shape {shape} in training mode" if model.training else f"a sample of shape {shape}"
    outputs = call(f"{name}, given {given},", lambda: model(example), _KEY, {})
    found = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if found != expected:
        many = "two samples in training mode" if model.training else "one sample"
        raise _unfit(name, f"gives {found} for {many}, not logits of shape {expected}")
    if model.training and not outputs.requires_grad:
        raise _unfit(name, "gives logits in training mode that lead to no gradient")


def _unfit(name: str, what: str) -> UserError:
    return UserError(f"{name} {what}", where=_KEY, mend="see docs/extending.md")
