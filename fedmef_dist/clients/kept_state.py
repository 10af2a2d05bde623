"""What stays with a client from round to round: momentum, running statistics, a method's own. For few clients."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.clients.cohort import FederationSettings
from fedmef_dist.cluster.group import Group
from fedmef_dist.data.population import Population
from fedmef_dist.sparsity import ParameterSpace

_MOST_CLIENTS = 10_000
# A method's own tensors have other names.
_VELOCITY, _STATISTICS = "sgd momentum", "running statistics"


@dataclass(frozen=True)
class KeptTensor:
    """Numbers that every client keeps.

    Attributes:
        name: by which they are found.
        size: how many.
        start: the state that a client is sent, float32 (total,) -> what it starts from; None: 0.
    """

    name: str
    size: int
    start: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Keepsake:
    """One client's state while it trains, changed in place; None for what does not stay.

    Attributes:
        velocity: float32 (n_parameters,), the momentum of its SGD.
        statistics: float32 (total - n_parameters,), its running statistics.
        own: what the method keeps, by name.
    """

    velocity: Tensor | None = None
    statistics: Tensor | None = None
    own: Mapping[str, Tensor] = field(default_factory=dict)

    def copy(self) -> "Keepsake":
        """The same numbers in memory of their own."""
        velocity, statistics = (None if part is None else part.clone() for part in (self.velocity, self.statistics))
        return Keepsake(velocity, statistics, {name: part.clone() for name, part in self.own.items()})

    def take(self, other: "Keepsake") -> None:
        """Takes the numbers of a copy."""
        for mine, theirs in zip(self._parts, other._parts, strict=True):
            mine.copy_(theirs)

    @property
    def _parts(self) -> list[Tensor]:
        return [part for part in (self.velocity, self.statistics, *self.own.values()) if part is not None]

    def enter(self, space: ParameterSpace) -> None:
        """Loads the client's statistics over the global ones; clears the momentum of weights that it does not train."""
        if self.statistics is not None:
            space.values[space.n_parameters :].copy_(self.statistics)
        if self.velocity is not None:
            space.drop_inactive(self.velocity)

    def leave(self, space: ParameterSpace) -> None:
        """Takes the statistics that the client's training ended with."""
        if self.statistics is not None:
            self.statistics.copy_(space.values[space.n_parameters :])


class KeptStates:
    """The states of all clients, each on one rank, which therefore trains its client in every round.

    Nothing travels but for a checkpoint, for which rank 0 collects all states: 4 bytes a number and client.

    Args:
        kept: what stays.
        owner: int64 (clients,), the rank of each client.
        group: the ranks.
        device: of the states.

    Raises:
        ValueError: two tensors have one name.
    """

    def __init__(self, kept: Sequence[KeptTensor], owner: np.ndarray, group: Group, device: torch.device) -> None:
        self.kept, self.group, self.device = tuple(kept), group, device
        names = [tensor.name for tensor in self.kept]
        if len({*names}) < len(names):
            raise ValueError(f"clients would keep two tensors of one name: {', '.join(sorted(names))}")
        self._width = sum(tensor.size for tensor in kept)
        self._rows: dict[int, Tensor] = {}
        self._fresh: dict[int, Tensor] = {}
        self._owner = owner

    def mine(self, clients: np.ndarray) -> list[int]:
        """The places of this rank's clients among these (int64 (n,))."""
        return np.flatnonzero(self._owner[clients] == self.group.rank).tolist()

    def recall(self, client: int, values: Tensor) -> Keepsake:
        """A copy of the client's state; at first what it starts from, given the global state ``values``."""
        if client in self._rows:
            parts = self._split(self._rows[client].clone())
        else:
            parts = {
                tensor.name: values.new_zeros(tensor.size) if tensor.start is None else tensor.start(values).clone()
                for tensor in self.kept
            }
        return Keepsake(parts.pop(_VELOCITY, None), parts.pop(_STATISTICS, None), parts)

    def keep(self, client: int, state: Keepsake) -> None:
        """What the client starts from next time, if the round counts."""
        parts = {_VELOCITY: state.velocity, _STATISTICS: state.statistics, **state.own}
        found = (parts[tensor.name] for tensor in self.kept)
        self._fresh[client] = torch.cat([part for part in found if part is not None])

    def forget_pruned(self, space: ParameterSpace) -> None:
        """The mask of the space is new: no client has momentum outside of it any more, so what grows back has none.

        A client that trains later would not see that a weight was gone in between.
        """
        for row in self._rows.values():
            velocity = self._split(row).get(_VELOCITY)
            if velocity is not None:
                space.drop_inactive(velocity)

    def _split(self, row: Tensor) -> dict[str, Tensor]:
        names, sizes = [tensor.name for tensor in self.kept], [tensor.size for tensor in self.kept]
        return dict(zip(names, row.split(sizes), strict=True))

    def settle(self) -> None:
        """The round counts: what clients kept in it holds from now on."""
        self._rows.update(self._fresh)
        self._fresh.clear()

    def forget(self) -> None:
        """The round does not count: clients keep what they had before."""
        self._fresh.clear()

    def blank(self) -> dict[str, Tensor]:
        """The tensors of :meth:`state` before anybody kept anything."""
        clients = len(self._owner)
        return {"seen": torch.zeros(clients, dtype=torch.uint8), "rows": torch.zeros(clients, self._width)}

    def state(self) -> dict[str, Tensor]:
        """All clients' states, for a checkpoint; every rank must call it, and has them.

        ``seen``, uint8 (clients,), tells who keeps something, ``rows``, float32 (clients, width), what.
        """
        seen = torch.zeros(len(self._owner), dtype=torch.int64)
        seen[list(self._rows)] = 1
        self.group.all_reduce(seen)
        gathered = self.blank()
        for client in seen.nonzero().flatten().tolist():
            row = self._rows.get(client, torch.empty(self._width, device=self.device))
            self.group.broadcast(row, int(self._owner[client]))
            gathered["seen"][client] = 1
            gathered["rows"][client] = row
        return gathered

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes over this rank's clients from what :meth:`state` gave."""
        mine = self.mine(np.arange(len(self._owner)))
        self._rows = {client: state["rows"][client].to(self.device) for client in mine if state["seen"][client]}


def kept_tensors(federation: FederationSettings, momentum: float, space: ParameterSpace) -> list[KeptTensor]:
    """What the configuration lets clients keep, whatever the method.

    Raises:
        UserError: there is no momentum to keep, or the model has no running statistics.
    """
    kept, where, found = federation.client_state, f"federation.client_state={federation.client_state}", []
    if kept in ("momentum", "both"):
        if not momentum:
            raise UserError(
                "there is no momentum to keep",
                where=where,
                mend="set optimizer.momentum, which is for sgd, or choose statistics or none",
            )
        found.append(KeptTensor(_VELOCITY, space.n_parameters))
    if kept in ("statistics", "both"):
        size = space.total - space.n_parameters
        if not size:
            raise UserError(
                "the model has no running statistics to keep",
                where=where,
                mend="set model.norm: batch, or choose momentum or none",
            )
        found.append(KeptTensor(_STATISTICS, size, lambda values: values[space.n_parameters :]))
    return found


def check_clients(population: Population, where: str) -> None:
    """Raises UserError where there are too many clients to keep something for each; ``where`` says who asks."""
    if population.clients > _MOST_CLIENTS:
        raise UserError(
            f"{population.clients} clients are too many to keep something for each",
            where=where,
            mend=f"choose at most {_MOST_CLIENTS} clients, or nothing that stays with them",
        )
