"""Do a network and its samples go together? A forward pass of shapes alone tells, before anything is allocated."""

import torch
from torch import nn

from fedmef_dist.base.errors import UserError

_LARGEST = 1024  # pixels that are tried at most


def refuse_misfit(model: nn.Module, name: str, shape: tuple[int, ...], classes: int) -> None:
    """Raises UserError, with the least size, where images (channels, height, width) are too small for the network.

    Deep networks halve the image again and again; where nothing is left to halve, the layer fails. The pass is made on
    torch's meta device: it costs milliseconds and no memory.
    """
    channels, height, width = shape
    error = _error(model, (2, channels, height, width))
    if error is None:
        return
    least = _least(model, channels, max(height, width))
    needs = f"it needs {least} pixels a side" if least else f"no side up to {_LARGEST} pixels will do"
    raise UserError(
        f"{name} is too deep for images of {channels} x {height} x {width} (and {classes} classes): {needs}",
        where=f"model.name={name} ({error})",
        mend=f"set data.resize={least}, or choose another model" if least else "choose another model",
    )


def _least(model: nn.Module, channels: int, too_small: int) -> int | None:
    """The least side above ``too_small`` that passes; what passes once is taken to pass at every larger side."""
    large = max(2 * too_small, 4)
    while _error(model, (2, channels, large, large)) is not None:
        too_small, large = large, 2 * large
        if too_small >= _LARGEST:
            return None
    while large - too_small > 1:
        middle = (too_small + large) // 2
        if _error(model, (2, channels, middle, middle)) is None:
            large = middle
        else:
            too_small = middle
    return large


def _error(model: nn.Module, shape: tuple[int, ...]) -> str | None:
    """Why the network cannot take a batch of this shape; None where it can."""
    values = {name: value.to("meta") for name, value in (*model.named_parameters(), *model.named_buffers())}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            torch.func.functional_call(model, values, (torch.empty(shape, device="meta"),))
    except (RuntimeError, ValueError, AssertionError) as error:
        return " ".join(str(error).split())[:120]
    finally:
        model.train(was_training)
    return None
