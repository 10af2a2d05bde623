import pytest
import torch
from torch import nn

from fedmef_dist.clients.client import Client
from fedmef_dist.clients.optimizer import OptimizerSettings
from fedmef_dist.devices.training_step import TrainingStep
from fedmef_dist.layers import model_filters
from fedmef_dist.layers.nsconv import NSConv2d
from fedmef_dist.sparsity import Mask, ParameterSpace

WEIGHTS = 64 * 100
PARAMETERS = WEIGHTS + 64 + 640 + 10


def training_step(**optimizer):
    model = nn.Sequential(nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 10))
    space = ParameterSpace(model, ["0.weight"])
    active = torch.zeros(WEIGHTS, dtype=torch.bool)
    active[::2] = True
    space.set_mask(Mask(active))
    batch = torch.randn(8, 100), torch.zeros(8, dtype=torch.int64)
    return TrainingStep(model, space, OptimizerSettings(lr=0.1, **optimizer), batch, autocast=False)


def test_memory_by_hand():
    memory = training_step().measure()
    # Input, hidden layer, logarithms of the probabilities, labels, sum of their weights.
    assert memory.activation_bytes == 4 * 8 * (100 + 64 + 10) + 8 * 8 + 4
    assert memory.state_bytes == 4 * PARAMETERS + WEIGHTS
    # The input was there before. At the least a layer's gradient is there twice, before it is added up.
    assert memory.peak_bytes > memory.state_bytes + memory.activation_bytes - 4 * 8 * 100


def test_momentum_and_origin_are_state():
    state = training_step().measure().state_bytes
    assert training_step(momentum=0.9).measure().state_bytes == state + 4 * PARAMETERS
    assert training_step(name="adam").measure().state_bytes == state + 8 * PARAMETERS
    assert training_step(momentum=0.9, prox_mu=0.1).measure().state_bytes == state + 8 * PARAMETERS


def test_a_step_trains_and_keeps_to_the_mask():
    step = training_step()
    before = step.space.values.clone()
    assert step.seconds() > 0
    assert not torch.equal(step.space.values, before)
    assert not step.space.values[:WEIGHTS][1::2].any()


def test_a_step_that_is_held_still_changes_no_weight():
    step = training_step(momentum=0.9)
    step.hold_still()
    before = step.space.values.clone()
    step.measure()
    assert torch.equal(step.space.values, before)


def test_each_layer_normalises_its_filters_as_on_a_device(monkeypatch):
    def together(*_):
        raise AssertionError("all filters at once")

    monkeypatch.setattr(model_filters, "has_triton", lambda _: True)
    monkeypatch.setattr(model_filters._Together, "apply", together)
    model = nn.Sequential(NSConv2d(1, 2, 3), nn.Flatten())
    space = ParameterSpace(model, ["0.weight"])
    batch = torch.randn(4, 1, 3, 3), torch.zeros(4, dtype=torch.int64)
    TrainingStep(model, space, OptimizerSettings(lr=0.1), batch, autocast=False).seconds()
    with pytest.raises(AssertionError, match="at once"):
        Client(model, space, OptimizerSettings(lr=0.1), autocast=False).loss(batch)
