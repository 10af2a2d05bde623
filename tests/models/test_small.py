import pytest
import torch
from torch import nn

from fedmef_dist.models import small


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_cnn_has_the_published_size():
    # 5*5*32 + 32, 5*5*32*64 + 64, 7*7*64*512 + 512, 512*10 + 10
    assert parameters(small.cnn(10, 1, (28, 28), 1.0, 512)) == 832 + 51264 + 1606144 + 5130


def test_thin_cnn_without_hidden_layer():
    # 5*5*8 + 8, 5*5*8*16 + 16, 7*7*16*10 + 10
    assert parameters(small.cnn(10, 1, (28, 28), 0.25, 0)) == 208 + 3216 + 7850


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (9, 9), (28, 28), (32, 32), (28, 20), (5, 16)])
def test_cnn_takes_any_image_size(size):
    model = small.cnn(7, 3, size, 0.25, 16)
    assert model(torch.zeros(2, 3, *size)).shape == (2, 7)


@pytest.mark.parametrize(("blocks", "weighted"), [(1, 8), (3, 20)])
def test_resnets_depth(blocks, weighted):
    model = small.SmallResNet(blocks, 10, 3, 0.25)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == weighted
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_resnet20_has_the_published_size():
    assert parameters(small.SmallResNet(3, 10, 3, 1.0)) == pytest.approx(0.27e6, rel=0.01)


def test_shortcut_takes_every_second_pixel_and_pads_channels():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    output = small._Shortcut(3, 2)(x)
    assert output[0, 1].tolist() == [[0, 2], [8, 10]]
    assert output[0, 0].abs().sum() == output[0, 2].abs().sum() == 0


def test_initialisation_keeps_the_variance_of_relu_networks():
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 64, 3)
    small.initialise(layer)
    assert layer.weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.02)
    assert not layer.bias.any()
