import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedmef_dist.layers.filters import GAMMA_RELU
from fedmef_dist.layers.nsconv import NSConv2d, NSLinear
from fedmef_dist.sparsity import Mask, ParameterSpace


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 2, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


@pytest.fixture
def space():
    return ParameterSpace(network(), ["0.weight"])


def test_prunable_weights_come_first_then_parameters_then_buffers(space):
    assert [piece.name for piece in space.slices] == [
        "0.weight", "1.weight", "1.bias", "3.weight", "3.bias", "1.running_mean", "1.running_var",
    ]  # fmt: skip
    assert (space.n_prunable, space.n_parameters, space.total) == (24, 24 + 6 + 26, 24 + 6 + 26 + 6)


def test_moving_a_model_changes_neither_its_output_nor_its_gradients():
    plain, moved = network(), network()
    space = ParameterSpace(moved, ["0.weight"])
    x, y = torch.randn(4, 2, 3, 3), torch.tensor([0, 1, 1, 0])
    for model in (plain, moved):
        F.cross_entropy(model(x), y).backward()
    torch.testing.assert_close(moved(x), plain(x))
    for (name, ours), theirs in zip(moved.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    piece = space.slices[0]
    torch.testing.assert_close(piece.view(space.gradient), plain[0].weight.grad)


def test_parameters_gradients_and_buffers_are_views_of_the_flat_vectors():
    model = network()
    space = ParameterSpace(model, ["0.weight"])
    space.load(torch.arange(space.total, dtype=torch.float32))
    assert model[3].bias.tolist() == [54, 55]
    assert model[1].running_mean.tolist() == [56, 57, 58]
    model[1].running_mean.fill_(-1)
    assert space.values[56:59].tolist() == [-1, -1, -1]
    model[0].weight.grad.fill_(2)
    assert space.gradient[:24].eq(2).all()


def test_a_convolution_is_channels_last_in_storage_order():
    model = network()
    space = ParameterSpace(model, ["0.weight"])
    space.load(torch.arange(space.total, dtype=torch.float32))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    # Filter 0: position (0, 0) of both input channels, then (0, 1), ...
    assert model[0].weight[0, :, 0, 0].tolist() == [0, 1]
    assert model[0].weight[0, :, 0, 1].tolist() == [2, 3]


def test_setting_a_mask_zeroes_weights_and_binds_layers():
    class Bound(nn.Conv2d):
        def bind_mask(self, mask):
            self.mask = mask

    model = nn.Sequential(Bound(1, 2, 2, bias=False), nn.Flatten(), nn.Linear(2, 2))
    space = ParameterSpace(model, ["0.weight"])
    active = torch.tensor([True, False, True, True, False, False, True, True])
    space.set_mask(Mask(active))
    assert (space.values[:8] != 0).tolist() == active.tolist()
    assert model[0].mask.shape == model[0].weight.shape
    assert model[0].mask.stride() == model[0].weight.stride()
    assert torch.equal(model[0].mask != 0, model[0].weight != 0)
    assert space.layer_counts() == [5]
    assert space.density == (5 + 6) / 14


def test_where_nothing_is_masked_there_is_no_mask(space):
    dense = sum(tensor.untyped_storage().nbytes() for tensor in space.tensors)
    assert dense == 4 * (space.total + space.n_parameters) + 1
    active = torch.ones(24, dtype=torch.bool)
    active[5] = False
    space.set_mask(Mask(active))
    assert sum(tensor.untyped_storage().nbytes() for tensor in space.tensors) == dense - 1 + 24
    vector = torch.ones(space.n_parameters)
    space.drop_inactive(vector)
    assert vector.nonzero().flatten().tolist() == [i for i in range(space.n_parameters) if i != 5]
    space.set_mask(Mask.full(24))
    space.drop_inactive(vector)
    assert vector.sum() == space.n_parameters - 1


def test_pack_and_unpack_are_inverse(space):
    active = torch.rand(24, generator=torch.Generator().manual_seed(1)) < 0.3
    space.set_mask(Mask(active))
    packed = space.pack(space.values)
    assert packed.numel() == space.packed_size() == int(active.sum()) + space.total - 24
    assert torch.equal(space.unpack(packed), space.values)


def test_only_depthwise_filters_have_a_floor():
    first, depthwise = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4)
    model = nn.Sequential(first, depthwise, nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Linear(8, 2))
    space = ParameterSpace(model, ["0.weight", "1.weight", "2.weight", "3.weight"])
    assert [layer.filter_floor for layer in space.layers] == [0, 2, 0, 0]


def test_a_layer_that_normalises_its_filters_names_their_gains():
    model = nn.Sequential(NSConv2d(2, 4, 3, groups=2), nn.Conv2d(4, 2, 1), nn.Flatten(), NSLinear(8, 3))
    space = ParameterSpace(model, ["0.weight", "1.weight", "3.weight"])
    convolution, plain, linear = space.layers
    for layer, module in ((convolution, model[0]), (linear, model[3])):
        module.gain.data.uniform_()
        gain = space.gain_of(layer)
        assert torch.equal(space.values[gain.start : gain.stop], module.gain)
        assert layer.gamma == GAMMA_RELU
    assert space.gain_of(plain) is None
    assert [layer.groups for layer in space.layers] == [2, 1, 1]
    assert [piece.gamma for piece in space.slices if not piece.name.endswith("weight")] == [None] * 5


@pytest.mark.parametrize(
    ("layer", "of_filter", "of_layer"),
    [
        (nn.Conv2d(3, 6, 3, groups=3), 2, 12),
        (nn.Conv2d(2, 2, 1, groups=2), 1, 2),  # of a single weight
        (nn.Conv2d(4, 4, 3, groups=2), 0, 1),
        (nn.Conv2d(1, 4, 3), 0, 1),
        (nn.Linear(1, 4), 0, 1),
    ],
)
def test_what_a_layer_and_its_filters_must_keep(layer, of_filter, of_layer):
    (piece,) = ParameterSpace(nn.Sequential(layer), ["0.weight"]).layers
    assert (piece.filter_floor, piece.floor) == (of_filter, of_layer)
