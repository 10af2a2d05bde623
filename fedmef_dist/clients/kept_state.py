"""What stays with a client from round to round: its momentum, its running statistics. For few clients, as silos are."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.clients.cohort import ClientState, FederationSettings
from fedmef_dist.cluster.group import Group
from fedmef_dist.data.population import Population
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sums.placement import assign

_MOST_CLIENTS = 10_000


@dataclass(frozen=True)
class Keepsake:
    """One client's state while it trains, changed in place; None for what does not stay.

    Attributes:
        velocity: float32 (n_parameters,), the momentum of its SGD.
        statistics: float32 (total - n_parameters,), its running statistics.
    """

    velocity: Tensor | None
    statistics: Tensor | None

    def enter(self, space: ParameterSpace) -> None:
        """Loads the client's statistics over the global ones; clears the momentum of weights pruned meanwhile."""
        if self.statistics is not None:
            space.values[space.n_parameters :].copy_(self.statistics)
        if self.velocity is not None:
            self.velocity[: space.n_prunable].mul_(space.mask_values)

    def leave(self, space: ParameterSpace) -> None:
        """Takes the statistics that the client's training ended with."""
        if self.statistics is not None:
            self.statistics.copy_(space.values[space.n_parameters :])


class ClientStates:
    """The states of all clients, each on one rank, which therefore trains its client in every round.

    The ranks share the clients out by their samples once and for all. Nothing travels but for a checkpoint, for which
    rank 0 collects all states: 4 bytes a parameter and client.

    Args:
        kept: what stays.
        space: the parameter space.
        sizes: int64 (clients,), samples of every client.
        group: the ranks.
    """

    def __init__(self, kept: ClientState, space: ParameterSpace, sizes: np.ndarray, group: Group) -> None:
        self.space, self.group = space, group
        statistics = space.total - space.n_parameters if kept in ("statistics", "both") else 0
        self._velocity = space.n_parameters if kept in ("momentum", "both") else 0
        self._width = self._velocity + statistics
        self._rows: dict[int, Tensor] = {}
        self._fresh: dict[int, Tensor] = {}
        self._owner = np.empty(len(sizes), dtype=np.int64)
        for rank, clients in enumerate(assign(sizes.astype(np.float64), group.world_size)):
            self._owner[clients] = rank

    def mine(self, clients: np.ndarray) -> list[int]:
        """The places of this rank's clients among these (int64 (n,))."""
        return np.flatnonzero(self._owner[clients] == self.group.rank).tolist()

    def recall(self, client: int, values: Tensor) -> Keepsake:
        """A copy of the client's state; at first no momentum, and the statistics of the global state ``values``."""
        row = self._rows.get(client)
        if row is None:
            row = torch.cat([values.new_zeros(self._velocity), values[values.numel() - self._width + self._velocity :]])
        return self._split(row.clone())

    def keep(self, client: int, state: Keepsake) -> None:
        """What the client starts from next time, if the round counts."""
        self._fresh[client] = torch.cat([part for part in (state.velocity, state.statistics) if part is not None])

    def _split(self, row: Tensor) -> Keepsake:
        velocity, statistics = row[: self._velocity], row[self._velocity :]
        return Keepsake(velocity if velocity.numel() else None, statistics if statistics.numel() else None)

    def settle(self, counts: bool) -> None:
        """Ends a round: what clients kept in it holds from now on, or is forgotten where the round does not count."""
        if counts:
            self._rows.update(self._fresh)
        self._fresh.clear()

    def blank(self) -> dict[str, Tensor]:
        """The tensors of :meth:`gather` before anybody kept anything."""
        clients = len(self._owner)
        return {"seen": torch.zeros(clients, dtype=torch.uint8), "states": torch.zeros(clients, self._width)}

    def gather(self) -> dict[str, Tensor]:
        """All clients' states on rank 0, for a checkpoint; every rank must call it, and the others get nothing.

        ``seen``, uint8 (clients,), tells who keeps something, ``states``, float32 (clients, width), what.
        """
        seen = torch.zeros(len(self._owner), dtype=torch.int64)
        seen[list(self._rows)] = 1
        self.group.all_reduce(seen)
        gathered = self.blank() if self.group.rank == 0 else {}
        for client in seen.nonzero().flatten().tolist():
            row = self._rows.get(client, self.space.values.new_empty(self._width))
            self.group.broadcast(row, int(self._owner[client]))
            if gathered:
                gathered["seen"][client] = 1
                gathered["states"][client] = row
        return gathered

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over this rank's clients from what :meth:`gather` gave."""
        device = self.space.values.device
        mine = self.mine(np.arange(len(self._owner)))
        self._rows = {client: tensors["states"][client].to(device) for client in mine if tensors["seen"][client]}


def open_client_states(
    federation: FederationSettings, momentum: float, space: ParameterSpace, population: Population, group: Group
) -> ClientStates | None:
    """What the configuration asks for; None where clients keep nothing.

    Raises:
        UserError: there is no momentum, the model has no running statistics, or there are too many clients.
    """
    kept = federation.client_state
    if kept == "none":
        return None
    where = f"federation.client_state={kept}"
    if kept != "statistics" and not momentum:
        raise UserError(
            "there is no momentum to keep",
            where=where,
            mend="set optimizer.momentum, or choose statistics or none",
        )
    if kept != "momentum" and space.total == space.n_parameters:
        raise UserError(
            "the model has no running statistics to keep",
            where=where,
            mend="set model.norm: batch, or choose momentum or none",
        )
    if population.clients > _MOST_CLIENTS:
        raise UserError(
            f"{population.clients} clients are too many to keep something for each",
            where=where,
            mend=f"choose none, or at most {_MOST_CLIENTS} clients",
        )
    return ClientStates(kept, space, population.sizes(np.arange(population.clients)), group)
