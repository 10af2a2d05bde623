"""Groups along one setting: the same contestants at each of its values."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.text import printable
from fedmef_dist.base.trees import flat
from fedmef_dist.report.groups import RunGroup


@dataclass(frozen=True)
class Along:
    """Groups by the value that they have of ``key``, a dotted key of the configuration.

    Attributes:
        key: the key; ``name`` is what tables and plots call it, its last part.
        values: as text, numbers in rising order, others as they come.
        rows: contestant -> value -> its group; a contestant need not have all values.
    """

    key: str
    values: Sequence[str]
    rows: Mapping[str, Mapping[str, RunGroup]]

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]


def groups_along(groups: Sequence[RunGroup], key: str) -> Along:
    """Orders the groups by their value of ``key``, which may be given by its last part where only one key ends so.

    Groups whose configurations have the same section ``method``, but for the key itself, are one contestant; what else
    differs belongs to the values. Raises UserError where no or several keys are meant, a group lacks the key or is one
    over its values, all have the same value, or a contestant has two groups at one value.
    """
    settings = [dict(flat(group.runs[0].config)) for group in groups]
    whole = _whole_key(settings, key)
    if lacking := [group.label for group, found in zip(groups, settings, strict=True) if whole not in found]:
        raise _wrong(f"{lacking[0]} has no {whole}", "leave such runs out")
    if whole not in dict(flat(groups[0].runs[0].experiment)):
        raise _wrong(f"runs that differ in {whole} alone are averaged", "give a key that changes what a run does")
    values = [found[whole] for found in settings]
    texts = list(dict.fromkeys(_text(value) for value in _ordered(values)))
    if len(texts) < 2:
        raise _wrong(f"all groups have the same {whole}, {texts[0]}", "give runs with another value too")
    members: dict[str, dict[str, RunGroup]] = {}
    for group, found, value in zip(groups, settings, values, strict=True):
        of = {name: setting for name, setting in found.items() if name.startswith("method.") and name != whole}
        row = members.setdefault(json.dumps(of, sort_keys=True, default=str), {})
        if (other := row.setdefault(_text(value), group)) is not group:
            raise _wrong(
                f"{other.label} and {group.label} have the same method and the same {whole}",
                "vary nothing else within one value: leave one of the two out",
            )
    return Along(whole, texts, dict(zip(_labels(members.values(), whole), members.values(), strict=True)))


def _whole_key(settings: Sequence[Mapping[str, Any]], key: str) -> str:
    keys = dict.fromkeys(name for found in settings for name in found)
    meant = [name for name in keys if name == key] or [name for name in keys if name.endswith(f".{key}")]
    if len(meant) != 1:
        what = f"several keys end in {key}: {', '.join(meant)}" if meant else f"no configuration has a key {key}"
        raise _wrong(what, "give the whole key, such as federation.local_epochs")
    return meant[0]


def _wrong(what: str, mend: str) -> UserError:
    return UserError(what, where="--by", mend=mend)


def _ordered(values: Sequence[Any]) -> list[Any]:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return sorted(values) if numbers else list(values)


def _text(value: Any) -> str:
    # As the configuration file has it: true, null.
    return f"{value:g}" if isinstance(value, float) else printable(json.dumps(value, default=str).strip('"'))


def _labels(rows: Iterable[Mapping[str, RunGroup]], key: str) -> list[str]:
    """What contestants are called: the shortest of their groups' labels without the key's value, else their method."""
    rows = list(rows)
    labels = [
        min((_without(group.label, key, value) or group.method for value, group in row.items()), key=len)
        for row in rows
    ]
    if len(set(labels)) == len(labels):
        return labels
    return [next(iter(row.values())).label for row in rows]


def _without(label: str, key: str, value: str) -> str:
    """The label without "alpha 10", or "alpha-10.0" where it is the name of a directory."""
    setting = rf"{re.escape(key.rpartition('.')[2])}[ -]{re.escape(value)}(?:\.0)?"
    return re.sub(rf"(?:^|, |_)(?:[\w.]*\.)?{setting}(?=$|, |_)", "", label).lstrip(", _")
