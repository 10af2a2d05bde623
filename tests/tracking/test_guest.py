"""Trackers from outside of the package: what goes wrong in them never hurts a run."""

import signal
import sys
import time
from pathlib import Path

import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.guests import GuestSettings, Kind, lent
from fedmef_dist.tracking import TrackingSettings, guest, open_trackers
from fedmef_dist.tracking.guest import GuestTracker, find_trackers, open_guests
from fedmef_dist.tracking.tracker import Tracker, Trackers


class Recorder(Tracker):
    """Keeps what it is told; fails where it is told to."""

    def __init__(self, run_dir, config, fails_in=""):
        self.told, self.fails_in = [("init", run_dir.name, config["name"])], fails_in
        self.fail("init")

    def fail(self, method):
        if self.fails_in == method:
            raise RuntimeError(f"no {method}\ntoday")

    def log(self, metrics):
        self.fail("log")
        self.told.append(("log", metrics["round"]))
        metrics["round"] = "spoiled"

    def finish(self, summary):
        self.fail("finish")
        self.told.append(("finish", summary["rounds"]))

    def close(self):
        self.fail("close")
        self.told.append(("close",))

    def state(self):
        self.fail("state")
        return {"id": "7"}

    def restore(self, state):
        self.fail("restore")
        self.told.append(("restore", state))


class Plain:
    """Has nothing but log."""

    def __init__(self, run_dir, config):
        self.rounds = []

    def log(self, metrics):
        self.rounds.append(metrics["round"])


@pytest.fixture
def opened(tmp_path):
    """`opened([entry, ...], state)` gives the trackers behind their guards and, beside them, the guests themselves."""

    def open_all(entries, state=None, guest=Recorder):
        made = []

        def make(*, run_dir, config, fails_in=""):
            made.append(guest(run_dir, config, *([fails_in] if fails_in else [])))
            return made[-1]

        settings = [GuestSettings.model_validate(entry) for entry in entries]
        with lent({(Kind.TRACKER, "mine:T"): make, (Kind.TRACKER, "mine:U"): make}):
            return list(open_guests(settings, tmp_path / "run", {"name": "x"}, state)), made

    return open_all


def test_a_guest_gets_the_run_and_every_call(opened):
    (tracker,), (guest,) = opened(["mine:T"])
    metrics = {"round": 1}
    tracker.log(metrics)
    tracker.finish({"rounds": 1})
    tracker.close()
    assert guest.told == [("init", "run", "x"), ("log", 1), ("finish", 1), ("close",)]
    assert metrics == {"round": 1}


def test_states_of_several_guests_do_not_clash_and_come_back_to_their_own(opened):
    trackers, _ = opened(["mine:T", "mine:U", "mine:T"])
    state = Trackers(trackers).state()
    assert state == {"mine:T#0/id": "7", "mine:U#0/id": "7", "mine:T#1/id": "7"}
    _, guests = opened(["mine:T", "mine:U"], {"mine:T#0/id": "a", "mine:U#0/id": "b", "wandb/run_id": "c"})
    assert [guest.told[-1] for guest in guests] == [("restore", {"id": "a"}), ("restore", {"id": "b"})]


@pytest.mark.parametrize("method", ["log", "finish", "state", "close", "restore"])
def test_a_guest_that_fails_is_left_out_with_one_line(opened, method, capsys):
    (tracker, other), (guest, fine) = opened([{"name": "mine:T", "fails_in": method}, "mine:U"], state={})
    together = Trackers([tracker, other])
    for number in (1, 2):
        together.log({"round": number})
    state = together.state()
    together.finish({"rounds": 2})
    together.close()
    line = f"tracker mine:T failed in {method}: RuntimeError: no {method} today; the run goes on without it\n"
    assert capsys.readouterr().err == line
    assert ("close",) not in guest.told
    assert fine.told[-1] == ("close",)
    assert ("mine:T#0/id" in state) == (method in ("finish", "close"))


def test_a_guest_that_cannot_be_made_is_left_out(opened, capsys):
    trackers, guests = opened([{"name": "mine:T", "fails_in": "init"}, "mine:U"])
    assert (len(trackers), len(guests)) == (1, 1)
    told = capsys.readouterr().err
    assert told.startswith("mine:T failed: RuntimeError: no init")
    assert told.endswith("the run goes on without it\n")


def test_a_state_that_is_no_words_leaves_the_guest_out(capsys):
    class Numbers(Plain):
        def state(self):
            return {"id": 7}

    tracker = GuestTracker("mine:T", Numbers(None, None), "p/")
    assert tracker.state() == {}
    assert capsys.readouterr().err.startswith("tracker mine:T failed in state: TypeError: ")
    assert tracker.state() == {}
    assert capsys.readouterr().err == ""


def test_a_state_that_no_file_can_hold_leaves_the_guest_out(capsys):
    class Bytes(Plain):
        def state(self):
            return {"path": "\udcff"}

    assert GuestTracker("mine:T", Bytes(None, None), "p/").state() == {}
    assert capsys.readouterr().err.startswith("tracker mine:T failed in state: UnicodeEncodeError: ")


def test_a_guest_that_leaves_or_does_not_come_back_is_left_out(monkeypatch, capsys):
    class Stubborn(Plain):
        def log(self, metrics):
            sys.exit("I leave")

        def finish(self, summary):
            time.sleep(60)

    monkeypatch.setattr(guest, "_PATIENCE_SECONDS", 0.05)
    of_pytest = signal.setitimer(signal.ITIMER_REAL, 0)  # who has set the alarm keeps it
    before = signal.getsignal(signal.SIGALRM)
    began = time.monotonic()
    GuestTracker("mine:T", Stubborn(None, None), "p/").log({"round": 1})
    GuestTracker("mine:U", Stubborn(None, None), "p/").finish({})
    left = signal.setitimer(signal.ITIMER_REAL, *of_pytest)
    assert time.monotonic() - began < 30
    assert left == (0.0, 0.0)
    assert capsys.readouterr().err == (
        "tracker mine:T failed in log: SystemExit: I leave; the run goes on without it\n"
        "tracker mine:U failed in finish: TimeoutError: it has not ended within 0.05 s; the run goes on without it\n"
    )
    assert signal.getsignal(signal.SIGALRM) is before


def test_log_is_all_that_a_guest_needs(opened):
    (tracker,), (guest,) = opened(["mine:T"], state={"mine:T#0/id": "a"}, guest=Plain)
    tracker.log({"round": 1})
    tracker.finish({})
    tracker.close()
    assert tracker.state() == {}
    assert guest.rounds == [1]


def test_what_was_opened_is_closed_where_a_later_one_cannot_be(tmp_path):
    made = []
    guests = {
        (Kind.TRACKER, "a:B"): lambda run_dir, config: made.append(Recorder(run_dir, config)) or made[-1],
        (Kind.TRACKER, "mine:D"): lambda run_dir, config: {},
    }
    settings = TrackingSettings.model_validate({"console": False, "trackers": ["a:B", "mine:D"]})
    before = set(Path("/proc/self/fd").iterdir())
    with lent(guests), pytest.raises(UserError, match="mine:D has no method log"):
        open_trackers(settings, tmp_path, {"name": "x"}, 3, None, {})
    assert made[0].told[-1] == ("close",)
    assert set(Path("/proc/self/fd").iterdir()) <= before  # what earlier tests left may be closed meanwhile
    assert not (tmp_path / "wandb").exists()


def test_what_the_user_wrote_wrongly_is_refused_at_once(tmp_path):
    entry = GuestSettings.model_validate
    with lent({(Kind.TRACKER, "mine:R"): Recorder, (Kind.TRACKER, "mine:D"): lambda run_dir, config: {}}):
        with pytest.raises(UserError, match="mine:R does not take fail_in"):
            list(open_guests([entry({"name": "mine:R", "fail_in": "log"})], tmp_path, {"name": "x"}, None))
        with pytest.raises(UserError, match="mine:D has no method log"):
            list(open_guests([entry("mine:D")], tmp_path, {"name": "x"}, None))
    made = {(Kind.TRACKER, "mine:O"): Plain(None, None)}
    with lent(made), pytest.raises(UserError, match=r"mine:O is Plain .*, neither a class nor a function"):
        list(open_guests([entry("mine:O")], tmp_path, {"name": "x"}, None))
    with pytest.raises(UserError, match="there is no module nowhere"):
        find_trackers([entry("nowhere:Gone")])


def test_guests_are_among_a_runs_trackers(tmp_path):
    settings = TrackingSettings.model_validate({"console": False, "wandb": {"mode": "disabled"}, "trackers": ["a:B"]})
    made = []
    with lent({(Kind.TRACKER, "a:B"): lambda run_dir, config: made.append(Recorder(run_dir, config)) or made[-1]}):
        tracker = open_trackers(settings, tmp_path, {"name": "x"}, 3, None, {})
    tracker.log({"round": 1})
    tracker.close()
    assert [part[0] for part in made[0].told] == ["init", "log", "close"]
    with lent({(Kind.TRACKER, "a:B"): lambda run_dir, config: made.append(Recorder(run_dir, config)) or made[-1]}):
        open_trackers(settings, tmp_path, {"name": "x"}, 3, 1, {"a:B#0/id": "9"}).close()
    assert made[1].told[1] == ("restore", {"id": "9"})
