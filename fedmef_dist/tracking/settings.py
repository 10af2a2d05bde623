"""What a run shows and where it reports to."""

from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from fedmef_dist.base.explanation import explain
from fedmef_dist.base.guests import GuestSettings, Kind, is_guest, unknown_name
from fedmef_dist.base.settings import Settings


class WandbSettings(Settings):
    """Weights & Biases; metrics.jsonl holds the same numbers whether this is on or off.

    What W&B's own environment variables say counts where a key has its default, see :func:`with_environment`. Only
    results leave the machine unless ``git``, ``code``, ``system_metrics`` or ``artifacts`` say more.
    """

    mode: Literal["offline", "online", "disabled"] = Field(
        default="offline", description="offline writes into the run directory; `wandb sync` uploads it later"
    )
    project: str = Field(
        default="fedmef", pattern=r"^[^/\\#?%:]+$", max_length=128, description="project that gets the run"
    )
    entity: str | None = Field(default=None, min_length=1, description="user or team; null: the account's default")
    name: str | None = Field(default=None, min_length=1, description="of the run; null: that of its directory")
    group: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="group of runs; null: none, in a sweep that of the cells that differ only in their seed",
    )
    job_type: str | None = Field(default=None, min_length=1, description="type of the run within its group")
    tags: list[str] = Field(default_factory=list, description="labels to filter runs by")
    notes: str | None = Field(default=None, min_length=1, description="a longer description")
    git: bool = Field(default=False, description="also send the commit of the working directory")
    code: bool = Field(default=False, description="also send the Python and YAML files below the working directory")
    system_metrics: bool = Field(
        default=False, description="also send the load of processor, memory and GPU; online that of every node"
    )
    artifacts: bool = Field(default=False, description="also send each checkpoint, and each new mask, as an artifact")
    histograms: bool = Field(
        default=False, description="also send histograms of the clients' losses and of the layers' densities"
    )


# The variable and the key for which it stands.
_VARIABLES = {
    "WANDB_MODE": "mode",
    "WANDB_PROJECT": "project",
    "WANDB_ENTITY": "entity",
    "WANDB_NAME": "name",
    "WANDB_RUN_GROUP": "group",
    "WANDB_JOB_TYPE": "job_type",
    "WANDB_TAGS": "tags",
    "WANDB_NOTES": "notes",
}
_OLD_MODES = {"dryrun": "offline", "run": "online"}
SWEEP_ID, RUN_ID = "WANDB_SWEEP_ID", "WANDB_RUN_ID"


def with_environment(
    section: Mapping[str, Any], environ: Mapping[str, str], given: Collection[str] = ()
) -> dict[str, Any]:
    """Section ``tracking.wandb`` with what W&B's variables say, where the section has a key's default.

    Under ``wandb agent`` the default mode is online: a sweep lives from what its runs report.

    Args:
        section: plain values.
        environ: the environment.
        given: keys that stay as they are, whatever their value.

    Raises:
        UserError: a variable has a value that the key cannot have.
    """
    found = {key: environ[name] for name, key in _VARIABLES.items() if environ.get(name)}
    if "mode" in found:
        found["mode"] = _OLD_MODES.get(found["mode"], found["mode"])
    elif environ.get(SWEEP_ID):
        found["mode"] = "online"
    values = {key: _as_list(text) if key == "tags" else text for key, text in found.items()}
    defaults = WandbSettings().model_dump()
    taken = {
        key: value
        for key, value in values.items()
        if key not in given and section.get(key, defaults[key]) == defaults[key]
    }
    try:
        WandbSettings.model_validate(taken)
    except ValidationError as error:
        name = next(name for name, key in _VARIABLES.items() if key == error.errors()[0]["loc"][0])
        where = f"the environment variable {name}"
        raise explain(error, taken, where, lambda key: f"unset {name}") from None
    return {**section, **taken}


def _as_list(text: str) -> list[str]:
    return [tag.strip() for tag in text.split(",") if tag.strip()]


class TrackingSettings(Settings):
    """Where metrics go in addition to metrics.jsonl."""

    console: bool = Field(default=True, description="show progress: a bar on a terminal, plain lines elsewhere")
    timeline: bool = Field(
        default=False, description="write what each rank did and when to timeline/; ui.perfetto.dev opens these traces"
    )
    wandb: WandbSettings = Field(default=WandbSettings(), description="Weights & Biases")
    tensorboard: bool = Field(default=False, description="write the same numbers for TensorBoard to tensorboard/")
    trackers: list[GuestSettings] = Field(
        default_factory=list, description="trackers of your own: package.module:Name, or {name: ..., option: value}"
    )

    @field_validator("trackers")
    @classmethod
    def _are_known(cls, trackers: list[GuestSettings]) -> list[GuestSettings]:
        for tracker in trackers:
            if not is_guest(Kind.TRACKER, tracker.name):
                raise unknown_name(Kind.TRACKER, tracker.name, ())
        return trackers
