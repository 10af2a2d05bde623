"""What torch counts in a training step of a network of its own layers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, conv_backward_flop


def _convolution_backward(*arguments, out_shape):
    """Torch's formula, but for a grouped convolution: there it takes the weight for that of a full convolution."""
    *shapes, groups, (wants_input, wants_weight, _) = arguments
    to_input, to_weight = (
        conv_backward_flop(*shapes, groups, mask, out_val=out_shape)
        for mask in ([wants_input, False, False], [False, wants_weight, False])
    )
    return to_input + to_weight // groups


@contextmanager
def step_counter() -> Iterator[FlopCounterMode]:
    """A counter that sees attention as the products that it is made of; a CPU's fused one it does not know."""
    corrected = {torch.ops.aten.convolution_backward: _convolution_backward}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=corrected) as counter:
        yield counter
