"""Whether everything in a run directory is whole and belongs together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmef_dist.base.errors import UserError
from fedmef_dist.runs.checkpoint_files import CHECKPOINTS, complete_rounds, folder_of, passed_over, read_sealed_state
from fedmef_dist.runs.directory import CONFIG, read_configuration
from fedmef_dist.runs.summary import SUMMARY, check_summary, read_summary
from fedmef_dist.tracking.lines import METRICS, head_in, kept_lines, parse_rounds, read_lines

_MEND_CHECKPOINT = "delete that directory; the run then goes on from the one before it, or from the start"


def verify(run_dir: Path) -> None:
    """Configuration, metrics, checkpoints and summary of a run, read in full; the run may go on meanwhile.

    Raises UserError with the first gap.
    """
    rounds_to_do(run_dir, configuration(run_dir))
    # Each is vouched for by what is read before it: a run that is going on writes in the opposite order.
    summary = read_summary(run_dir)
    states = _sealed_states(run_dir)
    lines, rest = read_lines(run_dir)
    rounds = parse_rounds(lines, run_dir / METRICS)
    for number, state in states.items():
        _check_state(run_dir, number, state, lines, rounds)
    if summary is None:
        return
    if not check_summary(run_dir, summary, lines, rounds):
        raise UserError(
            f"{SUMMARY} vouches for no metrics: an earlier version has written it",
            where=str(run_dir / SUMMARY),
            mend="run it again where its numbers must be beyond doubt",
        )
    if rest and len(lines) == summary["rounds"]:
        raise UserError("half a line follows the last round", where=f"{run_dir / METRICS}, line {len(lines) + 1}")


def configuration(run_dir: Path) -> dict[str, Any]:
    """The tree of config.yaml. Raises UserError where there is none."""
    try:
        return read_configuration(run_dir)
    except FileNotFoundError:
        inside = next(run_dir.glob(f"*/{CONFIG}"), None)
        mend = f"give the runs in it: {run_dir}/*" if inside else "give a directory that fedmef-dist run has made"
        raise UserError(f"there is no {CONFIG} in {run_dir}", mend=mend) from None


def rounds_to_do(run_dir: Path, tree: Mapping[str, Any]) -> int:
    """The number of rounds in a configuration. Raises UserError where it has none."""
    federation = tree.get("federation")
    rounds = federation.get("rounds") if isinstance(federation, dict) else None
    if type(rounds) is not int or not 0 < rounds < 2**62:
        raise UserError(
            f"{CONFIG} is not what a run writes: no federation.rounds",
            where=str(run_dir / CONFIG),
            mend="leave this run out, or run it again elsewhere",
        )
    return rounds


def _sealed_states(run_dir: Path) -> dict[int, dict[str, Any]]:
    """The state of every checkpoint that is whole. Raises UserError with the first that is not."""
    for name in passed_over(run_dir):
        what = "this is no checkpoint, although it is called so"
        raise UserError(what, where=str(run_dir / CHECKPOINTS / name), mend="delete it")
    states = {}
    for number in complete_rounds(run_dir):
        try:
            states[number] = read_sealed_state(run_dir, number)
        except (OSError, ValueError, RecursionError) as error:
            if number not in complete_rounds(run_dir):
                continue  # a run that goes on deletes its oldest ones
            reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:200]
            raise _broken(run_dir, number, f"the checkpoint is broken: {reason}") from None
    return states


def _model_digest(state: Mapping[str, Any]) -> Any:
    """What the global model's part of a checkpoint says of itself; None where it has none."""
    part: Any = state
    for key in ("parts", "model", "digest"):
        part = part.get(key) if isinstance(part, dict) else None
    return part


def _check_state(
    run_dir: Path, number: int, state: Mapping[str, Any], lines: Sequence[bytes], rounds: Sequence[Mapping[str, Any]]
) -> None:
    """A checkpoint against the metrics up to its round."""
    tracker = state.get("tracker")
    if not isinstance(tracker, dict) or not all(isinstance(value, str) for value in tracker.values()):
        raise _broken(run_dir, number, "the checkpoint is broken: it has no state of the trackers")
    if head_in(tracker) is None:
        raise _broken(run_dir, number, "the checkpoint vouches for no metrics: an earlier version has written it")
    kept = kept_lines(lines, run_dir / METRICS, number, tracker)
    written = rounds[number - 1] if number <= len(rounds) else parse_rounds(kept, run_dir / METRICS)[-1]
    digest = _model_digest(state)
    if written.get("model/digest", digest) != digest:
        raise _broken(run_dir, number, f"the checkpoint has another model/digest than its line of {METRICS}")


def _broken(run_dir: Path, number: int, what: str) -> UserError:
    return UserError(what, where=str(run_dir / CHECKPOINTS / folder_of(number)), mend=_MEND_CHECKPOINT)
