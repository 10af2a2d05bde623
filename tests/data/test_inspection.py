import data_files
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.data.checks import checked, constant_images, find, refuse_constants, with_two_labels
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.digest import sample_hashes, tensor_digest
from fedmef_dist.data.inspection import (
    contact_sheets,
    decoded,
    find_twins,
    look_at_classes,
    look_at_clients,
    look_at_text,
)
from fedmef_dist.data.numbering import members_of_labels
from fedmef_dist.data.partitions import PartitionSettings
from fedmef_dist.data.population import build_population
from fedmef_dist.data.record import Findings, Reading
from fedmef_dist.data.text import text_dataset


def split(images, labels):
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels))


@pytest.fixture
def dataset():
    """Training 0 and 2 are equal with one label; test 1 equals training 1, test 2 training 3 with another label."""
    train, test = data_files.pixels(6, 4, 4, 3), data_files.pixels(4, 4, 4, 3, seed=1)
    train[2], test[1], test[2] = train[0], train[1], train[3]
    train[5] = 77
    reading = Reading(class_names=("ant", "bee"))
    splits = split(train, [0, 1, 0, 1, 1, 0]), split(test, [0, 1, 0, 1])
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    return Dataset("toy", *splits, 3, mean, std, pad=1, flip=True, reading=reading)


def test_equal_samples_are_counted(dataset):
    expected = Findings(constant=1, repeated=1, repeated_test=0, crossing=2, conflicting=2)
    assert find(dataset, constant_images(dataset.train)) == expected
    assert checked(dataset).findings == expected


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=30))
def test_two_labels_equal_the_plain_formula(samples):
    hashes, labels = (np.array(column) for column in zip(*samples, strict=True))
    expected = [any(h == g and k != m for g, m in samples) for h, k in samples]
    assert with_two_labels(hashes.astype(np.uint64), labels).tolist() == expected


def test_a_hash_looks_at_every_byte():
    samples = torch.zeros(25, 8, 3, dtype=torch.uint8)
    samples.view(25, 24)[range(24), range(24)] = 1
    assert len(np.unique(sample_hashes(samples))) == 25
    assert sample_hashes(samples[3:4]) == sample_hashes(samples)[3]


def test_a_digest_depends_on_type_shape_and_kind():
    ones = torch.ones(2, 3, dtype=torch.uint8)
    digests = {
        tensor_digest("a", ones),
        tensor_digest("b", ones),
        tensor_digest("a", ones.T),
        tensor_digest("a", ones.long()),
    }
    assert len(digests) == 4
    assert tensor_digest("a", ones.T.contiguous().T) == tensor_digest("a", ones)


def test_classes_with_and_without_samples(dataset):
    rows = [(row.name, row.train, row.test, row.constant) for row in look_at_classes(dataset)]
    assert rows == [("ant", 3, 2, 1), ("bee", 3, 2, 0), ("2", 0, 0, 0)]


def test_twins_with_two_labels_come_first(dataset):
    files = [[f"/t{i}" for i in range(6)], [f"/v{i}" for i in range(4)]]
    found = [(twins.places, twins.labels, twins.files) for twins in find_twins(dataset, files)]
    assert found == [
        (("train 3", "test 2"), (1, 0), ("/t3", "/v2")),
        (("train 1", "test 1"), (1, 1), ("/t1", "/v1")),
        (("train 0", "train 2"), (0, 0), ("/t0", "/t2")),
    ]
    assert find_twins(dataset)[0].files == ()


def test_a_sheet_shows_the_images_and_what_augmentation_makes_of_them(dataset):
    sheets = contact_sheets(dataset, augment=True, seed=0)
    assert [sheet.label for sheet in sheets] == [0, 1]
    own = {bytes(image) for image in dataset.train.images.permute(0, 2, 3, 1)[dataset.train.labels == 1].numpy()}
    assert {bytes(image) for image in sheets[1].plain} == own
    assert sheets[1].augmented.shape == (3, 4, 4, 3)
    assert not np.array_equal(sheets[1].augmented, sheets[1].plain)
    same = contact_sheets(dataset, augment=False, seed=0)[1]
    assert np.array_equal(same.augmented, same.plain)


def test_clients_as_the_partition_draws_them():
    labels = torch.arange(90) % 3
    population = build_population(labels, None, 4, PartitionSettings(min_samples=5), seed=1)
    clients = look_at_clients(labels.numpy(), population, 3, seed=1)
    assert (clients.total, clients.unused, clients.counts.sum()) == (4, 0, 90)
    for client in range(4):
        assert (
            clients.counts[client].tolist() == torch.bincount(labels[population.samples(client)], minlength=3).tolist()
        )
    owners = torch.arange(90) // 30
    natural = build_population(labels, owners, 2, PartitionSettings(scheme="natural"), seed=1)
    assert look_at_clients(labels.numpy(), natural, 3, seed=1).unused == 30
    lazy = build_population(labels, None, 5000, PartitionSettings(scheme="lazy_dirichlet", client_samples=10), seed=1)
    many = look_at_clients(labels.numpy(), lazy, 3, seed=1)
    assert (many.total, len(many.numbers), many.unused) == (5000, 1000, None)


def test_a_text_is_counted_and_decoded():
    text = text_dataset("toy", ["abcab" * 3, "z"], ["ab?"], 4, owned=True)
    look = look_at_text(text, seed=0)
    assert look.characters == [("z", 1), ("c", 3), ("a", 6), ("b", 6)]
    assert look.unknown == pytest.approx(1 / 3)
    assert look.windows.tolist() == [3]
    assert sorted(look.samples) == ["abab", "abca", "babc"]
    assert decoded(text, [0, 1, 2]) == "\ufffdab"


def test_members_of_labels_by_hand():
    found = members_of_labels(np.array([7, 2, 7, 0, 2]))
    assert [places.tolist() for places in found] == [[3], [1, 4], [0, 2]]
    assert members_of_labels(np.array([], np.int64)) == []


def test_as_many_classes_as_a_set_of_faces_has_are_looked_at_in_no_time(monkeypatch):
    """A comparison of all labels with each one would be asked for 10,000 times."""
    count, images = 10_000, torch.from_numpy(data_files.pixels(20_000, 2, 2)).unsqueeze(1)
    split = Split(images, torch.arange(20_000) % count)
    dataset = Dataset("faces", split, split, count, (0.5,), (0.2,), 0, False)
    looks, flatnonzero = [], np.flatnonzero
    monkeypatch.setattr(np, "flatnonzero", lambda values: looks.append(len(values)) or flatnonzero(values))
    refuse_constants(dataset, constant_images(split))
    assert len(looks) == 1
