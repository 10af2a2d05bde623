"""The command ``data``: one look at a data set before anybody trains on it, as a table and as a page with pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedmef_dist.base.atomic import write_text
from fedmef_dist.base.errors import UserError
from fedmef_dist.config import Config, load_config
from fedmef_dist.data.checks import checked
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.inspection import (
    ClassRow,
    Clients,
    TextLook,
    contact_sheets,
    find_twins,
    look_at_classes,
    look_at_clients,
    look_at_text,
)
from fedmef_dist.data.population import build_population
from fedmef_dist.data.sources import load_dataset, sample_files
from fedmef_dist.data.text import TextDataset
from fedmef_dist.report.data_page import Fact, image_page, text_page

_FEW = 20  # classes or characters that the terminal shows
PAGE = "data.html"


def data_command(path: Path, overrides: list[str], out: Path | None) -> None:
    """The command ``data``. Raises UserError."""
    config = load_config(path, overrides)
    dataset = load_dataset(config.data, config.seed)
    clients = _clients(config, dataset)
    title, drawn = f"{config.name}: {dataset.name}", clients if isinstance(clients, Clients) else None
    more: list[Fact] = []
    if isinstance(dataset, TextDataset):
        look = look_at_text(dataset, config.seed)
        facts = [*_facts(dataset), *_text_facts(look), *_client_facts(clients)]
        page = text_page(title, facts, look, drawn)
        more = [("sample", repr(text)) for text in look.samples]
    else:
        dataset = dataset if dataset.findings else checked(dataset)
        classes = look_at_classes(dataset)
        facts = [*_facts(dataset), *_image_facts(config, dataset), *_client_facts(clients), *_mix(drawn)]
        sheets = contact_sheets(dataset, config.data.augment, config.seed)
        twins = find_twins(dataset, sample_files(config.data))
        page = image_page(title, facts, classes, sheets, twins, drawn)
        print(_class_table(classes))
    folder = out or Path("runs") / f"{config.name}-data"
    _print([*facts, *more, ("page", str(_write(folder, page)))])


def _write(folder: Path, page: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / PAGE, page)
    except OSError as error:
        raise UserError(
            f"the page cannot be written: {error.strerror}", where=str(folder), mend="give --out DIR"
        ) from error
    return folder / PAGE


def _print(facts: Sequence[Fact]) -> None:
    width = max(len(name) for name, _ in facts) + 2
    print("\n".join(f"{name:{width}}{value}" for name, value in facts))


def _clients(config: Config, dataset: Dataset | TextDataset) -> Clients | UserError:
    """The clients as a run would draw them, or why it could not."""
    try:
        population = build_population(
            dataset.train.labels, dataset.owners, config.federation.clients, config.data.partition, config.seed
        )
    except UserError as error:
        return error
    labels = dataset.train.labels.cpu().numpy()
    classes = int(labels.max()) + 1 if isinstance(dataset, TextDataset) else dataset.classes
    return look_at_clients(labels, population, classes, config.seed)


def _facts(dataset: Dataset | TextDataset) -> list[Fact]:
    reading = dataset.reading
    return [
        ("data", f"{dataset.name}, SHA-256 {dataset.digest}"),
        ("samples", f"{len(dataset.train):,} for training, {len(dataset.test):,} for the test"),
        ("shape", f"{dataset.shape}, {dataset.classes} {'classes' if isinstance(dataset, Dataset) else 'tokens'}"),
        *[("files", f"{count:,} {kind}") for kind, count in reading.files.items()],
        ("passed over", ", ".join(f"{count:,} {reason}" for reason, count in reading.skipped.items()) or "nothing"),
    ]


def _image_facts(config: Config, dataset: Dataset) -> list[Fact]:
    found = dataset.findings
    assert found is not None
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (dataset.mean, dataset.std))
    augmented = f"crops moved by up to {dataset.pad} pixels{', mirrored' if dataset.flip else ''}"
    return [
        ("normalised", f"mean {mean}; deviation {std}; of pixels from 0 to 1"),
        ("augmented", augmented if config.data.augment else "not"),
        ("constant", f"{found.constant:,} training images have one value in every pixel"),
        ("equal", f"{found.repeated:,} training images and {found.repeated_test:,} test images equal an earlier one"),
        ("across the split", f"{found.crossing:,} test images equal a training image"),
        ("two labels", f"{found.conflicting:,} images equal one with another label"),
    ]


def _text_facts(look: TextLook) -> list[Fact]:
    rare = ", ".join(f"{character!r} {count:,}" for character, count in look.characters[:_FEW])
    sizes = look.windows
    return [
        ("tokens", f"{len(look.characters)} in the training text"),
        ("rarest", rare),
        ("unknown", f"{look.unknown:.4%} of the test text are characters that the training text has not"),
        ("owners", f"{len(sizes):,}, of which {np.count_nonzero(sizes):,} have samples"),
        ("samples an owner", f"{sizes.min():,} to {sizes.max():,}, median {np.median(sizes):,.0f}"),
    ]


def _client_facts(clients: Clients | UserError) -> list[Fact]:
    if isinstance(clients, UserError):
        return [("clients", f"cannot be drawn: {clients.what} ({clients.where}: {clients.mend})")]
    sizes, numbers = clients.sizes, clients.numbers
    smallest, largest = numbers[sizes.argmin()], numbers[sizes.argmax()]
    looked = "" if len(numbers) == clients.total else f", of which {len(numbers):,} were looked at"
    unused = "unknown: clients draw with replacement" if clients.unused is None else f"{clients.unused:,} samples"
    return [
        ("clients", f"{clients.total:,}{looked}"),
        ("samples a client", f"{sizes.min():,} to {sizes.max():,}, median {np.median(sizes):,.0f}"),
        ("smallest, largest", f"client {smallest} and client {largest}"),
        ("nobody's", unused),
    ]


def _mix(clients: Clients | None) -> list[Fact]:
    if clients is None:
        return []
    labels = np.count_nonzero(clients.counts, axis=1)
    return [("labels a client", f"{labels.min()} to {labels.max()}, median {np.median(labels):.0f}")]


def _class_table(classes: Sequence[ClassRow]) -> str:
    rows = [("class", "training", "test", "constant")]
    rows += [(row.name, f"{row.train:,}", f"{row.test:,}", f"{row.constant:,}") for row in classes[:_FEW]]
    if len(classes) > _FEW:
        rows.append((f"{len(classes) - _FEW} more", "", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(value.rjust(width) for value, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"
