"""One round's sum over clients and ranks, in one buffer and one all-reduce."""

from dataclasses import dataclass
from typing import NamedTuple, SupportsFloat

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.cluster.group import Group
from fedmef_dist.sums.exact_sum import FixedPoint, is_summable, summable

MICROSECOND = 1e-6
_LOSS_BITS = 24
_LARGEST_LOSS = 2.0**12
_LARGEST_SUM = 2.0**38  # of losses by weight: in units of 2^-24 an int64 holds twice as much
_REFUSED = -1  # stands for the loss of a client that is refused; others have losses of 0 or more
_DIGEST_WORDS, _WORD_BITS = 2, 20  # the squares of so many bits have room for 2^23 ranks
_COUNTERS = ("weight", "samples", "trained", "refused", "loss", "stopping", "abandoned")


class RanksOutOfStepError(RuntimeError):
    """The ranks hold different masks: a fault of this program or of the machine, never of the user."""


@dataclass(frozen=True)
class RoundResult:
    """What every rank knows after the reduction.

    Attributes:
        values: float32 (packed_size,), the weighted average of the accepted clients; None if all were refused.
        weight: weight of the accepted clients.
        samples: samples of the accepted clients.
        trained: accepted clients.
        refused: clients whose update was not finite or too large.
        loss: the accepted clients' mean training loss, weighted as their updates are.
        client_seconds: float64 (cohort,), seconds each client took, in cohort order.
        rank_seconds: float64 (world,), seconds each rank was busy training.
        client_losses: float64 (cohort,), mean training loss of each client, NaN where it was refused; None where nobody
            asks.
        stopping: whether a rank was asked to stop; so it was where it abandoned the round.
        abandoned: whether a rank left its part of the round out, so that the round does not count.
        varied_bytes: what the clients of each tier sent for collections whose length differs from client to client.
    """

    values: Tensor | None
    weight: int
    samples: int
    trained: int
    refused: int
    loss: float
    client_seconds: np.ndarray
    rank_seconds: np.ndarray
    client_losses: np.ndarray | None
    stopping: bool
    abandoned: bool
    varied_bytes: list[int]


class _Added(NamedTuple):
    """A client of this rank; ``outcome``, float64 (2,): whether it was accepted, and its mean loss."""

    slot: int
    outcome: Tensor
    weight: int
    samples: int
    seconds: SupportsFloat


class RoundSum:
    """Collects the clients of this rank; :meth:`reduce` adds up all ranks.

    The buffer is int64: the mask's digest, counters, bytes of each tier, one slot of microseconds for each client and
    each rank, then the active values and the dense tail. Values travel without positions, since all ranks hold the same
    mask; the digest words prove that they do.

    Args:
        size: elements of a client's packed state.
        cohort: clients of the round, over all ranks.
        total_weight: weight of the whole cohort; sets the fixed-point format.
        digest: SHA-256 of the mask.
        group: the ranks.
        sent: float32 (size,), what every client started from, the same on every rank; None: nothing in common.
        with_losses: whether every client's loss travels too, in one more slot each.
        tiers: of the clients.
    """

    def __init__(
        self,
        size: int,
        cohort: int,
        total_weight: int,
        digest: bytes,
        group: Group,
        sent: Tensor | None = None,
        *,
        with_losses: bool = False,
        tiers: int = 1,
    ) -> None:
        self.group = group
        self.fixed_point = FixedPoint.for_weight(total_weight)
        self._largest_loss = min(_LARGEST_LOSS, _LARGEST_SUM / max(total_weight, 1))
        self._counters = 2 * _DIGEST_WORDS
        self._varied = self._counters + len(_COUNTERS)
        self._clients = self._varied + tiers
        self._ranks = self._clients + cohort
        self._losses = self._ranks + group.world_size
        self._values = self._losses + (cohort if with_losses else 0)
        self._buffer = torch.zeros(self._values + size, dtype=torch.int64, device=group.device)
        self._header = np.zeros(self._values, dtype=np.int64)
        self._added: list[_Added] = []
        self._known: list[list[float]] = []
        self._together: SupportsFloat | None = None
        self._sent = sent
        whole = int.from_bytes(digest, "little")
        self._words = [whole >> _WORD_BITS * place & (1 << _WORD_BITS) - 1 for place in range(_DIGEST_WORDS)]

    def add(
        self,
        slot: int,
        values: Tensor,
        weight: int,
        loss: float | Tensor,
        seconds: SupportsFloat,
        samples: int,
        sane: Tensor | bool = True,
    ) -> Tensor:
        """Adds one client, or nothing where its update is refused (not finite, or beyond the format's limit).

        Returns whether it was accepted, bool, 0-dim, where the values are. Away from the CPU nobody waits for it: what
        is refused is added as 0, and counted when the round is reduced.

        Args:
            slot: the client's place in the cohort.
            values: float32 (size,), the client's packed state.
            weight: how often the client counts.
            loss: its mean training loss, float64.
            seconds: how long it trained; a number by the time the round is reduced.
            samples: how many samples it has.
            sane: whether what else it sends can be added up.
        """
        mean = torch.as_tensor(loss, dtype=torch.float64, device=values.device)
        accepted = mean.isfinite() & summable(values) & sane
        if values.device.type != "cpu":
            values = torch.where(accepted, values, 0.0)
        if values.device.type != "cpu" or accepted:
            self._buffer[self._values :].add_(self.fixed_point.encode(values, weight))
        self._added.append(_Added(slot, torch.stack([accepted.double(), mean]), weight, samples, seconds))
        return accepted

    def train_together(self, seconds: SupportsFloat) -> None:
        """The clients were trained beside each other, all in so many seconds, of which each counts its share."""
        self._together = seconds

    def verdicts(self) -> dict[int, bool]:
        """For the place of every client so far whether it was accepted; the host waits for the device once."""
        return {one.slot: bool(accepted) for one, (accepted, _) in zip(self._added, self._outcomes(), strict=True)}

    def _outcomes(self) -> list[list[float]]:
        """Whether each client was accepted, and its mean loss."""
        if len(self._known) != len(self._added):
            self._known = torch.stack([one.outcome for one in self._added]).tolist()
        return self._known

    def _count_clients(self) -> None:
        for one, seconds, (accepted, loss) in zip(self._added, self._seconds(), self._outcomes(), strict=True):
            if accepted:
                summed = round(min(loss, self._largest_loss) * one.weight * 2**_LOSS_BITS)
                self._count(weight=one.weight, samples=one.samples, trained=1, loss=summed)
            else:
                self._count(refused=1)
            if self._losses < self._values:
                fixed = round(min(loss, _LARGEST_LOSS) * 2**_LOSS_BITS) if accepted else _REFUSED
                self._header[self._losses + one.slot] = fixed
            microseconds = round(seconds / MICROSECOND)
            self._header[self._clients + one.slot] = microseconds
            self._header[self._ranks + self.group.rank] += microseconds

    def _seconds(self) -> list[float]:
        """What each client takes of this rank's time."""
        own = [float(one.seconds) for one in self._added]
        if self._together is None:
            return own
        share = float(self._together) / max(sum(own), MICROSECOND)
        return [share * seconds for seconds in own]

    def note_sent(self, varied_bytes: int, tier: int = 0) -> None:
        """Counts what a client of a tier sent for collections whose length differs from client to client."""
        self._header[self._varied + tier] += varied_bytes

    def abandon(self) -> None:
        """Declares the round void, for all ranks."""
        self._count(abandoned=1)

    def _count(self, **amounts: int) -> None:
        for name, amount in amounts.items():
            self._header[self._counters + _COUNTERS.index(name)] += amount

    def reduce(self, stopping: bool = False) -> RoundResult:
        """Adds up all ranks in one all-reduce; ``stopping`` tells them that this one was asked to stop.

        Raises:
            RanksOutOfStepError: the ranks' masks differ. Every rank raises.
        """
        self._count(stopping=int(stopping))
        self._count_clients()
        for place, word in enumerate(self._words):
            self._header[2 * place : 2 * place + 2] = word, word * word
        own_weight = int(self._header[self._counters + _COUNTERS.index("weight")])
        self._buffer[: self._values] = torch.from_numpy(self._header).to(self._buffer.device)
        short = self.group.is_short(self._buffer.numel())
        self.group.all_reduce(self._buffer[: self._values] if short else self._buffer)
        header = self._buffer[: self._values].cpu().numpy()
        self._check_digest(header)
        if short:
            self._reduce_short(own_weight, int(header[self._counters + _COUNTERS.index("weight")]))
        counters = (int(number) for number in header[self._counters : self._varied])
        weight, samples, trained, refused, loss, stopped, abandoned = counters
        return RoundResult(
            values=self.fixed_point.average(self._buffer[self._values :], weight) if trained else None,
            weight=weight,
            samples=samples,
            trained=trained,
            refused=refused,
            loss=loss / (weight * 2**_LOSS_BITS) if trained else float("nan"),
            client_seconds=header[self._clients : self._ranks] * MICROSECOND,
            rank_seconds=header[self._ranks : self._losses] * MICROSECOND,
            client_losses=_losses(header[self._losses : self._values]) if self._losses < self._values else None,
            stopping=stopped + abandoned > 0,
            abandoned=abandoned > 0,
            varied_bytes=header[self._varied : self._clients].tolist(),
        )

    def _reduce_short(self, own_weight: int, weight: int) -> None:
        """Adds up what clients changed, which is small, in place of what they have; integers give the same sum."""
        values, start = self._buffer[self._values :], None
        if self._sent is not None and is_summable(self._sent):
            start = self.fixed_point.encode(self._sent, 1)
            values -= own_weight * start
        self.group.all_reduce_short(values)
        if start is not None:
            values += weight * start

    def _check_digest(self, header: np.ndarray) -> None:
        # By Cauchy-Schwarz world * sum(d^2) equals (sum d)^2 only where all d agree, so every rank sees the difference.
        for place in range(_DIGEST_WORDS):
            total, squares = int(header[2 * place]), int(header[2 * place + 1])
            if self.group.world_size * squares != total * total:
                raise RanksOutOfStepError("the ranks hold different masks")


def _losses(slots: np.ndarray) -> np.ndarray:
    return np.where(slots == _REFUSED, np.nan, slots / 2**_LOSS_BITS)
