"""What travels in a round beside the model: down to every client that is asked, up from every one that answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.wire.encodings import Encoding, Sparse, Whole, WithMask
from fedmef_dist.wire.ranges import Range, prunable


@dataclass(frozen=True)
class Broadcast:
    """Numbers that the server sends down in addition to the model; a client gets what was decoded.

    Attributes:
        name: by which a client's work finds them.
        over: what they range over.
        values: (over.size,), float32, or of a type that float32 holds exactly.
        encoding: how they travel. Where it names positions, those are what is not 0.
    """

    name: str
    over: Range
    values: Tensor
    encoding: Encoding = field(default_factory=Whole)


@dataclass(frozen=True)
class Upload:
    """What one client contributes to a :class:`Collection`.

    Attributes:
        positions: int64 (count,), in the collection's range, each once, ascending within each block; None: all.
        values: float32 (count,); None where the positions alone count.
    """

    positions: Tensor | None
    values: Tensor | None = None

    def counts(self, over: Range) -> list[int]:
        """How many positions of each block of its range it names."""
        if self.positions is None:
            return [block.size for block in over.blocks]
        stops = torch.tensor([block.stop for block in over.blocks], device=self.positions.device)
        upto = torch.searchsorted(self.positions, stops).tolist()
        return [after - before for before, after in zip([0, *upto], upto, strict=False)]

    def clone(self) -> "Upload":
        """A copy with tensors of its own."""
        return Upload(*(None if found is None else found.clone() for found in (self.positions, self.values)))


@dataclass(frozen=True)
class Collection:
    """A sum over the cohort that a round collects in addition to the clients' states.

    Attributes:
        name: what :meth:`LocalWork.uploads` calls it.
        over: what its positions range over.
        counts: how many positions a client names in each block.
        encoding: how a client's contribution travels; without values only positions count.
        has_votes: whether the weights of those who named a position are summed.
        varies: whether clients differ in how many positions they name: each message then counts as long as it is, and
            ``counts`` is what is expected of one where nobody trains.
        travels: False where the server reads it off what it gets anyway, so that no byte more is sent.

    Raises:
        ValueError: votes are wanted, and the encoding does not tell exactly who named what.
    """

    name: str
    over: Range
    counts: Sequence[int]
    encoding: Encoding = field(default_factory=Sparse)
    has_votes: bool = False
    travels: bool = True
    varies: bool = False

    def __post_init__(self) -> None:
        if self.has_votes and self.travels and not self.encoding.is_exact:
            raise ValueError(f"the encoding of {self.name} does not tell which positions were named; votes need that")

    @property
    def has_values(self) -> bool:
        """Whether a client sends a value for each position; they are summed, weighted."""
        return self.encoding.has_values


def at_positions(
    name: str,
    space: ParameterSpace,
    counts: Sequence[int],
    encoding: Encoding | None = None,
    *,
    has_votes: bool = False,
    travels: bool = True,
    varies: bool = False,
) -> Collection:
    """A collection of some prunable positions, ``counts`` of each layer; with values unless the encoding has none.

    Without an encoding it is the shortest: :class:`Sparse`, or with votes :class:`WithMask`.
    """
    encoding = encoding or (WithMask() if has_votes else Sparse())
    return Collection(name, prunable(space), counts, encoding, has_votes, travels, varies)


def whole(name: str, over: Range) -> Collection:
    """A collection of a value for every position of a range."""
    return Collection(name, over, [block.size for block in over.blocks], Whole())
