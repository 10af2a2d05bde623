"""Images of any size and number, drawn from the run's seed: for tests, benchmarks and scaling studies."""

import numpy as np
import torch
from pydantic import Field

from fedmef_dist.base.randomness import numpy_generator
from fedmef_dist.base.settings import Settings
from fedmef_dist.data.dataset import Dataset, Split


class SyntheticSettings(Settings):
    """How much to draw, and in which shape."""

    samples: int = Field(default=10_000, ge=1, le=10**12, description="training samples of all clients together")
    test_samples: int = Field(default=1_000, ge=1, le=10**12, description="test samples")
    classes: int = Field(default=10, ge=2, le=1 << 20, description="classes, equally frequent")
    channels: int = Field(default=3, ge=1, le=1 << 16, description="channels of an image")
    image_size: int = Field(default=32, ge=4, le=1 << 16, description="height and width in pixels")


def load_synthetic(settings: SyntheticSettings, seed: int) -> Dataset:
    """Each class is a pattern of coarse tiles; a sample is its class's pattern with as much uniform noise on top."""
    generator = numpy_generator(seed, "synthetic")
    patterns = _patterns(settings, generator)
    train, test = (_split(patterns, count, generator) for count in (settings.samples, settings.test_samples))
    mean, std = (0.5,) * settings.channels, (0.2,) * settings.channels
    pad = settings.image_size // 8
    return Dataset("synthetic", train, test, settings.classes, mean, std, pad=pad, flip=False)


def _patterns(settings: SyntheticSettings, generator: np.random.Generator) -> np.ndarray:
    """One pattern a class, uint8 (classes, H, W, C) with values below 128; a quarter of the side is one tile."""
    tiles = generator.integers(0, 128, (settings.classes, 4, 4, settings.channels), dtype=np.uint8)
    position = np.arange(settings.image_size) * 4 // settings.image_size
    return tiles[:, position[:, None], position[None, :]]


def _split(patterns: np.ndarray, count: int, generator: np.random.Generator) -> Split:
    labels = generator.permutation(np.arange(count, dtype=np.int64) % len(patterns))
    images = generator.integers(0, 128, (count, *patterns.shape[1:]), dtype=np.uint8)
    images += patterns[labels]
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels))
