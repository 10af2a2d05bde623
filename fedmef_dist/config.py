"""One run's configuration: composed from the settings that stand next to the code they configure."""

import copy
import difflib
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, create_model

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.explanation import explain, known_keys
from fedmef_dist.base.guests import GuestSettings, Kind, find
from fedmef_dist.base.notices import tell
from fedmef_dist.base.settings import Settings
from fedmef_dist.base.strict_yaml import parse_yaml
from fedmef_dist.base.trees import read_tree_file
from fedmef_dist.clients.cohort import FederationSettings
from fedmef_dist.clients.optimizer import OptimizerSettings
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.group import RuntimeSettings
from fedmef_dist.data.sources import DataSettings, own_datasets
from fedmef_dist.devices.settings import DeviceSettings
from fedmef_dist.evaluation.test_set import EvaluationSettings
from fedmef_dist.layers.activation_pruning import SapSettings
from fedmef_dist.methods.fedmef import FedMefSettings
from fedmef_dist.methods.registry import METHODS, MethodSettings, is_known, method_of, settings_of
from fedmef_dist.methods.server_optimizer import ServerOptimizerSettings
from fedmef_dist.models.registry import ModelSettings, is_foreign_model
from fedmef_dist.runs.checkpoint import CheckpointSettings
from fedmef_dist.tracking.callbacks import OWN_CALLBACKS, find_callback, known_callbacks
from fedmef_dist.tracking.guest import find_trackers
from fedmef_dist.tracking.settings import TrackingSettings, with_environment
from fedmef_dist.tracking.tensorboard import find_tensorboard
from fedmef_dist.wire.ledger import WireSettings


class Config(Settings):
    """Everything that decides a run's result, and where it goes."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run and its directory")
    seed: int = Field(0, ge=0, description="seed of every random draw")
    fork: str | None = Field(
        None,
        min_length=1,
        description="directory of a run from whose newest checkpoint and metrics this one goes on, with other "
        "settings; model, data, clients and method are those of that run",
    )
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
    callbacks: Annotated[list[GuestSettings], AfterValidator(known_callbacks)] = Field(
        default_factory=list,
        description="what looks at the run and may stop it: early_stopping, keep_best, reduce_rate_on_plateau, "
        "time_budget or package.module:Name, a name alone or "
        "{name: ..., option: value}",
    )

    @property
    def norm(self) -> str:
        """The model's normalisation; ``auto`` is what the method prefers, or else what the network was made with."""
        if self.model.norm != "auto":
            return self.model.norm
        return method_of(self.method).preferences.norm or self.model.stock_norm

    @property
    def resolved_sap(self) -> SapSettings:
        """Activation pruning; ``auto`` is what the method prefers."""
        preferred = method_of(self.method).preferences
        enabled = preferred.activation_pruning if self.sap.enabled == "auto" else self.sap.enabled
        share = preferred.pruned_share if self.sap.share == "auto" else self.sap.share
        return self.sap.model_copy(update={"enabled": enabled, "share": share})

    @property
    def weight_power(self) -> float:
        """The power of its parameter as which a prunable weight acts."""
        return method_of(self.method).weight_power(self.method)

    def begins_as(self, rounds: int) -> bool:
        """Whether a run of so many rounds, all else alike, comes to the weights of this one in the rounds of both."""
        if self.optimizer.schedule == "cosine" and rounds != self.federation.rounds:
            return False  # it stretches over all rounds: another learning rate in each
        return method_of(self.method).begins_alike(self.method, rounds, self.federation.rounds)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file and applies ``section.key=value`` overrides, the last one of a key winning.

    An override may also be written ``--section.key=value``, as ``wandb agent`` does. Imports the guests that they name,
    so that a wrong name is known before anything starts.

    Raises:
        UserError: the file cannot be read, a key or value in it or in an override does not fit, or a guest cannot be
            had.
    """
    config, left_out = ConfigFile(Path(path)).with_overrides(overrides)
    if left_out and detect(os.environ).rank == 0:
        tell(f"note: method {config.method.name} has no {', '.join(left_out)}; left out")
    find_guests(config)
    return config


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Changes a tree of plain values by ``section.key=value``, the last one of a key winning.

    Returns the keys that were left out because an override names a method without them. Raises UserError.
    """
    given = [_parse_override(text) for text in overrides]
    left_out = _settle_method(tree, given)
    for keys, value in given:
        _assign(tree, keys, copy.deepcopy(value))
    return left_out


class ConfigFile:
    """A YAML file that is read once, for any number of configurations made from it; ``tree`` is what it says.

    Raises UserError where the file cannot be read or is no mapping.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.tree = path, read_tree_file(path, "configuration")

    def with_overrides(self, overrides: Sequence[str]) -> tuple[Config, list[str]]:
        """The configuration with ``section.key=value`` overrides, the last one of a key winning, and W&B's variables.

        Also gives the file's keys that were left out because an override names a method without them. Raises UserError.
        """
        tree = copy.deepcopy(self.tree)
        left_out = apply_overrides(tree, overrides)
        _heed_environment(tree, overrides)
        where = f"{self.path} with {' '.join(overrides)}" if overrides else str(self.path)
        return parse_config(tree, where), left_out


def parse_config(tree: dict[str, Any], where: str) -> Config:
    """The configuration in a tree of plain values; ``where`` names it in messages. Raises UserError.

    Of guests only a method is imported, for its keys; :func:`foreign_names` tells beforehand whether there are any.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise explain(error, tree, where, lambda key: _hint(key, tree)) from None


def schema(method: str | None = None) -> dict[str, Any]:
    """The JSON Schema of the configuration; with ``method`` that of runs of this method, which may be a guest.

    Raises:
        UserError: there is no such method.
    """
    if method is None:
        return Config.model_json_schema()
    field = Config.model_fields["method"]
    keys: Any = (settings_of(method), Field(title=field.title, description=f"the keys of {method}"))
    return create_model("Config", __base__=Config, method=keys).model_json_schema()


def to_tree(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain values."""
    return config.model_dump(mode="json")


def foreign_names(tree: Mapping[str, Any]) -> list[str]:
    """What a tree of plain values names that is not the package's own, as ``key=name``; imports nothing of it."""

    def inside(section: str, key: str) -> Any:
        part = tree.get(section)
        return part.get(key) if isinstance(part, dict) else None

    method, model, dataset = inside("method", "name"), inside("model", "name"), inside("data", "dataset")
    found = [
        (isinstance(method, str) and method not in METHODS, f"method.name={method}"),
        (isinstance(model, str) and is_foreign_model(model), f"model.name={model}"),
        (isinstance(dataset, str) and dataset not in own_datasets(), f"data.dataset={dataset}"),
    ]
    for key, guests in (("tracking.trackers", inside("tracking", "trackers")), ("callbacks", tree.get("callbacks"))):
        for guest in guests if isinstance(guests, list) else []:
            name = str(guest.get("name") if isinstance(guest, dict) else guest)
            found.append((name not in OWN_CALLBACKS, f"{key}={name}"))
    return [name for foreign, name in found if foreign]


def find_guests(config: Config) -> None:
    """Makes sure that every guest that a configuration names can be had; imports them. Raises UserError."""
    if config.model.is_guest:
        find(Kind.MODEL, config.model.name, "model.name")
    if config.data.is_guest:
        find(Kind.DATASET, config.data.dataset, "data.dataset")
    find_trackers(config.tracking.trackers)
    if config.tracking.tensorboard:
        find_tensorboard()
    for callback in config.callbacks:
        find_callback(callback.name)


@functools.lru_cache(maxsize=4096)
def _parse_override(text: str) -> tuple[list[str], Any]:
    keys, equals, value = text.removeprefix("--").partition("=")
    if text.startswith("--") and value == "None":
        value = "null"  # as `wandb agent` writes it
    if not equals or not all(keys.split(".")):
        raise UserError(f"{text!r} is not an override", where="command line", mend="write section.key=value")
    return keys.split("."), parse_yaml(value, f"{text!r} on the command line")


def _heed_environment(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Takes over what W&B's environment variables say where neither file nor overrides say something else."""
    tracking = tree.get("tracking", {})
    section = tracking.get("wandb", {}) if isinstance(tracking, dict) else None
    if not isinstance(section, dict):
        return
    given = [keys[2] for keys, _ in map(_parse_override, overrides) if keys[:2] == ["tracking", "wandb"] and keys[2:]]
    settled = with_environment(section, os.environ, given)
    if settled != section:
        tree["tracking"] = {**tracking, "wandb": settled}


def _settle_method(tree: dict[str, Any], given: list[tuple[list[str], Any]]) -> list[str]:
    """Names the default method where the file names none.

    Where the command line names another one, drops the file's keys that it does not have, and returns them. Raises
    UserError where that is a guest that cannot be had.
    """
    section = tree.setdefault("method", {})
    if not isinstance(section, dict):
        return []
    old = section.setdefault("name", FedMefSettings().name)
    names = [value for keys, value in given if keys == ["method", "name"]]
    if not names or names[-1] == old or not (isinstance(names[-1], str) and is_known(names[-1])):
        return []
    known = {"name", *settings_of(names[-1]).model_fields}
    dropped = [key for key in section if key not in known]
    for key in dropped:
        del section[key]
    return [str(key) for key in dropped]


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


def _hint(unknown: str, tree: dict[str, Any]) -> str:
    known = list(known_keys(Config))
    if unknown in known:
        return f"leave it out; method {tree['method']['name']} does not have it"
    known += _keys_of_guest(tree)
    last = unknown.rpartition(".")[2]
    elsewhere = sorted((key for key in known if key.rpartition(".")[2] == last), key=lambda key: key.count("."))
    near = elsewhere or difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "`fedmef-dist schema` lists all keys"


def _keys_of_guest(tree: Mapping[str, Any]) -> list[str]:
    """The keys of section ``method`` under a guest's name."""
    section = tree.get("method")
    name = section.get("name") if isinstance(section, dict) else None
    if not isinstance(name, str) or name in METHODS or not is_known(name):
        return []
    return list(known_keys(settings_of(name), "method."))
