"""Run directories as the report reads them, validated."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.notices import tell
from fedmef_dist.runs.directory import CONFIG, refuse_missing
from fedmef_dist.runs.summary import SUMMARY, check_numbers, check_summary, read_summary
from fedmef_dist.runs.verify import configuration
from fedmef_dist.tracking.lines import METRICS, parse_rounds, read_lines

if TYPE_CHECKING:
    import pandas

# Keys of a configuration that do not make an experiment another one.
_NOT_COMPARED = ("seed", "name", "tracking", "checkpoint")
_MEND = "leave this run out, or run it again with --resume never"
_DEEPEST = 20  # sections in sections; a configuration has three


class _Method(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    name: str = Field(min_length=1, max_length=200)


class _Federation(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    rounds: int = Field(ge=1, lt=2**62)


class _Config(BaseModel):
    """What the report needs of a configuration; the rest is plain values. Nothing that it names is imported."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    seed: int | str | None = None
    method: _Method
    federation: _Federation


@dataclass(frozen=True)
class Run:
    """One run as its directory tells of it; every value of a metric is of its kind, see `check_numbers`.

    Attributes:
        path: the directory.
        config: the configuration as plain values.
        metrics: of each round, in order; a round has what was measured in it.
        summary: of the whole run; empty while it is not finished.
    """

    path: Path
    config: Mapping[str, Any] = field(repr=False)
    metrics: Sequence[Mapping[str, Any]] = field(repr=False)
    summary: Mapping[str, Any] = field(repr=False)

    @property
    def columns(self) -> dict[str, list[Any]]:
        """The metrics by name: a value a round, None where it was not measured; in the order of their appearance."""
        keys = dict.fromkeys(key for line in self.metrics for key in line)
        return {key: [line.get(key) for line in self.metrics] for key in keys}

    def to_pandas(self) -> "pandas.DataFrame":
        """The metrics as a DataFrame, a row a round and a column a metric, with the round as index.

        What was not measured is NaN. Raises UserError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError("pandas is not installed", mend="pip install pandas, or take .columns") from None
        return pandas.DataFrame(self.columns).set_index("round")

    @property
    def experiment(self) -> dict[str, Any]:
        """The configuration without the seed and what has no influence on the result.

        Runs may begin with others of their own seeds: a seed that is named in such a path is left out.
        """
        tree = {key: value for key, value in self.config.items() if key not in _NOT_COMPARED}
        if "fork" in tree:
            tree["fork"] = _without_seed(tree["fork"])
        model = tree.get("model")
        if isinstance(model, dict) and "start_from" in model:
            tree["model"] = {**model, "start_from": _without_seed(model["start_from"])}
        return tree

    def value(self, key: str) -> float | None:
        """A value of the summary, which has the last ones, else that of the newest round; None where none has it."""
        lines = (self.summary, *reversed(self.metrics))
        return next((float(line[key]) for line in lines if line.get(key) is not None), None)

    def total(self, key: str) -> float | None:
        """The sum of a key over the rounds; None where no round has it."""
        values = [float(line[key]) for line in self.metrics if line.get(key) is not None]
        return sum(values) if values else None


def read_run(run_dir: str | Path, *, unfinished: bool = False) -> Run:
    """The run in a directory, whose metrics and summary are checked against each other. Imports nothing it names.

    A run of an earlier version, whose summary vouches for no metrics, is marked with a line on standard error.

    Args:
        run_dir: where a run writes, or has written.
        unfinished: whether a run is taken too that has not finished; it has the rounds that are done.

    Raises:
        UserError: it is none, is damaged, or has not finished.
    """
    path = Path(run_dir)
    refuse_missing(path)
    config, rounds_to_do = _read_config(path)
    summary = read_summary(path)
    lines, rest = read_lines(path)
    if not unfinished and (summary is None or not lines):
        missing = SUMMARY if summary is None else METRICS
        raise _unfinished(
            path, f"{missing} has no rounds" if (path / missing).exists() else f"there is no {missing} in it"
        )
    rounds = _parsed(path, lines)
    if summary is not None and not check_summary(path, summary, lines, rounds):
        tell(f"note: {path} is of an earlier version; nothing vouches for its metrics")
    if unfinished or summary is None:
        return Run(path, config, rounds, summary or {})
    if rest:
        what = f"half a line follows round {len(lines)}"
        raise UserError(what, where=f"{path / METRICS}, line {len(lines) + 1}", mend=_MEND)
    if isinstance(summary.get("stopped"), str):  # by a callback, which is an end too
        rounds_to_do = summary["rounds"]
    if not rounds_to_do == summary["rounds"] == len(lines):
        raise _unfinished(path, f"{len(lines)} of {rounds_to_do} rounds, {summary['rounds']} of them in {SUMMARY}")
    return Run(path, config, rounds, summary)


def _without_seed(path: Any) -> Any:
    return re.sub(r"(?<=seed)[-_=]?\d+", "", path) if isinstance(path, str) else path


def _parsed(path: Path, lines: Sequence[bytes]) -> list[dict[str, Any]]:
    rounds = parse_rounds(lines, path / METRICS)
    for number, line in enumerate(rounds, start=1):
        try:
            check_numbers(line)
        except ValueError as error:
            raise UserError(
                f"{METRICS} is not what a run writes: {error}", where=f"{path / METRICS}, line {number}", mend=_MEND
            ) from None
    return rounds


def _read_config(path: Path) -> tuple[dict[str, Any], int]:
    tree = configuration(path)
    try:
        if _depth(tree) > _DEEPEST:
            raise UserError(f"{CONFIG} is not what a run writes: too deep", where=str(path / CONFIG), mend=_MEND)
        return tree, _Config.model_validate(tree).federation.rounds
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(map(str, problem["loc"][:2]))
        raise UserError(
            f"{CONFIG} is not what a run writes: {key[:80]}: {problem['msg']}", where=str(path / CONFIG), mend=_MEND
        ) from None


def _depth(tree: Any) -> int:
    """How many mappings and lists lie in one another, counted no further than matters."""
    level, depth = [tree], 0
    while level and depth <= _DEEPEST:
        nodes = [node for node in level if isinstance(node, dict | list)]
        level = [child for node in nodes for child in (node.values() if isinstance(node, dict) else node)]
        depth += bool(nodes)
    return depth


def _unfinished(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} holds no finished run: {what}",
        mend="start it again, it goes on; fedmef-dist status shows how far it is",
    )
