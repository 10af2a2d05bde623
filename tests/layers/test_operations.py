import pytest
import torch

from fedmef_dist.layers import operations
from fedmef_dist.layers.operations import Convolution


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "unseen"),
    [
        # A pixel alone, with a border of one: the middle of the kernel meets it, and nothing else does.
        (1, 1, 1, {0, 2}),
        (1, 2, 1, {0, 2}),
        # Two pixels, every second place: the only output stands on the first one and sees the second behind it.
        (2, 2, 1, {0}),
        (2, 1, 1, set()),
        (3, 2, 1, set()),
        (3, 1, 2, set()),
    ],
)
def test_what_of_a_kernel_meets_padding_alone_has_no_gradient(size, stride, dilation, unseen, monkeypatch):
    operation = Convolution((stride,) * 2, (dilation,) * 2, (dilation,) * 2, 8)
    x, weight = torch.randn(2, 8, size, size).bfloat16(), torch.randn(8, 1, 3, 3).bfloat16()
    grad = torch.randn_like(operation.forward(x, weight, None))
    right = operation.gradients(grad.float(), x.float(), weight.float(), (False, True, False))[1]
    assert {place for place in range(3) if not right[:, 0, place].any()} == unseen
    stock = operations._convolution_backward

    def leaving_what_lay_there(*arguments):
        of_x, of_weight, of_bias = stock(*arguments)
        return of_x, of_weight.masked_fill(right == 0, torch.nan), of_bias

    monkeypatch.setattr(operations, "_convolution_backward", leaving_what_lay_there)
    found = operation.gradients(grad, x, weight, (False, True, False))[1]
    torch.testing.assert_close(found.float(), right, rtol=0.02, atol=0.02)
