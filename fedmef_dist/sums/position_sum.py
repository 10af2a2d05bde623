"""Sums over positions that differ from client to client: top gradients, votes, weights under masks of their own."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedmef_dist.cluster.group import Group
from fedmef_dist.sparsity import Mask
from fedmef_dist.sums.exact_sum import FixedPoint

Exchange = Literal["none", "dense", "union-bitmap", "index-value"]
_WORD = 8  # bytes of a position, of a value and of a vote


@dataclass(frozen=True)
class Sums:
    """What a cohort's clients named, summed over all ranks.

    Attributes:
        total: int64 (size,), the weighted values in fixed point; None where no values were collected.
        votes: int64 (size,), the weights of those who named a position; None where they were not collected.
        weight: of all clients that count.
        fixed_point: the format of ``total``.
    """

    total: Tensor | None
    votes: Tensor | None
    weight: int
    fixed_point: FixedPoint

    def mean(self) -> Tensor:
        """The average over all clients, float32 (size,); who did not name a position counts with 0."""
        assert self.total is not None
        return self.fixed_point.average(self.total, self.weight)

    def mean_of_voters(self) -> Tensor:
        """The average over those who named a position, float32 (size,); 0 where nobody did."""
        assert self.votes is not None
        return self.mean_over(self.votes)

    def mean_over(self, weights: Tensor) -> Tensor:
        """The average where position by position other clients count, float32 (size,); 0 where none does.

        ``weights``, int64 (size,), is the weight of those that count; who of them did not name a position does with 0.
        """
        assert self.total is not None
        return (self.total.double() / (weights.clamp(min=1).double() * 2.0**self.fixed_point.bits)).float()

    def share(self) -> Tensor:
        """The weight of those who named a position over that of all clients, float64 (size,)."""
        assert self.votes is not None
        return self.votes.double() / max(self.weight, 1)


def choose_exchange(size: int, longest: int, channels: int, world: int) -> Exchange:
    """The exchange that moves the fewest bytes a rank, from what is known before anything is exchanged.

    A ring all-reduce moves 2 (world - 1) / world of a vector, gathering world - 1 times what each rank gives. How long
    the union of the ranks' positions is nobody knows before the bitmaps; it counts as long as the longest of them.
    Where that is too kind, the price is the bitmaps: an eighth of a byte a position.

    Args:
        size: length of the vector.
        longest: the most positions that a rank holds.
        channels: numbers for each position.
        world: ranks.
    """
    ring, numbers = 2 / world, _WORD * channels
    costs: dict[Exchange, float] = {
        "index-value": longest * (_WORD + numbers),
        "union-bitmap": size / 8 + ring * numbers * longest,
        "dense": ring * numbers * size,
    }
    return min(costs, key=lambda exchange: costs[exchange])


class PositionSum:
    """Sums positions of a long vector exactly.

    Args:
        size: length of the vector.
        has_values: whether weighted values are summed.
        has_votes: whether weights are summed.
        fixed_point: the format of values, the same on every rank.
        group: the ranks.
    """

    def __init__(self, size: int, *, has_values: bool, has_votes: bool, fixed_point: FixedPoint, group: Group) -> None:
        self.group, self.fixed_point = group, fixed_point
        self.exchange: Exchange = "none"
        self._has_values, self._has_votes = has_values, has_votes
        self._total = torch.zeros(has_values + has_votes, size, dtype=torch.int64, device=group.device)
        self._touched = torch.zeros(size, dtype=torch.bool, device=group.device)

    def add(self, positions: Tensor | None, values: Tensor | None, weight: int, accepted: Tensor | None = None) -> None:
        """Adds a client of this weight at ``positions`` (int64, each at most once; None: all).

        Where the host does not know yet whether the client is accepted, ``accepted`` (bool, 0-dim) decides on the
        device: one that is refused adds 0.
        """
        where = slice(None) if positions is None else positions
        if self._has_values:
            assert values is not None
            values = values if accepted is None else torch.where(accepted, values, 0.0)
            self._total[0, where] += self.fixed_point.encode(values, weight)
        if self._has_votes:
            self._total[-1, where] += weight if accepted is None else weight * accepted
        self._touched[where] = True

    def reduce(self, weight: int) -> Sums:
        """The sums over all ranks; ``weight`` is that of all clients that count.

        The exchange is the cheapest for what the ranks hold: the whole vector, the union of their positions (which each
        tells as a bitmap), or the positions with their numbers.
        """
        world, size = self.group.world_size, self._touched.numel()
        if world > 1:
            counts = torch.tensor([int(self._touched.sum())], device=self.group.device)
            longest = int(self.group.all_gather(counts).max())
            self.exchange = choose_exchange(size, longest, len(self._total), world)
            if self.exchange == "dense":
                self._reduce(self._total)
            elif self.exchange == "union-bitmap":
                self._exchange_union()
            else:
                self._exchange_pairs(longest)
        return Sums(
            self._total[0] if self._has_values else None,
            self._total[-1] if self._has_votes else None,
            weight,
            self.fixed_point,
        )

    def _reduce(self, numbers: Tensor) -> None:
        if self.group.is_short(numbers.numel()):
            self.group.all_reduce_short(numbers)
        else:
            self.group.all_reduce(numbers)

    def _exchange_union(self) -> None:
        bits = Mask(self._touched).to_bits().to(self.group.device)
        union = torch.zeros_like(self._touched)
        for row in self.group.all_gather(bits):
            union |= Mask.from_bits(row, union.numel(), 0, union.device).active
        positions = union.nonzero().flatten()
        packed = self._total[:, positions]
        self._reduce(packed)
        self._total.zero_()
        self._total[:, positions] = packed

    def _exchange_pairs(self, longest: int) -> None:
        pairs = torch.zeros(1 + len(self._total), longest, dtype=torch.int64, device=self.group.device)
        positions = self._touched.nonzero().flatten()
        pairs[0, : positions.numel()] = positions
        pairs[1:, : positions.numel()] = self._total[:, positions]
        gathered = self.group.all_gather(pairs)
        # Padding adds 0 at position 0.
        index = gathered[:, 0].flatten()
        self._total.zero_()
        for channel, row in enumerate(self._total):
            row.index_add_(0, index, gathered[:, 1 + channel].flatten())
