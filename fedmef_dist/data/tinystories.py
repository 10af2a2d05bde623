"""TinyStories (Eldan and Li 2023, arXiv 2305.07759), or any file of short texts in its form."""

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.files import damaged, open_regular, unreadable
from fedmef_dist.data.text import TextDataset, TextSettings, text_dataset

FILE = "tinystories.txt"
END_OF_STORY = "<|endoftext|>"
_TEST_EVERY = 10


def load_tinystories(root: Path, settings: TextSettings) -> TextDataset:
    """Read the first stories of ``root/tinystories.txt``; every tenth one is test text.

    The file is read as far as it is needed: a line with ``<|endoftext|>`` ends a story.

    Raises:
        UserError: the file is missing, is no UTF-8 text, or holds fewer than ten stories.
    """
    path = root / FILE
    if not path.exists() and not path.is_symlink():
        raise UserError(
            "tinystories: the file is missing",
            where=str(path),
            mend="put the data set's TinyStories-train.txt or TinyStories-valid.txt there under this name",
        )
    try:
        with open_regular(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as lines:
            stories = list(islice(_stories(lines), settings.stories))
    except UnicodeDecodeError as error:
        raise damaged(path, "UTF-8 text", str(error), "save it as UTF-8") from error
    except OSError as error:
        raise unreadable(path, error) from error
    if len(stories) < _TEST_EVERY:
        raise damaged(
            path,
            f"{_TEST_EVERY} stories or more, each ended by a line {END_OF_STORY}",
            f"{len(stories)}",
            "give a longer file",
        )
    train = [story for number, story in enumerate(stories, start=1) if number % _TEST_EVERY]
    test = stories[_TEST_EVERY - 1 :: _TEST_EVERY]
    return text_dataset("tinystories", train, test, settings.context, owned=False)


def _stories(lines: Iterator[str]) -> Iterator[str]:
    story: list[str] = []
    for line in lines:
        if line.strip() != END_OF_STORY:
            story.append(line)
            continue
        yield from _told(story)
        story = []
    yield from _told(story)


def _told(story: list[str]) -> list[str]:
    """The story as a list of one; none where there are blank lines alone, as behind the last mark."""
    text = "".join(story)
    return [text] if text.strip() else []
