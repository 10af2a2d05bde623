import pytest
import torch
from torch import nn

from fedmef_dist.layers.batchnorm import BatchNorm1d, BatchNorm2d, GroupNorm, normalise_by_batch, repeating


def test_one_value_a_channel_uses_the_running_statistics():
    layer = BatchNorm2d(2, eps=1e-30)
    layer.running_mean.copy_(torch.tensor([1.0, 2.0]))
    layer.running_var.copy_(torch.tensor([4.0, 1.0]))
    assert layer(torch.tensor([5.0, 5.0]).view(1, 2, 1, 1)).flatten().tolist() == [2, 3]
    assert layer.running_mean.tolist() == [1, 2]


@pytest.mark.parametrize("shape", [(1, 2), (1, 2, 1)])
def test_so_it_is_of_a_single_sample_without_pixels(shape):
    layer = BatchNorm1d(2, eps=1e-30)
    layer.running_mean.copy_(torch.tensor([1.0, 2.0]))
    assert layer(torch.tensor([5.0, 5.0]).view(shape)).flatten().tolist() == [4, 3]
    assert layer.running_mean.tolist() == [1, 2]


def test_a_pass_that_is_computed_again_leaves_the_running_statistics():
    stock, ours, x = nn.BatchNorm1d(3), BatchNorm1d(3), torch.randn(4, 3)
    first = ours(x)
    with repeating():
        assert torch.equal(ours(x), first)
    assert torch.equal(first, stock(x))
    for name, buffer in stock.named_buffers():
        assert torch.equal(ours.get_buffer(name), buffer)


def test_a_group_of_one_value_is_normalised_in_a_batch_of_one_as_in_any_other():
    stock, ours = nn.GroupNorm(8, 8), GroupNorm(8, 8)
    nn.init.normal_(stock.bias)
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(2, 8, 1, 1)
    assert torch.equal(ours(x), stock(x))
    assert torch.equal(ours(x[:1]), stock(x)[:1])
    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(ours(x), stock(x))


def test_otherwise_it_is_the_stock_layer():
    stock, ours = nn.BatchNorm2d(3), BatchNorm2d(3)
    x = torch.randn(2, 3, 1, 1)
    assert torch.equal(ours(x), stock(x))
    assert torch.equal(ours.running_var, stock.running_var)
    assert torch.equal(ours.eval()(x), stock.eval()(x))


def test_normalise_by_batch_leaves_all_else_in_evaluation_mode():
    model = nn.Sequential(nn.Dropout(1.0), BatchNorm2d(1))
    assert normalise_by_batch(model.train()) == [model[1]]
    found = model(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)).flatten()
    torch.testing.assert_close(found, torch.tensor([-1.0, 1.0]), rtol=0, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_anywhere_in_the_flat_vector_runs_on_a_gpu(training, momentum):
    stock, ours = nn.BatchNorm2d(32, momentum=momentum).cuda(), BatchNorm2d(32, momentum=momentum).cuda()
    flat = torch.zeros(4 * 32 + 2, device="cuda")
    for at, name in enumerate(("weight", "bias", "running_mean", "running_var")):
        tensor = getattr(ours, name)
        view = flat[2 + 32 * at : 2 + 32 * (at + 1)].copy_(tensor.detach())
        tensor.data = view
    assert not ours._fits_cudnn()
    x = torch.randn(8, 32, 4, 4, device="cuda").to(memory_format=torch.channels_last)
    results = []
    for layer in (stock, ours):
        y = layer.train(training)(x)
        y.square().sum().backward()
        results.append((y, layer.weight.grad, layer.running_mean, layer.running_var))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("momentum", [None, 0.3])
def test_past_cudnn_the_running_statistics_are_those_of_the_stock_layer(monkeypatch, momentum):
    stock, ours, past = nn.BatchNorm2d(3, momentum=momentum), BatchNorm2d(3, momentum=momentum), []
    native = torch.native_batch_norm
    monkeypatch.setattr(BatchNorm2d, "_avoids_cudnn", lambda layer, x: True)
    monkeypatch.setattr(torch, "native_batch_norm", lambda *given: past.append(given) or native(*given))
    for x in torch.randn(3, 4, 3, 2, 2):
        torch.testing.assert_close(ours(x), stock(x))
    torch.testing.assert_close(ours.eval()(x), stock.eval()(x))
    assert len(past) == 4
    for name, buffer in stock.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer)


def test_cudnn_gets_no_vector_that_begins_between_16_bytes():
    layer = BatchNorm2d(4)
    assert layer._fits_cudnn()
    layer.running_mean = torch.zeros(6)[2:]
    assert not layer._fits_cudnn()
