"""Does a method keep the simulator's promises? A small run, several times: on ranks, again, resumed, watched.

Each promise is one check with a reason; what a stranger's method gets wrong is named.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from fedmef_dist.cluster.thread_ranks import ThreadRanks
from fedmef_dist.config import Config
from fedmef_dist.runs.checkpoint import Checkpoint
from fedmef_dist.runs.snapshot import restore, take
from fedmef_dist.simulation.loop import Simulation
from fedmef_dist.sparsity import Mask
from fedmef_dist.tracking.tracker import Metrics
from fedmef_dist.wire.messages import GarbledMessageError

_RANKS = (2, 3)
_SLOTS = 2


@dataclass(frozen=True)
class Promise:
    """One check of a method.

    Attributes:
        name: what is promised.
        broken: how it is broken; None where it is kept.
        mend: what the method's author can do about it.
    """

    name: str
    broken: str | None
    mend: str


@dataclass(frozen=True)
class Played:
    """A run of some rounds.

    Attributes:
        digests: of state and mask behind every round.
        metrics: of every round.
        checkpoints: behind every round.
        faults: what was seen that must not be, by the promise's name.
        seconds: of a round, the median.
    """

    digests: list[str]
    metrics: list[Metrics]
    checkpoints: list[Checkpoint]
    faults: dict[str, str]
    seconds: float


MASKED, COUNTS, GLOBAL, PURE, FINITE = (
    "masked weights are exactly 0",
    "counts and density are as said",
    "no global random state is touched",
    "plan() changes nothing",
    "metrics are finite",
)
LEDGER, RANKS, SLOTS, AGAIN, RESUME = (
    "the ledger equals the encoding",
    "one digest on 1, 2 and 3 ranks",
    "one digest with clients beside each other",
    "the same digest again",
    "the same digest after a resume",
)
_MENDS = {
    LEDGER: "a Collection's counts must be the numbers of positions that uploads() gives in each block",
    RANKS: "take sums from the round's collections, draw with randomness.numpy_generator(seed, purpose, round)",
    SLOTS: "reach the parameter space and what a client remembers by attributes of LocalWork, which is copied, alone",
    AGAIN: "draw only from generators keyed by (seed, purpose, round, client); use no time and no hash order",
    RESUME: "state() must give everything that later rounds depend on, and restore() take all of it back",
    MASKED: "aggregate() and grown_values() must leave positions outside of the mask at 0",
    COUNTS: "next_mask() must give back every layer's count; else set keeps_counts = False in the class",
    GLOBAL: "use preparation.generator(purpose) or randomness.numpy_generator instead of global generators",
    PURE: "remember in observe() or aggregate(), which are called once a round, not in plan()",
    FINITE: "metrics() must return finite numbers",
}


def check_method(config: Config) -> tuple[list[Promise], dict[str, float]]:
    """Plays a configuration on threads of this process and holds the method to its promises.

    Returns:
        The promises in the order of their checks, and what the method adds: seconds and bytes of a round.

    Raises:
        UserError: the configuration or the method's settings are wrong.
    """
    broken: dict[str, str] = {}
    _make_once(config)
    alone = _tried(broken, LEDGER, partial(_play, config, 1))
    if alone is None:
        return _promises(broken, {RANKS, SLOTS, AGAIN, RESUME, MASKED, COUNTS, GLOBAL, PURE, FINITE}), {}
    broken |= alone.faults
    again = _tried(broken, AGAIN, partial(_play, config, 1, plans_twice=True))
    broken |= again.faults if again is not None else {}
    _compare(broken, AGAIN, alone, again, "a second run")
    for ranks in _RANKS:
        other = _tried(broken, RANKS, partial(_play, config, ranks))
        _compare(broken, RANKS, alone, other, f"{ranks} ranks")
    beside = config.model_copy(update={"runtime": config.runtime.model_copy(update={"slots": _SLOTS})})
    _compare(broken, SLOTS, alone, _tried(broken, SLOTS, partial(_play, beside, 1)), f"{_SLOTS} slots")
    for done in range(1, config.federation.rounds, 2):
        start = alone.checkpoints[done - 1]
        other = _tried(broken, RESUME, partial(_play, config, 2, start))
        _compare(broken, RESUME, alone, other, f"a resume after round {done} on 2 ranks", done)
    return _promises(broken, set()), _costs(alone)


def _make_once(config: Config) -> None:
    """Makes the run once. Raises UserError where the configuration or the method's settings are wrong."""
    Simulation(config, ThreadRanks(1).groups[0])


def _costs(played: Played) -> dict[str, float]:
    rounds = len(played.metrics)
    return {
        "seconds": played.seconds,
        **{
            key: sum(float(one[key]) for one in played.metrics) / rounds for key in ("wire/up_bytes", "wire/down_bytes")
        },
    }


def _promises(broken: Mapping[str, str], unknown: set[str]) -> list[Promise]:
    return [
        Promise(name, broken.get(name, "not reached" if name in unknown else None), mend)
        for name, mend in _MENDS.items()
    ]


def _tried(broken: dict[str, str], promise: str, play: Callable[[], Played]) -> Played | None:
    """What is played, or None with the fault noted: a message that is not what the ledger says, or any other error."""
    try:
        return play()
    except GarbledMessageError as error:
        broken.setdefault(LEDGER, str(error))
    except Exception as error:  # a stranger's code: whatever it raises is its finding, not our end
        text = " ".join(str(error).split())
        broken.setdefault(promise, f"{type(error).__name__}: {text}; {_place(error)}")
    return None


def _place(error: Exception) -> str:
    """File and line in which the error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"


def _compare(
    broken: dict[str, str], promise: str, expected: Played, found: Played | None, what: str, done: int = 0
) -> None:
    if found is None:
        return
    for round, (one, other) in enumerate(zip(expected.digests[done:], found.digests, strict=True), start=done + 1):
        if one != other:
            broken.setdefault(promise, f"{what} differs from round {round} on: {other[:12]} instead of {one[:12]}")
            return


def _play(config: Config, ranks: int, start: Checkpoint | None = None, *, plans_twice: bool = False) -> Played:
    """All rounds, from a checkpoint or from the start, on so many threads."""
    team = ThreadRanks(ranks)
    # Models draw their weights from the seed under a global generator: one after another.
    runs = [Simulation(config, group) for group in team.groups]
    return team.run(runs, lambda run: _play_rank(run, start, plans_twice))[0]


def _play_rank(run: Simulation, start: Checkpoint | None, plans_twice: bool) -> Played:
    played = Played([], [], [], {}, 0.0)
    with _watching_globals(played.faults):
        if start is None:
            run.start()
            _check_first_mask(run, played.faults)
        else:
            restore(_on_disk(start), run.parts)  # each rank reads its own copy
            run.round = int(start.state["round"])
        seconds = []
        while run.round < run.config.federation.rounds:
            run.round += 1
            if plans_twice:
                _check_plan(run, played.faults)
            before, began = run.space.mask, time.perf_counter()
            metrics = run.play_round()
            seconds.append(time.perf_counter() - began)
            assert metrics is not None
            _check_round(run, before, metrics, played.faults)
            played.metrics.append(metrics)
            played.digests.append(run.server.digest())
            played.checkpoints.append(_on_disk(take(run.round, run.parts, {})))  # nothing is shared with the run
    return Played(played.digests, played.metrics, played.checkpoints, played.faults, float(np.median(seconds or [0.0])))


def _on_disk(checkpoint: Checkpoint) -> Checkpoint:
    """What is read back of it: tensors of its own."""
    return Checkpoint(
        load(save({name: one.contiguous() for name, one in checkpoint.tensors.items()})), checkpoint.state
    )


def _check_first_mask(run: Simulation, faults: dict[str, str]) -> None:
    """Method.keeps_counts promises the density of the settings exactly, to a weight."""
    density = getattr(run.config.method, "density", None)
    if density is None or not run.method.keeps_counts:
        return
    wanted = min(round(density * run.space.n_parameters), run.space.n_parameters)
    found = run.space.mask.count + run.space.n_dense
    if found != wanted:
        faults[COUNTS] = f"the first mask leaves {found} parameters active, density {density:g} asks for {wanted}"


def _check_plan(run: Simulation, faults: dict[str, str]) -> None:
    before = _copied(run.method.state())
    run.method.plan(run.round, run.server.values)
    after = run.method.state()
    if before.keys() != after.keys() or any(not torch.equal(before[name], after[name]) for name in before):
        faults.setdefault(PURE, f"state() is another one after plan({run.round})")


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def _check_round(run: Simulation, before: Mask, metrics: Metrics, faults: dict[str, str]) -> None:
    mask, values = run.space.mask, run.server.values[: run.space.n_prunable]
    wrong = int((values[~mask.active] != 0).count_nonzero())
    if wrong:
        faults.setdefault(MASKED, f"{wrong} weights outside the mask are not 0 after round {run.round}")
    if run.method.keeps_counts and run.space.layer_counts(before) != run.space.layer_counts(mask):
        faults.setdefault(COUNTS, f"a layer's number of active weights changes in round {run.round}")
    bad = [key for key, value in metrics.items() if isinstance(value, float) and not isfinite(value)]
    if bad:
        faults.setdefault(FINITE, f"{', '.join(bad)} in round {run.round}")


@contextmanager
def _watching_globals(faults: dict[str, str]) -> Iterator[None]:
    """Whether the body draws from a generator that everybody shares."""
    before = _global_states()
    yield
    moved = [name for name, state in _global_states().items() if state != before[name]]
    if moved:
        faults.setdefault(GLOBAL, f"something drew from the global generator of {', '.join(moved)}")


def _global_states() -> dict[str, Any]:
    return {
        "random": hash(random.getstate()),
        "numpy": hash(str(np.random.get_state())),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
