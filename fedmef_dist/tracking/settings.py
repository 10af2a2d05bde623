"""What a run shows and where it reports to."""

from typing import Literal

from pydantic import Field, field_validator

from fedmef_dist.base.guests import GuestSettings, Kind, is_guest, unknown_name
from fedmef_dist.base.settings import Settings


class WandbSettings(Settings):
    """Weights & Biases; metrics.jsonl holds the same numbers whether this is on or off."""

    mode: Literal["offline", "online", "disabled"] = Field(
        default="offline", description="offline writes into the run directory; `wandb sync` uploads it later"
    )
    project: str = Field(
        default="fedmef", pattern=r"^[^/\\#?%:]+$", max_length=128, description="project that gets the run"
    )
    entity: str | None = Field(default=None, min_length=1, description="user or team; null: the account's default")
    group: str | None = Field(
        default=None, min_length=1, description="group of runs, for example one experiment's seeds"
    )
    tags: list[str] = Field(default_factory=list, description="labels to filter runs by")


class TrackingSettings(Settings):
    """Where metrics go in addition to metrics.jsonl."""

    console: bool = Field(default=True, description="show progress: a bar on a terminal, plain lines elsewhere")
    timeline: bool = Field(
        default=False, description="write what each rank did and when to timeline/; ui.perfetto.dev opens these traces"
    )
    wandb: WandbSettings = Field(default=WandbSettings(), description="Weights & Biases")
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
