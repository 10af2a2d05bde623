"""A run's callbacks as one: they run on rank 0, and every rank does what they decide."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.guests import GuestSettings, Kind, call, find, is_guest, unknown_name
from fedmef_dist.base.notices import tell
from fedmef_dist.base.settings import Settings
from fedmef_dist.cluster.group import Group
from fedmef_dist.tracking.early_stopping import EarlyStopping
from fedmef_dist.tracking.hooks import Callback, Control
from fedmef_dist.tracking.keep_best import KeepBest
from fedmef_dist.tracking.plateau import ReduceRateOnPlateau
from fedmef_dist.tracking.time_budget import TimeBudget
from fedmef_dist.tracking.tracker import Metrics

OWN_CALLBACKS: dict[str, type[Callback]] = {
    callback.name: callback for callback in (EarlyStopping, KeepBest, ReduceRateOnPlateau, TimeBudget)
}
_KEY = "callbacks"


class _Part(Settings):
    name: str
    state: dict[str, Any]


class _State(Settings):
    stop_reason: str | None
    rate_factor: float = Field(gt=0)
    kept_round: int | None = Field(None, ge=1)
    callbacks: list[_Part]


def known_callbacks(settings: list[GuestSettings]) -> list[GuestSettings]:
    """A validator: all of them have a name that can be had. Imports nothing."""
    for callback in settings:
        if callback.name not in OWN_CALLBACKS and not is_guest(Kind.CALLBACK, callback.name):
            raise unknown_name(Kind.CALLBACK, callback.name, OWN_CALLBACKS)
    return settings


def find_callback(name: str) -> Any:
    """The class of a callback, or what else makes one. Raises UserError where a guest cannot be had."""
    if name in OWN_CALLBACKS and not is_guest(Kind.CALLBACK, name):
        return OWN_CALLBACKS[name]
    return find(Kind.CALLBACK, name, _KEY)


class Callbacks:
    """What the loop calls, on every rank at the same places.

    After :meth:`start`, :meth:`round_start` and :meth:`round_end` the ranks agree on what rank 0's callbacks have
    decided: one broadcast of three numbers each. Without callbacks nothing is sent.

    Args:
        settings: section ``callbacks``.
        group: the ranks.
        run_dir: for :class:`Control`.
        config: the resolved configuration as plain values, likewise.

    Attributes:
        stopped: whether the run is to end, the same on every rank; changes when a round ends.
        rate_factor: on the clients' learning rate, the same on every rank.
        kept_round: the round whose checkpoint is kept beside the newest ones, the same on every rank.
        wants_save: whether the round that has just ended is to be saved, the same on every rank.

    Raises:
        UserError: a callback cannot be had, or does not take its options; only rank 0 makes them.
    """

    def __init__(
        self, settings: Sequence[GuestSettings], group: Group, run_dir: Path, config: Mapping[str, Any]
    ) -> None:
        self._group, self._any = group, bool(settings)
        self._control = Control(run_dir, config)
        makers = [(entry, find_callback(entry.name)) for entry in settings]
        self._callbacks = [(entry.name, _make(entry, maker)) for entry, maker in makers if group.rank == 0]
        self.stopped = self.wants_save = False
        self.rate_factor = 1.0
        self.kept_round: int | None = None

    @property
    def stop_reason(self) -> str | None:
        """Why a callback has ended the run, on rank 0; None where none has."""
        return self._control.stop_reason if self.stopped else None

    def start(self, round: int) -> None:
        """The run starts behind ``round``; raises TypeError now where :meth:`state` would, many rounds later."""
        self._control.round = round
        for _, callback in self._callbacks:
            callback.on_start(self._control)
        self.state()
        self._agree()

    def round_start(self, round: int) -> None:
        """A round begins."""
        self._control.round, self.wants_save = round, False
        for _, callback in self._callbacks:
            callback.on_round_start(self._control)
        self._agree()

    def round_end(self, metrics: Metrics) -> None:
        """A round that counts has ended with these metrics."""
        for _, callback in self._callbacks:
            if "eval/accuracy" in metrics:
                callback.on_evaluate(dict(metrics), self._control)
        for _, callback in self._callbacks:
            callback.on_round_end(dict(metrics), self._control)
        before, self.stopped = self.stopped, self._agree()
        self.wants_save = self.kept_round == metrics["round"]
        if self.stopped and not before and self._group.rank == 0:
            tell(f"stopped by a callback after round {self._control.round}: {self._control.stop_reason}")

    def checkpoint(self) -> None:
        """A checkpoint has been written; on rank 0."""
        for _, callback in self._callbacks:
            callback.on_checkpoint(self._control)

    def end(self) -> None:
        """The run is over, unless a signal has stopped it early."""
        for _, callback in self._callbacks:
            callback.on_end(self._control)

    def state(self) -> dict[str, Any]:
        """All that they remember and have decided, as plain values, for the checkpoint; {} without any.

        Raises:
            TypeError: a callback's own state is not made of what JSON has.
        """
        if not self._any:
            return {}
        parts = [{"name": name, "state": _plain(name, callback)} for name, callback in self._callbacks]
        decided = {"stop_reason": self.stop_reason, "rate_factor": self.rate_factor, "kept_round": self.kept_round}
        return {"decided": decided | {"callbacks": parts}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state` gave, on every rank. Raises ValueError where it is of other callbacks."""
        if not self._any and not state:
            return
        kept = _State.model_validate(state["decided"])
        self._control.rate_factor = self.rate_factor = kept.rate_factor
        self._control.kept_round = self.kept_round = kept.kept_round
        self._control.stop_reason, self.stopped = kept.stop_reason, kept.stop_reason is not None
        if self._group.rank:
            return
        if [part.name for part in kept.callbacks] != [name for name, _ in self._callbacks]:
            raise ValueError("the state of other callbacks")
        for (_, callback), part in zip(self._callbacks, kept.callbacks, strict=True):
            callback.restore(part.state)

    def _agree(self) -> bool:
        """Every rank takes over what rank 0 has decided; returns whether the run is to end behind its round."""
        control = self._control
        values = [control.stop_reason is not None, control.rate_factor, control.kept_round or 0]
        decision = torch.tensor(values, dtype=torch.float64)
        if self._any:
            decision = decision.to(self._group.device)
            self._group.broadcast(decision)
        stop, self.rate_factor, kept = decision.tolist()
        self.kept_round = int(kept) or None
        return bool(stop)


def _make(entry: GuestSettings, maker: Any) -> Callback:
    callback = call(entry.name, maker, _KEY, entry.options)
    if not isinstance(callback, Callback):
        raise UserError(f"{entry.name} is no callback", where=_KEY, mend="subclass fedmef_dist.api.Callback")
    return callback


def _plain(name: str, callback: Callback) -> dict[str, Any]:
    try:
        text = json.dumps(callback.state(), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise TypeError(f"callback {name}: state() gives what JSON has not: {error}") from error
    plain: dict[str, Any] = json.loads(text)
    if not isinstance(plain, dict):
        raise TypeError(f"callback {name}: state() gives {plain!r:.60}, not a dictionary")
    return plain
