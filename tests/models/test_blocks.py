import pytest
import torch
from torch import nn

from fedmef_dist.layers.activation_pruning import LOSSLESS, SapSettings
from fedmef_dist.layers.recompute import RecomputedStages, recomputed_blocks, recomputed_parts
from fedmef_dist.models import ModelSettings, build_model
from fedmef_dist.models.blocks import find_blocks, find_chains


def build(name, recompute="blocks", enabled=True, shape=(3, 32, 32)):
    settings = ModelSettings(name=name, recompute=recompute, width=0.25 if name == "mobilenet_v2" else 1.0)
    sap = SapSettings(enabled=enabled, prune_ratio=0.0)
    norm = settings.stock_norm if name == "gpt" else "nsconv"
    return build_model(settings, sap, norm=norm, classes=10, shape=shape, seed=0)


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [("resnet18", 8, "layer1.0"), ("resnet8", 3, "stages.0"), ("mobilenet_v2", 17, "features.1")],
)
def test_residual_blocks(name, count, first):
    blocks = find_blocks(build(name, "none"))
    assert (len(blocks), blocks[0]) == (count, first)
    assert list(recomputed_blocks(build(name))) == blocks
    assert recomputed_blocks(build(name, "none")) == {}


def test_a_transformers_blocks():
    assert find_blocks(build("gpt", "none", shape=(16,))) == ["blocks.0", "blocks.1"]


def test_a_block_that_holds_a_sequence_with_two_layers_stays_whole():
    squeeze = nn.Sequential(nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1))

    class Inverted(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(4, 4, 1), squeeze)

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Inverted()), nn.Linear(4, 2))
    assert find_blocks(model) == ["1.0"]


def test_stages_of_a_plain_network():
    model = build("cnn")
    assert find_chains(build("cnn", "none")) == {"": [(0, 3), (3, 6)]}
    assert isinstance(model, RecomputedStages)
    assert list(recomputed_parts(model)) == ["conv1", "conv2"]
    assert list(model.state_dict()) == list(build("cnn", "none").state_dict())
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_inputs_are_packed_where_activations_are():
    assert {block.block_pruning for block in recomputed_blocks(build("resnet8")).values()} == {LOSSLESS}
    assert all(block.block_pruning.is_dense for block in recomputed_blocks(build("resnet8", enabled=False)).values())
