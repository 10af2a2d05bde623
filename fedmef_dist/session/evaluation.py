"""A saved model tested again: on the test set, and on every client's own data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.group import RuntimeSettings, open_group
from fedmef_dist.config import Config
from fedmef_dist.evaluation.own_data import ClientEvaluation
from fedmef_dist.evaluation.test_set import quality
from fedmef_dist.runs.checkpoint import Checkpoint
from fedmef_dist.runs.snapshot import restore
from fedmef_dist.session.saved import checkpoint_of, config_of
from fedmef_dist.simulation.loop import Simulation


@dataclass(frozen=True)
class ClientResult:
    """How the model serves a client: of ``tested`` predictions on its own data ``right`` are right."""

    client: int
    samples: int
    tested: int
    right: int


@dataclass(frozen=True)
class Evaluated:
    """The model behind round ``round``.

    Attributes:
        round: after which it was saved.
        digest: SHA-256 of weights and mask, hexadecimal.
        predictions: how many the test set asks for.
        quality: ``eval/loss``, ``eval/accuracy``, of text ``eval/perplexity``.
        clients: a result a client, in their order; None where they were not asked for.
        spread: metrics over the clients, as a run logs them.
        on_test_samples: whether clients were tested on test samples of their own, not on those that they train on.
    """

    round: int
    digest: str
    predictions: int
    quality: dict[str, float]
    clients: Sequence[ClientResult] | None
    spread: dict[str, float | int]
    on_test_samples: bool


def evaluate_run(
    run_dir: Path, round_number: int | None = None, *, per_client: bool = False, allow_plugins: bool = False
) -> Evaluated:
    """Tests what a run has saved, in this process alone, on a GPU where there is one and the run was not kept from it.

    Args:
        run_dir: the run's directory; nothing in it is changed.
        round_number: whose checkpoint; default: the newest.
        per_client: whether every client's own data are tested too: what it would use, with what it has kept.
        allow_plugins: whether code that the directory's configuration names may be imported.

    Raises:
        UserError: the directory holds no readable run, no such checkpoint, or names foreign code that is not allowed;
            or the data are not there.
    """
    config = config_of(run_dir, allow_plugins=allow_plugins)
    checkpoint = checkpoint_of(run_dir, round_number)
    with open_group(detect({}), _alone(config.runtime)) as group:
        simulation = Simulation(config, group)
        _restore(simulation, checkpoint)
        loss, accuracy = simulation.test()
        of_clients = _clients(simulation, config) if per_client else (None, {}, False)
        return Evaluated(
            simulation.round,
            simulation.server.digest(),
            simulation.dataset.test.predictions,
            quality(simulation.dataset, loss, accuracy),
            *of_clients,
        )


def _alone(settings: RuntimeSettings) -> RuntimeSettings:
    # What the run's ranks talked through, and their GPUs, need not be here.
    device = settings.device if settings.device == "cpu" else "auto"
    return settings.model_copy(update={"backend": "auto", "device": device})


def _restore(simulation: Simulation, checkpoint: Checkpoint) -> None:
    # Callbacks look at a run that goes on; their state has no part in the model.
    parts = {name: part for name, part in simulation.parts.items() if name != "callbacks"}
    restore(checkpoint, parts, whole=False)
    simulation.round = checkpoint.state["round"]


def _clients(simulation: Simulation, config: Config) -> tuple[list[ClientResult], dict[str, float | int], bool]:
    population = simulation.population
    evaluation = ClientEvaluation(
        config.evaluation.model_copy(update={"per_client": population.clients}),
        simulation.dataset,
        population,
        config.data.partition.scheme == "natural",
        config.seed,
    )
    counts = evaluation.counts(simulation.model, simulation.space, simulation.clientele, simulation.group)
    sizes = population.sizes(evaluation.clients)
    rows = zip(evaluation.clients.tolist(), sizes.tolist(), counts.tolist(), strict=True)
    found = [ClientResult(client, samples, tested, right) for client, samples, (right, tested) in rows]
    return found, evaluation.summarise(counts), evaluation.has_test_samples
