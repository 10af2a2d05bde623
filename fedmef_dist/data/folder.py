"""Any folder of images with one subfolder a class."""

import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor

from fedmef_dist.base.settings import Settings
from fedmef_dist.data.cache import Source
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.files import damaged, read_bytes
from fedmef_dist.data.images import Channels, Listing, channel_statistics, class_names, list_images, read_splits
from fedmef_dist.data.numbering import number_clients
from fedmef_dist.data.record import Reading
from fedmef_dist.data.walk import Walk

ClientOf = Callable[[Path], str | None]


class FolderSettings(Settings):
    """Section ``data.folder``: where the images of ``dataset: folder`` are, and how they are cut."""

    path: str = Field(
        default="images", pattern=r"^[^\x00]+$", description="the folder, below data.root unless absolute"
    )
    train: str = Field(default="train", description="its folder of training images; empty: the folder itself")
    test: str | None = Field(
        default="test", description="its folder of test images; null: every fifth training image of a class"
    )
    image_size: int = Field(
        default=64, ge=4, le=4096, description="images are scaled to this shorter side in pixels and cut to a square"
    )
    channels: Channels = Field(default="auto", description="1: grey; 3: colour; auto: grey if every image is grey")
    flip: bool = Field(default=True, description="whether a mirrored image still belongs to its class")
    client_from: Literal["folder", "file"] | None = Field(
        default=None,
        description="who owns an image, for natural clients: folder: <class>/<client>/; file: as client_file says",
    )
    client_file: str = Field(
        default="clients.csv", min_length=1, description="client_from file: below path; columns file, client"
    )


def image_folder(root: Path, settings: FolderSettings) -> Source:
    """``<train>/<class>/...`` and ``<test>/<class>/...`` of any common image format; classes are sorted by name.

    Mean and deviation for the normalisation are those of the training images.

    Raises:
        UserError: a folder is missing or holds something else, or an image has no client though others have.
    """
    folder, walk = root / settings.path, Walk()
    classes = class_names(folder / settings.train, Walk())
    if len(classes) < 2:
        raise damaged(
            folder / settings.train, "folders of at least two classes", f"only {classes[0]}", "put images there"
        )
    train = list_images(folder / settings.train, classes, walk)
    if settings.test is None:
        train, test = _hold_out(train)
    else:
        test = list_images(folder / settings.test, classes, walk)
    owners = _owners(folder, settings, train, test)

    def read() -> Dataset:
        splits, kinds = read_splits(train, test, settings.image_size, settings.channels, crop=True)
        return Dataset(
            "folder",
            *splits,
            len(classes),
            *channel_statistics(splits[0].images),
            pad=settings.image_size // 8,
            flip=settings.flip,
            owners=owners[0],
            test_owners=owners[1],
            reading=Reading(files=kinds, class_names=tuple(classes)),
        )

    more = [folder / settings.client_file] if settings.client_from == "file" else []
    return Source(
        "folder",
        train.paths + test.paths + more,
        read,
        options=tuple(settings.model_dump().values()),
        train_files=train.paths,
        test_files=test.paths,
        skipped=walk.skipped,
    )


def _hold_out(listing: Listing) -> tuple[Listing, Listing]:
    """The images but every fifth of a class, and these."""
    seen: dict[int, int] = {}
    parts = Listing([], []), Listing([], [])
    for path, label in zip(listing.paths, listing.labels, strict=True):
        seen[label] = seen.get(label, 0) + 1
        part = parts[seen[label] % 5 == 0]
        part.paths.append(path)
        part.labels.append(label)
    if not parts[1].paths:
        raise damaged(
            listing.paths[0].parent,
            "at least five images of a class, to hold one out for the test",
            "fewer",
            "put more there, or a folder of test images",
        )
    return parts


def _owners(
    folder: Path, settings: FolderSettings, train: Listing, test: Listing
) -> tuple[Tensor | None, Tensor | None]:
    if settings.client_from is None:
        return None, None
    if settings.client_from == "file":
        table = _client_table(folder / settings.client_file)
        client_of: ClientOf = lambda path: table.get(_below(path, folder))  # noqa: E731
        parts = [_clients(part.paths, client_of) for part in (train, test)]
    else:
        held_out = settings.train if settings.test is None else settings.test
        parts = [
            _clients(part.paths, _folder_below(folder / place))
            for part, place in ((train, settings.train), (test, held_out))
        ]
    if parts[0] is None:
        raise damaged(folder, f"a client for each image by client_from={settings.client_from}", "none", "see the docs")
    return number_clients(parts[0], parts[1])


def _folder_below(part: Path) -> ClientOf:
    """The folder between that of the class and the image."""

    def client_of(path: Path) -> str | None:
        inner = path.relative_to(part).parts
        return inner[1] if len(inner) > 2 else None

    return client_of


def _clients(paths: Sequence[Path], client_of: ClientOf) -> list[str] | None:
    """Each image's client; None where no image has one. Raises UserError where only some have."""
    found = [client_of(path) for path in paths]
    named = [name for name in found if name is not None]
    if named and len(named) < len(found):
        path = paths[found.index(None)]
        raise damaged(path, "a client, as other images have one", "none", "move it, or add it to the clients' file")
    return named or None


def _client_table(path: Path) -> dict[str, str]:
    """Client by file, from comma-separated values with a line of names ``file,client``."""
    text = read_bytes(path).decode("utf-8-sig", errors="replace")
    try:
        rows = list(csv.DictReader(io.StringIO(text), skipinitialspace=True))
    except csv.Error as error:  # a quote that nothing closes makes one value of all that follows
        raise damaged(
            path, "comma-separated values", str(error), "correct it; look for a single quotation mark"
        ) from error
    table: dict[str, str] = {}
    for row in rows:
        name, client = row.get("file") or "", row.get("client") or ""
        if table.setdefault(name, client) != client:
            raise damaged(path, f"one client for {name[:60]}", "two", "correct it")
    if not table or "" in table or "" in table.values():
        raise damaged(path, "columns file and client, filled in each line", "none or less", "correct it")
    return {name.replace(os.sep, "/"): client for name, client in table.items()}


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
