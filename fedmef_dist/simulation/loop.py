"""The loop: sample a cohort, train it, add up, adjust the mask, evaluate, write down, save."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from fedmef_dist.clients.client import Client
from fedmef_dist.clients.cohort import Cohort, draw_cohort, total_weight
from fedmef_dist.clients.passes import CudaRecorder
from fedmef_dist.clients.plan import RoundPlan
from fedmef_dist.clients.tiers import HELD, TierRound, Tiers
from fedmef_dist.cluster.group import Group
from fedmef_dist.cluster.interruption import GraceTime, Interruption
from fedmef_dist.config import Config
from fedmef_dist.data.batches import Batch, client_batches
from fedmef_dist.data.population import build_population
from fedmef_dist.data.shapes import Shape
from fedmef_dist.data.sources import load_dataset
from fedmef_dist.evaluation.own_data import Clientele, open_client_evaluation
from fedmef_dist.evaluation.test_set import evaluate, quality
from fedmef_dist.methods.base import MethodContext
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.methods.registry import create_method
from fedmef_dist.methods.server_optimizer import ServerOptimizer
from fedmef_dist.models import prunable_weights
from fedmef_dist.runs.snapshot import Stateful
from fedmef_dist.simulation.accounting import Accounting
from fedmef_dist.simulation.decisions import Unread, checked_mask, finite, own_metrics, refuse_taken
from fedmef_dist.simulation.footprint import build_network, own_setting
from fedmef_dist.simulation.global_state import MaskPart, ModelPart
from fedmef_dist.simulation.local_training import LocalTraining, open_kept_states
from fedmef_dist.simulation.planning import plan_for_budget
from fedmef_dist.simulation.server import Server
from fedmef_dist.simulation.totals import Totals
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.health import MaskHealth, thin_filters
from fedmef_dist.sums.cohort_sum import CohortSum
from fedmef_dist.sums.position_sum import Sums
from fedmef_dist.sums.round_sum import RoundResult
from fedmef_dist.tracking.callbacks import Callbacks
from fedmef_dist.tracking.timeline import Phases, Timeline
from fedmef_dist.tracking.tracker import Metrics
from fedmef_dist.wire.messages import Messages

_LOG = logging.getLogger(__name__)


class Simulation:
    """One federated run on all ranks of a group.

    Args:
        config: the run.
        group: the ranks.
        interruption: the signals that this process hears; none by default.
        timeline: what this rank does and when; not noted by default.
        callbacks: what looks at the run and may stop it; none by default.

    Attributes:
        round: the last one that is done.
        stopping: whether a signal stops the run behind the last round.
        parts: everything that the next round depends on, in the order in which it must be restored.
        more_metrics: what to log in addition to a round's own metrics, asked after each round.
        client_losses: of the newest round's cohort, float64, NaN where refused; None where nobody asks for them.
    """

    def __init__(
        self,
        config: Config,
        group: Group,
        interruption: Interruption | None = None,
        timeline: Timeline | None = None,
        callbacks: Callbacks | None = None,
    ) -> None:
        self.config, self.group = config, group
        self.timeline = timeline or Timeline(None, group.rank)
        self.grace = GraceTime(config.checkpoint.grace, interruption or Interruption(), group.watch)
        self.dataset = load_dataset(config.data, config.seed).to(group.device)
        self.population = build_population(
            self.dataset.train.labels,
            self.dataset.owners,
            config.federation.clients,
            config.data.partition,
            config.seed,
        )
        self.memory_plan = plan_for_budget(config, self.shape)
        self.model, self.space = self._build_model()
        self.accounting = Accounting(config, self.model, self.space, self.dataset.example())
        self.method = create_method(config.method, self.space, self._method_context())
        self.server = Server(self.space, self.method, ServerOptimizer(config.server_optimizer, self.space), group)
        self.tiers = self.accounting.tiers = Tiers(
            config.federation.tiers, self.space, config.seed, self.method.refuses_tiers(), self.method.part
        )
        self.messages = Messages(self.accounting.wire)
        self.local = LocalTraining(
            config,
            group,
            dataset=self.dataset,
            population=self.population,
            client=self._client(self.model, self.space),
            another=lambda: self._client(*self._build_model()),
            messages=self.messages,
            kept=open_kept_states(config, self.method, self.space, self.population, group),
            grace=self.grace,
            timeline=self.timeline,
            tiers=self.tiers,
        )
        self.client_evaluation = open_client_evaluation(
            config.evaluation, self.dataset, self.population, config.data.partition, config.seed
        )
        self.totals, self.health = Totals(), MaskHealth(self.space)
        self.callbacks = callbacks or Callbacks([], group, Path(), {})
        self.parts = self._parts()
        self.more_metrics: Callable[[], Metrics] = dict
        self.client_losses: np.ndarray | None = None
        self.round, self.stopping = 0, False

    @property
    def shape(self) -> Shape:
        """What a model meets."""
        return Shape(self.dataset.shape, self.dataset.classes)

    def _build_model(self) -> tuple[nn.Module, ParameterSpace]:
        """The run's network with its first weights, on the device, and the flat vector in which they live."""
        setting = own_setting(self.config, self.memory_plan)
        model = build_network(self.config, setting, self.shape).to(self.group.device)
        return model, ParameterSpace(model, prunable_weights(model))

    def _client(self, model: nn.Module, space: ParameterSpace) -> Client:
        autocast = self.config.runtime.precision == "bf16"
        return Client(model, space, self.config.optimizer, autocast, self._recorder())

    def _recorder(self) -> CudaRecorder | None:
        return CudaRecorder() if self.group.device.type == "cuda" and self.config.runtime.graphs else None

    def _method_context(self) -> MethodContext:
        config, flops = self.config, self.accounting.flops
        return MethodContext(
            base_rate=config.optimizer.lr,
            momentum=config.optimizer.momentum,
            plain_sgd=config.optimizer.name == "sgd" and not config.optimizer.momentum,
            rounds=config.federation.rounds,
            seed=config.seed,
            clients=config.federation.clients,
            local_epochs=config.federation.local_epochs,
            batch_size=config.federation.batch_size,
            layer_flops=flops.layer_forward,
            other_flops=flops.other_forward,
            total_weight=total_weight(self.population, config.federation),
        )

    def _parts(self) -> dict[str, Stateful]:
        kept = {} if self.local.kept is None else {"clients": self.local.kept}
        return {
            "mask": MaskPart(self.server),
            "model": ModelPart(self.server),
            "method": self.method,
            "server_optimizer": self.server.optimizer,
            **kept,
            "wire": self.accounting.wire,
            "placement": self.local.times,
            "totals": self.totals,
            "health": self.health,
            "callbacks": self.callbacks,
        }

    def start(self, *, rehearses: bool = False) -> None:
        """The first mask; not for a run that goes on from a checkpoint.

        ``rehearses`` tells that nobody will train, so that a method may leave out what takes long.
        """
        preparation = Preparation(
            self.local.client,
            self.server.values,
            draw_cohort(self.population, self.config.federation, self.config.seed, 0),
            self.own_batches,
            self.config.seed,
            self.group,
            self.messages,
            rehearses=rehearses,
        )
        active = self.method.initial_mask(preparation)
        self.server.start(preparation.values, checked_mask(self.method, "initial_mask", active))
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

    def run(self, log: Callable[[Metrics], None], save: Callable[[], bool]) -> None:
        """All rounds that are left, or those until a signal or a callback stops the run.

        Args:
            log: takes a round's metrics.
            save: saves the parts, and says whether this rank has; called on every rank after the same rounds.
        """
        self.callbacks.start(self.round)
        while self.round < self.config.federation.rounds and not (self.stopping or self.callbacks.stopped):
            self.round += 1
            self.callbacks.round_start(self.round)
            metrics = self.play_round()
            if metrics is None:
                self.round -= 1
            else:
                metrics |= self.more_metrics()
                log(metrics)
                self.callbacks.round_end(metrics)
            self.group.watch.progress.mark()
            if self.save_is_due and save():
                self.callbacks.checkpoint()
            self.grace.end()
        if not self.stopped_early:
            self.callbacks.end()

    @property
    def rate(self) -> float:
        """The clients' learning rate in this round: the schedule's, as the callbacks have scaled it."""
        return self.config.optimizer.rate(self.round, self.config.federation.rounds) * self.callbacks.rate_factor

    @property
    def save_is_due(self) -> bool:
        """The state is saved every so many rounds, after the last one, before an early end, when a callback asks."""
        last = self.round == self.config.federation.rounds or self.callbacks.stopped
        asked = self.stopping or self.callbacks.wants_save
        return self.round > 0 and (self.round % self.config.checkpoint.every == 0 or last or asked)

    @property
    def stopped_early(self) -> bool:
        """Whether a signal stopped the run before its last round."""
        return self.stopping and self.round < self.config.federation.rounds

    def play_round(self) -> Metrics | None:
        """One round; returns its metrics, or None where the ranks abandoned it and nothing of it counts."""
        self.group.watch.place = f"round {self.round}"
        phases, moved = Phases(), self.group.bytes_moved
        cohort = draw_cohort(self.population, self.config.federation, self.config.seed, self.round)
        plan, mask = self.method.plan(self.round, self.server.values), self.space.mask
        unread: Unread = {**self.observe_adjustment(plan, "before_extrusion")}

        with phases.measure("train"):
            total = self.local.train(cohort, plan, self.rate)
        with phases.measure("reduce"):
            result = total.reduce(self.grace.asked)
        self.stopping, self.client_losses = result.stopping, result.client_losses
        if result.abandoned:
            _LOG.warning("round %d: abandoned, it does not fit the time left after a signal", self.round)
            self.local.forget()
            return None
        self.local.settle(cohort, result)
        with phases.measure("adjust"):
            own = self.update_server(plan, total, result, unread)
            unread |= self.describe_mask(mask)
            unread |= self.accounting.round(cohort, plan, mask, self.totals, result.varied_bytes)
        with phases.measure("eval"):
            unread |= self.evaluate_if_due()
        unread |= self.describe(cohort, result, phases)
        refuse_taken(self.method, own, unread)
        unread |= own
        # The digest has waited for the device.
        metrics = {name: value.item() if isinstance(value, Tensor) else value for name, value in unread.items()}
        metrics["cluster/reduce_bytes"] = self.group.bytes_moved - moved
        self.totals.last |= finite(metrics)
        return {"round": self.round, **metrics}

    def update_server(self, plan: RoundPlan, total: CohortSum, result: RoundResult, metrics: Unread) -> Unread:
        """The average becomes the global state; an adjusting round swaps weights.

        Adds to ``metrics`` what is known then, and returns the method's own.
        """
        metrics["train/samples"] = result.samples
        if result.values is None:
            return {}
        metrics["train/loss"] = result.loss
        sums = total.collect(result.weight)
        self.server.update(plan, self._mean(plan, result.values, sums), sums, result.trained)
        metrics |= {f"cluster/{name}_exchange": exchange for name, exchange in total.exchanges.items()}
        own = own_metrics(self.method, self.method.metrics(plan, self.server.values))
        metrics |= self.observe_adjustment(plan, "after_extrusion")
        if plan.adjusts:
            for step in self.server.adjust(plan, sums):
                metrics |= self.observe_adjustment(plan, step)
        return own

    def _mean(self, plan: RoundPlan, packed: Tensor, sums: dict[str, Sums]) -> Tensor:
        """The clients' packed mean; with tiers of those that hold a weight, unless the method merges their masks."""
        if not (len(self.tiers) and plan.returns_weights):
            return packed
        held = sums[HELD]
        assert held.votes is not None
        average = self.space.unpack(packed, with_weights=False)
        return self.space.pack(self.tiers.merge(plan, average, held.mean_of_voters(), held.votes))

    def observe_adjustment(self, plan: RoundPlan, step: str) -> Metrics:
        """Accuracy at one step of an adjustment, where the configuration asks for it."""
        if not (plan.adjusts and self.config.evaluation.around_adjustment):
            return {}
        return {f"adjust/accuracy_{step}": self.test()[1]}

    def describe_mask(self, before: Mask) -> Metrics:
        """How dense the model is now, and how far its mask has moved; ``before`` is the round's own."""
        mask = self.space.mask
        moved = mask.version != before.version
        metrics: Metrics = {
            "sparsity/density": self.space.density,
            "sparsity/changed": mask.without(before).count if moved else 0,
        }
        if mask.is_full or not (moved or self.round == 1):
            return metrics
        sizes = zip(self.space.layers, self.space.layer_counts(), strict=True)
        metrics |= {f"layer_density/{layer.name}": count / layer.size for layer, count in sizes}
        metrics["sparsity/survived"] = self.server.first_mask.survived(mask)
        if not moved:
            return metrics | {"sparsity/thin_filters": thin_filters(self.space, mask)}
        return metrics | {"sparsity/overlap": before.overlap(mask)} | self.health.adjusted(before, mask)

    def evaluate_if_due(self) -> Metrics:
        """How the model does on the test set and on clients' own data, every so many rounds and in the last one."""
        if self.round % self.config.evaluation.every and self.round < self.config.federation.rounds:
            return {}
        loss, accuracy = self.test()
        self.totals.best_accuracy = max(self.totals.best_accuracy, accuracy)
        metrics: Metrics = {**quality(self.dataset, loss, accuracy), **self.test_tiers()}
        if self.client_evaluation is not None:
            metrics |= self.client_evaluation.metrics(self.model, self.space, self.clientele, self.group)
        return metrics

    @property
    def clientele(self) -> Clientele:
        """What clients use now: the global state or their tier's part of it, and what they have kept."""
        parts = self.parts_of_tiers()

        def part(client: int) -> TierRound | None:
            return parts[int(self.tiers.of(np.array([client]))[0])] if parts else None

        return Clientele(self.server.values, self.local.kept, self.method.personal, part)

    def test(self) -> tuple[float, float]:
        """Mean loss and accuracy of the global model."""
        self.space.load(self.server.values)
        return evaluate(self.model, self.dataset, self.config.evaluation.batch_size, self.group)

    def test_tiers(self) -> Metrics:
        """Accuracy of what each tier would be sent next: the global model, or its part of it."""
        metrics: Metrics = {}
        mask = self.space.mask
        for number, tier in enumerate(self.parts_of_tiers()):
            self.space.load(tier.plan.values)
            self.space.set_mask(tier.mask)
            evaluated = evaluate(self.model, self.dataset, self.config.evaluation.batch_size, self.group)
            metrics[f"tier{number}/accuracy"] = evaluated[1]
        if self.space.mask is not mask:
            self.space.set_mask(mask)
        return metrics

    def parts_of_tiers(self) -> list[TierRound]:
        """What each tier that has clients would be sent next; nothing without tiers."""
        plan = RoundPlan(self.round, self.server.values)
        return self.tiers.round(plan, self.space.mask)[: self.tiers.populated] if len(self.tiers) else []

    def describe(self, cohort: Cohort, result: RoundResult, phases: Phases) -> Metrics:
        """Who took part in the round, and where its time went."""
        # The reduction begins when the slowest rank has trained.
        slowest = float(result.rank_seconds.max() - result.rank_seconds[self.group.rank])
        phases.split("reduce", "wait", slowest)
        self.totals.seconds += phases.seconds
        return {
            **self.timeline.phases(self.round, phases),
            "time/round": phases.seconds,
            **self.local.imbalance(self.round, result),
            "clients/trained": result.trained,
            "clients/refused": result.refused,
            "clients/dropped": cohort.dropped,
            "clients/late": cohort.late,
            "clients/surplus": cohort.surplus,
            "model/digest": self.server.digest(),
        }
