"""What is known of the runs beside their curves: how their settings differ, where they ran, what vouches for them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.text import printable
from fedmef_dist.base.trees import flat
from fedmef_dist.config import foreign_names, parse_config, to_tree
from fedmef_dist.report.groups import RunGroup
from fedmef_dist.report.quantities import QUANTITIES
from fedmef_dist.report.rendering import Table
from fedmef_dist.report.runs import Run
from fedmef_dist.report.units import DASH, duration, percent, ratio, scaled
from fedmef_dist.runs.verify import verify

WHOLE = "whole"
_LONGEST = 200  # characters of a value from a run directory
_DIGITS = 16
_MOST_VERSIONS = 12


def settings_tables(groups: Sequence[RunGroup]) -> list[Table]:
    """For several groups the settings that differ; for one those that are not the defaults."""
    if len(groups) > 1:
        return [_differing(groups)]
    own, defaults = dict(flat(groups[0].runs[0].config)), _defaults(groups[0].method)
    rows = [
        (key, _text(value), _text(defaults[key]) if key in defaults else DASH)
        for key, value in own.items()
        if key not in defaults or defaults[key] != value
    ]
    note = "All other settings are as the package has them when nothing is written."
    return [Table("Settings that are not defaults", ("Setting", "This run", "Default"), rows, note, words=True)]


def all_settings(groups: Sequence[RunGroup]) -> list[tuple[str, Table]]:
    """Every setting of each group."""
    return [
        (
            f"All settings of {group.label}",
            Table(
                group.label,
                ("Setting", "Value"),
                [(printable(key), _text(value)) for key, value in flat(group.runs[0].config)],
                "As in config.yaml of its first run; the seed and the name differ between its runs.",
                words=True,
            ),
        )
        for group in groups
    ]


def _differing(groups: Sequence[RunGroup]) -> Table:
    configs = [dict(flat(group.runs[0].experiment)) for group in groups]
    keys = dict.fromkeys(key for config in configs for key in config)
    missing = object()
    rows = [
        (printable(key), *(_text(config[key]) if key in config else DASH for config in configs))
        for key in keys
        if len({repr(config.get(key, missing)) for config in configs}) > 1
    ]
    return Table(
        "Settings that differ",
        ("Setting", *(group.label for group in groups)),
        rows,
        "A column a group; a dash where a method has no such setting. All other settings are the same, but for seeds, "
        "names, trackers and checkpoints, which have no influence on a result, or one that the spread shows.",
        words=True,
    )


def _defaults(method: str) -> dict[str, Any]:
    """Those of a method of the package; nothing that a run names is imported."""
    tree: dict[str, Any] = {"method": {"name": method}}
    return dict(flat(to_tree(parse_config({} if foreign_names(tree) else tree, "the defaults"))))


def environment_table(groups: Sequence[RunGroup]) -> Table:
    """Where the runs ran and on what, a row for those that ran alike."""
    told = [(_called(group, run), run, _versions(run)) for group, run in _runs(groups)]
    names = [*dict.fromkeys(name for _, _, versions in told for name in versions)][:_MOST_VERSIONS]
    places: dict[tuple[str, ...], list[str]] = {}
    for called, run, versions in told:
        where = (_text(run.summary.get(key)) for key in ("launcher", "world_size", "threads", "device"))
        place = (*where, *(_text(versions[name]) if name in versions else DASH for name in names))
        places.setdefault(place, []).append(called)
    return Table(
        "Environment",
        ("Runs", "Launcher", "Ranks", "Threads a rank", "Device", *map(_text, names)),
        [("all" if len(places) == 1 else "; ".join(called), *place) for place, called in places.items()],
        "The same configuration and seed give the same digest on any number of ranks, with the same number of threads "
        "a rank and the same kind of processor.",
        words=True,
    )


def _versions(run: Run) -> Mapping[str, Any]:
    versions = run.summary.get("versions")
    return versions if isinstance(versions, dict) else {}


def digest_table(groups: Sequence[RunGroup]) -> Table:
    """What identifies each run, and whether its directory is whole."""
    rows = [
        (
            _called(group, run),
            verdict(run),
            printable(str(run.path)),
            _text(run.summary.get("rounds")),
            *(_text(run.summary.get(key))[:_DIGITS] for key in ("model/digest", "data/digest", "metrics/digest")),
        )
        for group, run in _runs(groups)
    ]
    return Table(
        "Digests, and whether the directories are whole",
        ("Run", "status --verify", "Directory", "Rounds", "Weights and mask", "Data", "metrics.jsonl"),
        rows,
        f"The first {_DIGITS} digits of SHA-256, summary.json has them all. Equal digests of weights and mask mean "
        "equal bits. The second column is what fedmef-dist status --verify "
        "says: whole, where metrics, checkpoints, summary and configuration belong together, else the first gap.",
        words=True,
    )


def verdict(run: Run) -> str:
    """What `fedmef-dist status --verify` finds in the run's directory."""
    try:
        verify(run.path)
    except UserError as error:
        return printable(f"{error.what}; {error.where}" if error.where else error.what)
    return WHOLE


def cards(groups: Sequence[RunGroup]) -> list[dict[str, str]]:
    """The numbers of a single group that one asks for first."""
    if len(groups) > 1:
        return []
    (group,) = groups
    final, best = (group.spread(QUANTITIES[name]) for name in ("accuracy_last", "accuracy_best"))
    wire, memory = group.mean("wire/total_bytes"), group.mean("memory/peak_bytes")
    found = [
        ("Final test accuracy", _percent(final.mean, final.deviation), "after the last round"),
        ("Best test accuracy", _percent(best.mean, best.deviation), "of all tests"),
        ("Density", _percent(group.mean("sparsity/density")), "share of weights that are active"),
        ("Bytes on the wire", scaled(wire, "B"), _against(wire, group.mean("reference/wire_bytes"))),
        ("Peak memory", scaled(memory, "B"), _against(memory, group.mean("reference/peak_bytes"))),
        ("Training compute", scaled(group.mean("flops/total"), "FLOP"), "of all clients, modelled"),
        ("Time", duration(group.mean("time/total")), "of the simulation"),
    ]
    return [{"name": name, "value": value, "meaning": meaning} for name, value, meaning in found if value != DASH]


def _percent(mean: float | None, deviation: float | None = None) -> str:
    return DASH if mean is None else f"{percent(mean, deviation)} %"


def _against(value: float | None, dense: float | None) -> str:
    times = ratio(value, dense)
    return "of the whole run" if times == DASH else f"{times} dense FedAvg's"


def _runs(groups: Sequence[RunGroup]) -> list[tuple[RunGroup, Run]]:
    return [(group, run) for group in groups for run in group.runs]


def _called(group: RunGroup, run: Run) -> str:
    seed = run.config.get("seed")
    return group.label if seed is None else f"{group.label}, seed {_text(seed)}"


def _text(value: Any) -> str:
    """A value from a run directory as text, cut where nobody would read on."""
    if value is None:
        return "null"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    shown = printable(text)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]} ..."
