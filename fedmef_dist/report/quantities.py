"""The numbers of a run that the report compares: columns of compare.csv, and cells of the tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedmef_dist.report.runs import Run


def bytes_per_client_round(run: Run) -> float | None:
    """All bytes on the wire over the number of trainings that entered an average, client by client, round by round."""
    total, trained = run.value("wire/total_bytes"), run.total("clients/trained")
    return total / trained if total is not None and trained else None


_TRAINED = ("clients/trained", "clients/refused")
_ASKED = (*_TRAINED, "clients/dropped", "clients/surplus")


def per_client(line: Mapping[str, Any], key: str) -> float | None:
    """A round's metric for its mean client; None where it lacks the metric, or nobody has trained.

    Everybody who was asked receives; only those train and send that neither drop out nor are surplus.
    """
    clients = _counted(line, _ASKED if key == "wire/down_bytes" else _TRAINED)
    if line.get(key) is None or not _counted(line, _TRAINED) or clients <= 0:
        return None
    return float(line[key]) / clients


def _counted(line: Mapping[str, Any], keys: Sequence[str]) -> int:
    return sum(int(line.get(key) or 0) for key in keys)


# Tests whose mean is late accuracy: one test alone swings with the last cohort.
LATE_EVALUATIONS = 5


def accuracy_late(run: Run) -> float | None:
    """The mean test accuracy of a run's last five evaluations, from 0 to 1; None where there are fewer."""
    late = _late(run)
    return sum(float(line["eval/accuracy"]) for line in late) / len(late) if late else None


def late_rounds(run: Run) -> tuple[int, int] | None:
    """The first and the last round of :func:`accuracy_late`; None where there is none."""
    late = _late(run)
    return (int(late[0]["round"]), int(late[-1]["round"])) if late else None


def _late(run: Run) -> list[Mapping[str, Any]]:
    tested = [line for line in run.metrics if line.get("eval/accuracy") is not None]
    return tested[-LATE_EVALUATIONS:] if len(tested) >= LATE_EVALUATIONS else []


def _stated(key: str) -> Callable[[Run], float | None]:
    return lambda run: run.value(key)


def _summed(key: str) -> Callable[[Run], float | None]:
    return lambda run: run.total(key)


def _mean(key: str) -> Callable[[Run], float | None]:
    def mean(run: Run) -> float | None:
        values = [float(line[key]) for line in run.metrics if line.get(key) is not None]
        return sum(values) / len(values) if values else None

    return mean


def _newest(key: str) -> Callable[[Run], float | None]:
    return lambda run: next((float(line[key]) for line in reversed(run.metrics) if line.get(key) is not None), None)


# Column of compare.csv and what it holds; bytes, FLOPs, seconds and shares as they stand in the run's files.
QUANTITIES: Mapping[str, Callable[[Run], float | None]] = {
    "density": _stated("sparsity/density"),
    "accuracy_last": _stated("eval/accuracy_last"),
    "accuracy_best": _stated("eval/accuracy_best"),
    "accuracy_late": accuracy_late,
    "perplexity_last": _stated("eval/perplexity_last"),
    "up_bytes": _summed("wire/up_bytes"),
    "down_bytes": _summed("wire/down_bytes"),
    "wire_bytes": _stated("wire/total_bytes"),
    "dense_wire_bytes": _stated("reference/wire_bytes"),
    "client_round_bytes": bytes_per_client_round,
    "flops": _stated("flops/total"),
    "device_bytes": _stated("memory/device_bytes"),
    "activation_bytes": _stated("memory/activation_bytes"),
    "dense_activation_bytes": _stated("reference/activation_bytes"),
    "peak_bytes": _stated("memory/peak_bytes"),
    "dense_peak_bytes": _stated("reference/peak_bytes"),
    "seconds": _stated("time/total"),
    "overlap": _mean("sparsity/overlap"),
    "grown_survived": _mean("sparsity/grown_survived"),
    "growth_concentration": _mean("sparsity/growth_concentration"),
    "thin_filters": _newest("sparsity/thin_filters"),
}
