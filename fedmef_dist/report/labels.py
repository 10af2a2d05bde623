"""What groups of runs are called in tables and legends.

The rule: a group is called by the values of its configuration that differ between the groups, such as
"fedmef, density 0.05". Of a key only the last part is shown, unless two differing keys share it; of ``method.name``
and other names only the value. The groups are called by their directories instead where no value differs, where the
values do not tell all groups apart, or where the directories' names do and none is longer than the longest label
made of values. What a sweep's directories all begin with, such as "density-0.03_", is left out. Where neither tells all
apart, the directories' whole paths do.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedmef_dist.base.text import printable
from fedmef_dist.base.trees import flat
from fedmef_dist.report.runs import Run

# At the end of a name a seed may stand as a mere number; between other parts only with its name.
_SEED_INSIDE = re.compile(r"(^|[-_.])seed[-_=]?\d+(?=[-_.])")
_SETTING = re.compile(r"[^-]+-[^_]+_")
_SEED_AT_END = re.compile(r"[-_=/.]*(seed|s)?[-_=]*\d+$")


def labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A label for each group of runs that differ only in the seed; no two are the same, none has control characters."""
    return [printable(label) for label in _labels(groups)]


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    directories = [_without_seed([run.path.resolve().name for run in runs]) for runs in groups]
    values = _differences([dict(flat(runs[0].experiment)) for runs in groups])
    if _unique(directories) and not (_unique(values) and _longest(values) < _longest(directories)):
        return _without_common_settings(directories)
    return values if _unique(values) else [str(runs[0].path) for runs in groups]


def _unique(names: Sequence[str]) -> bool:
    return "" not in names and len(set(names)) == len(names)


def _longest(names: Sequence[str]) -> int:
    return max(map(len, names))


def _without_seed(names: Sequence[str]) -> str:
    """The name of a single run; for several, the first one's without its seed: ``fedmef`` for fedmef-seed0.

    Where all have the same name, in folders of their own, no seed is in it: that of ``lr-0.05`` ends in a value.
    """
    name = names[0]
    if len({*names}) == 1:
        return name
    inside = _SEED_INSIDE.sub("", name).lstrip("-_.")
    return inside if inside != name else _SEED_AT_END.sub("", name) or name


def _without_common_settings(names: Sequence[str]) -> list[str]:
    """Without the settings, ``key-value_``, that all begin with. A key may hold ``_``, so one ends behind its value."""
    while len(names) > 1 and (first := _SETTING.match(names[0])) and all(name.startswith(first[0]) for name in names):
        shorter = [name.removeprefix(first[0]) for name in names]
        if "" in shorter:
            break
        names = shorter
    return list(names)


def _differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each configuration the values that differ from another one that has the key too; the method comes first."""
    keys = dict.fromkeys(("method.name", *(key for config in configs for key in config)))
    differing = [key for key in keys if len({repr(config[key]) for config in configs if key in config}) > 1]
    ends = Counter(_end(key) for key in differing)
    names = {key: _end(key) if ends[_end(key)] == 1 else key for key in differing}
    return [", ".join(_named(key, names[key], config[key]) for key in differing if key in config) for config in configs]


def _end(key: str) -> str:
    return key.rpartition(".")[2]


def _named(key: str, name: str, value: Any) -> str:
    # As the configuration file has it: true, null.
    text = f"{value:g}" if isinstance(value, float) else json.dumps(value, default=str).strip('"')
    return text if _end(key) == "name" else f"{name} {text}"
