"""What a method may look at before the first round: the start weights, some data, some clients."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.randomness import numpy_generator
from fedmef_dist.clients.client import Client
from fedmef_dist.clients.cohort import Cohort
from fedmef_dist.cluster.group import Group
from fedmef_dist.data.batches import Batch
from fedmef_dist.sparsity import Mask
from fedmef_dist.sums.exact_sum import FixedPoint, is_summable
from fedmef_dist.sums.placement import assign
from fedmef_dist.wire.messages import Messages
from fedmef_dist.wire.traffic import Broadcast, Collection, Upload

_LOG = logging.getLogger(__name__)
_WHERE = "the choice of the first mask"
Batches = Iterator[Batch]


@dataclass(frozen=True)
class Training:
    """Ordinary training before the first round.

    Attributes:
        counts: active weights of each layer.
        samples: that went through the network and came back, over all epochs and clients.
        steps: of all clients.
    """

    counts: list[int]
    samples: int
    steps: int


@dataclass
class PreparationCosts:
    """What preparing costs the simulated devices, over all clients.

    Attributes:
        up, down: encoded bytes.
        forwards: (active weights of each layer, samples that went through the network with so many).
        gradient_samples: samples that went through the dense network and came back, with the gradient of every weight.
        trainings: training with sparse weights.
    """

    up: int = 0
    down: int = 0
    forwards: list[tuple[list[int], int]] = field(default_factory=list)
    gradient_samples: int = 0
    trainings: list[Training] = field(default_factory=list)


class Preparation:
    """The clients that a method may ask before the first round, and the state from which it starts.

    What it sends and collects is encoded, decoded, held against the ledger and counted, as in a round.

    Attributes:
        values: float32 (total,), the state of the first round; a method may change it.
        client: trains on the parameter space, whose mask is full.
        cohort: the clients that can be asked, the same on every rank.
        rehearses: nobody will train: what takes long may be left out, as long as its costs are counted.
        costs: what the simulated devices sent and computed; methods add what they compute.

    Args:
        client: the rank's client.
        values: the start state.
        cohort: whom to ask.
        batches: (client or None, epochs) -> the batches of a client, or of the server's own sample of the data.
        seed: of the run.
        group: the ranks.
        messages: between server and clients.
        rehearses: see above.
    """

    def __init__(
        self,
        client: Client,
        values: Tensor,
        cohort: Cohort,
        batches: Callable[[int | None, int], Batches],
        seed: int,
        group: Group,
        messages: Messages,
        *,
        rehearses: bool = False,
    ) -> None:
        self.client, self.values, self.cohort, self.rehearses = client, values.clone(), cohort, rehearses
        self.costs = PreparationCosts()
        self._batches, self._seed, self._group, self._messages = batches, seed, group, messages

    def generator(self, purpose: str) -> np.random.Generator:
        """A generator of its own for each purpose."""
        return numpy_generator(self._seed, purpose)

    def server_batches(self) -> Batches:
        """Batches of the server's own data: the training samples of everybody, in an order drawn from the seed."""
        return self._batches(None, 1)

    def client_batches(self, client: int, epochs: int = 1) -> Batches:
        """Batches of one client's data, in a new order in each epoch; from here on the model's layers draw for it."""
        self.client.draw_for(self._seed, 0, client)
        return self._batches(client, epochs)

    def samples_of(self, client: int) -> int:
        """How many samples a client of the cohort has."""
        return int(self.cohort.samples[self.cohort.clients == client][0])

    @property
    def is_first_rank(self) -> bool:
        """Whether this rank does what is done once, on behalf of all; see :meth:`share`."""
        return self._group.rank == 0

    def share(self, *tensors: Tensor) -> None:
        """Overwrites the tensors with those of the first rank."""
        for tensor in tensors:
            self._group.broadcast(tensor)

    def send_model(self, mask: Mask, receivers: int) -> None:
        """The start state goes down under a mask, with the mask unless it is full."""
        self._messages.send_model(self.values, mask)
        self.costs.down += receivers * self._messages.ledger.state_bytes(mask, knows_mask=False)

    def return_model(self, values: Tensor, mask: Mask) -> Tensor:
        """What the server decodes of a client's whole state (float32 (total,)), which comes up with a mask of its own.

        :meth:`count_returned_model` counts the bytes: every rank must, while only one may have the client.
        """
        return self._messages.return_model(values, mask)

    def count_returned_model(self, mask: Mask) -> None:
        """The bytes of a client's whole state with its mask."""
        self.costs.up += self._messages.ledger.returned_bytes(mask)

    def send(self, sent: Broadcast, receivers: int) -> Tensor:
        """What every one of the receivers decodes of a broadcast, float32 (over.size,)."""
        self.costs.down += receivers * self._messages.ledger.broadcast_bytes(sent)
        return self._messages.broadcast(sent)

    def count_collection(self, wanted: Collection) -> None:
        """Every client of the cohort sends what is collected: the bytes alone, for rehearsals."""
        self.costs.up += len(self.cohort.clients) * self._messages.ledger.collection_bytes(wanted)

    def average(self, wanted: Collection, measure: Callable[[int], Tensor]) -> Tensor:
        """The exact mean over the cohort, weighted as in a round, of what ``measure`` finds at each client.

        Every rank asks its share of the clients; the bits do not depend on how many ranks there are. As in a round, a
        client is refused whose numbers are not finite or too large for the sum: the mean is that of the others.

        Args:
            wanted: what a client sends: a value for every position of a range.
            measure: client -> float32 (wanted.over.size,).

        Raises:
            UserError: nobody can be asked, or every client is refused. Every rank raises it.
        """
        cohort, group = self.cohort, self._group
        if not len(cohort.clients):
            raise UserError(
                "no client answers the server before the first round",
                where=_WHERE,
                mend="raise federation.availability, lower federation.dropout, or choose another seed",
            )
        fixed_point = FixedPoint.for_weight(int(cohort.weights.sum()))
        buffer = torch.zeros(wanted.over.size + 1, dtype=torch.int64, device=group.device)
        total, accepted = buffer[:-1], buffer[-1:]
        for slot in assign(cohort.samples, group.world_size).slots(group.rank):
            client, weight = int(cohort.clients[slot]), int(cohort.weights[slot])
            found = self._messages.collect(Upload(None, measure(client)), wanted).values
            assert found is not None
            if is_summable(found):
                total += fixed_point.encode(found, weight)
                accepted += weight
            else:
                _LOG.warning("before round 1: client %d refused, its numbers are not finite or too large", client)
        group.all_reduce(buffer)
        self.count_collection(wanted)
        if not int(accepted):
            raise UserError(
                f"none of {len(cohort.clients)} clients has numbers for the server that are finite and below 2^16",
                where=_WHERE,
                mend="choose a lower optimizer.lr or another model.norm, or check the data",
            )
        return fixed_point.average(total, int(accepted))
