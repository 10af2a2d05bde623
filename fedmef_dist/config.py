"""One run's configuration: composed from the settings that stand next to the code they configure."""

import difflib
import os
import reprlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.settings import Settings
from fedmef_dist.base.strict_yaml import parse_yaml
from fedmef_dist.clients.cohort import FederationSettings
from fedmef_dist.clients.optimizer import OptimizerSettings
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.group import RuntimeSettings
from fedmef_dist.data.sources import DataSettings
from fedmef_dist.devices.settings import DeviceSettings
from fedmef_dist.evaluation.test_set import EvaluationSettings
from fedmef_dist.layers.activation_pruning import SapSettings
from fedmef_dist.methods.fedmef import FedMefSettings
from fedmef_dist.methods.registry import SETTINGS, MethodSettings
from fedmef_dist.methods.server_optimizer import ServerOptimizerSettings
from fedmef_dist.models import ModelSettings
from fedmef_dist.runs.checkpoint import CheckpointSettings
from fedmef_dist.tracking.settings import TrackingSettings
from fedmef_dist.wire.ledger import WireSettings


class Config(Settings):
    """Everything that decides a run's result, and where it goes."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run and its directory")
    seed: int = Field(0, ge=0, description="seed of every random draw")
    data: DataSettings = Field(default_factory=DataSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    federation: FederationSettings = Field(default_factory=FederationSettings)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    server_optimizer: ServerOptimizerSettings = Field(default_factory=ServerOptimizerSettings)
    method: MethodSettings = Field(default_factory=FedMefSettings)
    sap: SapSettings = Field(default_factory=SapSettings)
    device: DeviceSettings = Field(default_factory=DeviceSettings)
    runtime: RuntimeSettings = Field(default_factory=RuntimeSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    wire: WireSettings = Field(default_factory=WireSettings)
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)

    @property
    def norm(self) -> str:
        """The model's normalisation with ``auto`` settled: nsconv for fedmef, else batch, or layer for gpt."""
        if self.model.norm != "auto":
            return self.model.norm
        return "nsconv" if self.method.name == "fedmef" else self.model.stock_norm

    @property
    def resolved_sap(self) -> SapSettings:
        """Activation pruning with ``auto`` settled: on for fedmef, off for the others."""
        enabled = self.method.name == "fedmef" if self.sap.enabled == "auto" else self.sap.enabled
        return self.sap.model_copy(update={"enabled": enabled})


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies ``section.key=value`` overrides, the last one of a key winning.

    Raises:
        UserError: the file cannot be read, or a key or value in it or in an override does not fit.
    """
    tree = _read(Path(path))
    given = [_parse_override(text) for text in overrides]
    _settle_method(tree, given)
    for keys, value in given:
        _assign(tree, keys, value)
    return parse_config(tree, f"{path} with {' '.join(overrides)}" if overrides else str(path))


def parse_config(tree: dict[str, Any], where: str) -> Config:
    """The configuration in a tree of plain values; ``where`` names it in messages. Raises UserError."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, tree, where) from None


def to_tree(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain values."""
    return config.model_dump(mode="json")


def differing_keys(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two trees."""
    keys = []
    for key in sorted({*one, *other}, key=str):
        left, right = one.get(key), other.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            keys += differing_keys(left, right, f"{prefix}{key}.")
        elif left != right:
            keys.append(f"{prefix}{key}")
    return keys


def read_tree(text: str, where: str) -> dict[str, Any]:
    """A YAML mapping; empty text is an empty one. Raises UserError where the text is none."""
    tree = parse_yaml(text, where)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError("a configuration is a mapping of sections", where=where, mend="see configs/quickstart.yaml")
    return tree


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"cannot read the configuration: {reason}", where=str(path), mend="give a YAML file") from None
    return read_tree(text, str(path))


def _parse_override(text: str) -> tuple[list[str], Any]:
    keys, equals, value = text.partition("=")
    if not equals or not all(keys.split(".")):
        raise UserError(f"{text!r} is not an override", where="command line", mend="write section.key=value")
    return keys.split("."), parse_yaml(value, f"{text!r} on the command line")


def _settle_method(tree: dict[str, Any], given: list[tuple[list[str], Any]]) -> None:
    """Names the default method where the file names none.

    Where the command line names another one, drops the file's keys that it does not have, with a notice.
    """
    section = tree.setdefault("method", {})
    if not isinstance(section, dict):
        return
    old = section.setdefault("name", FedMefSettings().name)
    names = [value for keys, value in given if keys == ["method", "name"]]
    if not names or names[-1] == old or names[-1] not in list(SETTINGS):
        return
    dropped = [key for key in section if key not in SETTINGS[names[-1]].model_fields]
    for key in dropped:
        del section[key]
    if dropped and detect(os.environ).rank == 0:
        print(f"note: method {names[-1]} has no {', '.join(map(str, dropped))}; left out", file=sys.stderr)


def _assign(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1], start=1):
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            raise UserError(
                f"{'.'.join(keys[:depth])} is a value, not a section",
                where=f"{'.'.join(keys)} on the command line",
                mend="shorten the key, or make it a section in the file",
            )
        tree = child
    tree[keys[-1]] = value


def _explain(error: ValidationError, tree: dict[str, Any], where: str) -> UserError:
    """What is wrong with the first key that does not fit."""
    problems: dict[str, list[Any]] = {}
    for problem in error.errors(include_url=False):
        problems.setdefault(_dotted(problem["loc"], tree), []).append(problem)
    dotted, found = next(iter(problems.items()))
    more = f" (and {len(problems) - 1} more keys)" if len(problems) > 1 else ""
    if found[0]["type"] == "extra_forbidden":
        return UserError(f"unknown key {dotted}{more}", where=where, mend=_hint(dotted, tree))
    # A value of several possible types fails once for each.
    message = " or ".join(problem["msg"].removeprefix("Value error, ") for problem in found)
    if found[0]["type"] != "value_error":
        message += f", got {reprlib.repr(found[0]['input'])}"
    return UserError(f"{dotted}: {message}{more}", where=where, mend=f"correct {dotted}")


def _dotted(location: Sequence[str | int], tree: Any) -> str:
    """A problem's key as the user wrote it; pydantic's location also holds names of methods and types."""
    keys = []
    for part in location:
        if (isinstance(tree, dict) and part in tree) or (isinstance(tree, list) and isinstance(part, int)):
            keys.append(str(part))
            tree = tree[part]  # type: ignore[index]
    return ".".join(keys)


def _hint(unknown: str, tree: dict[str, Any]) -> str:
    known = list(known_keys(Config))
    if unknown in known:
        return f"leave it out; method {tree['method']['name']} does not have it"
    last = unknown.rpartition(".")[2]
    elsewhere = [key for key in known if key.rpartition(".")[2] == last]
    near = elsewhere or difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "`fedmef-dist schema` lists all keys"


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a settings model."""
    for key, field in model.model_fields.items():
        yield prefix + key
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from known_keys(kind, f"{prefix}{key}.")
