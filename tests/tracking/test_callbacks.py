"""A run's callbacks as one: rank 0's decide, all ranks follow, and a resumed run goes on with what they remember."""

import json
from pathlib import Path

import pytest
import torch
from thread_group import on_ranks
from tiny import Recorder, Run, alone, restore, started, tiny

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.guests import GuestSettings, Kind, lent
from fedmef_dist.cluster.thread_ranks import ThreadRanks
from fedmef_dist.tracking.callbacks import Callbacks, find_callback
from fedmef_dist.tracking.early_stopping import EarlyStopping
from fedmef_dist.tracking.hooks import Callback, Control
from fedmef_dist.tracking.keep_best import KeepBest
from fedmef_dist.tracking.plateau import ReduceRateOnPlateau
from fedmef_dist.tracking.time_budget import TimeBudget

NAME = "mine:Watcher"


class Watcher(Callback):
    """Writes down its calls; stops behind one round, and lowers the rate in each."""

    told = None  # one list for each test

    def __init__(self, last=99, factor=1.0):
        self.last, self.factor, self.seen = last, factor, 0

    def on_start(self, control):
        self.told.append(("start", control.round))

    def on_round_start(self, control):
        self.told.append(("round_start", control.round))
        if control.round > 1:
            control.rate_factor *= self.factor

    def on_round_end(self, metrics, control):
        self.seen += 1
        self.told.append(("round_end", metrics["round"]))
        if metrics["round"] == self.last:
            control.stop("enough")
            control.stop("more than enough")

    def on_evaluate(self, metrics, control):
        self.told.append(("evaluate", metrics["round"]))

    def on_checkpoint(self, control):
        self.told.append(("checkpoint", control.round))

    def on_end(self, control):
        self.told.append(("end", control.round, self.seen))

    def state(self):
        return {"seen": self.seen}

    def restore(self, state):
        self.seen = state["seen"]


@pytest.fixture(autouse=True)
def at_hand():
    Watcher.told = []
    with lent({(Kind.CALLBACK, NAME): Watcher}):
        yield


def entries(*given):
    return [GuestSettings.model_validate(entry) for entry in given]


def bundle(*given, group=None):
    return Callbacks(entries(*given), group or alone(), Path("run"), {"name": "x"})


def simulation(folder, rounds=4, every=2, callbacks=({"name": NAME, "last": 3},), **changes):
    config = tiny(
        federation={"rounds": rounds}, evaluation={"every": every}, checkpoint={"every": 2}, callbacks=[*callbacks]
    )
    return started(config, alone(), folder)


def test_a_run_calls_every_hook_in_its_place_and_stops_where_it_is_told(tmp_path):
    run, tracker = simulation(tmp_path, rounds=6), Recorder()
    run.run(tracker)
    assert Watcher.told == [
        ("start", 0),
        ("round_start", 1),
        ("round_end", 1),
        ("round_start", 2),
        ("evaluate", 2),
        ("round_end", 2),
        ("checkpoint", 2),
        ("round_start", 3),
        ("round_end", 3),
        ("checkpoint", 3),  # the last round, though none is due
        ("end", 3, 3),
    ]
    assert [line["round"] for line in tracker.rounds] == [1, 2, 3]
    assert (run.callbacks.stop_reason, run.stopped_early, run.store.rounds()) == ("enough", False, [2, 3])


def test_a_run_that_was_stopped_stays_so_when_it_is_started_again(tmp_path):
    run = simulation(tmp_path)
    run.run(Recorder())
    Watcher.told.clear()
    again, tracker = simulation(tmp_path), Recorder()
    restore(again, again.store.load_newest())
    again.run(tracker)
    assert (again.callbacks.stop_reason, tracker.rounds) == ("enough", [])
    assert Watcher.told == [("start", 3), ("end", 3, 3)]


@pytest.mark.parametrize("state", [None, [1], {"a": float("nan")}, {"a": "\udcff"}, {"a": torch.ones(2)}])
def test_a_state_that_could_not_be_restored_ends_the_run_at_its_start(monkeypatch, state):
    monkeypatch.setattr(Watcher, "state", lambda self: state)
    with pytest.raises(TypeError, match=r"callback mine:Watcher: state\(\) gives"):
        bundle(NAME).start(0)


def test_the_reason_to_stop_can_be_written_into_files():
    control = Control(Path("run"), {})
    control.stop("no \udcff\nmore")
    assert control.stop_reason == "no \\udcff\\nmore"


def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(tmp_path):
    callbacks = ({"name": NAME, "factor": 0.5},)
    whole = simulation(tmp_path / "whole", callbacks=callbacks)
    whole.run(Recorder())
    first = simulation(tmp_path / "parts", rounds=2, callbacks=callbacks)
    first.run(Recorder())
    second = simulation(tmp_path / "parts", callbacks=callbacks)
    restore(second, second.store.load_newest())
    assert second.callbacks.rate_factor == 0.5
    second.run(Recorder())
    assert second.server.digest() == whole.server.digest()
    assert (second.callbacks.rate_factor, Watcher.told[-1]) == (0.125, ("end", 4, 4))
    plain = simulation(tmp_path / "plain", callbacks=())
    plain.run(Recorder())
    assert plain.server.digest() != whole.server.digest()


def test_every_rank_follows_rank_0(tmp_path):
    def work(group):
        callbacks = bundle({"name": NAME, "last": 2, "factor": 0.5}, group=group)
        seen = []
        callbacks.start(0)
        for number in (1, 2):
            callbacks.round_start(number)
            callbacks.round_end({"round": number})
            seen.append((callbacks.rate_factor, callbacks.stopped))
        return seen, group.calls

    for seen, calls in on_ranks(3, work):
        assert seen == [(1.0, False), (0.5, True)]
        assert calls == ["broadcast"] * 5
    assert [call for call in Watcher.told if call[0] == "start"] == [("start", 0)]  # on one rank


def test_without_callbacks_nothing_is_sent_and_nothing_kept():
    def work(group):
        callbacks = bundle(group=group)
        callbacks.start(0)
        callbacks.round_start(1)
        callbacks.round_end({"round": 1})
        callbacks.restore({})
        return group.calls, callbacks.state(), callbacks.rate_factor, callbacks.stopped

    assert on_ranks(2, work) == [([], {}, 1.0, False)] * 2


def test_the_state_is_json_and_is_taken_back_on_every_rank():
    first = bundle({"name": NAME, "last": 1}, "early_stopping")
    first.round_end({"round": 1, "eval/accuracy": 0.5})
    state = json.loads(json.dumps(first.state()))
    decided = {
        "stop_reason": "enough",
        "rate_factor": 1.0,
        "kept_round": None,
        "callbacks": [
            {"name": NAME, "state": {"seen": 1}},
            {"name": "early_stopping", "state": {"best": 0.5, "waited": 0}},
        ],
    }
    assert state == {"decided": decided}

    def work(group):
        callbacks = bundle(NAME, "early_stopping", group=group)
        callbacks.restore(state)
        return callbacks.stopped, callbacks.rate_factor

    assert on_ranks(2, work) == [(True, 1.0)] * 2


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"stop_reason": None, "rate_factor": 0.0, "callbacks": [{"name": NAME, "state": {}}]},
        {"stop_reason": None, "rate_factor": 1.0, "callbacks": []},
        {"stop_reason": None, "rate_factor": 1.0, "callbacks": [{"name": "other:X", "state": {}}]},
        {"stop_reason": 3, "rate_factor": 1.0, "callbacks": [{"name": NAME, "state": {}}]},
    ],
)
def test_the_state_of_other_callbacks_is_refused(state):
    with pytest.raises(ValueError, match=r"callbacks|validation error"):
        bundle(NAME).restore({"decided": state})


def test_a_state_that_json_has_not_is_named():
    class Odd(Callback):
        def state(self):
            return {"x": float("nan")}

    with lent({(Kind.CALLBACK, "mine:Odd"): Odd}), pytest.raises(TypeError, match="callback mine:Odd: state"):
        bundle("mine:Odd").start(0)


def test_what_is_no_callback_is_refused():
    with lent({(Kind.CALLBACK, "mine:D"): dict}), pytest.raises(UserError, match="mine:D is no callback"):
        bundle("mine:D")
    with pytest.raises(UserError, match="does not take lst") as caught:
        bundle({"name": NAME, "lst": 3})
    assert caught.value.mend == "did you mean last?"
    with pytest.raises(UserError, match="there is no module nowhere"):
        find_callback("nowhere:Gone")
    with pytest.raises(UserError, match="patience is 0"):
        bundle({"name": "early_stopping", "patience": 0})
    assert find_callback("early_stopping") is EarlyStopping


def test_a_factor_is_above_0_and_finite():
    control = Control(Path("run"), {})
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="above 0 and finite"):
            control.rate_factor = wrong
    assert control.rate_factor == 1.0


def test_a_callback_that_fails_ends_the_run(tmp_path):
    class Broken(Callback):
        def on_round_end(self, metrics, control):
            raise RuntimeError("no")

    with lent({(Kind.CALLBACK, "mine:Broken"): Broken}):
        run = simulation(tmp_path, callbacks=("mine:Broken",))
        with pytest.raises(RuntimeError, match="no"):
            run.run(Recorder())


# --- the package's own


def played(callback, values, key, first=1):
    """What a callback has decided behind each of these measurements."""
    control = Control(Path("run"), {})
    seen = []
    for control.round, value in enumerate(values, start=first):
        callback.on_round_end({"round": control.round, key: value}, control)
        seen.append((control.kept_round, control.rate_factor, control.stop_reason))
    return seen


def test_the_best_round_is_kept():
    seen = played(KeepBest(), [0.5, 0.4, float("nan"), 0.6, 0.6], "eval/accuracy")
    assert [kept for kept, _, _ in seen] == [1, 1, 1, 4, 4]


def test_the_rate_falls_on_a_plateau_and_not_below_its_least():
    callback = ReduceRateOnPlateau(factor=0.1, patience=2, least=0.05)
    seen = played(callback, [1.0, 1.0, 2.0, 1.0, 0.5, 0.5, 0.5], "eval/loss")
    assert [rate for _, rate, _ in seen] == [1.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.05]


def test_a_plateau_never_raises_the_rate():
    callback, control = ReduceRateOnPlateau(patience=1, least=0.1), Control(Path("run"), {})
    control.rate_factor = 0.01  # as another callback has set it
    for number in (1, 2):
        callback.on_round_end({"round": number, "eval/loss": 1.0}, control)
    assert control.rate_factor == 0.01


def test_a_round_that_does_not_fit_the_budget_is_not_begun():
    def budget(state=None):
        callback = TimeBudget(seconds=10.0)
        callback.clock = lambda: now[0]
        if state:
            callback.restore(json.loads(json.dumps(state)))
        callback.on_start(Control(Path("run"), {}))
        return callback

    now, control = [100.0], Control(Path("run"), {})
    whole = budget()
    for now[0] in (103.0, 106.0):
        whole.on_round_end({"round": 1}, control)
    assert control.stop_reason is None
    now[0] = 500.0
    resumed = budget(whole.state())
    now[0] = 502.0
    resumed.on_round_end({"round": 3}, control)
    assert control.stop_reason == "8 of 10 s are spent, and a round takes 3 s"


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ({"name": "keep_best", "mode": "up"}, "mode is 'up'"),
        ({"name": "reduce_rate_on_plateau", "factor": 1.0}, "factor is 1.0"),
        ({"name": "reduce_rate_on_plateau", "least": 0.0}, "least is 0.0"),
        ({"name": "time_budget", "seconds": 0}, "seconds is 0"),
        ({"name": "time_budget", "seconds": "1 h"}, "seconds is '1 h'"),
        ({"name": "early_stopping", "patience": 2.5}, "patience is 2.5"),
        ({"name": "early_stopping", "min_delta": None}, "min_delta is None"),
        ({"name": "reduce_rate_on_plateau", "patience": "five"}, "patience is 'five'"),
        ({"name": "reduce_rate_on_plateau", "factor": "half"}, "factor is 'half'"),
        ({"name": "reduce_rate_on_plateau", "least": None}, "least is None"),
    ],
)
def test_options_out_of_range_are_refused_by_name(entry, wrong):
    with pytest.raises(UserError, match=wrong) as caught:
        bundle(entry)
    assert caught.value.where == entry["name"]


OWN = (
    {"name": "keep_best", "monitor": "train/loss", "mode": "min"},
    {"name": "reduce_rate_on_plateau", "monitor": "round", "patience": 1, "factor": 0.5},
    {"name": "early_stopping", "monitor": "round", "mode": "min", "patience": 4},
)


def test_own_callbacks_decide_the_same_on_one_to_three_ranks_and_after_a_resume(tmp_path):
    """The digest holds the rates of all rounds; the kept checkpoint is that of the round with the least loss."""

    def made(group, folder, rounds):
        config = tiny(federation={"rounds": rounds}, checkpoint={"every": 100, "keep": 1}, callbacks=[*OWN])
        return Run(config, group, folder / str(group.rank))

    def play(run, checkpoint=None):
        if checkpoint is None:
            run.start()
        else:
            restore(run, checkpoint)
        tracker = Recorder()
        run.run(tracker)
        return tracker.rounds

    def facts(run):
        callbacks = run.callbacks
        return run.round, run.server.digest(), callbacks.rate_factor, callbacks.kept_round, callbacks.stopped

    single = made(alone(), tmp_path / "1", 9)
    best = min(play(single), key=lambda line: line["train/loss"])["round"]
    assert (single.round, single.callbacks.kept_round) == (5, best)
    assert single.store.rounds() == sorted({best, 5})
    for ranks in (2, 3):
        team = ThreadRanks(ranks)
        runs = [made(group, tmp_path / str(ranks), 9) for group in team.groups]  # one after another: see conformance
        team.run(runs, play)
        assert [facts(run) for run in runs] == [facts(single)] * ranks
    first, second = made(alone(), tmp_path / "parts", 3), made(alone(), tmp_path / "parts", 9)
    play(first)
    play(second, first.store.load_newest())
    assert facts(second) == facts(single)
    assert second.store.rounds() == single.store.rounds()
