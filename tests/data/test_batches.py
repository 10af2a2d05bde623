import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmef_dist.base.randomness import torch_generator
from fedmef_dist.data.batches import client_batches, evaluation_batches, normalise, steps_per_epoch
from fedmef_dist.data.dataset import Dataset, Split


def dataset(count=10, channels=1, size=4, pad=0, flip=False, mean=None, std=None):
    """Random images whose label is their index, so that a batch says which samples it holds."""
    images = torch.randint(1, 256, (count, channels, size, size), generator=torch.Generator().manual_seed(count))
    split = Split(images.to(torch.uint8).contiguous(memory_format=torch.channels_last), torch.arange(count))
    return Dataset("toy", split, split, count, mean or (0.0,) * channels, std or (1.0,) * channels, pad, flip)


def batches(data, indices, batch_size=4, epochs=1, seed=0, round=0, client=0, augment=False):
    key = {"seed": seed, "round": round, "client": client}
    indices = np.asarray(indices)
    arguments = {"batch_size": batch_size, "epochs": epochs, "augment": augment, "device": "cpu"}
    return list(client_batches(data, indices, **arguments, **key))


def pixels(images):
    """Undo the division by 255 of a data set with mean 0 and deviation 1."""
    return (images * 255).round().to(torch.uint8)


@pytest.mark.parametrize(("samples", "batch_size", "steps"), [(1, 64, 1), (64, 64, 1), (65, 64, 2), (0, 64, 0)])
def test_steps_per_epoch(samples, batch_size, steps):
    assert steps_per_epoch(samples, batch_size) == steps


def test_normalisation_by_hand():
    data = dataset(channels=2, size=1, mean=(0.2, 0.5), std=(0.5, 0.25))
    # (51/255 - 0.2)/0.5 = 0 and (255/255 - 0.5)/0.25 = 2; (255/255 - 0.2)/0.5 = 1.6 and (0 - 0.5)/0.25 = -2.
    images = normalise(data, torch.tensor([[51, 255], [255, 0]], dtype=torch.uint8).view(2, 1, 1, 2))
    assert torch.allclose(images.flatten(1), torch.tensor([[0.0, 2.0], [1.6, -2.0]]), atol=1e-6)


def test_normalisation_works_after_evaluation_without_autograd():
    data = dataset(channels=3, size=5)
    with torch.inference_mode():
        next(evaluation_batches(data.test, data, batch_size=2, rank=0, world_size=1, device="cpu"))
    images, _ = batches(data, [0, 1])[0]
    weight = torch.ones(1, 3, 1, 1, requires_grad=True)
    (images * weight).sum().backward()
    assert torch.allclose(weight.grad, images.sum(dim=(0, 2, 3)).view(1, 3, 1, 1))


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 20), batch_size=st.integers(1, 25), epochs=st.integers(1, 3), augment=st.booleans(),
    channels=st.sampled_from([1, 3]),
)  # fmt: skip
def test_each_epoch_holds_every_sample_of_the_client_once(count, batch_size, epochs, augment, channels):
    data = dataset(30, channels, pad=1, flip=True)
    indices = np.random.default_rng(count).permutation(30)[:count]
    found = batches(data, indices, batch_size, epochs, augment=augment)
    steps = steps_per_epoch(count, batch_size)
    assert len(found) == steps * epochs
    for epoch in range(epochs):
        labels = torch.cat([labels for _, labels in found[epoch * steps : (epoch + 1) * steps]])
        assert sorted(labels.tolist()) == sorted(indices.tolist())
    for images, labels in found:
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.shape == (len(labels), channels, 4, 4)
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_without_augmentation_a_batch_holds_the_images_themselves():
    data = dataset(12, 3, pad=2, flip=True)
    for images, labels in batches(data, range(12), batch_size=5, epochs=2):
        assert torch.equal(pixels(images), data.train.images[labels])


def naive_crops(data, count, epochs, key):
    """Every epoch's crop of every image, one pixel at a time, from the same generator."""
    generator = torch_generator(key[0], "crop", *key[1:])
    _, channels, height, width = data.train.images.shape
    for _ in range(epochs):
        tops, lefts = torch.randint(2 * data.pad + 1, (2, count), generator=generator).tolist()
        mirrors = torch.randint(2, (count,), generator=generator).tolist() if data.flip else [0] * count
        crops = torch.zeros(count, channels, height, width, dtype=torch.uint8)
        for index in range(count):
            for row in range(height):
                for column in range(width):
                    line = row + tops[index] - data.pad
                    pixel = column + lefts[index] - data.pad
                    if 0 <= line < height and 0 <= pixel < width:
                        pixel = width - 1 - pixel if mirrors[index] else pixel
                        crops[index, :, row, column] = data.train.images[index, :, line, pixel]
        yield crops


@settings(deadline=None, max_examples=25)
@given(
    count=st.integers(1, 6), channels=st.sampled_from([1, 3]), size=st.integers(2, 6), pad=st.integers(0, 3),
    flip=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
def test_crops_equal_a_loop_over_samples_and_pixels(count, channels, size, pad, flip, seed):
    data = dataset(count, channels, size, pad, flip)
    found = batches(data, range(count), batch_size=count, epochs=2, seed=seed, round=1, client=2, augment=True)
    for (images, labels), crops in zip(found, naive_crops(data, count, 2, (seed, 1, 2)), strict=True):
        assert torch.equal(pixels(images), crops[labels])


def test_the_border_is_black_before_normalisation():
    data = dataset(50, 1, 2, pad=2, mean=(0.5,), std=(0.25,))
    images = torch.cat([images for images, _ in batches(data, range(50), augment=True)])
    assert images.min() == -2.0  # (0 - 0.5) / 0.25; the images themselves have no pixel of 0


def test_the_key_decides_the_batches():
    data = dataset(20, pad=2, flip=True)

    def first(**key):
        return batches(data, range(20), batch_size=20, augment=True, **key)[0][0]

    reference = first(seed=1, round=2, client=3)
    torch.manual_seed(99)
    assert torch.equal(reference, first(seed=1, round=2, client=3))
    for key in [(0, 2, 3), (1, 0, 3), (1, 2, 0)]:
        assert not torch.equal(reference, first(seed=key[0], round=key[1], client=key[2]))


def test_augmentation_does_not_change_the_order_and_epochs_do():
    data = dataset(20, pad=2, flip=True)
    plain = torch.stack([labels for _, labels in batches(data, range(20), batch_size=20, epochs=2)])
    augmented = torch.stack([labels for _, labels in batches(data, range(20), batch_size=20, epochs=2, augment=True)])
    assert torch.equal(plain, augmented)
    assert not torch.equal(plain[0], plain[1])


def test_batches_leave_the_data_set_as_it_was():
    data = dataset(8, 3, pad=1, flip=True)
    before = data.train.images.clone()
    for images, _ in batches(data, range(8), augment=True) + batches(data, range(8)):
        images.zero_()
    assert torch.equal(data.train.images, before)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_covers_the_split_once_whatever_the_number_of_ranks(world_size):
    data = dataset(11, 3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))

    def share(rank, world_size):
        return list(evaluation_batches(data.test, data, batch_size=3, rank=rank, world_size=world_size, device="cpu"))

    whole = share(0, 1)
    assert [labels.tolist() for _, labels in whole] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]
    for rank in range(world_size):
        for (images, labels), (expected, expected_labels) in zip(
            share(rank, world_size), whole[rank::world_size], strict=True
        ):
            assert torch.equal(labels, expected_labels)
            assert torch.equal(images, expected)
            assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_does_not_change_the_batches():
    data = dataset(20, 3, 8, pad=2, flip=True)
    arguments = {"batch_size": 8, "epochs": 2, "seed": 1, "round": 2, "client": 3, "augment": True}
    on_cpu = client_batches(data, np.arange(20), **arguments, device="cpu")
    on_gpu = client_batches(data.to("cuda"), np.arange(20), **arguments, device="cuda")
    for (images, labels), (gpu_images, gpu_labels) in zip(on_cpu, on_gpu, strict=True):
        assert torch.equal(labels, gpu_labels.cpu())
        assert torch.allclose(images, gpu_images.cpu(), atol=1e-6)
