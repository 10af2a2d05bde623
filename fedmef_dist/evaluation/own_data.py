"""How the global model serves each client: accuracy on clients' own data, and who is served worst."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import Tensor, nn

from fedmef_dist.base.randomness import numpy_generator
from fedmef_dist.clients.kept_state import KeptStates
from fedmef_dist.clients.tiers import TierRound
from fedmef_dist.cluster.group import Group
from fedmef_dist.data.batches import evaluation_batches
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.partitions import PartitionSettings
from fedmef_dist.data.population import Population
from fedmef_dist.data.text import TextDataset, TextSplit
from fedmef_dist.evaluation.test_set import EvaluationSettings, add_up
from fedmef_dist.sparsity import ParameterSpace


@dataclass(frozen=True)
class Clientele:
    """What clients use: the global state or their tier's part of it, and what they have kept.

    Attributes:
        values: float32 (total,), the global weights and running statistics.
        states: what clients keep; None where they keep nothing.
        personal: :meth:`Method.personal`, which makes a client's state of the global one and of what it keeps.
        part: what the tier of a client would be sent; None: all of the model.
    """

    values: Tensor
    states: KeptStates | None
    personal: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
    part: Callable[[int], TierRound | None] = lambda client: None

    def enter(self, client: int, space: ParameterSpace) -> None:
        """Makes the client's model, and the mask of its part, those of the space."""
        part, values = self.part(client), self.values
        if part is not None:
            values = part.plan.values
            if space.mask is not part.mask:
                space.set_mask(part.mask)
        if self.states is None:
            space.load(values)
            return
        state = self.states.recall(client, values)
        own = self.personal(values, state.own)
        space.load(own)
        if own is values:  # a model of its own has statistics of its own
            state.enter(space)


class ClientEvaluation:
    """Tests the same clients at every evaluation, drawn once from the seed.

    A client's own data are its test samples where the data set names their owners and the clients are natural ones,
    else its training samples.

    Args:
        settings: section ``evaluation``; ``per_client`` is at least 1.
        dataset: both splits.
        population: whose samples are whose.
        natural: whether clients are the data set's own.
        seed: the run's seed.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        dataset: Dataset | TextDataset,
        population: Population,
        natural: bool,
        seed: int,
    ) -> None:
        self.settings, self.dataset, self.population = settings, dataset, population
        self.natural = natural
        count = min(settings.per_client, population.clients)
        generator = numpy_generator(seed, "evaluated clients")
        self.clients = np.sort(generator.choice(population.clients, count, replace=False))
        self.groups = self._groups()

    @property
    def has_test_samples(self) -> bool:
        """Whether clients are tested on test samples of their own, not on those that they train on."""
        return self.natural and self.dataset.owners is not None and self.dataset.test_owners is not None

    def metrics(
        self, model: nn.Module, space: ParameterSpace, clientele: Clientele, group: Group
    ) -> dict[str, float | int]:
        """Accuracies of what each client uses, over the clients."""
        return self.summarise(self.counts(model, space, clientele, group))

    def counts(self, model: nn.Module, space: ParameterSpace, clientele: Clientele, group: Group) -> np.ndarray:
        """int64 (clients, 2): right answers and all answers of each client's model on its own data.

        They are added up as integers, so the result is the same on any number of ranks. The space keeps its mask.
        """
        mask = space.mask
        counts = torch.zeros(len(self.clients), 2, dtype=torch.int64)
        states = clientele.states
        mine = range(group.rank, len(self.clients), group.world_size) if states is None else states.mine(self.clients)
        for place in group.watch.progress.through(mine):
            client = int(self.clients[place])
            clientele.enter(client, space)
            data = self.local_data(client)
            batches = evaluation_batches(
                data, self.dataset, batch_size=self.settings.batch_size, rank=0, world_size=1, device=group.device
            )
            counts[place, 0], counts[place, 1] = add_up(model, batches)[1], data.predictions
        if space.mask is not mask:
            space.set_mask(mask)
        group.all_reduce(counts)
        return counts.numpy()

    def local_data(self, client: int) -> Split | TextSplit:
        """What the client is tested on; empty where it is a natural one without test samples."""
        samples, device = torch.from_numpy(self.population.samples(client)), self.dataset.train.labels.device
        owners, test_owners = self.dataset.owners, self.dataset.test_owners
        if owners is None or test_owners is None or not self.has_test_samples:
            return self.dataset.train.take(samples.to(device))
        return self.dataset.test.take((test_owners == owners[samples[0]]).nonzero().flatten().to(device))

    def _groups(self) -> np.ndarray | None:
        """int64 (clients,): each client's commonest label, or its quarter by samples from 1, the smallest."""
        if self.settings.client_groups == "none":
            return None
        if self.settings.client_groups == "size":
            ranks = np.argsort(np.argsort(self.population.sizes(self.clients), kind="stable"), kind="stable")
            return 1 + 4 * ranks // len(ranks)
        labels = self.dataset.train.labels.cpu().numpy()
        own = (labels[self.population.samples(client)] for client in self.clients.tolist())
        return np.array([np.bincount(one).argmax() for one in own], dtype=np.int64)

    def summarise(self, counts: np.ndarray) -> dict[str, float | int]:
        """Mean, spread, worst tenth and groups of the accuracies in :meth:`counts`, as metrics."""
        tested = counts[:, 1] > 0
        if not tested.any():
            return {"eval/clients": 0}
        accuracy = counts[tested, 0] / counts[tested, 1]
        worst = np.sort(accuracy)[: ceil(len(accuracy) / 10)]
        found: dict[str, float | int] = {
            "eval/clients": len(accuracy),
            "eval/client_accuracy_mean": float(accuracy.mean()),
            "eval/client_accuracy_std": float(accuracy.std()),
            "eval/client_accuracy_worst_decile": float(worst.mean()),
        }
        if self.groups is not None:
            groups = self.groups[tested]
            means = {int(group): float(accuracy[groups == group].mean()) for group in np.unique(groups)}
            kind = self.settings.client_groups
            found |= {f"eval/{kind}_{group}_accuracy": mean for group, mean in means.items()}
            found["eval/group_accuracy_worst"] = min(means.values())
        return found


def open_client_evaluation(
    settings: EvaluationSettings,
    dataset: Dataset | TextDataset,
    population: Population,
    partition: PartitionSettings,
    seed: int,
) -> ClientEvaluation | None:
    """What the configuration asks for; None where clients are not tested."""
    if not settings.per_client:
        return None
    return ClientEvaluation(settings, dataset, population, partition.scheme == "natural", seed)
