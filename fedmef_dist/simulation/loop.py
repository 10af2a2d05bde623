"""The loop: sample a cohort, train it, add up, adjust the mask, evaluate, write down, save."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from fedmef_dist.base.randomness import torch_generator
from fedmef_dist.clients.client import Client, ClientReport
from fedmef_dist.clients.cohort import Cohort, draw_cohort, total_weight
from fedmef_dist.clients.kept_state import Keepsake, open_client_states
from fedmef_dist.cluster.group import Group
from fedmef_dist.cluster.interruption import GraceTime, Interruption, RoundAbandonedError
from fedmef_dist.config import Config
from fedmef_dist.data.batches import Batch, client_batches, steps_per_epoch
from fedmef_dist.data.population import build_population
from fedmef_dist.data.shapes import Shape
from fedmef_dist.data.sources import load_dataset
from fedmef_dist.evaluation.own_data import open_client_evaluation
from fedmef_dist.evaluation.test_set import evaluate, quality
from fedmef_dist.layers.random import set_generator
from fedmef_dist.methods.base import MethodContext, RoundPlan
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.methods.registry import create_method
from fedmef_dist.methods.server_optimizer import ServerOptimizer
from fedmef_dist.models import prunable_weights
from fedmef_dist.runs.checkpoint import CheckpointStore
from fedmef_dist.runs.snapshot import Metrics, Totals, take_checkpoint
from fedmef_dist.simulation.accounting import Accounting
from fedmef_dist.simulation.footprint import build_network, own_setting
from fedmef_dist.simulation.planning import plan_for_budget
from fedmef_dist.simulation.server import Server
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sums.cohort_sum import CohortSum
from fedmef_dist.sums.placement import CostModel, assign
from fedmef_dist.sums.round_sum import RoundResult
from fedmef_dist.tracking import Tracker
from fedmef_dist.tracking.timeline import Stopwatch, Timeline
from fedmef_dist.wire.messages import Messages

_LOG = logging.getLogger(__name__)


class Simulation:
    """One federated run on all ranks of a group.

    Args:
        config: the run.
        group: the ranks.
        run_dir: where rank 0 writes.
        interruption: the signals that this process hears; none by default.

    Attributes:
        more_metrics: what to log beside a round's own metrics, asked after each round.
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
        shape = Shape(self.dataset.shape, self.dataset.classes)
        self.memory_plan = plan_for_budget(config, shape)
        self.model = build_network(config, own_setting(config, self.memory_plan), shape).to(group.device)
        self.space = ParameterSpace(self.model, prunable_weights(self.model))
        self.accounting = Accounting(config, self.model, self.space, self.dataset.example())
        self.messages = Messages(self.accounting.wire)
        flops = self.accounting.flops
        self.method = create_method(
            config.method,
            self.space,
            MethodContext(
                base_rate=config.optimizer.lr,
                rounds=config.federation.rounds,
                seed=config.seed,
                layer_flops=flops.layer_forward,
                other_flops=flops.other_forward,
                total_weight=total_weight(self.population, config.federation),
            ),
        )
        self.client = Client(self.model, self.space, config.optimizer, config.runtime.precision == "bf16")
        self.client_states = open_client_states(
            config.federation, config.optimizer.momentum, self.space, self.population, group
        )
        self.client_evaluation = open_client_evaluation(
            config.evaluation, self.dataset, self.population, config.data.partition, config.seed
        )
        self.server = Server(self.space, self.method, ServerOptimizer(config.server_optimizer, self.space), group)
        self.costs = CostModel()
        self.store = CheckpointStore(run_dir, config.checkpoint.keep)
        self.grace = GraceTime(config.checkpoint.grace, interruption or Interruption(), group.watch)
        self.timeline = Timeline(run_dir if config.tracking.timeline else None, group.rank)
        self.stopping = False
        self.totals = Totals()
        self.more_metrics: Callable[[], Metrics] = dict
        self.round = self.saved_round = 0

    def start(self, *, rehearses: bool = False) -> None:
        """The first mask; not for a run that goes on from a checkpoint.

        ``rehearses`` tells that nobody will train, so that a method may leave out what takes long.
        """
        preparation = Preparation(
            self.client,
            self.server.values,
            draw_cohort(self.population, self.config.federation, self.config.seed, 0),
            self.own_batches,
            self.config.seed,
            self.group,
            rehearses=rehearses,
        )
        mask = self.method.initial_mask(preparation)
        self.server.start(preparation.values, mask)
        self.accounting.prepare(preparation.costs, self.totals)

    def own_batches(self, client: int | None, epochs: int) -> Iterator[Batch]:
        """Batches before the first round: of one client, or of everybody's samples for the server."""
        indices = np.arange(len(self.dataset.train)) if client is None else self.population.samples(client)
        return client_batches(
            self.dataset,
            indices,
            batch_size=self.config.federation.batch_size,
            epochs=epochs,
            seed=self.config.seed,
            round=0,
            client=-1 if client is None else client,
            augment=False,
            device=self.group.device,
        )

    def run(self, tracker: Tracker) -> None:
        """All rounds that are left, or those until a signal stops the run."""
        while self.round < self.config.federation.rounds and not self.stopping:
            self.round += 1
            metrics = self.play_round()
            if metrics is None:
                self.round -= 1
            else:
                tracker.log(metrics | self.more_metrics())
            self.save_if_due(tracker)
            self.grace.end()

    @property
    def stopped_early(self) -> bool:
        """Whether a signal stopped the run before its last round."""
        return self.stopping and self.round < self.config.federation.rounds

    def play_round(self) -> Metrics | None:
        """One round; returns its metrics, or None where the ranks abandoned it and nothing of it counts."""
        self.group.watch.place = f"round {self.round}"
        watch = Stopwatch()
        moved = self.group.bytes_moved
        cohort = draw_cohort(self.population, self.config.federation, self.config.seed, self.round)
        plan = self.method.plan(self.round, self.server.values)
        before, mask = self.server.values, self.space.mask
        accuracies = self.observe_adjustment(plan, "before_extrusion")

        total = self.train_cohort(cohort, plan)
        watch.lap()
        result = total.reduce(self.grace.asked)
        watch.lap()
        if not self.counts(cohort, result):
            return None
        metrics = self.update_server(plan, total, result, before, accuracies)
        metrics |= self.describe_mask(mask)
        metrics |= self.accounting.round(cohort, plan, mask, self.totals)
        watch.lap()
        metrics |= self.evaluate_if_due()
        watch.lap()
        metrics |= self.describe(cohort, result, watch)
        metrics["cluster/reduce_bytes"] = self.group.bytes_moved - moved
        self.totals.last |= metrics
        return {"round": self.round, **metrics}

    def counts(self, cohort: Cohort, result: RoundResult) -> bool:
        """Whether the round counts; what was learned of its clients' speed and state is kept only then."""
        self.stopping = result.stopping
        if self.client_states is not None:
            self.client_states.settle(counts=not result.abandoned)
        if result.abandoned:
            _LOG.warning("round %d: abandoned, it does not fit the time left after a signal", self.round)
            return False
        self.costs.observe(cohort.samples, result.client_seconds)
        return True

    def describe(self, cohort: Cohort, result: RoundResult, watch: Stopwatch) -> Metrics:
        """Who took part in the round, and where its time went."""
        start, trained, reduced, *rest = watch.laps
        slowest = float(result.rank_seconds.max() - result.rank_seconds[self.group.rank])
        met = min(trained + slowest, reduced)  # the reduction begins when the slowest rank has trained
        self.totals.seconds += rest[-1] - start
        return {
            **self.timeline.phases(self.round, (start, trained, met, reduced, *rest)),
            "time/round": rest[-1] - start,
            "time/imbalance": float(result.rank_seconds.max() / max(result.rank_seconds.mean(), 1e-9)),
            "clients/trained": result.trained,
            "clients/refused": result.refused,
            "clients/dropped": cohort.dropped,
            "clients/late": cohort.late,
            "clients/surplus": cohort.surplus,
            "model/digest": self.server.digest(),
        }

    def train_cohort(self, cohort: Cohort, plan: RoundPlan) -> CohortSum:
        """Trains this rank's share of the cohort, longest job first."""
        total = CohortSum(self.space, cohort, plan, self.group)
        rate = self.config.optimizer.rate(self.round, self.config.federation.rounds)
        slots = self.place(cohort)
        _LOG.info("round %d: trains clients %s", self.round, cohort.clients[slots].tolist())
        start = time.perf_counter()
        self.messages.broadcast(self.server.values, plan)
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

    def train_slot(self, total: CohortSum, slot: int, plan: RoundPlan, rate: float) -> None:
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
        # One pass more than it trains, where it takes the gradient of inactive weights from fresh batches.
        batches = client_batches(
            self.dataset,
            indices,
            batch_size=federation.batch_size,
            epochs=federation.local_epochs + (plan.work.gradient_batches > 0),
            seed=seed,
            round=self.round,
            client=client,
            augment=self.config.data.augment,
            device=self.group.device,
        )
        set_generator(self.model, torch_generator(seed, "layers", self.round, client))
        steps = federation.local_epochs * steps_per_epoch(len(indices), federation.batch_size)
        report = self.client.train(self.server.values, self.grace.heed(batches), steps, rate, plan, state)
        return self.messages.receive(report, plan)

    def update_server(
        self, plan: RoundPlan, total: CohortSum, result: RoundResult, before: torch.Tensor, accuracies: Metrics
    ) -> Metrics:
        """The average becomes the global state; an adjusting round swaps weights."""
        metrics: Metrics = {"train/samples": result.samples, **accuracies}
        if result.values is not None:
            metrics["train/loss"] = result.loss
            sums = total.collect(result.weight)
            self.server.update(plan, result.values, sums)
            metrics |= {f"cluster/{name}_exchange": exchange for name, exchange in total.exchanges.items()}
            metrics |= self.method.metrics(plan, before, self.server.values)
            metrics |= self.observe_adjustment(plan, "after_extrusion")
            if plan.adjusts:
                self.server.adjust(plan, sums, lambda step: metrics.update(self.observe_adjustment(plan, step)))
        return metrics

    def describe_mask(self, before: Mask) -> Metrics:
        """How dense the model is now, and how far its mask has moved; ``before`` is the round's own."""
        mask = self.space.mask
        metrics: Metrics = {
            "sparsity/density": self.space.density,
            "sparsity/changed": int((mask.active & ~before.active).count_nonzero()),
        }
        if mask.is_full or (mask is before and self.round > 1):
            return metrics
        sizes = zip(self.space.layers, self.space.layer_counts(), strict=True)
        metrics |= {f"layer_density/{layer.name}": count / layer.size for layer, count in sizes}
        metrics["sparsity/survived"] = self.server.first_mask.survived(mask)
        if mask is not before:
            metrics["sparsity/overlap"] = before.overlap(mask)
        return metrics

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
        if due and new and self.group.rank == 0 and self.store.try_save(take_checkpoint(self, tracker.state(), kept)):
            self.saved_round = self.round
