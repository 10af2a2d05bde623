"""Data sets made of arrays."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.guests import Kind, lent
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.digest import sample_hashes
from fedmef_dist.data.from_arrays import image_dataset
from fedmef_dist.data.shapes import Shape, shape_of
from fedmef_dist.data.sources import DataSettings, load_dataset
from fedmef_dist.data.text import text_dataset


def pixels(*shape):
    return (np.arange(np.prod(shape)) % 256).astype(np.uint8).reshape(shape)


def made(images, labels=None, **options):
    labels = np.arange(len(images)) % 2 if labels is None else labels
    return image_dataset("mine", (images, labels), (images[:2], labels[:2]), **options)


def test_grey_images_get_one_channel():
    dataset = made(pixels(4, 5, 6))
    assert dataset.shape == (1, 5, 6)
    assert torch.equal(dataset.train.images[:, 0], torch.from_numpy(pixels(4, 5, 6)))
    assert dataset.train.labels.tolist() == [0, 1, 0, 1]
    assert (dataset.classes, dataset.pad, dataset.flip, dataset.owners) == (2, 0, False, None)


@given(st.integers(1, 4), st.integers(5, 7), st.integers(5, 7))
def test_channels_are_found_second_or_last(channels, height, width):
    last = pixels(3, height, width, channels)
    first = np.ascontiguousarray(last.transpose(0, 3, 1, 2))
    for images in (last, first, torch.from_numpy(first), first.tolist() and torch.from_numpy(last)):
        dataset = made(images)
        assert dataset.shape == (channels, height, width)
        assert np.array_equal(dataset.train.images.numpy(), first)
        assert dataset.train.images.permute(0, 2, 3, 1).is_contiguous()


def test_where_it_cannot_be_told_the_layout_must_be_said():
    for shape in ((2, 3, 8, 3), (2, 8, 8, 8)):
        with pytest.raises(UserError, match="which size is the channels"):
            made(pixels(*shape))
    assert made(pixels(2, 3, 8, 3), layout="NCHW").shape == (3, 8, 3)
    assert made(pixels(2, 3, 8, 3), layout="NHWC").shape == (3, 3, 8)


def test_floats_in_0_to_1_are_scaled_and_rounded():
    images = np.array([[[0.0, 1.0], [0.5, 0.0019]]] * 2, dtype=np.float32)
    assert made(images).train.images[0, 0].tolist() == [[0, 255], [128, 0]]
    for wrong in (images * 255, images - 0.1, images * np.nan):
        with pytest.raises(UserError, match=r"floating point images lie in \[0, 1\]"):
            made(wrong)


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.bool_, np.uint16, object])
def test_other_types_are_refused(kind):
    with pytest.raises(UserError, match="images are uint8, or floating point") as caught:
        made(pixels(2, 5, 5).astype(kind))
    assert caught.value.where == "data set mine, train"


@pytest.mark.parametrize(
    ("labels", "options", "what"),
    [
        ([0, 1, 0], {}, "labels are whole numbers, one for each of 4 images"),
        ([0.0, 1.0, 0.0, 1.0], {}, "labels are whole numbers"),
        ([0, 1, 0, -1], {}, "labels count from 0; found -1"),
        (np.array([0, 1, 0, 2**64 - 1], np.uint64), {}, "counted from 0; found 18446744073709551615"),
        ([0, 1, 0, 5], {"classes": 5}, "5 classes, but a label is 5"),
        (None, {"owners": [1, 2, 3]}, r"a number or a word for each of 4 samples; found int64 \(3,\)"),
        (None, {"owners": [0.5] * 4}, "a number or a word"),
        (None, {"owners": [1] * 4, "test_owners": ["a", "b"]}, "numbers in one and words in the other"),
        (None, {"mean": (0.1, 0.2)}, "a number for each of 1 channels"),
        (None, {"std": (0.0,)}, "a number above 0, for each of 1 channels"),
    ],
)
def test_what_does_not_fit_is_refused_by_argument(labels, options, what):
    with pytest.raises(UserError, match=what):
        made(pixels(4, 5, 5), labels, **options)


def test_splits_must_have_images_of_one_shape():
    with pytest.raises(UserError, match=r"different shapes \(C, H, W\): \(1, 5, 5\) and \(1, 6, 6\)"):
        image_dataset("mine", (pixels(2, 5, 5), [0, 1]), (pixels(2, 6, 6), [0, 1]))
    with pytest.raises(UserError, match=r"found \(2, 5\)"):
        made(pixels(2, 5))


def test_owners_are_numbered_by_name_over_both_splits():
    dataset = made(pixels(4, 5, 5), owners=["kim", "ada", "kim", "zoe"], test_owners=["eve", "ada"])
    assert dataset.owners.tolist() == [2, 0, 2, 3]  # ada, eve, kim, zoe
    assert dataset.test_owners.tolist() == [1, 0]
    assert made(pixels(4, 5, 5), owners=[10**12, 7, 7, 10**12]).owners.tolist() == [1, 0, 0, 1]


def test_mean_and_deviation_are_those_of_the_training_images_unless_given():
    images = np.zeros((2, 2, 2), np.uint8)
    images[0] = 255
    dataset = made(images)
    assert dataset.mean == pytest.approx((0.5,))
    assert dataset.std == pytest.approx((0.5,))
    assert (made(images, mean=[0.25]).mean, made(images, std=[2]).std) == ((0.25,), (2.0,))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"mean": [float("nan")]}, "a number for each of 1 channels; found"),
        ({"mean": 0.5}, "a number for each of 1 channels; found 0.5"),
        ({"std": [float("inf")]}, "a number above 0, for each of 1 channels"),
        ({"std": [0.0]}, "a number above 0, for each of 1 channels"),
        ({"pad": -2}, "pixels are a whole number, 0 to 1024; found -2"),
        ({"pad": 1.5}, "pixels are a whole number"),
        ({"classes": 4.5}, r"a whole number, or None; found 4\.5"),
        ({"layout": "HWC"}, "one of auto, NHWC, NCHW; found 'HWC'"),
        ({"labels": np.array([0, 1, 0, 10**12])}, "labels are numbers of classes, counted from 0; found 1000000000000"),
    ],
)
def test_what_is_no_array_is_looked_at_too(options, what):
    with pytest.raises(UserError, match=what):
        made(pixels(4, 5, 5), **options)


def test_images_without_pixels_are_refused():
    with pytest.raises(UserError, match=r"images without pixels: \(4, 0, 5\)"):
        made(np.zeros((4, 0, 5), np.uint8))


@pytest.mark.parametrize("context", [0, -1, 2.0])
def test_text_without_a_context_is_refused(context):
    with pytest.raises(UserError, match="a context is a whole number of characters, 1 or more"):
        text_dataset("t", ["abcabc"], ["abc"], context, owned=True)


@pytest.mark.parametrize("train", [[], ["", ""]])
def test_a_data_set_without_training_text_is_refused(train):
    with pytest.raises(UserError, match="there is no training text"):
        text_dataset("t", train, ["abc"], 2, owned=True)


def test_arrays_that_may_not_be_written_to_are_taken_too(recwarn):
    images = pixels(4, 5, 5)
    images.flags.writeable = False
    assert made(images).train.images.shape == (4, 1, 5, 5)
    assert not recwarn.list


# --- as a guest of a configuration


def load(loader, **settings):
    with lent({(Kind.DATASET, "mine:load"): loader}):
        data = DataSettings(dataset="mine:load", **settings)
        return load_dataset(data, 0), shape_of(data)


def test_a_guest_is_called_with_the_root_and_its_options_and_has_a_shape(tmp_path):
    asked = []

    def loader(root, size=5):
        asked.append((root, size))
        return made(pixels(4, size, size))

    dataset, shape = load(loader, root=str(tmp_path), options={"size": 6})
    assert dataset.shape == (1, 6, 6)
    assert shape == Shape((1, 6, 6), 2)
    assert asked == [(tmp_path, 6)] * 2


def test_a_guest_may_be_text():
    dataset, shape = load(lambda root: text_dataset("t", ["abcabc", "cab"], ["abc"], 2, owned=True))
    assert shape == Shape((2,), 4)
    assert dataset.owners.tolist() == [0, 0, 1]


@pytest.mark.parametrize(("part", "name"), [("train", "training"), ("test", "test")])
def test_a_data_set_made_by_hand_without_samples_is_refused(part, name):
    whole = Split(torch.arange(64, dtype=torch.uint8).view(4, 1, 4, 4), torch.tensor([0, 1, 0, 1]))
    empty = whole.take(torch.arange(0))
    splits = {"train": whole, "test": whole, part: empty}
    with pytest.raises(UserError, match=f"no {name} samples"):
        load(lambda root: Dataset("own", **splits, classes=2, mean=(0.5,), std=(0.2,), pad=0, flip=False))
    assert len(sample_hashes(empty.images)) == 0


def test_what_is_no_data_set_is_refused():
    with pytest.raises(UserError, match="mine:load gave a dict, not a data set"):
        load(lambda root: {})
    with pytest.raises(UserError, match="does not take sise"):
        load(lambda root, size=1: None, options={"sise": 1})
    with pytest.raises(ValueError, match="options are for data sets of your own; digits has keys of its own"):
        DataSettings(dataset="digits", options={"a": 1})
