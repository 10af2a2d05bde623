import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedmef_dist.costs.flops import FlopsLedger, layer_flops
from fedmef_dist.layers.pruning import SapSettings
from fedmef_dist.models import ModelSettings, build_model
from fedmef_dist.sparsity import ParameterSpace


@pytest.mark.parametrize("name", ["cnn", "resnet8", "resnet18", "mobilenet_v2"])
def test_dense_forward_flops_equal_torchs_counter(name):
    sap = SapSettings(enabled=False)
    model = build_model(ModelSettings(name=name), sap, norm="batch", classes=10, shape=(3, 32, 32), seed=0).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert (
        sum(flops for flops, _ in layer_flops(model, torch.zeros(1, 3, 32, 32)).values()) == counter.get_total_flops()
    )


def test_a_round_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(32, 4))
    space = ParameterSpace(model, ["0.weight"])
    ledger = FlopsLedger(model, space, torch.zeros(1, 1, 4, 4), prunes_activations=False)
    # Convolution: 2 * 16 positions * 18 weights = 576; linear: 2 * 128 = 256.
    assert ledger.dense == 832
    assert ledger.forward([9]) == 288 + 256
    assert ledger.round([9], samples=10, steps=2, gradient_samples=3) == 3 * 544 * 10 + 2 * 832 * 3
