"""A client's step with tensors that have no numbers: whatever asks for one, and would wait for a GPU, raises."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fedmef_dist.clients.client import Client
from fedmef_dist.clients.optimizer import MaskedSGD, OptimizerSettings
from fedmef_dist.layers.activation_pruning import SapSettings, forget_thresholds
from fedmef_dist.models import ModelSettings, build_model, prunable_weights
from fedmef_dist.sparsity import Mask, ParameterSpace

CASES = [
    ("resnet8", "nsconv", {"prune_ratio": 0.9}, "none"),
    ("resnet8", "nsconv", {"prune_ratio": 0.9, "scope": "sample"}, "none"),
    ("resnet8", "nsconv", {"prune_ratio": 0.5, "selection": "carried", "storage": "fp16"}, "none"),
    ("resnet8", "batch", {"prune_ratio": 0.5, "selection": "sampled"}, "none"),
    ("resnet8", "batch", {"prune_ratio": 0.0}, "blocks"),
    ("cnn", "none", {"prune_ratio": 0.0}, "none"),
    ("gpt", "layer", {"prune_ratio": 0.9}, "none"),
    ("gpt", "nsconv", {"prune_ratio": 0.0}, "blocks"),
]


@pytest.mark.parametrize(("name", "norm", "sap", "recompute"), CASES)
def test_nothing_in_a_step_asks_for_a_number(name, norm, sap, recompute):
    shape = (16,) if name == "gpt" else (3, 32, 32)
    settings = ModelSettings(name=name, width=0.25 if name != "gpt" else 1.0, recompute=recompute)
    with FakeTensorMode():
        model = build_model(settings, SapSettings(enabled=True, **sap), norm=norm, classes=10, shape=shape, seed=0)
        space = ParameterSpace(model, prunable_weights(model))
        mask = Mask(torch.ones(space.n_prunable, dtype=torch.bool), 1)
        mask.is_full = False  # known to whoever chose it
        space.set_mask(mask)
        model.train()
        client, sgd = Client(model, space, OptimizerSettings(), autocast=False), MaskedSGD(space, OptimizerSettings())
        if name == "gpt":
            batch = torch.randint(10, (4, *shape)), torch.randint(10, (4, *shape))
        else:
            batch = torch.randn(4, *shape).contiguous(memory_format=torch.channels_last), torch.randint(10, (4,))
        for _ in range(2):
            forget_thresholds(model.modules())
            space.gradient.zero_()
            client.loss(batch).backward()
            sgd.step(0.1)
