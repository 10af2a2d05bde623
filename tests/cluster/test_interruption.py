import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import restore, started

from fedmef_dist.cluster import interruption as module
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.group import Group
from fedmef_dist.cluster.interruption import SIGNALS, GraceTime, Interruption, RoundAbandonedError, listening
from fedmef_dist.cluster.transport import PeerLostError
from fedmef_dist.cluster.watch import Watch
from fedmef_dist.config import parse_config

SINGLE = Environment("single", 0, 1, 0, 1, None, None)


# --- listening


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_only_sets_the_flag_and_the_handler_before_is_called_and_put_back(number):
    seen = []

    def handler(number, frame):
        seen.append(number)

    signal.signal(number, handler)
    with listening() as interruption:
        assert interruption.asked_at is None
        before = time.time()
        signal.raise_signal(number)
        assert before <= interruption.asked_at <= time.time()
    assert seen == [number]
    assert signal.getsignal(number) is handler


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_the_moment_of_listening_is_heard(number, monkeypatch):
    def install(installed, handler):
        before = real(installed, handler)
        if installed == number and isinstance(handler, module._Handlers):
            signal.raise_signal(number)
        return before

    real = signal.signal
    signal.signal(number, lambda number, frame: None)
    monkeypatch.setattr(signal, "signal", install)
    with listening() as interruption:
        assert interruption.asked_at is not None


def test_the_first_signal_counts():
    with listening() as interruption:
        signal.raise_signal(signal.SIGUSR1)
        first = interruption.asked_at
        signal.raise_signal(signal.SIGTERM)
        assert interruption.asked_at == first


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with listening() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.asked_at is None


def test_a_second_interrupt_ends_the_body():
    with listening() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.asked_at is not None
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_outside_the_main_thread_nothing_is_changed():
    found = []

    def body():
        with listening() as interruption:
            found.append((interruption.asked_at, signal.getsignal(signal.SIGUSR1)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [(None, signal.getsignal(signal.SIGUSR1))]


@pytest.mark.parametrize("status", [75, 0, 2])
def test_nothing_changes_the_status_of_a_process_that_ends_with_the_body(status):
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    with pytest.raises(SystemExit), listening(ends_process=True):
        raise SystemExit(status)
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN


def test_a_second_interrupt_does_not_undo_a_run_that_is_over():
    with listening() as interruption:
        interruption.over = True
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_a_signal_is_noticed_while_the_main_thread_is_busy_outside_python():
    library, mutex, noticed = ctypes.CDLL(None), ctypes.create_string_buffer(64), []

    def ask():
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGUSR1)
        until = time.monotonic() + 60
        while interruption.asked_at is None and time.monotonic() < until:
            time.sleep(0.01)
        noticed.append(interruption.asked_at)
        library.pthread_mutex_unlock(mutex)

    with listening() as interruption:
        library.pthread_mutex_lock(mutex)
        asking = threading.Thread(target=ask)
        asking.start()
        library.pthread_mutex_lock(mutex)  # runs no handler until it has the mutex
        asking.join()
    assert None not in noticed


STUCK = """
import ctypes
from fedmef_dist.cluster.interruption import listening

with listening(ends_process=True):
    print("ready", flush=True)
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)  # as stuck as in a collective: no handler of Python's ever runs
"""


def test_a_second_interrupt_ends_even_a_process_that_is_stuck():
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


# --- grace time


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still unless a test moves it."""
    now = SimpleNamespace(seconds=1000.0)
    fake = SimpleNamespace(time=lambda: now.seconds, monotonic=lambda: now.seconds, sleep=None)
    monkeypatch.setattr(module, "time", fake)
    return now


def grace_time(seconds, watch=None):
    return GraceTime(seconds, Interruption(), watch or Watch(SINGLE))


def play_a_round(grace, clock, clients=(10, 30), tail=2.0):
    """A tenth of a second a sample, then `tail` seconds of what follows training."""
    grace.begin(sum(clients))
    for samples in clients:
        clock.seconds += samples / 10
        grace.trained(samples)
    clock.seconds += tail
    grace.end()


def test_as_long_as_nobody_asks_the_work_goes_on(clock):
    grace = grace_time(0.0)
    play_a_round(grace, clock)
    assert list(grace.heed([1, 2])) == [1, 2]
    assert not grace.asked


@pytest.mark.parametrize(("grace_seconds", "fits"), [(4.4, False), (4.6, True)])
def test_the_rest_of_a_round_is_estimated_from_the_measured_speed(clock, grace_seconds, fits):
    grace = grace_time(grace_seconds)
    play_a_round(grace, clock)
    grace.begin(40)
    clock.seconds += 1.0
    grace.trained(10)
    clock.seconds += 0.5
    grace.interruption.ask()
    # 30 samples take 3 s, half a second of it is over, and 2 s follow: 4.5 s.
    if fits:
        grace.check()
    else:
        with pytest.raises(RoundAbandonedError):
            grace.check()


def test_time_that_passes_after_the_signal_counts(clock):
    grace = grace_time(10.0)
    play_a_round(grace, clock)
    grace.begin(40)
    grace.interruption.ask()
    grace.check()
    clock.seconds += 8.5  # the client is slower than thought: 2 s of tail no longer fit
    with pytest.raises(RoundAbandonedError):
        grace.check()


def test_no_round_begins_after_a_signal(clock):
    grace = grace_time(10**6)
    play_a_round(grace, clock)
    grace.interruption.ask()
    with pytest.raises(RoundAbandonedError):
        grace.begin(1)


def test_a_first_round_of_unknown_length_is_abandoned(clock):
    grace = grace_time(10**6)
    grace.begin(20)
    grace.trained(10)
    grace.interruption.ask()
    with pytest.raises(RoundAbandonedError):
        grace.check()


def test_who_abandons_asks_the_others_to_do_so_at_once(clock):
    watch = Watch(SINGLE)
    grace = grace_time(3.0, watch)
    assert watch.own_deadline() is None
    grace.interruption.ask()
    assert watch.own_deadline() == 1003.0
    with pytest.raises(RoundAbandonedError):
        grace.begin(1)
    assert watch.own_deadline() == 0.0


def test_the_earliest_deadline_of_all_ranks_counts(clock):
    watch = Watch(SINGLE)
    grace = grace_time(100.0, watch)
    play_a_round(grace, clock)
    grace.begin(40)
    watch.deadline = clock.seconds + 7.0
    assert grace.asked
    grace.check()
    watch.deadline = clock.seconds + 5.0
    with pytest.raises(RoundAbandonedError):
        grace.check()


def test_lost_peers_end_the_work():
    watch = Watch(SINGLE)
    watch.lost = "another rank has lost its peers"
    with pytest.raises(PeerLostError, match="another rank has lost its peers"):
        grace_time(1.0, watch).check()


# --- rounds


CONFIG = {
    "data": {"dataset": "digits"},
    "model": {"name": "cnn", "width": 0.25, "hidden": 0},
    "federation": {"clients": 20, "clients_per_round": 4, "rounds": 5, "local_epochs": 1, "batch_size": 32},
    "optimizer": {"lr": 0.1},
    "method": {"name": "fedmef", "density": 0.4, "adjust_every": 2, "adjust_until": 8},
    "evaluation": {"every": 2},
    "checkpoint": {"every": 100, "grace": 600.0},
}


class Tracker:
    """Remembers the rounds that were logged."""

    def __init__(self):
        self.rounds = []

    def log(self, metrics):
        self.rounds.append(metrics["round"])

    def state(self):
        return {"wandb/run_id": "abc"}


def simulation(run_dir, **checkpoint):
    config = parse_config({**CONFIG, "checkpoint": {**CONFIG["checkpoint"], **checkpoint}}, "here")
    return started(config, Group(SINGLE, torch.device("cpu"), "gloo"), run_dir, Interruption())


def asks_in(round_number, batch, simulation):
    """Has the signal come before a certain batch of a certain round."""
    heed, seen = simulation.grace.heed, []

    def counting(batches):
        for item in batches:
            seen.append(simulation.round)
            if seen.count(round_number) == batch:
                simulation.grace.interruption.ask()
            yield from heed([item])

    simulation.grace.heed = counting


def state(simulation):
    return (
        simulation.round,
        simulation.server.digest(),
        simulation.space.mask.version,
        simulation.accounting.wire.known_version.tolist(),
        simulation.local.times.sums.tolist(),
        vars(simulation.totals).copy(),
    )


def resumed(run_dir):
    """A new simulation that goes on from the newest checkpoint, to the end."""
    again = simulation(run_dir)
    restore(again, again.store.load_newest())
    tracker = Tracker()
    again.run(tracker)
    return again, tracker.rounds


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    whole = simulation(tmp_path_factory.mktemp("whole"))
    whole.run(Tracker())
    assert not whole.stopped_early
    return whole.server.digest()


def test_a_round_that_fits_is_finished_and_saved(tmp_path, undisturbed):
    stopped, tracker = simulation(tmp_path), Tracker()
    asks_in(3, 5, stopped)
    stopped.run(tracker)
    assert stopped.stopped_early
    assert tracker.rounds == [1, 2, 3]
    assert stopped.store.rounds() == [3]
    again, rounds = resumed(tmp_path)
    assert rounds == [4, 5]
    assert again.server.digest() == undisturbed


def test_a_round_that_does_not_fit_is_dropped_whole(tmp_path, undisturbed):
    """Round 4 adjusts the mask, and some of its clients have trained when the signal comes."""
    stopped, tracker = simulation(tmp_path, grace=0.0), Tracker()
    asks_in(4, 9, stopped)
    after_three = []
    play_round = stopped.play_round

    def watched():
        if stopped.round == 4:
            stopped.round -= 1
            after_three.append(state(stopped))
            stopped.round += 1
        return play_round()

    stopped.play_round = watched
    stopped.run(tracker)
    assert stopped.stopped_early
    assert tracker.rounds == [1, 2, 3]
    assert [state(stopped)] == after_three
    assert stopped.store.rounds() == [3]
    again, rounds = resumed(tmp_path)
    assert rounds == [4, 5]
    assert again.server.digest() == undisturbed


def test_a_signal_in_the_first_round_leaves_nothing_behind(tmp_path):
    stopped, tracker = simulation(tmp_path), Tracker()
    stopped.grace.interruption.ask()
    stopped.run(tracker)
    assert (stopped.round, stopped.stopped_early, tracker.rounds) == (0, True, [])
    assert stopped.store.rounds() == []


def test_a_signal_in_the_last_round_ends_the_run_as_usual(tmp_path, undisturbed):
    last, tracker = simulation(tmp_path), Tracker()
    asks_in(5, 5, last)
    last.run(tracker)
    assert not last.stopped_early
    assert last.server.digest() == undisturbed
    assert last.store.rounds() == [5]


def test_what_was_saved_by_schedule_is_not_saved_again(tmp_path, monkeypatch):
    stopped = simulation(tmp_path, every=3)
    saved = []
    monkeypatch.setattr(stopped.store, "save", lambda checkpoint: saved.append(checkpoint.state["round"]))
    asks_in(4, 1, stopped)
    stopped.grace.seconds = 0.0
    stopped.run(Tracker())
    assert saved == [3]


def test_the_checkpoint_holds_everything(tmp_path):
    stopped = simulation(tmp_path)
    asks_in(3, 5, stopped)
    stopped.run(Tracker())
    again = simulation(tmp_path)
    restore(again, again.store.load_newest())
    assert state(again) == state(stopped)
    assert np.array_equal(again.local.times.sums, stopped.local.times.sums)
    assert again.store.load_newest().state["tracker"] == {"wandb/run_id": "abc"}
