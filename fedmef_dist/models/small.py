"""Small networks of our own for small images."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def scaled(filters: int, width: float) -> int:
    """A number of filters times the width, at least 1."""
    return max(1, round(filters * width))


def cnn(classes: int, channels: int, size: tuple[int, int], width: float, hidden: int) -> nn.Sequential:
    """Two 5x5 convolutions with max-pooling, a hidden layer and the output (McMahan et al. 2017, arXiv 1602.05629).

    Args:
        classes: outputs.
        channels: channels of the images.
        size: height and width of the images in pixels, at least 4 each.
        width: factor on the 32 and 64 filters.
        hidden: neurons of the hidden layer; 0 leaves it out.
    """
    first, second = scaled(32, width), scaled(64, width)
    features = second * (size[0] // 4) * (size[1] // 4)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, first, 5, padding=2),
        relu1=nn.ReLU(inplace=True),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(first, second, 5, padding=2),
        relu2=nn.ReLU(inplace=True),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
    )
    if hidden:
        layers |= {"hidden": nn.Linear(features, hidden), "relu3": nn.ReLU(inplace=True)}
    layers["output"] = nn.Linear(hidden or features, classes)
    return nn.Sequential(layers)


class _Shortcut(nn.Module):
    """Every second pixel, and zeros for the channels that the input lacks: a shortcut without parameters."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        missing = self.channels - x.shape[1]
        return F.pad(x, (0, 0, 0, 0, missing // 2, missing - missing // 2)) if missing else x


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = _Shortcut(outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        residual += self.shortcut(x)
        return self.relu(residual)


class SmallResNet(nn.Module):
    """The residual network for 32x32 images (He et al. 2016, arXiv 1512.03385, section 4.2), 6n + 2 layers deep.

    Args:
        blocks: residual blocks in each of the three stages, n.
        classes: outputs.
        channels: channels of the images.
        width: factor on the stages' 16, 32 and 64 filters.
    """

    def __init__(self, blocks: int, classes: int, channels: int, width: float) -> None:
        super().__init__()
        stages = [scaled(filters, width) for filters in (16, 32, 64)]
        self.conv1 = nn.Conv2d(channels, stages[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stages[0])
        self.relu = nn.ReLU(inplace=True)
        inputs = [stages[0], *stages[:-1]]
        self.stages = nn.Sequential(
            *(
                _Block(before if block == 0 else after, after, 2 if stage and block == 0 else 1)
                for stage, (before, after) in enumerate(zip(inputs, stages, strict=True))
                for block in range(blocks)
            )
        )
        self.fc = nn.Linear(stages[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, channels, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        for block in self.stages:  # a call of the sequence would hold its input until all blocks are done
            x = block(x)
        return self.fc(x.mean((2, 3)))


def initialise(model: nn.Module) -> None:
    """Draws weights from torch's current generator as He et al. (2015, arXiv 1502.01852) do for ReLU; biases are 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
