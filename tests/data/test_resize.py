from fractions import Fraction

import data_files
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.base.errors import UserError
from fedmef_dist.data import resize
from fedmef_dist.data.resize import area_average, resized, resized_shape
from fedmef_dist.data.shapes import Shape, shape_of
from fedmef_dist.data.sources import DataSettings, load_dataset


def settings(**keys):
    return DataSettings.model_validate(keys)


def test_the_mean_of_2_by_2_is_rounded_half_to_even():
    image = torch.tensor([[1, 2, 3, 3], [0, 3, 3, 5], [1, 0, 0, 0], [1, 0, 0, 1]], dtype=torch.uint8)
    # Means 6/4 = 1.5, 14/4 = 3.5, 2/4 = 0.5, 1/4.
    assert area_average(image.view(1, 1, 4, 4), 2).tolist() == [[[[2, 4], [0, 0]]]]


def test_pixels_that_lie_in_two_areas_count_in_part():
    image = torch.tensor([[10, 20, 30]] * 3, dtype=torch.uint8)
    # (10 + 20 / 2) / 1.5 = 13.33, (20 / 2 + 30) / 1.5 = 26.67
    assert area_average(image.view(1, 1, 3, 3), 2).tolist() == [[[[13, 27], [13, 27]]]]


def test_larger_images_repeat_their_pixels():
    image = torch.tensor([[1, 2], [3, 255]], dtype=torch.uint8)
    expected = image.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(area_average(image.view(1, 1, 2, 2), 4)[0, 0], expected)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_every_size_equals_the_mean_in_fractions(old, new, seed):
    image = data_files.pixels(2, 3, old, old, seed=seed)
    found = area_average(torch.from_numpy(image), new)
    assert found.is_contiguous(memory_format=torch.channels_last)
    cut = [[max(0, min((j + 1) * new, (i + 1) * old) - max(j * new, i * old)) for j in range(old)] for i in range(new)]
    for place in np.ndindex(2, 3, new, new):
        sample, channel, y, x = place
        weighted = sum(
            cut[y][h] * cut[x][w] * int(image[sample, channel, h, w]) for h in range(old) for w in range(old)
        )
        assert found[place].item() == round(Fraction(weighted, old * old))


@pytest.mark.parametrize(("old", "new"), [(4, 16), (16, 4)])
def test_as_much_is_worked_on_at_once_whether_images_grow_or_shrink(monkeypatch, old, new):
    monkeypatch.setattr(resize, "_CHUNK", 1000)
    worked_on, einsum = [], torch.einsum

    def watched(*operands):
        result = einsum(*operands)
        worked_on.append(max(operands[2].numel(), result.numel()))
        return result

    monkeypatch.setattr(torch, "einsum", watched)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, 3, old, old), dtype=np.uint8))
    assert area_average(images, new).shape == (10, 3, new, new)
    assert len(worked_on) > 1
    assert max(worked_on) <= 1000


def test_normalisation_and_border_are_those_of_the_new_images():
    data = load_dataset(settings(dataset="digits", resize=4), seed=0)
    assert data.train.images.shape == (1442, 1, 4, 4)
    assert data.pad == 0  # half a pixel of one
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx([pixels.mean().item()])
    assert data.std == pytest.approx([pixels.std(correction=0).item()])
    plain = load_dataset(settings(dataset="digits"), seed=0)
    assert torch.equal(data.train.labels, plain.train.labels)
    assert resized(plain, 8) is plain
    assert resized(plain, 16).pad == 2


def test_each_size_has_its_own_part_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    data_files.cifar10(tmp_path)
    for side in (None, 16, 8, 16):
        data = load_dataset(settings(dataset="cifar10", root=str(tmp_path), resize=side), seed=0)
        assert data.train.images.shape == (50, 3, side or 32, side or 32)
    assert len(list((tmp_path / ".fedmef_dist").iterdir())) == 3
    planes = data_files.pixels(3072, seed=0).reshape(3, 16, 2, 16, 2)
    assert torch.equal(data.train.images[0], torch.from_numpy(planes.mean((2, 4)).round().astype(np.uint8)))


def test_the_shape_is_known_without_the_images():
    assert shape_of(settings(dataset="fashion_mnist", resize=14)) == Shape((1, 14, 14), 10)


def test_text_and_oblong_images_are_refused(tmp_path):
    data_files.shakespeare(tmp_path)
    text = settings(dataset="shakespeare", root=str(tmp_path), resize=8)
    for ask in (lambda: load_dataset(text, seed=0), lambda: shape_of(text)):
        with pytest.raises(UserError, match=r"data\.resize is for images"):
            ask()
    with pytest.raises(UserError, match="square images, these have 4 x 6"):
        resized_shape((1, 4, 6), 2)
