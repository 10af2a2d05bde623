"""The cost model's coefficients, each fitted to the measurements that show it, and its error on those left out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from fedmef_dist.cluster.collective_costs import Link, Network, all_reduce, hops
from fedmef_dist.scaling.cost_model import NO_COST, SLOT_BYTES, SMALL_BYTES, CostModel, Work
from fedmef_dist.scaling.measurement import Measurement
from fedmef_dist.scaling.probe import Probe

T = TypeVar("T")


@dataclass(frozen=True)
class Coefficient:
    """A fitted number, for the report.

    Attributes:
        name: what it is.
        value: with its unit.
        fitted_on: the measurements.
        error: relative error of the part on measurements left out of the fit, median; None where none could be.
    """

    name: str
    value: str
    fitted_on: str
    error: float | None


@dataclass(frozen=True)
class Fit:
    """The model, and how its coefficients were found."""

    model: CostModel
    coefficients: tuple[Coefficient, ...]


def fit(runs: Sequence[Measurement], probes: Sequence[Probe] = (), draw: float = 0.0) -> Fit:
    """Fits every part to the measurements that show it, by least squares with no negative cost.

    Args:
        runs: of all points.
        probes: all-reduces of several sizes; without them links are fitted to the runs' reductions.
        draw: seconds of drawing and placing a client.
    """
    are_probed = len(probes) > 0
    probes = probes or [_as_probe(run) for run in runs if run.point.ranks > 1]
    client, sample, neighbour = _fit_clients(runs)
    jitter = _jitter(runs, (client, sample, neighbour))
    inside, between = _fit_links(probes)
    crowding = _crowding(runs)
    links = CostModel(inside=inside or NO_COST, between=between, backend=probes[0].backend if probes else "gloo")
    if are_probed:
        links = replace(links, waking=_waking(runs, links))
    model = replace(
        links,
        client=client,
        sample=sample,
        neighbour=neighbour,
        jitter=jitter,
        server=_mean(_calm(run, crowding) * run.phases["adjust"] / run.rounds for run in runs),
        evaluate=_mean(_calm(run, crowding) * run.point.ranks * _tested(run, links) for run in runs),
        draw=draw,
        rest=_mean(_calm(run, crowding) * _rest(run, draw) for run in runs),
        start=_mean(run.outside for run in runs),
        crowding=crowding,
    )
    return Fit(model, _describe(model, runs, probes))


def work_of(run: Measurement) -> Work:
    """What a measured run's rounds hand to collectives."""
    cohort = len(run.samples) / run.rounds
    return Work(max(run.reduce_bytes - SLOT_BYTES * (cohort + run.point.ranks), 0.0), run.evaluated, run.adjusted)


def _as_probe(run: Measurement) -> Probe:
    return Probe(run.point.ranks, run.local_ranks, "gloo", int(run.reduce_bytes), run.phases["reduce"] / run.rounds)


def _fit_clients(runs: Sequence[Measurement]) -> tuple[float, float, float]:
    samples = np.concatenate([run.samples for run in runs])
    others = np.concatenate([np.full(len(run.samples), run.local_ranks - 1) for run in runs])
    jobs = np.concatenate([run.job_seconds for run in runs])
    if not np.ptp(others):  # what a neighbour costs cannot be told from what a sample costs
        others = np.zeros_like(others)
    client, sample, neighbour = non_negative([np.ones_like(samples), samples, samples * others], jobs)
    return client, sample, neighbour


def _jitter(runs: Sequence[Measurement], costs: tuple[float, float, float]) -> float:
    model = CostModel(*costs)
    ratios = [run.job_seconds / np.maximum(model.costs(run.samples, run.local_ranks), 1e-12) for run in runs]
    # Within a run: that a whole run was slower is no jitter.
    return float(np.median([np.std(ratio / ratio.mean()) for ratio in ratios]))


def _fit_links(probes: Sequence[Probe]) -> tuple[Link | None, Link | None]:
    """The links inside and between nodes, the latter from probes with one rank a node; None where nobody measured."""
    inside = [probe for probe in probes if probe.local_ranks == probe.ranks]
    between = [probe for probe in probes if probe.local_ranks == 1 < probe.ranks]
    return _fit_link(inside), _fit_link(between)


def _fit_link(probes: Sequence[Probe]) -> Link | None:
    if not probes:
        return None
    terms = [_hops_and_bytes(probe) for probe in probes]
    # Relative errors count: a microsecond matters where a message takes ten.
    scale = np.array([1 / max(probe.seconds, 1e-9) for probe in probes])
    columns = [np.array([term[place] for term in terms]) * scale for place in (0, 1)]
    latency, byte = non_negative(columns, np.ones(len(probes)))
    return Link(latency, 1 / byte if byte > 0 else float("inf"))


def _hops_and_bytes(probe: Probe) -> tuple[float, float]:
    """How many latencies and how many bytes in a row an all-reduce costs on one level."""
    unit = Link(1.0, 1.0)
    found = all_reduce(probe.size, Network(probe.ranks, probe.ranks, unit, unit), probe.backend)
    return found.latency, found.transfer


def _waking(runs: Sequence[Measurement], links: CostModel) -> float:
    """Seconds a message of a round's sum takes longer than the links say, by least squares over the runs."""
    steps, longer = zip(*(_messages(run, links) for run in runs), strict=True)
    return non_negative([np.array(steps)], np.array(longer))[0]


def _messages(run: Measurement, links: CostModel) -> tuple[float, float]:
    """How many messages of a round's sum follow one another, and what they take longer than the links say."""
    network = links.network(run.point.ranks, run.local_ranks)
    expected = all_reduce(run.reduce_bytes, network, links.backend).total
    return hops(run.reduce_bytes, network, links.backend), run.phases["reduce"] / run.rounds - expected


def _crowding(runs: Sequence[Measurement]) -> float:
    """Server and rest are the same work on every rank; what they take longer among neighbours is crowding."""
    points = [(run.local_ranks - 1, (run.phases["adjust"] + run.phases["other"]) / run.rounds) for run in runs]
    alone = _mean(seconds for others, seconds in points if others == min(point[0] for point in points))
    if alone <= 0 or len({others for others, _ in points}) == 1:
        return 0.0
    others, growth = np.array([point[0] for point in points]), np.array([point[1] / alone - 1 for point in points])
    return max(float((others * growth).sum() / max((others * others).sum(), 1)), 0.0)


def _calm(run: Measurement, crowding: float) -> float:
    return 1 / (1 + crowding * (run.local_ranks - 1))


def _tested(run: Measurement, links: CostModel) -> float:
    """Seconds a round of a rank's share of the test set, without its sum."""
    network = links.network(run.point.ranks, run.local_ranks)
    sums = all_reduce(SMALL_BYTES, network, links.backend).total + links.woken(SMALL_BYTES, network)
    return max(run.phases["eval"] / run.rounds - run.evaluated * sums, 0.0)


def _rest(run: Measurement, draw: float) -> float:
    """Seconds a round outside of clients, waiting, reduction, server and evaluation, mean over the ranks."""
    between_jobs = run.phases["train"] - float(run.job_seconds.sum()) / run.point.ranks
    drawing = draw * len(run.samples)
    return max((run.phases["other"] + between_jobs - drawing) / run.rounds, 0.0)


def _describe(model: CostModel, runs: Sequence[Measurement], probes: Sequence[Probe]) -> tuple[Coefficient, ...]:
    jobs = f"{sum(len(run.job_seconds) for run in runs):,} clients of {len(runs)} runs"
    rounds, sizes = f"{len(runs)} runs of {runs[0].rounds} rounds", f"{len(probes)} all-reduces, {model.backend}"
    clients, link = left_out(runs, _clients_error), left_out(probes, _link_error)
    server = left_out(runs, _phase_error("adjust"))
    crowd = "server, evaluation and rest, more for each further rank on the node"
    found = [
        Coefficient("a client", f"{1000 * model.client:.3f} ms", jobs, clients),
        Coefficient("a sample", f"{1e6 * model.sample:.2f} µs", jobs, clients),
        Coefficient("a sample, each further rank on the node", f"{1e6 * model.neighbour:.2f} µs", jobs, clients),
        Coefficient("jitter of a client", f"{100 * model.jitter:.1f} %", jobs, None),
        Coefficient("the server's step", f"{1000 * model.server:.2f} ms", rounds, server),
        Coefficient("the test set on one rank, a round", f"{1000 * model.evaluate:.2f} ms", rounds, None),
        Coefficient("drawing and placing a client", f"{1e6 * model.draw:.3f} µs", "40,960 clients, 4,096 ranks", None),
        Coefficient("the rest of a round", f"{1000 * model.rest:.2f} ms", rounds, None),
        Coefficient(crowd, f"{100 * model.crowding:.1f} %", rounds, None),
    ]  # fmt: skip
    if model.waking:
        name = "a message of a round's sums, beyond its link"
        found.append(Coefficient(name, f"{1000 * model.waking:.3f} ms", rounds, left_out(runs, _waking_error(model))))
    for name, between in (("inside a node", model.inside if probes else None), ("between nodes", model.between)):
        if between is not None:
            rate = "any" if between.bandwidth == float("inf") else f"{between.bandwidth / 1e9:.3g} GB/s"
            found.append(Coefficient(f"latency {name}", f"{1e6 * between.latency:.1f} µs", sizes, link))
            found.append(Coefficient(f"bandwidth {name}", rate, sizes, link))
    return tuple(found)


def left_out(measured: Sequence[T], error: Callable[[Sequence[T], T], float | None]) -> float | None:
    """The median error on one that is left out, over all; None where too few are left."""
    if len(measured) < 3:
        return None
    found = [error([*measured[:place], *measured[place + 1 :]], one) for place, one in enumerate(measured)]
    known = [value for value in found if value is not None]
    return float(np.median(known)) if known else None


def _clients_error(runs: Sequence[Measurement], one: Measurement) -> float:
    costs = CostModel(*_fit_clients(runs)).costs(one.samples, one.local_ranks)
    return abs(float(costs.sum()) / max(float(one.job_seconds.sum()), 1e-12) - 1)


def _link_error(probes: Sequence[Probe], one: Probe) -> float | None:
    inside, between = _fit_links(probes)
    link = inside if one.local_ranks == one.ranks else between
    if link is None:
        return None
    predicted = all_reduce(one.size, Network(one.ranks, one.ranks, link, link), one.backend).total
    return abs(predicted / max(one.seconds, 1e-12) - 1)


def _waking_error(links: CostModel) -> Callable[[Sequence[Measurement], Measurement], float | None]:
    def error(runs: Sequence[Measurement], one: Measurement) -> float | None:
        seconds, (steps, longer) = one.phases["reduce"] / one.rounds, _messages(one, links)
        return abs(steps * _waking(runs, links) - longer) / seconds if steps and seconds > 0 else None

    return error


def _phase_error(name: str) -> Callable[[Sequence[Measurement], Measurement], float | None]:
    def error(runs: Sequence[Measurement], one: Measurement) -> float | None:
        crowding = _crowding(runs)
        calm = _mean(_calm(run, crowding) * run.phases[name] / run.rounds for run in runs)
        seconds = one.phases[name] / one.rounds
        return abs(calm / _calm(one, crowding) / seconds - 1) if seconds > 0 else None

    return error


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else 0.0


def non_negative(columns: Sequence[np.ndarray], values: np.ndarray) -> list[float]:
    """Least squares without negative coefficients: what comes out negative is left out and the rest fitted again."""
    scales = [float(np.abs(column).max(initial=0.0)) for column in columns]
    kept = [number for number, scale in enumerate(scales) if scale > 0]
    result = [0.0] * len(columns)
    while kept:
        matrix = np.stack([columns[number] / scales[number] for number in kept], axis=1)
        solution = np.linalg.lstsq(matrix, values, rcond=None)[0]
        if (solution >= 0).all():
            for number, coefficient in zip(kept, solution, strict=True):
                result[number] = float(coefficient) / scales[number]
            break
        kept.pop(int(np.argmin(solution)))
    return result
