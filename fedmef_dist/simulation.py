"""The loop: sample a cohort, train it, add up, adjust the mask, evaluate, write down, save."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedmef_dist.checkpoint import (
    Checkpoint,
    CheckpointStore,
    RunState,
    check_tensors,
    check_values,
    misfit,
    model_tensors,
    read_model,
    with_prefix,
    without_prefix,
)
from fedmef_dist.client import Client, ClientReport
from fedmef_dist.client_evaluation import open_client_evaluation
from fedmef_dist.client_state import Keepsake, open_client_states
from fedmef_dist.comm.exact_sum import is_summable
from fedmef_dist.comm.group import Group
from fedmef_dist.comm.packed import RoundResult, RoundSum, SparseSum
from fedmef_dist.comm.placement import CostModel, assign
from fedmef_dist.config import Config
from fedmef_dist.costs.flops import FlopsLedger
from fedmef_dist.costs.wire import WireLedger
from fedmef_dist.data.batches import client_batches, steps_per_epoch
from fedmef_dist.data.federation import Cohort, draw_cohort
from fedmef_dist.data.population import build_population
from fedmef_dist.data.sources import load_dataset
from fedmef_dist.evaluation import evaluate, quality
from fedmef_dist.interruption import GraceTime, Interruption, RoundAbandonedError
from fedmef_dist.layers.random import set_generator
from fedmef_dist.methods import create_method
from fedmef_dist.methods.base import RoundPlan
from fedmef_dist.models import build_model, prunable_weights
from fedmef_dist.randomness import numpy_generator, torch_generator
from fedmef_dist.server import Server
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.tracking import Tracker
from fedmef_dist.tracking.timeline import Timeline

_LOG = logging.getLogger(__name__)
_METHOD, _CLIENTS = "method/", "clients/"
Metrics = dict[str, float | int | str]


@dataclass
class Totals:
    """What adds up over the rounds of a run, and survives in its checkpoints."""

    wire_bytes: int = 0
    models_sent: int = 0  # to clients and back
    flops: float = 0.0
    seconds: float = 0.0
    best_accuracy: float = 0.0
    last: Metrics = field(default_factory=dict)


class Simulation:
    """One federated run on all ranks of a group.

    Args:
        config: the run.
        group: the ranks.
        run_dir: where rank 0 writes.
        interruption: the signals that this process hears; none by default.
    """

    def __init__(self, config: Config, group: Group, run_dir: Path, interruption: Interruption | None = None) -> None:
        self.config, self.group = config, group
        self.dataset = load_dataset(config.data, config.seed).to(group.device)
        self.population = build_population(
            self.dataset.train.labels,
            self.dataset.owners,
            config.federation.clients,
            config.data.partition,
            config.seed,
        )
        self.model = build_model(
            config.model,
            config.resolved_sap,
            norm=config.norm,
            classes=self.dataset.classes,
            shape=self.dataset.shape,
            seed=config.seed,
        ).to(group.device)
        self.space = ParameterSpace(self.model, prunable_weights(self.model))
        self.flops = FlopsLedger(self.model, self.space, self.dataset.example(), config.resolved_sap.enabled is True)
        self.wire = WireLedger(self.space, config.federation.clients, config.wire)
        self.method = create_method(config.method, self.space, config.optimizer.lr)
        self.client = Client(self.model, self.space, config.optimizer, config.runtime.precision == "bf16")
        self.client_states = open_client_states(
            config.federation, config.optimizer.momentum, self.space, self.population, group
        )
        self.client_evaluation = open_client_evaluation(
            config.evaluation, self.dataset, self.population, config.data.partition, config.seed
        )
        self.server = Server(self.space, self.method, group)
        self.costs = CostModel()
        self.store = CheckpointStore(run_dir, config.checkpoint.keep)
        self.grace = GraceTime(config.checkpoint.grace, interruption or Interruption(), group.watch)
        self.timeline = Timeline(run_dir if config.tracking.timeline else None, group.rank)
        self.stopping = False
        self.totals = Totals()
        self.first_metrics: Metrics = {}
        self.round = self.saved_round = 0
        self.server.start(self.method.initial_mask(numpy_generator(config.seed, "mask")))

    def run(self, tracker: Tracker) -> None:
        """All rounds that are left, or those until a signal stops the run."""
        while self.round < self.config.federation.rounds and not self.stopping:
            self.round += 1
            metrics = self.play_round()
            if metrics is None:
                self.round -= 1
            else:
                tracker.log(metrics | self.first_metrics)
                self.first_metrics = {}
            self.save_if_due(tracker)
            self.grace.end()

    @property
    def stopped_early(self) -> bool:
        """Whether a signal stopped the run before its last round."""
        return self.stopping and self.round < self.config.federation.rounds

    def play_round(self) -> Metrics | None:
        """One round; returns its metrics, or None where the ranks abandoned it and nothing of it counts."""
        self.group.watch.place = f"round {self.round}"
        start = time.perf_counter()
        moved = self.group.bytes_moved
        cohort = draw_cohort(self.population, self.config.federation, self.config.seed, self.round)
        plan = self.method.plan(self.round, self.server.values)
        before, mask = self.server.values, self.space.mask
        accuracies = self.observe_adjustment(plan, "before_extrusion")

        total = self.train_cohort(cohort, plan)
        trained = time.perf_counter()
        result = total.reduce(self.grace.asked)
        self.stopping = result.stopping
        if self.client_states is not None:
            self.client_states.settle(counts=not result.abandoned)
        if result.abandoned:
            _LOG.warning("round %d: abandoned, it does not fit the time left after a signal", self.round)
            return None
        self.costs.observe(cohort.samples, result.client_seconds)
        reduced = time.perf_counter()
        slowest = float(result.rank_seconds.max() - result.rank_seconds[self.group.rank])
        met = min(trained + slowest, reduced)  # the reduction begins when the slowest rank has trained
        metrics = self.update_server(plan, total, result, before, accuracies)
        metrics |= self.account(cohort, plan, mask)

        evaluated = time.perf_counter()
        metrics |= self.evaluate_if_due()
        end = time.perf_counter()
        metrics |= {
            **self.timeline.phases(self.round, (start, trained, met, reduced, evaluated, end)),
            "time/round": end - start,
            "time/imbalance": float(result.rank_seconds.max() / max(result.rank_seconds.mean(), 1e-9)),
            "cluster/reduce_bytes": self.group.bytes_moved - moved,
            "clients/trained": result.trained,
            "clients/refused": result.refused,
            "clients/dropped": cohort.dropped,
            "clients/late": cohort.late,
            "clients/surplus": cohort.surplus,
            "model/digest": self.server.digest(),
        }
        self.totals.seconds += end - start
        self.totals.last |= metrics
        return {"round": self.round, **metrics}

    def train_cohort(self, cohort: Cohort, plan: RoundPlan) -> "CohortSum":
        """Trains this rank's share of the cohort, longest job first."""
        total = CohortSum(self, cohort, plan)
        rate = self.config.optimizer.rate(self.round, self.config.federation.rounds)
        slots = self.place(cohort)
        _LOG.info("round %d: trains clients %s", self.round, cohort.clients[slots].tolist())
        start = time.perf_counter()
        try:
            self.grace.begin(int(cohort.samples[slots].sum()))
            for slot in slots:
                self.train_slot(total, slot, plan, rate)
        except RoundAbandonedError:
            total.states.abandon()
        self.group.watch.place = f"round {self.round}"
        _LOG.info("round %d: trained for %.3f s", self.round, time.perf_counter() - start)
        return total

    def place(self, cohort: Cohort) -> list[int]:
        """Which of the cohort this rank trains: by cost, or those whose state it keeps."""
        if self.client_states is not None:
            return self.client_states.mine(cohort.clients)
        return assign(self.costs.predict(cohort.samples), self.group.world_size)[self.group.rank]

    def train_slot(self, total: "CohortSum", slot: int, plan: RoundPlan, rate: float) -> None:
        """Trains the client of one place in the cohort and adds its update."""
        client = int(total.cohort.clients[slot])
        self.group.watch.place = f"round {self.round}, client {client}"
        start = time.perf_counter()
        states = self.client_states
        state = states.recall(client, self.server.values) if states is not None else None
        accepted = total.add(slot, self.train_client(client, plan, rate, state))
        if accepted and states is not None and state is not None:
            states.keep(client, state)
        if not accepted:
            _LOG.warning("round %d: client %d refused, its update is not finite or too large", self.round, client)
        samples = int(total.cohort.samples[slot])
        self.grace.trained(samples)
        self.timeline.add(f"client {client}", start, time.perf_counter(), round=self.round, samples=samples)

    def train_client(self, client: int, plan: RoundPlan, rate: float, state: Keepsake | None = None) -> ClientReport:
        """Trains one client on its own batches, which depend on nothing but (seed, round, client)."""
        federation, seed = self.config.federation, self.config.seed
        indices = self.population.samples(client)
        # One pass more than it trains: an adjusting round takes its gradient from fresh batches.
        batches = client_batches(
            self.dataset,
            indices,
            batch_size=federation.batch_size,
            epochs=federation.local_epochs + plan.adjusts,
            seed=seed,
            round=self.round,
            client=client,
            augment=self.config.data.augment,
            device=self.group.device,
        )
        set_generator(self.model, torch_generator(seed, "layers", self.round, client))
        steps = federation.local_epochs * steps_per_epoch(len(indices), federation.batch_size)
        return self.client.train(self.server.values, self.grace.heed(batches), steps, rate, plan, state)

    def update_server(
        self, plan: RoundPlan, total: "CohortSum", result: RoundResult, before: torch.Tensor, accuracies: Metrics
    ) -> Metrics:
        """The average becomes the global state; an adjusting round swaps weights."""
        metrics: Metrics = {"train/samples": result.samples, "sparsity/changed": 0, **accuracies}
        if result.values is not None:
            metrics["train/loss"] = result.loss
            self.server.average(result.values)
            metrics |= self.method.metrics(plan, before, self.server.values)
            metrics |= self.observe_adjustment(plan, "after_extrusion")
            if total.gradient is not None:
                gradient = total.gradient.reduce(result.weight)
                metrics["cluster/gradient_exchange"] = total.gradient.exchange
                metrics["sparsity/changed"] = self.server.adjust(
                    plan, gradient, lambda step: metrics.update(self.observe_adjustment(plan, step))
                )
        metrics["sparsity/density"] = self.space.density
        return metrics

    def account(self, cohort: Cohort, plan: RoundPlan, mask: Mask) -> Metrics:
        """What the round would have cost the simulated devices; ``mask`` is what they trained with.

        Whoever was asked has received the model; of those whose update does not count nothing else is counted.
        """
        federation, samples = self.config.federation, cohort.samples
        wire = self.wire.round(cohort.asked, len(cohort.clients), mask, plan.swap_counts)
        steps = federation.local_epochs * sum(steps_per_epoch(int(n), federation.batch_size) for n in samples)
        gradient_samples = int(np.minimum(samples, federation.batch_size * plan.gradient_batches).sum())
        flops = self.flops.round(
            self.space.layer_counts(mask),
            federation.local_epochs * int(samples.sum()),
            steps,
            gradient_samples if plan.adjusts else 0,
        )
        self.totals.wire_bytes += wire.up + wire.down
        self.totals.models_sent += len(cohort.asked) + len(cohort.clients)
        self.totals.flops += flops
        return {
            "wire/up_bytes": wire.up,
            "wire/down_bytes": wire.down,
            "wire/total_bytes": self.totals.wire_bytes,
            "flops/train": flops,
            "flops/total": self.totals.flops,
        }

    def evaluate_if_due(self) -> Metrics:
        """How the model does on the test set and on clients' own data, every so many rounds and in the last one."""
        if self.round % self.config.evaluation.every and self.round < self.config.federation.rounds:
            return {}
        loss, accuracy = self.test()
        self.totals.best_accuracy = max(self.totals.best_accuracy, accuracy)
        metrics: Metrics = {**quality(self.dataset, loss, accuracy)}
        if self.client_evaluation is not None:
            metrics |= self.client_evaluation.metrics(
                self.model, self.space, self.server.values, self.client_states, self.group
            )
        return metrics

    def test(self) -> tuple[float, float]:
        """Mean loss and accuracy of the global model."""
        self.space.load(self.server.values)
        return evaluate(self.model, self.dataset, self.config.evaluation.batch_size, self.group)

    def observe_adjustment(self, plan: RoundPlan, step: str) -> Metrics:
        """Accuracy at one step of an adjustment, where the configuration asks for it."""
        if not (plan.adjusts and self.config.evaluation.around_adjustment):
            return {}
        return {f"adjust/accuracy_{step}": self.test()[1]}

    def save_if_due(self, tracker: Tracker) -> None:
        """Rank 0 saves the whole state every so many rounds, after the last one and before an early end."""
        last = self.round == self.config.federation.rounds
        due = self.round % self.config.checkpoint.every == 0 or last or self.stopping
        kept = self.client_states.gather() if due and self.client_states is not None else {}
        new = self.round > self.saved_round
        if due and new and self.group.rank == 0 and self.store.try_save(self.checkpoint(tracker.state(), kept)):
            self.saved_round = self.round

    def checkpoint(self, tracker_state: dict[str, str], kept: Mapping[str, torch.Tensor]) -> Checkpoint:
        """Everything that the next round depends on; ``kept`` is what clients keep, of all ranks."""
        tensors = {
            **model_tensors(self.space, self.server.values),
            "known_version": torch.from_numpy(self.wire.known_version),
            **with_prefix(_METHOD, self.method.state()),
            **with_prefix(_CLIENTS, kept),
        }
        state: dict[str, Any] = {
            "round": self.round,
            "mask_version": self.space.mask.version,
            "digest": self.server.digest(),
            "costs": self.costs.sums.tolist(),
            "totals": vars(self.totals),
            "tracker": tracker_state,
        }
        return Checkpoint(tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on where the checkpoint was taken, on any number of ranks. Raises UserError for another run's."""
        state = check_values(checkpoint, RunState, checkpoint.state)
        kept = self.client_states.blank() if self.client_states is not None else {}
        self.server.set_state(*read_model(checkpoint, self.space))
        check_tensors(checkpoint, self.checkpoint({}, kept).tensors)
        tensors = checkpoint.tensors
        self.wire.known_version = tensors["known_version"].numpy().copy()
        self.costs.sums = np.array(state.costs)
        self.totals = check_values(checkpoint, Totals, state.totals)
        try:
            self.method.restore(without_prefix(_METHOD, tensors))
            if self.client_states is not None:
                self.client_states.restore(without_prefix(_CLIENTS, tensors))
        except ValueError as error:
            raise misfit(checkpoint, f"{self.config.method.name}: {error}") from None
        if self.server.digest() != state.digest:
            raise misfit(checkpoint, "weights and mask have another digest than it says")
        self.round = self.saved_round = state.round


class CohortSum:
    """One rank's part of a round's sums: the packed states, and in an adjusting round the top gradients."""

    def __init__(self, simulation: Simulation, cohort: Cohort, plan: RoundPlan) -> None:
        space, group = simulation.space, simulation.group
        self.cohort = cohort
        weight = int(cohort.weights.sum())
        self.states = RoundSum(space.packed_size, len(cohort.clients), weight, space.mask.digest, group)
        self.gradient = SparseSum(space.n_prunable, self.states.fixed_point, group) if plan.adjusts else None

    def add(self, slot: int, report: ClientReport) -> bool:
        """Adds a client, wholly or not at all; returns False where its update is refused."""
        weight, samples = int(self.cohort.weights[slot]), int(self.cohort.samples[slot])
        sane = report.gradient is None or is_summable(report.gradient.values)
        loss = report.loss if sane else float("nan")
        accepted = self.states.add(slot, report.values, weight, loss, report.seconds, samples)
        if accepted and report.gradient is not None and self.gradient is not None:
            self.gradient.add(report.gradient.positions, report.gradient.values, weight)
        return accepted

    def reduce(self, stopping: bool) -> RoundResult:
        """The packed states of all ranks; ``stopping`` tells them that this one was asked to stop."""
        return self.states.reduce(stopping)
