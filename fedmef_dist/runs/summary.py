"""summary.json as it is read back, and whether its numbers are those of the metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.regular import read_regular
from fedmef_dist.tracking.lines import LARGEST_NUMBER, METRICS, check_head, head_in

SUMMARY = "summary.json"
_LARGEST = 1 << 20
_TREE = TypeAdapter(dict[str, JsonValue])
_MEND = "delete it and start the run again: it ends once more, from its last checkpoint"

# What stands in front of the slash in keys whose values are numbers.
_NUMBERS = {
    *("adjust", "clients", "eval", "extrusion", "flops", "layer_density", "memory", "reference"),
    *("sap", "sparsity", "time", "train", "wire"),
}
_SECONDS_OF_A_DEVICE = "device/seconds"  # which compare adds
# Shares; a method of a guest may have other metrics whose names begin as the first of these do.
_SHARES = {"eval/accuracy", "eval/accuracy_last", "eval/accuracy_best", "sparsity/density", "sparsity/overlap"}
_SHARES_BEGIN = ("adjust/accuracy_", "layer_density/")
# Keys of the summary that are used as what they are, and what that is called.
_KINDS = {"model/digest": (str, "a text"), "world_size": (int, "a whole number")}
# Key of the summary and the metric whose newest value it repeats.
_REPEATED = {
    "model/digest": "model/digest",
    "eval/accuracy_last": "eval/accuracy",
    "eval/loss_last": "eval/loss",
    "wire/total_bytes": "wire/total_bytes",
    "flops/total": "flops/total",
}


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """The summary of a run; None where it has not finished.

    Raises UserError where the file is not what a run writes: no object of JSON, or without a number of rounds.
    """
    where = run_dir / SUMMARY
    try:
        tree = _TREE.validate_json(read_regular(run_dir, SUMMARY, _LARGEST))
        check_numbers(tree)
        _check_kinds(tree)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{SUMMARY} cannot be read: {error.strerror}", where=str(where), mend=_MEND) from None
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise UserError(f"{SUMMARY} is not what a run writes: {reason}", where=str(where), mend=_MEND) from None
    except ValueError as error:
        raise UserError(f"{SUMMARY} is not what a run writes: {error}", where=str(where), mend=_MEND) from None
    rounds = tree.get("rounds")
    if type(rounds) is not int or not 0 < rounds < 2**62:
        raise UserError(f"{SUMMARY} is not what a run writes: it has no rounds", where=str(where), mend=_MEND)
    return dict(tree)


def is_number(key: str) -> bool:
    """Whether a metric of this name is a number, and no text."""
    section, slash, _ = key.partition("/")
    return (bool(slash) and section in _NUMBERS) or key == _SECONDS_OF_A_DEVICE


def check_numbers(values: Mapping[str, Any]) -> None:
    """Raises ValueError where a metric that is a number by its name holds something else, or an impossible number."""
    for key, value in values.items():
        if value is None or not is_number(key):
            continue
        shown = repr(key)[:60]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{shown} is not a number")
        if not abs(value) <= LARGEST_NUMBER:
            raise ValueError(f"{shown} is not a finite number of reasonable size")
        if (key in _SHARES or key.startswith(_SHARES_BEGIN)) and not 0 <= value <= 1:
            raise ValueError(f"{shown} is not between 0 and 1")


def _check_kinds(summary: Mapping[str, Any]) -> None:
    for key, (kind, called) in _KINDS.items():
        if summary.get(key) is not None and type(summary[key]) is not kind:
            raise ValueError(f"{key!r} is not {called}")


def check_summary(
    run_dir: Path, summary: Mapping[str, Any], lines: Sequence[bytes], rounds: Sequence[Mapping[str, Any]]
) -> bool:
    """Makes sure that the summary is that of the metrics, whose lines may go on behind it where a run was prolonged.

    Returns whether the lines are those that it vouches for; a summary of an earlier version vouches for none.
    Raises UserError with the first difference.
    """
    where, head = run_dir / SUMMARY, head_in(summary)
    if head is not None:
        if head.lines != summary["rounds"]:
            raise _differs(where, "rounds", summary["rounds"], f"metrics/lines {head.lines}")
        check_head(lines, head, run_dir / METRICS, SUMMARY)
    elif len(rounds) < summary["rounds"]:
        raise _differs(where, "rounds", summary["rounds"], f"{len(rounds)} lines in {METRICS}")
    done = rounds[: summary["rounds"]]
    for key, metric in _REPEATED.items():
        newest = next((line[metric] for line in reversed(done) if metric in line), None)
        if key in summary and newest is not None and summary[key] != newest:
            raise _differs(where, key, summary[key], f"{newest} in {METRICS}")
    return head is not None


def _differs(where: Path, key: str, value: Any, other: str) -> UserError:
    what = f"{SUMMARY} and {METRICS} are not of one run: {key} is {repr(value)[:80]}, but {other[:80]}"
    return UserError(what, where=str(where), mend=_MEND)
