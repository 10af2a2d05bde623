import pytest
import torch
from torch import nn

from fedmef_dist.layers import lean

PAIRS = [
    (nn.ReLU(), lean.LeanReLU()),
    (nn.ReLU6(), lean.LeanReLU6()),
    (nn.LeakyReLU(0.2), lean.LeanLeakyReLU(0.2)),
    (nn.MaxPool2d(2), lean.LeanMaxPool2d(2)),
    (nn.MaxPool2d(3, 2, 1), lean.LeanMaxPool2d(3, 2, 1)),
    (nn.MaxPool2d((2, 3), (1, 2), (1, 0)), lean.LeanMaxPool2d((2, 3), (1, 2), (1, 0))),
    (nn.MaxPool2d(2, 2, 0, 2), lean.LeanMaxPool2d(2, 2, 0, 2)),
    (nn.MaxPool2d(3, 2, ceil_mode=True), lean.LeanMaxPool2d(3, 2, ceil_mode=True)),
    (nn.AvgPool2d(2), lean.LeanAvgPool2d(2)),
    (nn.AvgPool2d(3, 2, 1, True, False), lean.LeanAvgPool2d(3, 2, 1, True, False)),
    (nn.AvgPool2d(3, 2, 1, divisor_override=5), lean.LeanAvgPool2d(3, 2, 1, divisor_override=5)),
    (nn.AdaptiveAvgPool2d(1), lean.LeanAdaptiveAvgPool2d(1)),
    (nn.AdaptiveAvgPool2d((2, 3)), lean.LeanAdaptiveAvgPool2d((2, 3))),
]
SMOOTH = [
    (nn.SiLU(), lean.LeanSiLU()),
    (nn.Hardswish(), lean.LeanHardswish()),
    (nn.GELU(), lean.LeanGELU()),
    (nn.GELU("tanh"), lean.LeanGELU("tanh")),
]


INPLACE = [
    (nn.ReLU(inplace=True), lean.LeanReLU(inplace=True)),
    (nn.ReLU6(inplace=True), lean.LeanReLU6(inplace=True)),
    (nn.LeakyReLU(0.2, inplace=True), lean.LeanLeakyReLU(0.2, inplace=True)),
    (nn.SiLU(inplace=True), lean.LeanSiLU(inplace=True)),
    (nn.Hardswish(inplace=True), lean.LeanHardswish(inplace=True)),
]


def name(pair):
    return type(pair).__name__ if isinstance(pair, nn.Module) else None


def activations(channels_last):
    """Normal values, some of them exactly at the kinks, with equal values in some windows."""
    x = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(0)) * 4
    x[0, 0, 0, :6] = torch.tensor([0.0, -0.0, 6.0, 6.0, -3.0, 3.0])
    x[1, 1] = x[1, 1].round()
    return x.to(memory_format=torch.channels_last) if channels_last else x


def run(layer, x):
    x = x.detach().clone().requires_grad_()
    output = layer(x)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)))
    return output.detach(), x.grad


def bytes_kept(layer, x):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        layer(x.clone().requires_grad_())
    return sum(tensor.untyped_storage().nbytes() for tensor in saved)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("stock", "ours"), PAIRS, ids=name)
def test_piecewise_linear_layers_are_the_stock_ones_bit_for_bit(stock, ours, channels_last):
    x = activations(channels_last)
    for mine, theirs in zip(run(ours, x), run(stock, x), strict=True):
        assert torch.equal(mine, theirs)
    assert ours(x).is_contiguous(memory_format=torch.channels_last) == stock(x).is_contiguous(
        memory_format=torch.channels_last
    )


@pytest.mark.parametrize(("stock", "ours"), SMOOTH, ids=name)
def test_smooth_activations_are_exact_forward_and_close_backward(stock, ours):
    x = torch.linspace(-9, 9, 4001)
    output, grad = run(ours, x)
    expected_output, expected_grad = run(stock, x)
    assert torch.equal(output, expected_output)
    cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    error = ((grad - expected_grad) / cotangent).abs().max()
    step = (ours.curve.high - ours.curve.low) / 255
    assert 0.3 * step < error < 0.502 * step


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("stock", "ours"), PAIRS[:3], ids=name)
def test_gates_work_in_every_type(stock, ours, dtype):
    x = activations(False).to(dtype)
    x.view(-1)[:2] = torch.tensor([float("inf"), -float("inf")])
    for mine, theirs in zip(run(ours, x), run(stock, x), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("stock", "ours"), INPLACE, ids=name)
def test_in_place_overwrites_the_input(stock, ours, channels_last):
    x = activations(channels_last)
    results = []
    for layer in (ours, stock):
        leaf = x.clone().requires_grad_()
        before = leaf * 1
        output = layer(before)
        assert output.data_ptr() == before.data_ptr()
        output.backward(torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))
        results.append((output, leaf.grad))
        with torch.no_grad():
            assert torch.equal(layer(x.clone()), output)
    (mine, my_grad), (theirs, their_grad) = results
    assert torch.equal(mine, theirs)
    torch.testing.assert_close(my_grad, their_grad, atol=0.02, rtol=0)


def test_an_input_that_somebody_else_keeps_may_not_be_overwritten():
    x = activations(False).requires_grad_()
    squared = (x * 1).square()
    output = squared.exp()
    lean.LeanReLU(inplace=True)(output)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("layer", [ours for _, ours in PAIRS + SMOOTH], ids=name)
def test_without_gradients_nothing_is_recorded(layer):
    x = activations(False).requires_grad_()
    with torch.no_grad():
        output = layer(x)
    assert output.grad_fn is None
    assert torch.equal(output, layer(x))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (lean.LeanReLU(), 54),  # 432 elements, a bit each
        (lean.LeanReLU6(), 54),
        (lean.LeanLeakyReLU(), 54),
        (lean.LeanSiLU(), 432),
        (lean.LeanGELU(), 432),
        (lean.LeanMaxPool2d(2), 2 * 3 * 4 * 4),
        (lean.LeanAvgPool2d(2), 0),
        (lean.LeanAdaptiveAvgPool2d(2), 0),
    ],
    ids=name,
)
def test_bytes_kept(layer, expected):
    assert bytes_kept(layer, activations(False)) == expected


def test_nan_shows():
    x = torch.tensor([float("nan"), 1.0])
    assert run(lean.LeanReLU(), x)[0].isnan().tolist() == [True, False]


def test_a_window_that_does_not_fit_a_byte_is_refused():
    lean.LeanMaxPool2d(16)
    with pytest.raises(ValueError, match="17 x 16"):
        lean.LeanMaxPool2d((17, 16))
