from math import sqrt

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from fedmef_dist.layers import operations
from fedmef_dist.layers.activation_pruning import Pruning, keep, restore
from fedmef_dist.layers.filters import (
    EPSILON,
    GAMMA_RELU,
    Normaliser,
    filter_means,
    filters_of,
    normalise,
    normalise_backward,
)
from fedmef_dist.layers.nsconv import NSConv2d, NSLinear
from fedmef_dist.layers.operations import Convolution

# Active weights of each filter: none, one, two, three, all.
COUNTS = [0, 1, 2, 3, None]


def ragged_mask(shape):
    mask = torch.zeros(shape, dtype=torch.float64)
    for number, row in enumerate(mask.view(shape[0], -1)):
        count = COUNTS[number % len(COUNTS)]
        row[torch.randperm(row.numel())[:count]] = 1
    return mask


def double(module, mask=None):
    """The module in double precision, with uneven gains, and the mask bound."""
    module.double()
    with torch.no_grad():
        module.gain.uniform_(0.5, 2)
        module.bias.normal_()
        if mask is not None:
            module.weight.mul_(mask)
            module.bind_mask(mask)
    return module


def check_module(module, x):
    """Gradcheck over input, gain, bias and the ACTIVE weights; inactive ones stay 0, as they have to."""
    mask = torch.ones_like(module.weight) if module.mask is None else module.mask
    where = mask.bool()

    def function(x, active, gain, bias):
        weight = torch.zeros_like(mask).masked_scatter(where, active)
        return torch.func.functional_call(module, {"weight": weight, "gain": gain, "bias": bias}, (x,))

    active = module.weight.detach()[where].requires_grad_()
    inputs = (x, active, module.gain.detach().requires_grad_(), module.bias.detach().requires_grad_())
    return gradcheck(function, inputs)


def test_by_hand():
    weight = torch.tensor([[1.0, 3.0, 0.0, 5.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    # mu = 3, deviations -2, 0, 2, N var = 8.
    expected = torch.tensor([[-2.0, 0.0, 0.0, 2.0]]) * (0.5 * GAMMA_RELU / sqrt(8))
    torch.testing.assert_close(normalise(weight, torch.tensor([0.5]), mask, Normaliser()), expected)


def test_by_hand_without_centring():
    weight = torch.tensor([[1.0, 3.0, 0.0, 5.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    acting = normalise(weight, torch.ones(1), mask, Normaliser(gamma=2.0, centre=False))
    torch.testing.assert_close(acting, weight * 2 / sqrt(35))


def test_filters_are_centred_and_have_norm_gamma():
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 3, 3).double()
    mask = ragged_mask(weight.shape)
    acting = normalise(weight * mask, torch.ones(5).double(), mask, Normaliser()).flatten(1)
    assert (acting[mask.flatten(1) == 0] == 0).all()
    torch.testing.assert_close(acting[2:].sum(1), torch.zeros(3).double())
    torch.testing.assert_close(acting[2:].square().sum(1), torch.full((3,), GAMMA_RELU**2).double())


def test_fewer_than_two_active_weights_are_taken_as_they_are():
    weight = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.3, 0.0]])
    mask = (weight != 0).float()
    assert torch.equal(normalise(weight, torch.ones(2), mask, Normaliser()), weight)
    assert filter_means(weight, mask).tolist() == [0, 0]


def test_equal_weights_do_not_divide_by_zero():
    weight = torch.full((1, 4), 0.7)
    gain = torch.ones(1)
    filters = filters_of(weight, None, Normaliser())
    grad_theta, grad_gain = normalise_backward(torch.tensor([[1.0, 0, 0, 0]]), gain, None, filters)
    expected = torch.tensor([[0.75, -0.25, -0.25, -0.25]]) * (GAMMA_RELU / sqrt(EPSILON))
    torch.testing.assert_close(grad_theta, expected)
    assert grad_gain.item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_the_memory_order_does_not_matter(masked):
    torch.manual_seed(0)
    weight, gain, grad = torch.randn(5, 4, 3, 3).double(), torch.rand(5).double(), torch.randn(5, 4, 3, 3).double()
    mask = ragged_mask(weight.shape) if masked else None
    weight = weight if mask is None else weight * mask
    results = []
    for order in (torch.contiguous_format, torch.channels_last):
        theta = weight.contiguous(memory_format=order)
        acting = normalise(theta, gain, mask, Normaliser())
        assert acting.is_contiguous(memory_format=order)
        backward = normalise_backward(grad.clone(), gain, mask, filters_of(theta, mask, Normaliser()))
        results.append((acting, *backward))
    for contiguous, channels_last in zip(*results, strict=True):
        torch.testing.assert_close(channels_last, contiguous)


def test_filter_means():
    weight = torch.tensor([[1.0, 3.0, 0.0], [2.0, 4.0, 9.0]])
    assert filter_means(weight, torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])).tolist() == [2, 5]
    torch.testing.assert_close(filter_means(weight, None), torch.tensor([4 / 3, 5.0]))


def test_of_two_active_weights_only_the_gain_is_learned():
    layer = NSLinear(4, 2)
    layer.mask = torch.tensor([[1.0, 0, 1, 0], [1, 1, 1, 0]])
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, 0, -0.25, 0], [0.5, 0.25, -0.5, 0]]))
    layer(torch.randn(5, 4, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    assert layer.weight.grad[0, [0, 2]].abs().max() < 1e-4
    assert layer.weight.grad[1, :3].abs().min() > 0.1
    assert layer.gain.grad.abs().min() > 1e-3


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 3, "groups": 2},
        {"kernel_size": 3, "groups": 4, "dilation": 2, "padding": 2},
        {"kernel_size": 2, "padding": "same"},
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_gradcheck_of_the_convolution(geometry, centre, masked):
    torch.manual_seed(0)
    module = NSConv2d(4, 8, normaliser=Normaliser(centre=centre), **geometry)
    double(module, ragged_mask(module.weight.shape) if masked else None)
    assert check_module(module, torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck_of_the_linear_layer(masked):
    torch.manual_seed(0)
    module = NSLinear(6, 5)
    double(module, ragged_mask(module.weight.shape) if masked else None)
    assert check_module(module, torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True))


def test_inactive_weights_get_the_gradient_of_a_weight_without_effect():
    torch.manual_seed(0)
    weight, mask = torch.randn(1, 6).double(), torch.tensor([[1.0, 1, 1, 1, 0, 0]]).double()
    grad = torch.randn(1, 6).double()
    gain = torch.tensor([0.7]).double()
    mine, _ = normalise_backward(grad.clone(), gain, mask, filters_of(weight * mask, mask, Normaliser()))
    # The same filter with position 4 active at the others' mean: neither mu nor the scale changes.
    grown, grown_mask = (weight * mask).clone(), mask.clone()
    grown[0, 4], grown_mask[0, 4] = weight[0, :4].mean(), 1
    torch.testing.assert_close(
        normalise(grown, gain, grown_mask, Normaliser()), normalise(weight * mask, gain, mask, Normaliser())
    )
    scale = 0.7 * GAMMA_RELU / (weight[0, :4] - weight[0, :4].mean()).square().sum().sqrt()
    torch.testing.assert_close(mine[0, 4], scale * (grad[0, 4] - grad[0, :4].mean()))


def test_the_mask_that_is_bound_last_counts():
    module = NSConv2d(2, 2, 3)
    module.bind_mask(None)
    x = torch.randn(1, 2, 3, 3)
    before = module(x)
    mask = torch.ones(module.weight.shape, dtype=torch.bool)
    mask[0, 0] = False
    with torch.no_grad():
        module.weight.mul_(mask)
    module.bind_mask(mask)
    after = module(x)
    assert not torch.equal(before[0, 0], after[0, 0])
    assert torch.equal(before[0, 1], after[0, 1])
    torch.testing.assert_close(after, F.conv2d(x, normalise(module.weight, module.gain, mask, Normaliser())))


def test_mean_of_the_output_does_not_depend_on_the_mean_of_the_input():
    torch.manual_seed(0)
    module = NSConv2d(8, 16, 3)
    x = torch.randn(2, 8, 8, 8)
    torch.testing.assert_close(module(x), module(x + 5), atol=1e-4, rtol=1e-4)


def test_a_full_mask_and_none_are_the_same_to_the_bit():
    torch.manual_seed(0)
    module, x = NSConv2d(4, 8, 3), torch.randn(2, 4, 6, 6)

    def run(mask):
        module.zero_grad()
        module.bind_mask(mask)
        output = module(x)
        output.square().sum().backward()
        return [output, *(parameter.grad for parameter in module.parameters())]

    full = run(torch.ones(module.weight.shape, dtype=torch.bool))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(run(None), full, strict=True))


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9])
def test_with_activation_pruning_only_the_weights_gradients_change(ratio):
    torch.manual_seed(0)
    pruned = double(NSConv2d(4, 8, 3, padding=1, pruning=Pruning(ratio)))
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    output = pruned(x)
    grad = torch.randn_like(output)
    output.backward(grad)

    acting = normalise(pruned.weight.detach(), pruned.gain.detach(), None, Normaliser()).requires_grad_()
    exact_x = x.detach().clone().requires_grad_()
    F.conv2d(exact_x, acting, padding=1).backward(grad)
    torch.testing.assert_close(x.grad, exact_x.grad)
    torch.testing.assert_close(pruned.bias.grad, grad.sum((0, 2, 3)))

    acting.grad = None
    F.conv2d(restore(*keep(x.detach(), Pruning(ratio))), acting, padding=1).backward(grad)
    filters = filters_of(pruned.weight.detach(), None, Normaliser())
    expected = normalise_backward(acting.grad, pruned.gain.detach(), None, filters)
    torch.testing.assert_close((pruned.weight.grad, pruned.gain.grad), expected)


def test_keeps_the_pruned_input_and_what_exists_anyway():
    module = NSConv2d(4, 8, 3, pruning=Pruning(0.75))
    mask = torch.ones_like(module.weight)
    module.bind_mask(mask)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        module(torch.randn(2, 4, 8, 8))
    known = {tensor.data_ptr() for tensor in (*module.parameters(), mask, module.count)}
    assert sum(tensor.nbytes for tensor in saved if tensor.data_ptr() not in known) == 512 // 8 + 128 * 4


def test_nothing_is_kept_without_gradients(monkeypatch):
    monkeypatch.setattr("fedmef_dist.layers.nsconv.keep", lambda *_: pytest.fail("kept its input"))
    with torch.no_grad():
        NSConv2d(4, 8, 3, pruning=Pruning(0.5))(torch.randn(1, 4, 5, 5))


def test_autocast():
    module = NSConv2d(4, 8, 3, pruning=Pruning(0.5))
    with torch.autocast("cpu", torch.bfloat16):
        output = module(torch.randn(2, 4, 6, 6, requires_grad=True))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert module.weight.grad.dtype == torch.float32


def test_autocast_does_not_change_the_normalised_weight():
    theta, gain = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)), torch.ones(4)
    expected = normalise(theta, gain, None, Normaliser())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(normalise(theta, gain, None, Normaliser()), expected)


@pytest.mark.parametrize(("channels", "outputs", "groups"), [(256, 512, 1), (512, 512, 512), (256, 512, 2)])
def test_parts_of_a_large_weight_have_the_gradients_of_the_whole(channels, outputs, groups, monkeypatch):
    torch.manual_seed(0)
    module = NSConv2d(channels, outputs, 3, padding=1, groups=groups).to(memory_format=torch.channels_last)
    mask = (torch.rand_like(module.weight) < 0.3).contiguous(memory_format=torch.channels_last)
    module.weight.data *= mask
    module.bind_mask(mask)
    x = torch.randn(2, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    found = []
    for large in (1 << 18, 1 << 30):
        monkeypatch.setattr(operations, "LARGE", large)
        assert (Convolution((1, 1), (1, 1), (1, 1), groups).parts(x, module.weight) > 1) == (large == 1 << 18)
        source = x.clone(memory_format=torch.preserve_format).requires_grad_()
        module.zero_grad()
        module(source).square().sum().backward()
        found.append([source.grad, *(parameter.grad for parameter in module.parameters())])
    # The same bits on an AMD EPYC; oneDNN sums in another order on some other processors.
    for part, whole in zip(*found, strict=True):
        assert (part - whole).abs().max() <= 1e-5 * whole.abs().max()
