"""Arrays that the user brings: images or token ids, labels, and whose each sample is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.settings import Settings
from fedmef_dist.data.array_files import array_paths, read_arrays
from fedmef_dist.data.cache import Source
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.files import damaged
from fedmef_dist.data.images import channel_statistics
from fedmef_dist.data.numbering import count_classes, members_of_labels, number_clients
from fedmef_dist.data.record import Reading
from fedmef_dist.data.text import TextDataset, TextSplit

_LAYOUT = "data.arrays.layout"
_PARTS = ("", "test_")
_MOST_TOKENS = 1 << 20


class ArraySettings(Settings):
    """Section ``data.arrays``: where the arrays of ``dataset: arrays`` are, and how they are meant."""

    path: str = Field(
        default="arrays.npz",
        pattern=r"^[^\x00]+$",
        description="an .npz or .safetensors file, or a folder of .npy files, below data.root unless absolute; "
        "names: images or tokens, labels, clients, and the same with the prefix test_",
    )
    layout: Literal["auto", "channels_last", "channels_first"] = Field(
        default="auto", description="where the channels of images are; auto: where the size is 1 or 3"
    )
    classes: int | None = Field(
        default=None,
        ge=2,
        le=1 << 20,
        description="number of classes, or of tokens; null: the largest label, or token, plus one",
    )
    pad: int | None = Field(
        default=None, ge=0, description="border in pixels of random crops; null: an eighth of the side"
    )
    flip: bool = Field(default=False, description="whether a mirrored image still belongs to its class")


def array_source(root: Path, settings: ArraySettings) -> Source:
    """Images, uint8, uint16, bool, or float from 0 to 1, of (N, H, W) or with 1 or 3 channels; labels (N,).

    Without a test part every fifth sample of a class is a test sample. ``clients`` are numbers or names, one a sample.

    Raises:
        UserError: a file is missing.
    """
    paths = array_paths(root / settings.path)

    def read() -> Dataset:
        return _images(root / settings.path, read_arrays(paths), settings)

    return Source("arrays", list(paths.values()), read, options=tuple(settings.model_dump().values()))


def holds_tokens(root: Path, settings: ArraySettings) -> bool:
    """Whether the arrays are token ids. Raises UserError where a file is missing or damaged."""
    return "tokens" in read_arrays(array_paths(root / settings.path), only=("tokens",))


def load_tokens(root: Path, settings: ArraySettings) -> TextDataset:
    """Token ids, whole numbers (N, context + 1): a sample is a row, each token is to be told from those before it.

    Raises:
        UserError: a file is missing or damaged, or an array has another type, shape or range.
    """
    path = root / settings.path
    arrays = read_arrays(array_paths(path))
    parts = [_rows(path, arrays, part, "tokens") for part in _PARTS]
    train, test = _held_out(*parts)
    tokens = [_tokens(path, part["tokens"]) for part in (train, test)]
    if tokens[0].shape[1] != tokens[1].shape[1]:
        raise damaged(path, "rows of one length in both parts", f"{tokens[0].shape}, {tokens[1].shape}", "correct it")
    count = settings.classes or int(max(rows.max() for rows in tokens)) + 1
    if max(rows.max() for rows in tokens) >= count:
        raise damaged(path, f"tokens of 0 to {count - 1}", "larger ones", "raise data.arrays.classes")
    splits = [_text_split(rows, part) for rows, part in zip(tokens, (train, test), strict=True)]
    return TextDataset("arrays", splits[0], splits[1], "", *_owners(train, test), token_count=count)


def _images(path: Path, arrays: Mapping[str, np.ndarray], settings: ArraySettings) -> Dataset:
    parts = [_rows(path, arrays, part, "images") for part in _PARTS]
    train, test = _held_out(*parts)
    splits = [Split(_pixels(path, part["images"], settings), _labels(part["labels"])) for part in (train, test)]
    if splits[0].images.shape[1:] != splits[1].images.shape[1:]:
        raise damaged(path, "images of one shape in both parts", "two shapes", "correct them")
    labels = np.concatenate([split.labels.numpy() for split in splits])
    classes = count_classes(path, labels, settings.classes, "correct them, or data.arrays.classes")
    side = splits[0].images.shape[2]
    return Dataset(
        "arrays",
        splits[0],
        splits[1],
        classes,
        *channel_statistics(splits[0].images),
        pad=side // 8 if settings.pad is None else settings.pad,
        flip=settings.flip,
        owners=(owners := _owners(train, test))[0],
        test_owners=owners[1],
        reading=Reading(),
    )


SplitArrays = dict[str, np.ndarray]


def _rows(path: Path, arrays: Mapping[str, np.ndarray], part: str, main: str) -> SplitArrays:
    """The arrays of a part under their plain names, all of one length; empty where the part is not there."""
    found = {name: arrays[part + name] for name in (main, "labels", "clients") if part + name in arrays}
    if not found and part:
        return {}
    needed = (main, "labels") if main == "images" else (main,)
    for name in needed:
        if name not in found:
            raise damaged(path, f"an array {part}{name}", f"only {', '.join(sorted(arrays)) or 'none'}", "add it")
    lengths = {name: values.shape[:1] for name, values in found.items()}
    if len(set(lengths.values())) > 1 or not found[main].size:
        found_text = ", ".join(f"{part}{name} {values.shape}" for name, values in found.items())
        raise damaged(path, "as many labels and clients as samples, and some", found_text, "correct them")
    if "labels" in found:
        _check_labels(path, found["labels"])
    if "clients" in found:
        found["clients"] = _clients(path, found["clients"])
    return found


def _clients(path: Path, clients: np.ndarray) -> np.ndarray:
    """Names, or whole numbers: as a fraction 1.0 would be another client than 1, and NaN one of its own."""
    if clients.dtype.kind == "f" and (np.abs(clients) < 2**53).all() and (clients == np.floor(clients)).all():
        clients = clients.astype(np.int64)
    if clients.ndim != 1 or clients.dtype.kind == "f":
        raise damaged(path, "clients as whole numbers or names, (N,)", _describe(clients), "correct them")
    return clients


def _held_out(train: SplitArrays, test: SplitArrays) -> tuple[SplitArrays, SplitArrays]:
    """Both parts; where there is no test part every fifth sample of a label is taken out for it."""
    if test:
        return train, test
    count = len(next(iter(train.values())))
    labels = train.get("labels", np.zeros(count, dtype=np.int64))
    chosen = np.zeros(count, dtype=bool)
    for members in members_of_labels(labels):
        chosen[members[4::5]] = True
    if not chosen.any():
        raise UserError(
            "there are too few samples to hold some out for the test",
            where="data.dataset=arrays",
            mend="give five of a label, or a test part",
        )
    return ({name: values[~chosen] for name, values in train.items()},
            {name: values[chosen] for name, values in train.items()})  # fmt: skip


def _check_labels(path: Path, labels: np.ndarray) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 1 << 31:
        raise damaged(path, "labels as whole numbers from 0, (N,)", _describe(labels), "correct them")


def _labels(labels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _tokens(path: Path, tokens: np.ndarray) -> np.ndarray:
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or tokens.shape[1] < 2:
        raise damaged(path, "tokens as whole numbers, (N, context + 1)", _describe(tokens), "correct them")
    if tokens.min() < 0 or tokens.max() >= _MOST_TOKENS:
        raise damaged(path, f"tokens of 0 to {_MOST_TOKENS - 1}", f"{tokens.min()} to {tokens.max()}", "correct them")
    return tokens.astype(np.int32)


def _text_split(rows: np.ndarray, part: SplitArrays) -> TextSplit:
    count, length = rows.shape
    labels = _labels(part.get("labels", np.zeros(count)))
    starts = torch.arange(count) * length
    return TextSplit(torch.from_numpy(rows.reshape(-1)), starts, labels, length - 1)


def _owners(train: SplitArrays, test: SplitArrays) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if "clients" not in train:
        return None, None
    names = [[str(name) for name in part["clients"].tolist()] if "clients" in part else None for part in (train, test)]
    assert names[0] is not None
    return number_clients(names[0], names[1])


def _pixels(path: Path, images: np.ndarray, settings: ArraySettings) -> torch.Tensor:
    """uint8 (N, C, H, W), channels_last."""
    if images.ndim == 3:
        rows = images[..., None]
    elif images.ndim == 4:
        rows = images if _channels_last(images.shape, settings.layout, path) else images.transpose(0, 2, 3, 1)
    else:
        raise damaged(path, "images (N, H, W) or with channels, four axes", _describe(images), "correct them")
    if rows.shape[3] not in (1, 3) or rows.shape[1] != rows.shape[2]:
        raise damaged(path, "square images of 1 or 3 channels", _describe(images), f"correct them, or {_LAYOUT}")
    return torch.from_numpy(np.ascontiguousarray(_bytes(path, rows))).permute(0, 3, 1, 2)


def _channels_last(shape: tuple[int, ...], layout: str, path: Path) -> bool:
    if layout != "auto":
        return layout == "channels_last"
    last, first = shape[3] in (1, 3), shape[1] in (1, 3)
    if last and first:
        raise damaged(path, "images whose channels stand at one end", f"{shape}", f"set {_LAYOUT}")
    return last or not first


def _bytes(path: Path, values: np.ndarray) -> np.ndarray:
    """Pixels from 0 to 255: whole numbers by the maximum of their type, fractions by 1."""
    match values.dtype.kind, values.dtype.itemsize:
        case "u", 1:
            return values
        case "b", _:
            return values.astype(np.uint8) * 255
        case "u", 2:
            return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
        case "f", _:
            if not (values.min() >= 0 and values.max() <= 1):
                raise damaged(
                    path, "fractions of 0 to 1", f"{values.min()} to {values.max()}", "scale them, or store uint8"
                )
            return np.round(values.astype(np.float64) * 255).astype(np.uint8)
    raise damaged(
        path, "images of uint8, uint16, bool, or fractions of 0 to 1", _describe(values), 'images.astype("uint8")'
    )


def _describe(values: np.ndarray) -> str:
    span = f", {values.min()} to {values.max()}" if values.size and values.dtype.kind in "iufb" else ""
    return f"{values.dtype} {values.shape}{span}"
