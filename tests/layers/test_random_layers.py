import pytest
import torch
from torch import nn

from fedmef_dist.layers.random import ChannelDropout, Dropout, StochasticDepth, set_generator


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_dropout_scales_what_it_keeps_and_passes_the_gradient_there():
    layer = Dropout(0.75)
    set_generator(layer, generator())
    x = torch.ones(40, 50, requires_grad=True)
    output = layer(x)
    output.sum().backward()
    assert set(output.unique().tolist()) == {0.0, 4.0}
    assert torch.equal(x.grad, output)
    assert output.mean().item() == pytest.approx(1, abs=0.15)


def test_dropout_keeps_one_bit_an_element():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        Dropout(0.5)(torch.ones(10, 10, requires_grad=True))
    assert [tensor.nbytes for tensor in saved] == [13]


@pytest.mark.parametrize("layer", [Dropout(0.5), ChannelDropout(0.5), StochasticDepth(0.5, "row"), Dropout(0.0)])
def test_the_identity_in_evaluation_mode_and_at_0(layer):
    x = torch.ones(3, 4)
    if layer.p:
        layer.eval()
    assert layer(x) is x


def test_everything_dropped():
    x = torch.ones(3, 4)
    assert Dropout(1.0)(x).tolist() == [[0] * 4] * 3
    assert ChannelDropout(1.0)(x).tolist() == [[0] * 4] * 3
    assert StochasticDepth(1.0, "batch")(x).tolist() == [[0] * 4] * 3


def test_draws_come_from_the_given_generator_alone():
    model = nn.Sequential(Dropout(0.5), ChannelDropout(0.5), StochasticDepth(0.5, "row"))
    x = torch.ones(64, 8)
    state = torch.random.get_rng_state()
    outputs = []
    for seed in (1, 2, 1):
        set_generator(model, generator(seed))
        outputs.append(model(x))
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[1])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(30, 20), (30, 20, 3), (30, 20, 3, 2)])
def test_whole_channels_are_dropped(shape):
    layer, x = ChannelDropout(0.75), torch.ones(shape, requires_grad=True)
    set_generator(layer, generator())
    output = layer(x)
    output.sum().backward()
    channels = output.detach().view(600, -1)
    assert (channels == channels[:, :1]).all()
    assert set(channels.unique().tolist()) == {0.0, 4.0}
    assert channels.mean().item() == pytest.approx(1, abs=0.2)
    assert torch.equal(x.grad, output)


def test_stochastic_depth_drops_rows_or_the_batch():
    x = torch.ones(200, 3, requires_grad=True)
    rows = StochasticDepth(0.5, "row")
    output = rows(x)
    assert set(map(tuple, output.tolist())) == {(0, 0, 0), (2, 2, 2)}
    output.sum().backward()
    assert torch.equal(x.grad, output)
    batch = StochasticDepth(0.5, "batch")
    assert {tuple(batch(torch.ones(2, 1)).flatten().tolist()) for _ in range(40)} == {(0, 0), (2, 2)}
