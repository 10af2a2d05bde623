"""A model of one's own: any network of torch's layers; normalisation and lean layers come as with torchvision's."""

from torch import nn


def build(*, classes: int, shape: tuple[int, ...], width: int = 8) -> nn.Module:
    """Two convolutions with batch normalisation, which norm nsconv replaces, and the output layer."""
    channels, _, _ = shape
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )
