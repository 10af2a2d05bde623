"""Text in memory: one vector of characters, a sample is where a window of it starts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.settings import Settings
from fedmef_dist.data.digest import tensor_digest
from fedmef_dist.data.record import Reading

UNKNOWN = 0
_MOST_CHARACTERS = 255  # a token is one byte, and one of them stands for every other character


class TextSettings(Settings):
    """Section ``data.text``: how text becomes samples."""

    context: int = Field(
        default=64, ge=1, description="most characters that the model sees at once; a sample has one more"
    )
    stories: int = Field(
        default=20_000, ge=10, description="tinystories: how many of the file's first stories are read"
    )


@dataclass(frozen=True)
class TextSplit:
    """Windows of ``context`` + 1 characters into one vector.

    Attributes:
        tokens: uint8 or int32 (n,).
        starts: int64 (N,), where each sample's window starts.
        labels: int64 (N,), whose text it is, or 0; what a partition by label goes by.
        context: characters that a model sees.
    """

    tokens: Tensor
    starts: Tensor
    labels: Tensor
    context: int

    def __len__(self) -> int:
        return self.starts.numel()

    @property
    def predictions(self) -> int:
        """How many answers a model gives on the split: one a token."""
        return len(self) * self.context

    def take(self, rows: Tensor) -> "TextSplit":
        """Some of the samples: ``rows``, int64 (n,)."""
        return replace(self, starts=self.starts[rows], labels=self.labels[rows])

    def to(self, device: torch.device | str) -> "TextSplit":
        """The same split on another device; no copy where it is there already."""
        return TextSplit(self.tokens.to(device), self.starts.to(device), self.labels.to(device), self.context)

    def windows(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """The characters behind these starts (int64 (B,)), and for each the next one: both int64 (B, context)."""
        windows = self.tokens.unfold(0, self.context + 1, 1).index_select(0, starts).long()
        return windows[:, :-1], windows[:, 1:]


@dataclass(frozen=True)
class TextDataset:
    """A training and a test split for predicting the next character, or the next of some other tokens.

    Attributes:
        vocabulary: character ``k`` has token ``k + 1``; token 0 stands for every other one. Empty for other tokens.
        owners: int64 (N,), whose text each training sample is; None where nobody's in particular.
        reading: what the files were; not part of the data.
        token_count: how many tokens there are, where they are no characters.
    """

    name: str
    train: TextSplit
    test: TextSplit
    vocabulary: str
    owners: Tensor | None = None
    test_owners: Tensor | None = None
    reading: Reading = field(default_factory=Reading, compare=False)
    token_count: int | None = None

    @property
    def classes(self) -> int:
        """Tokens that can come next."""
        return len(self.vocabulary) + 1 if self.token_count is None else self.token_count

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal over the tokens of both splits and what they stand for.

        How the text is cut into samples is the configuration's and does not change it.
        """
        kind = (
            f"text {self.vocabulary!r}" if self.token_count is None else f"tokens in rows of {self.train.context + 1}"
        )
        return tensor_digest(kind, self.train.tokens, self.test.tokens)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample: (context,)."""
        return (self.train.context,)

    def example(self) -> Tensor:
        """A batch of one sample as a model takes it: zeros, int64 (1, context)."""
        return torch.zeros(1, *self.shape, dtype=torch.int64)

    def to(self, device: torch.device | str) -> "TextDataset":
        """The same data set on another device; no copy where it is there already."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def text_dataset(name: str, train: Sequence[str], test: Sequence[str], context: int, *, owned: bool) -> TextDataset:
    """Cuts passages into windows that do not overlap; what is left at a passage's end is not used.

    Args:
        name: of the data set.
        train: training passages; with ``owned`` passage ``k`` is the text of owner ``k``.
        test: test passages.
        context: characters that a model sees.
        owned: whether passages are owners.

    Raises:
        UserError: the context is none, or there is nothing to train with.
    """
    if not isinstance(context, int) or context < 1:
        what = "a context is a whole number of characters, 1 or more"
        raise UserError(what, where=f"data set {name}, context={context}", mend="correct it")
    vocabulary = _vocabulary("".join(train))
    if not vocabulary:
        raise UserError("there is no training text", where=f"data set {name}, train", mend="give passages")
    train_split, test_split = (_split(passages, vocabulary, context, owned) for passages in (train, test))
    owners = (train_split.labels, test_split.labels) if owned else (None, None)
    return TextDataset(name, train_split, test_split, vocabulary, *owners)


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def _vocabulary(text: str) -> str:
    """The characters of the text in the order of their code points; where there are too many, the most frequent."""
    codes, counts = np.unique(_codes(text), return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:_MOST_CHARACTERS]
    return "".join(chr(code) for code in sorted(codes[frequent].tolist()))


def _encode(text: str, vocabulary: str) -> np.ndarray:
    """Tokens, uint8 (len(text),)."""
    codes, known = _codes(text), _codes(vocabulary)
    place = np.searchsorted(known, codes).clip(max=len(known) - 1)
    return np.where(known[place] == codes, place + 1, UNKNOWN).astype(np.uint8)


def _split(passages: Sequence[str], vocabulary: str, context: int, owned: bool) -> TextSplit:
    lengths = np.array([len(passage) for passage in passages], dtype=np.int64)
    # The last character of a window is only predicted, so the next window begins with it.
    counts = np.maximum(lengths - 1, 0) // context
    labels = np.repeat(np.arange(len(passages)) * owned, counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(np.cumsum(lengths) - lengths, counts) + within * context
    tokens = _encode("".join(passages), vocabulary)
    return TextSplit(torch.from_numpy(tokens), torch.from_numpy(starts), torch.from_numpy(labels), context)
