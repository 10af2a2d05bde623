"""Parquet files with images and labels, as the Hugging Face hub stores them; pyarrow reads them."""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.settings import Settings
from fedmef_dist.data.cache import Source
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.files import damaged, open_regular
from fedmef_dist.data.images import Channels, as_grey, channel_statistics, fit, summary
from fedmef_dist.data.numbering import count_classes, number_clients
from fedmef_dist.data.pixels import decode
from fedmef_dist.data.record import Reading
from fedmef_dist.data.walk import Walk

_LABELS = ("label", "labels", "fine_label")
_BATCH = 256


class ParquetSettings(Settings):
    """Section ``data.parquet``: where the files of ``dataset: parquet`` are, and which columns are read."""

    path: str = Field(
        default="parquet", pattern=r"^[^\x00]+$", description="the folder, below data.root unless absolute"
    )
    train: str = Field(default="train", min_length=1, description="how names of training files begin")
    test: str = Field(default="test", min_length=1, description="how names of test files begin")
    image: str | None = Field(default=None, description="column of images; null: the one that holds encoded files")
    label: str | None = Field(default=None, description=f"column of labels; null: {', '.join(_LABELS)}")
    client: str | None = Field(default=None, description="column of clients, numbers or names; null: none")
    image_size: int | None = Field(
        default=None, ge=4, le=4096, description="as data.folder.image_size; null: all have one size already"
    )
    channels: Channels = Field(default="auto", description="1: grey; 3: colour; auto: grey if every image is grey")
    flip: bool = Field(default=True, description="whether a mirrored image still belongs to its class")


@dataclass
class _Rows:
    """What is read of one part; its images grow row by row."""

    images: list[np.ndarray] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)


def parquet_source(root: Path, settings: ParquetSettings) -> Source:
    """``<path>/**/<train>*.parquet`` and ``<test>*.parquet``: a column of images, files as bytes, and one of labels.

    Raises:
        UserError: pyarrow is not installed, or there are no files.
    """
    folder, walk = root / settings.path, Walk()
    found = [path for path in walk.files(folder) if path.suffix == ".parquet"] if folder.is_dir() else []
    parts = [[path for path in found if path.name.startswith(name)] for name in (settings.train, settings.test)]
    for name, paths in zip((settings.train, settings.test), parts, strict=True):
        if not paths:
            raise UserError("a data file is missing", where=f"{folder}/{name}*.parquet", mend="put the files there")

    def read() -> Dataset:
        return _read(parts, settings)

    options = tuple(settings.model_dump().values())
    return Source("parquet", [path for paths in parts for path in paths], read, options=options, skipped=walk.skipped)


def _read(parts: Sequence[Sequence[Path]], settings: ParquetSettings) -> Dataset:
    kinds: Counter[str] = Counter()
    names: list[str] = []
    train, test = _Rows(), _Rows()
    for rows, paths in ((train, parts[0]), (test, parts[1])):
        for path in paths:
            names = _append(path, settings, rows, kinds) or names
    pixels = [_stacked(rows, paths[0]) for rows, paths in ((train, parts[0]), (test, parts[1]))]
    if pixels[0].shape[1:] != pixels[1].shape[1:]:
        raise damaged(parts[1][0], "images of one size in both parts", "two sizes", "set data.parquet.image_size")
    if settings.channels == "auto":
        pixels = as_grey(pixels)
    splits = [_split(values, rows) for values, rows in zip(pixels, (train, test), strict=True)]
    owners = number_clients(train.clients, test.clients) if settings.client else (None, None)
    side = splits[0].images.shape[2]
    return Dataset(
        "parquet",
        splits[0],
        splits[1],
        count_classes(parts[0][0], np.array(train.labels + test.labels), len(names) or None, "correct them"),
        *channel_statistics(splits[0].images),
        pad=side // 8,
        flip=settings.flip,
        owners=owners[0],
        test_owners=owners[1],
        reading=Reading(files=summary(kinds), class_names=tuple(names)),
    )


def _split(pixels: np.ndarray, rows: _Rows) -> Split:
    return Split(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(rows.labels, dtype=torch.int64))


def _stacked(rows: _Rows, path: Path) -> np.ndarray:
    """uint8 (N, H, W, C)."""
    shapes = {image.shape for image in rows.images}
    if len(shapes) != 1 or len({*next(iter(shapes))[:2]}) != 1:
        found = ", ".join(f"{height}x{width}" for height, width, *_ in sorted(shapes)[:4]) or "none"
        raise damaged(path, "square images of one size", found, "set data.parquet.image_size")
    return np.stack(rows.images)


def _append(path: Path, settings: ParquetSettings, rows: _Rows, kinds: Counter[str]) -> list[str]:
    """Adds the file's rows; returns the names of the classes where the file says them."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError("Parquet files need pyarrow", where=str(path), mend="pip install pyarrow") from None
    try:
        with open_regular(path) as opened:
            file = ParquetFile(opened)
            image, label = _columns(path, file.schema_arrow, settings)
            for number, row in enumerate(_values(file, [image, label, settings.client])):
                _add(Path(f"{path}, row {number}"), row, (image, label), settings, rows, kinds)
            return _class_names(file.schema_arrow.metadata or {}, label)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, "a whole Parquet file of images and labels", str(error)[:100]) from error


def _columns(path: Path, schema: Any, settings: ParquetSettings) -> tuple[str, str]:
    names = list(schema.names)
    files = [name for name in names if "bytes" in str(schema.field(name).type) or str(schema.field(name).type) in (
        "binary", "large_binary")]  # fmt: skip
    image = settings.image or next(iter(files), None)
    label = settings.label or next((name for name in _LABELS if name in names), None)
    for key, name in (("image", image), ("label", label), ("client", settings.client)):
        if (name is None and key != "client") or (name is not None and name not in names):
            raise damaged(path, f"a column of {key}s", f"only {', '.join(names)}", f"set data.parquet.{key}")
    assert image is not None
    assert label is not None
    return image, label


def _values(file: Any, columns: Sequence[str | None]) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(batch_size=_BATCH, columns=[name for name in columns if name]):
        yield from batch.to_pylist()


def _add(
    where: Path,
    row: Mapping[str, Any],
    columns: tuple[str, str],
    settings: ParquetSettings,
    rows: _Rows,
    kinds: Counter[str],
) -> None:
    value, label = row[columns[0]], row[columns[1]]
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise damaged(where, "an image in the file itself", "only its name or nothing", "store the images with bytes")
    if type(label) is not int or not 0 <= label < 1 << 31:
        raise damaged(where, "a label from 0", repr(label)[:40], "correct it")
    client = row[settings.client] if settings.client else ""
    if isinstance(client, float) and client.is_integer():
        client = int(client)  # where one was missing once
    if client is None or isinstance(client, float):
        raise damaged(where, "a client, a whole number or a name", repr(client), "fill it in, or leave the row out")
    depth = 1 if settings.channels == 1 else 3
    image, kind = decode(io.BytesIO(content), where, depth)
    side = settings.image_size
    pixels = np.asarray(image) if side is None else fit(image, where, side, crop=True)
    kinds[kind] += 1
    rows.images.append(pixels.reshape(*pixels.shape[:2], depth))
    rows.labels.append(label)
    if settings.client:
        rows.clients.append(str(client))


def _class_names(metadata: Mapping[bytes, bytes], label: str) -> list[str]:
    """From the description that the hub's library leaves in the file; none where there is none."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
