"""Turns, counts and one adjustment of a block worked out by hand.

Layers 0 (2 filters of 6 weights) and 1 (2 of 2), both with half of their weights active: 6 and 2. Every round adjusts,
until round 4, with the rate 0.8: the shares of rounds 1, 2, 3 are 0.4 * (1 + cos(pi / 4)) = 0.6828, 0.4, 0.1172.
Layer 1 begins: floor(0.6828 * 2) = 1. Then layer 0: floor(0.4 * 6) = 2.

Active weights:   position  0    2     3    6    9     11   | 12   15
                  value     0.5 -0.1   0.9  0.2 -0.7   0.05 | 0.3 -0.2
"""

import pytest
import torch
from made_methods import Seeded, adjust, gradients, preparation_for, server_for, vector
from torch import nn

from fedmef_dist.layers.nsconv import NSConv2d
from fedmef_dist.methods.base import MethodContext
from fedmef_dist.methods.fedtiny import FedTiny, FedTinySettings, block_of, turns
from fedmef_dist.sparsity import Mask, ParameterSpace

WEIGHTS = {0: 0.5, 2: -0.1, 3: 0.9, 6: 0.2, 9: -0.7, 11: 0.05, 12: 0.3, 15: -0.2}
GRADIENT = {0: 5.0, 1: 0.3, 4: -0.9, 5: 0.2, 7: 0.8, 10: 0.1, 11: -5.0, 13: 0.1, 14: -0.4}


@pytest.fixture
def example():
    model = nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    space = ParameterSpace(model, ["0.weight", "1.weight"])
    settings = FedTinySettings(density=0.6, adjust_every=1, adjust_until=4, adjust_rate=0.8, granularity="layer")
    method = FedTiny(settings, space, MethodContext())
    space.values[:16] = vector(WEIGHTS, 16)
    server = server_for(method)
    server.start(space.values, vector(WEIGHTS, 16) != 0)
    return space, method, server


def test_one_layer_has_its_turn(example):
    _, method, server = example
    assert [method.plan(number, server.values).swap_counts for number in (1, 2, 3)] == [[0, 1], [2, 0], [0, 0]]
    plan = method.plan(2, server.values)
    assert [list(collection.counts) for collection in plan.collections] == [[2, 0]]
    assert plan.work.gradient_batches == 1
    assert not method.plan(4, server.values).adjusts


def test_prune_and_grow_inside_the_layer(example):
    space, method, server = example
    adjust(server, method.plan(2, server.values), gradients(vector(GRADIENT, 16)))
    # 2 and 11 are the smallest of layer 0; 4 and 7 have its largest gradients. Layer 1 is as it was.
    assert space.mask.index.tolist() == [0, 3, 4, 6, 7, 9, 12, 15]
    assert server.values[:16].tolist() == vector({0: 0.5, 3: 0.9, 6: 0.2, 9: -0.7, 12: 0.3, 15: -0.2}, 16).tolist()
    adjust(server, method.plan(1, server.values), gradients(vector(GRADIENT, 16)))
    assert space.mask.index.tolist() == [0, 3, 4, 6, 7, 9, 12, 14]


def test_clients_send_gradients_of_that_layer_only(example):
    _, method, server = example
    upload = method.plan(2, server.values).work.uploads(vector(GRADIENT, 16))["gradient"]
    assert upload.positions.tolist() == [4, 7]
    torch.testing.assert_close(upload.values, torch.tensor([-0.9, 0.8]))


@pytest.mark.parametrize(
    ("layer", "block"),
    [
        ("conv1.weight", "conv1"),
        ("layer2.0.conv2.weight", "layer2.0"),
        ("layer2.0.downsample.0.weight", "layer2.0"),
        ("stages.1.conv1.weight", "stages.1"),
        ("features.0.0.weight", "features.0"),
        ("features.3.conv.1.0.weight", "features.3"),
        ("features.2.1.block.3.0.weight", "features.2.1"),
        ("features.18.0.weight", "features.18"),
        ("classifier.3.weight", "classifier.3"),
        ("blocks.1.attention.in_proj.weight", "blocks.1"),
        ("encoder.layers.encoder_layer_11.mlp.3.weight", "encoder.layers.encoder_layer_11"),
        ("features.denseblock2.denselayer6.conv1.weight", "features.denseblock2"),
    ],
)
def test_blocks_of_known_networks(layer, block):
    assert block_of(layer, "block") == block
    assert block_of(layer, "layer") == layer.removesuffix(".weight")
    assert block_of(layer, "entire") == ""


def test_turns_go_from_output_to_input_and_come_round():
    layers = ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight", "layer1.1.conv1.weight"]
    assert turns(layers, "block") == [{3}, {1, 2}, {0}]
    assert turns(layers, "layer") == [{3}, {2}, {1}, {0}]
    assert turns(layers, "entire") == [{0, 1, 2, 3}]


def convolutions(**settings):
    torch.manual_seed(0)
    model = nn.Sequential(
        NSConv2d(3, 8, 3, padding=1), nn.ReLU(), NSConv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 36, 4)
    )
    space = ParameterSpace(model, ["0.weight", "2.weight"])
    options = {"density": 0.95, "adjust_every": 1, "adjust_until": 100} | settings
    return model, space, FedTiny(FedTinySettings(**options), space, MethodContext())


@pytest.mark.parametrize("granularity", ["block", "entire"])
def test_every_adjustment_keeps_every_layers_count_and_every_filters_floor(granularity):
    model, space, method = convolutions(granularity=granularity)
    server = server_for(method)
    data = torch.randn(6, 3, 8, 8), torch.arange(6) % 4
    preparation = preparation_for(model, space, [data])
    server.start(preparation.values, method.initial_mask(preparation))
    counts, masks = space.layer_counts(), {space.mask.digest}
    assert sum(counts) == sum(method.counts)
    for number in range(1, 40):
        plan = method.plan(number, server.values)
        server.values = server.values + torch.randn(space.total) * 0.1
        server.values[: space.n_prunable] *= space.mask.active
        adjust(server, plan, gradients(torch.randn(space.n_prunable)))
        assert space.layer_counts() == counts
        assert space.mask.active[space.layers[1].start :].view(8, 9).sum(1).min() >= 2
        assert not server.values[: space.n_prunable][~space.mask.active].any()
        masks.add(space.mask.digest)
    assert len(masks) > 15


def test_one_candidate_is_the_allocation_itself_and_asks_nobody():
    _, space, method = convolutions(candidates=1)
    active = method.initial_mask(Seeded(0, space.values))
    assert space.layer_counts(Mask(active)) == method.counts
    kept = space.values[:216][active[:216]].abs().min()
    assert (space.values[:216][~active[:216]].abs() <= kept).all()


def test_at_density_1_nothing_is_swapped():
    _, space, method = convolutions(density=1.0, candidates=1)
    assert method.initial_mask(Seeded(0, space.values)).all()
    assert method.plan(1, space.values).swap_counts == [0, 0]
