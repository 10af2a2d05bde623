"""One rank's share of a round: which clients it trains, and what it adds up of them."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from torch import nn

from fedmef_dist.base.notices import tell
from fedmef_dist.clients.client import Client, ClientReport, OutOfRoomError
from fedmef_dist.clients.cohort import Cohort
from fedmef_dist.clients.kept_state import Keepsake, KeptStates, check_clients, kept_tensors
from fedmef_dist.clients.plan import LocalClient, RoundPlan
from fedmef_dist.clients.slots import Steps, take_turns
from fedmef_dist.clients.tiers import Tiers
from fedmef_dist.cluster.gpu import SideStream, Stopwatch
from fedmef_dist.cluster.group import Group
from fedmef_dist.cluster.interruption import GraceTime, RoundAbandonedError
from fedmef_dist.config import Config
from fedmef_dist.data.batches import Batch, client_batches, steps_per_epoch
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.population import Population
from fedmef_dist.data.text import TextDataset
from fedmef_dist.methods.base import Method
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sums.cohort_sum import CohortSum
from fedmef_dist.sums.placement import Imbalance, Placement, TrainingTimes, assign
from fedmef_dist.sums.round_sum import RoundResult
from fedmef_dist.tracking.timeline import Timeline
from fedmef_dist.tracking.tracker import Metrics
from fedmef_dist.wire.messages import Messages

_LOG = logging.getLogger(__name__)

_NAMED = 20  # of a round's clients, in a rank's log
# How many times the mean the largest client takes, how many seconds, and in how many rounds in a row, to be said.
_DOMINATED, _WORTH_SAYING, _DOMINATED_ROUNDS = 1.5, 1.0, 3


@dataclass(frozen=True)
class _Task:
    """What one client of the cohort has to do.

    Attributes:
        place: of the client in the cohort.
        number, samples: the client's.
        plan: what it is asked.
        mask: what it trains.
    """

    place: int
    number: int
    samples: int
    plan: RoundPlan
    mask: Mask


@dataclass(frozen=True)
class _Trained:
    """A task that is done, with what came of it; ``row`` is its slot, and it began at ``start``."""

    task: _Task
    report: ClientReport
    state: Keepsake
    row: int
    start: float


class LocalTraining:
    """Trains this rank's clients of each round, and keeps what must stay with them.

    With one slot they train one after another on the run's own model. With several each slot has a model of its own,
    and the run's has the round's mask all the time.

    Attributes:
        kept: the clients' kept states; None where nothing stays with a client.
        times: how long clients took, from which the placement is learned.

    Args:
        config: the run.
        group: the ranks.
        dataset: both splits.
        population: whose samples are whose.
        client: trains one client, on the run's own model.
        another: makes another one, on a model of its own.
        messages: between server and clients.
        kept: the states that stay with clients.
        grace: this rank's time once somebody has asked to stop.
        timeline: of this rank.
        tiers: of the clients.
    """

    def __init__(
        self,
        config: Config,
        group: Group,
        *,
        dataset: Dataset | TextDataset,
        population: Population,
        client: Client,
        another: Callable[[], Client],
        messages: Messages,
        kept: KeptStates | None,
        grace: GraceTime,
        timeline: Timeline,
        tiers: Tiers,
    ) -> None:
        self.config, self.group, self.dataset, self.population = config, group, dataset, population
        self.client, self.messages, self.kept = client, messages, kept
        self.grace, self.timeline, self.tiers = grace, timeline, tiers
        self.times = TrainingTimes()
        self._another, self._beside = another, list[tuple[Client, SideStream]]()
        self._placement: Placement | None = None
        self._dominated = 0  # rounds in a row
        self._known_version = -1

    @property
    def space(self) -> ParameterSpace:
        """The rank's parameter space."""
        return self.client.space

    @property
    def model(self) -> nn.Module:
        """The rank's model."""
        return self.client.model

    def train(self, cohort: Cohort, plan: RoundPlan, rate: float) -> CohortSum:
        """Trains this rank's share of the cohort with the round's learning rate, longest job first."""
        tiers = self.tiers.round(plan, self.space.mask) if len(self.tiers) else []
        own_plan, with_losses = tiers[-1].plan if tiers else plan, self.config.tracking.wandb.histograms
        total = CohortSum(self.space, cohort, own_plan, self.group, with_losses, self.tiers)
        places = self.place(cohort)
        first = ", ".join(map(str, cohort.clients[places[:_NAMED]].tolist()))
        _LOG.info("round %d: trains %d clients: %s%s", plan.round, len(places), first, ", ..." * (len(places) > _NAMED))
        start = time.perf_counter()
        self.group.watch.cohort.begin(plan.round, len(cohort.clients))
        if self.kept is not None and self.space.mask.version != self._known_version:
            self.kept.forget_pruned(self.space)
        received = self._send(plan)
        of = self.tiers.of(cohort.clients)
        for part in tiers:
            if part.is_part:
                self.messages.send_model(part.plan.values, part.mask)
        tasks = [
            _Task(
                place,
                int(cohort.clients[place]),
                int(cohort.samples[place]),
                tiers[of[place]].plan if tiers else plan,
                tiers[of[place]].mask if tiers else self.space.mask,
            )
            for place in places
        ]
        try:
            self.grace.begin(int(cohort.samples[places].sum()))
            states = self._train_all(total, tasks, received, rate)
            self.messages.settle()
            self._conclude(plan.round, total, states)
        except RoundAbandonedError:
            total.states.abandon()
        self.group.watch.place = f"round {plan.round}"
        _LOG.info("round %d: trained for %.3f s", plan.round, time.perf_counter() - start)
        return total

    def settle(self, cohort: Cohort, result: RoundResult) -> None:
        """The round counts, and so does what was learned of its clients' speed and state."""
        if self.kept is not None:
            self.kept.settle()
        self.times.observe(cohort.samples, result.client_seconds, self._placement)

    def imbalance(self, round: int, result: RoundResult) -> Metrics:
        """How unevenly the ranks were busy, and how evenly at best; says once where large clients dominate."""
        found = Imbalance.of(result.rank_seconds, result.client_seconds)
        longest = result.client_seconds.max(initial=0.0)
        self._dominated = self._dominated + 1 if found.bound > _DOMINATED and longest > _WORTH_SAYING else 0
        if self._dominated == _DOMINATED_ROUNDS and self.group.rank == 0:
            tell(
                f"round {round}: the largest client alone takes {found.bound:.1f} times what a rank trains on average, "
                "so that the other ranks wait for it; fewer ranks do as well, or more clients a round, smaller largest "
                "clients (data.partition) or a deadline (federation.deadline)"
            )
        return {"time/imbalance": found.slowest, "time/imbalance_bound": found.bound}

    def forget(self) -> None:
        """The round does not count."""
        if self.kept is not None:
            self.kept.forget()

    def place(self, cohort: Cohort) -> list[int]:
        """Which of the cohort this rank trains: by learned time, or those whose state it keeps."""
        if self.kept is not None:
            return self.kept.mine(cohort.clients)
        self._placement = self.times.place(cohort.samples, self.group.world_size)
        return self._placement.slots(self.group.rank)

    def _send(self, plan: RoundPlan) -> dict[str, Any]:
        """What every client decodes of the round's broadcasts; the model is proved to decode once for each mask."""
        mask = self.space.mask
        if mask.version != self._known_version:
            self.messages.send_model(plan.values, mask, plan.mask_update)
            self._known_version = mask.version
        return {sent.name: self.messages.broadcast(sent) for sent in plan.broadcasts}

    def _train_all(
        self, total: CohortSum, tasks: Sequence[_Task], received: Mapping[str, Any], rate: float
    ) -> dict[int, Keepsake]:
        """Trains clients and adds their updates up; returns what each has kept, by its place in the cohort."""
        slots, mask, states = self._slots(len(tasks)), self.space.mask, {}
        watch, training = Stopwatch(self.group.device), list[int]()
        jobs = (partial(self._steps, slots, task, training, received, rate) for task in tasks)
        try:
            with closing(take_turns([stream for _, stream in slots], jobs)) as turns:
                for done in turns:
                    states[done.task.place] = done.state
                    self._add(total, done)
        finally:
            _wear(self.space, mask)
        if len(slots) > 1:
            total.states.train_together(watch.stop())
        return states

    def _slots(self, clients: int) -> list[tuple[Client, SideStream]]:
        """Where clients train beside each other; models are made once so many clients are there for them."""
        if self.config.runtime.slots == 1:
            return [(self.client, SideStream())]
        while len(self._beside) < min(self.config.runtime.slots, clients):
            self._beside.append((self._another(), SideStream(self.group.device)))
            self.space.release_gradient()
        return self._beside

    def _steps(
        self,
        slots: Sequence[tuple[Client, SideStream]],
        task: _Task,
        training: list[int],
        received: Mapping[str, Any],
        rate: float,
        slot: int,
    ) -> Steps[_Trained]:
        """One client's training in a slot; meanwhile it is one of those in ``training``."""
        client, plan, start = slots[slot][0], task.plan, time.perf_counter()
        training.append(task.number)
        self._tell_place(plan.round, training)
        if client is not self.client:
            plan = replace(plan, work=plan.work.moved(self.space, client.space))
        _wear(client.space, task.mask)
        state = self.kept.recall(task.number, plan.values) if self.kept is not None else Keepsake()
        who = LocalClient(task.number, received, state.own)
        report = yield from self._train_client(client, plan, rate, who, state)
        training.remove(task.number)
        self._tell_place(plan.round, training)
        return _Trained(task, report, state, slot, start)

    def _tell_place(self, round: int, training: Sequence[int]) -> None:
        if training:
            clients = ", ".join(map(str, training))
            self.group.watch.place = f"round {round}, client{'s' if len(training) > 1 else ''} {clients}"

    def _add(self, total: CohortSum, done: _Trained) -> None:
        """Adds what the server decodes of a client's report."""
        task = done.task
        _wear(self.space, task.mask)
        total.add(task.place, self._receive(done.report, task.plan))
        self.grace.trained(task.samples)
        self.group.watch.cohort.trained()
        end, details = time.perf_counter(), {"round": task.plan.round, "samples": task.samples}
        self.timeline.add(f"client {task.number}", done.start, end, row=done.row, **details)

    def _conclude(self, round: int, total: CohortSum, states: Mapping[int, Keepsake]) -> None:
        """Keeps the states of those whose update is accepted; on a device that is known only now."""
        for slot, accepted in total.verdicts().items():
            number = int(total.cohort.clients[slot])
            if not accepted:
                _LOG.warning("round %d: client %d refused, its update is not finite or too large", round, number)
            elif self.kept is not None:
                self.kept.keep(number, states[slot])

    def _train_client(
        self, client: Client, plan: RoundPlan, rate: float, who: LocalClient, state: Keepsake
    ) -> Steps[ClientReport]:
        """Trains one client on its own batches, which depend on nothing but (seed, round, client).

        If its activations needed more room on the device than was foreseen, it is trained a second time, to the result
        that it would have had.
        """
        before = state.copy() if client.may_lack_room else None
        try:
            return (yield from self._attempt(client, plan, rate, who, state))
        except OutOfRoomError:
            _LOG.info("round %d: client %d is trained again, with more room", plan.round, who.number)
        if before is not None:
            state.take(before)
        return (yield from self._attempt(client, plan, rate, who, state, waits=True))

    def _attempt(
        self, client: Client, plan: RoundPlan, rate: float, who: LocalClient, state: Keepsake, waits: bool = False
    ) -> Steps[ClientReport]:
        federation, seed = self.config.federation, self.config.seed
        indices = self.population.samples(who.number)
        # One pass more than it trains, where it takes the gradient of inactive weights from fresh batches.
        epochs = federation.local_epochs + (plan.work.gradient_batches > 0)
        batches = client_batches(
            self.dataset,
            indices,
            batch_size=federation.batch_size,
            epochs=epochs + plan.work.extra_epochs,
            seed=seed,
            round=plan.round,
            client=who.number,
            augment=self.config.data.augment,
            device=self.group.device,
        )
        client.draw_for(seed, plan.round, who.number)
        once = steps_per_epoch(len(indices), federation.batch_size)
        own, more = _parted(self.grace.heed(batches), epochs * once)
        steps = federation.local_epochs * once
        extra = more if plan.work.extra_epochs else None
        return client.training(plan, own, steps, rate, who, state, extra, waits)

    def _receive(self, report: ClientReport, plan: RoundPlan) -> ClientReport:
        """A client's report as the server decodes it."""
        values = self.messages.return_state(report.values, returns_weights=plan.returns_weights)
        uploads = {
            wanted.name: self.messages.collect(report.uploads[wanted.name], wanted) for wanted in plan.collections
        }
        ledger = self.messages.ledger
        varied = sum(
            ledger.collection_bytes(wanted, report.uploads[wanted.name].counts(wanted.over))
            for wanted in plan.collections
            if wanted.varies
        )
        return replace(report, values=values, uploads=uploads, varied_bytes=varied)


def _wear(space: ParameterSpace, mask: Mask) -> None:
    """The space has this mask from now on."""
    if space.mask is not mask:
        space.set_mask(mask)


def _parted(batches: Iterator[Batch], count: int) -> tuple[Iterator[Batch], Iterator[Batch]]:
    """The first ``count`` batches and those behind them, however many of the first are taken."""
    first = islice(batches, count)

    def behind() -> Iterator[Batch]:
        deque(first, maxlen=0)
        yield from batches

    return first, behind()


def open_kept_states(
    config: Config, method: Method[Any], space: ParameterSpace, population: Population, group: Group
) -> KeptStates | None:
    """What configuration and method let clients keep; None where nothing stays with them.

    The ranks share the clients out by their samples once and for all.

    Raises:
        UserError: there is nothing to keep of what the configuration names, or there are too many clients.
    """
    tensors = [*kept_tensors(config.federation, config.optimizer.momentum, space), *method.kept()]
    if not tensors:
        return None
    own = config.federation.client_state == "none"
    check_clients(
        population,
        f"method.name={config.method.name}" if own else f"federation.client_state={config.federation.client_state}",
    )
    owner = assign(population.sizes(np.arange(population.clients)), group.world_size).ranks
    return KeptStates(tensors, owner, group, space.values.device)
