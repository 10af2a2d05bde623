"""A look at a data set before anybody trains on it: numbers alone; who shows them decides how."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedmef_dist.base.randomness import numpy_generator
from fedmef_dist.base.text import printable
from fedmef_dist.data.batches import client_batches
from fedmef_dist.data.checks import constant_images, with_two_labels
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.digest import sample_hashes
from fedmef_dist.data.numbering import members_of_labels
from fedmef_dist.data.population import LazyPopulation, Population
from fedmef_dist.data.text import UNKNOWN, TextDataset

_CLIENTS = 1000  # looked at, where there are more
_PAIRS = 8  # examples of equal samples
_SHEET = ((20, 8), (100, 4), (10**9, 2))  # up to so many classes: so many images of each


@dataclass(frozen=True)
class ClassRow:
    """One class: its number and name, samples of both splits, and constant training images."""

    label: int
    name: str
    train: int
    test: int
    constant: int


@dataclass(frozen=True)
class Twins:
    """Samples that are equal: the split and place of each, ``train 17``, their labels, and files where known."""

    places: tuple[str, ...]
    labels: tuple[int, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Clients:
    """The clients as the partition drew them: all, or a thousand drawn from the seed.

    Attributes:
        total: in the population.
        numbers: int64 (n,), the clients looked at.
        counts: int64 (n, classes), samples of each label.
        unused: training samples that no client has; None where clients draw with replacement.
    """

    total: int
    numbers: np.ndarray
    counts: np.ndarray
    unused: int | None

    @property
    def sizes(self) -> np.ndarray:
        """Samples of each client, int64 (n,)."""
        return self.counts.sum(axis=1)


@dataclass(frozen=True)
class Sheet:
    """Some training images of one class as the network sees them, uint8 (n, H, W, C): plain, and after augmentation."""

    label: int
    plain: np.ndarray
    augmented: np.ndarray


def look_at_classes(dataset: Dataset) -> list[ClassRow]:
    """Samples of every class, whether it has any or not."""
    counts = [
        np.bincount(split.labels.cpu().numpy(), minlength=dataset.classes) for split in (dataset.train, dataset.test)
    ]
    constant = constant_images(dataset.train)
    flat = np.bincount(dataset.train.labels.cpu().numpy()[constant], minlength=dataset.classes)
    return [
        ClassRow(
            label, dataset.reading.class_name(label), int(counts[0][label]), int(counts[1][label]), int(flat[label])
        )
        for label in range(dataset.classes)
    ]


def find_twins(dataset: Dataset, files: Sequence[Sequence[Path]] = ((), ())) -> list[Twins]:
    """The first groups of equal samples; those with two labels come first, then those in both splits.

    ``files`` are those of the training and of the test samples, where each sample has one.
    """
    splits = (dataset.train, dataset.test)
    hashes = np.concatenate([sample_hashes(split.images.permute(0, 2, 3, 1)) for split in splits])
    labels = np.concatenate([split.labels.cpu().numpy() for split in splits])
    is_test = np.arange(len(labels)) >= len(dataset.train)
    _, group, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts[group] > 1)
    two = with_two_labels(hashes, labels)
    crosses = with_two_labels(hashes, is_test.astype(np.int64))
    order = repeated[np.lexsort((repeated, ~crosses[repeated], ~two[repeated]))]
    chosen = list(dict.fromkeys(group[order].tolist()))[:_PAIRS]
    return [_twins(np.flatnonzero(group == number), labels, len(dataset.train), files) for number in chosen]


def _twins(members: np.ndarray, labels: np.ndarray, first_test: int, files: Sequence[Sequence[Path]]) -> Twins:
    found: list[tuple[str, int, str]] = []
    for row in members.tolist():
        part, place = ("train", row) if row < first_test else ("test", row - first_test)
        known = files[part == "test"]
        found.append((f"{part} {place}", int(labels[row]), printable(str(known[place])) if place < len(known) else ""))
    places, own, names = zip(*found, strict=True)
    return Twins(places, own, tuple(name for name in names if name))


def look_at_clients(labels: np.ndarray, population: Population, classes: int, seed: int) -> Clients:
    """Counts the labels (int64 (N,), of the training split) of every client, or of a thousand drawn from the seed."""
    numbers = np.arange(min(population.clients, _CLIENTS))
    if population.clients > _CLIENTS:
        numbers = np.sort(numpy_generator(seed, "inspection").choice(population.clients, _CLIENTS, replace=False))
    rows = [np.bincount(labels[population.samples(client)], minlength=classes) for client in numbers.tolist()]
    unused = None if isinstance(population, LazyPopulation) else len(labels) - population.total_samples
    return Clients(population.clients, numbers, np.stack(rows), unused)


def contact_sheets(dataset: Dataset, augment: bool, seed: int) -> list[Sheet]:
    """Training images of each class that has any, drawn from the seed, as batches bring them to the network."""
    number = next(count for most, count in _SHEET if dataset.classes <= most)
    labels = dataset.train.labels.cpu().numpy()
    sheets = []
    for own in members_of_labels(labels):
        label = int(labels[own[0]])
        chosen = numpy_generator(seed, "sheet", label).choice(own, min(number, len(own)), replace=False)
        plain, augmented = (_as_seen(dataset, chosen, shown, seed, label) for shown in (False, augment))
        sheets.append(Sheet(label, plain, augmented))
    return sheets


def _as_seen(dataset: Dataset, chosen: np.ndarray, augment: bool, seed: int, label: int) -> np.ndarray:
    """The images of one epoch's batch, its normalisation undone; uint8 (n, H, W, C)."""
    (images, _), *_ = client_batches(
        dataset,
        chosen,
        batch_size=len(chosen),
        epochs=1,
        seed=seed,
        round=0,
        client=label,
        augment=augment,
        device="cpu",
    )
    scale, shift = (torch.tensor(values).view(1, -1, 1, 1) for values in (dataset.std, dataset.mean))
    pixels: np.ndarray = (
        ((images * scale + shift) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    )
    return pixels


@dataclass(frozen=True)
class TextLook:
    """What a text is made of.

    Attributes:
        characters: the vocabulary with how often each stands in the training text, the rarest first.
        unknown: share of the test tokens that stand for characters outside of the vocabulary.
        windows: int64 (owners,), training samples of each owner; of nobody in particular, all in one.
        samples: a few, decoded.
    """

    characters: list[tuple[str, int]]
    unknown: float
    windows: np.ndarray
    samples: list[str]


def look_at_text(dataset: TextDataset, seed: int, samples: int = 5) -> TextLook:
    """Counts the characters, and decodes some training samples drawn from the seed."""
    counts = Counter(dict(enumerate(torch.bincount(dataset.train.tokens.flatten().long()).tolist())))
    names = [(symbol, counts[token]) for token, symbol in enumerate(_symbols(dataset)) if counts[token] or token]
    chosen = numpy_generator(seed, "sheet").choice(len(dataset.train), min(samples, len(dataset.train)), replace=False)
    inputs, _ = dataset.train.windows(dataset.train.starts[torch.from_numpy(np.sort(chosen))])
    known = dataset.vocabulary
    return TextLook(
        characters=sorted(names, key=lambda pair: (pair[1], pair[0])),
        unknown=float((dataset.test.tokens == UNKNOWN).double().mean()) if known else 0.0,
        windows=torch.bincount(dataset.train.labels).numpy(),
        samples=[decoded(dataset, row) for row in inputs.tolist()],
    )


def decoded(dataset: TextDataset, tokens: Sequence[int]) -> str:
    """Tokens as people read them; where they are no characters, their numbers."""
    symbols = _symbols(dataset)
    return ("" if dataset.vocabulary else " ").join(symbols[token] for token in tokens)


def _symbols(dataset: TextDataset) -> list[str]:
    """What each token stands for."""
    return ["\ufffd", *dataset.vocabulary] if dataset.vocabulary else [str(token) for token in range(dataset.classes)]
