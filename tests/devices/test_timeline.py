import torch
from torch import nn

from fedmef_dist.devices.memory import measure_step
from fedmef_dist.devices.timeline import trace_step

SIZE = 4 * 1000 * 250


def traced(model, x):
    def forward():
        return model(x).sum()

    memory = measure_step(model, forward)
    names = [name for name, _ in model.named_modules() if name]
    return memory, trace_step(model, names, forward, lambda: None)


def test_by_hand():
    model = nn.Sequential(nn.Tanh(), nn.Tanh())
    memory, segments = traced(model, torch.randn(1000, 250, requires_grad=True))
    assert [segment.owner for segment in segments] == [None, "0", "1", "1", "0", None]
    forward = [segment.peak // SIZE for segment in segments[:3]]
    assert forward == [0, 1, 2]  # both outputs are kept
    assert max(segment.peak for segment in segments) == memory.peak_bytes - memory.state_bytes


def test_what_a_module_hands_on_belongs_to_the_one_that_made_it():
    model = nn.Sequential(nn.Sequential(nn.Linear(250, 250), nn.ReLU(inplace=True)), nn.Tanh())
    _, segments = traced(model, torch.randn(10, 250))
    assert [segment.owner for segment in segments] == [None, "0", "0.0", "0.1", "1", "1", "0.1", "0.0", None]
