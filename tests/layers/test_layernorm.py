import pytest
import torch
from torch import nn

from fedmef_dist.layers.activation_pruning import Pruning
from fedmef_dist.layers.layernorm import LeanLayerNorm


def pair(ratio, per_sample=False):
    """A stock layer and ours with the same weights."""
    stock, ours = nn.LayerNorm(8), LeanLayerNorm(8, pruning=Pruning(ratio, per_sample))
    generator = torch.Generator().manual_seed(0)
    for parameter in stock.parameters():
        parameter.data.normal_(generator=generator)
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def run(layer, x):
    x = x.clone().requires_grad_()
    output = layer(x)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)))
    return output.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())


def tokens():
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(2)) * 3 + 1


def test_with_ratio_0_it_is_the_stock_layer():
    stock, ours = pair(0.0)
    for mine, theirs in zip(run(ours, tokens()), run(stock, tokens()), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("ratio", [1e-9, 0.5])
def test_forward_and_gradient_of_the_bias_are_exact(ratio):
    stock, ours = pair(ratio)
    (output, _, _, bias), (expected, _, _, expected_bias) = run(ours, tokens()), run(stock, tokens())
    assert torch.equal(output, expected)
    torch.testing.assert_close(bias, expected_bias)


def test_keeping_everything_gives_the_stock_gradients():
    stock, ours = pair(1e-9)
    for mine, theirs in zip(run(ours, tokens()), run(stock, tokens()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"bias": False}, {"elementwise_affine": False}])
def test_without_bias_or_weight_too(options):
    stock, ours = nn.LayerNorm(8, **options), LeanLayerNorm(8, pruning=Pruning(1e-9), **options)
    found, expected = run(ours, tokens()), run(stock, tokens())
    assert len(found) == len(expected) == 2 + len([*stock.parameters()])
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_types_and_gradients_are_the_stock_ones(dtype):
    stock, ours = pair(1e-9)
    x, results = tokens().to(dtype), []
    for layer in (ours, stock):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(run(layer, x))
    assert [tensor.dtype for tensor in results[0]] == [dtype, dtype, torch.float32, torch.float32]
    tolerance = 1e-1 if dtype == torch.bfloat16 else 1e-5  # torch adds up the weight's gradient in 8 bits
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("per_sample", [False, True])
def test_gradients_use_the_large_entries_by_hand(per_sample):
    _, ours = pair(0.5, per_sample)
    x = tokens()
    _, grad_x, grad_weight, _ = run(ours, x)
    factor = (x.var(-1, unbiased=False, keepdim=True) + ours.eps).rsqrt()
    normal = (x - x.mean(-1, keepdim=True)) * factor
    rows = normal.view(3 if per_sample else 1, -1)
    threshold = rows.abs().sort(1, descending=True).values[:, rows.shape[1] // 2 - 1 :][:, :1]
    kept = (rows * (rows.abs() >= threshold)).view_as(x)
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    scaled = grad * ours.weight.detach()
    expected = factor * (scaled - scaled.mean(-1, keepdim=True) - kept * (scaled * kept).mean(-1, keepdim=True))
    torch.testing.assert_close(grad_weight, (grad * kept).sum((0, 1)))
    torch.testing.assert_close(grad_x, expected)


def test_bytes_kept():
    _, ours = pair(0.5)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        ours(tokens().requires_grad_())
    own = {parameter.data_ptr() for parameter in ours.parameters()}
    # 120 elements: a bit each, half of the values; a number for each of 15 tokens.
    assert sum(tensor.nbytes for tensor in saved if tensor.data_ptr() not in own) == 15 + 60 * 4 + 15 * 4


def test_without_gradients_nothing_is_recorded():
    _, ours = pair(0.5)
    with torch.no_grad():
        assert ours(tokens().requires_grad_()).grad_fn is None
