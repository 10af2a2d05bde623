import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fedmef_dist.cluster import local_ranks
from fedmef_dist.cluster.local_ranks import run_ranks, wait_for


def python(code):
    return [sys.executable, "-c", code], dict(os.environ)


def test_zero_if_all_end_with_zero():
    assert wait_for([python("pass"), python("pass")]) == 0


def test_the_status_of_the_first_that_fails(tmp_path):
    # The other's entry goes once its status is taken.
    later = f"""
import pathlib, time
other = pathlib.Path({str(tmp_path / "other")!r})
while not (other.exists() and other.read_text()) or pathlib.Path("/proc", other.read_text()).exists():
    time.sleep(0.02)
exit(1)
"""
    sooner = f"import os, pathlib; pathlib.Path({str(tmp_path / 'other')!r}).write_text(str(os.getpid())); exit(2)"
    assert wait_for([python(later), python(sooner)]) == 2


def test_a_killed_rank_has_the_shells_status():
    assert wait_for([python("import os; os.kill(os.getpid(), 9)")]) == 137


def test_ranks_that_hang_after_a_failure_are_ended(monkeypatch):
    monkeypatch.setattr(local_ranks, "_PATIENCE_SECONDS", 0.2)
    start = time.monotonic()
    assert wait_for([python("exit(3)"), python("import time; time.sleep(150)")]) == 3
    assert time.monotonic() - start < 100


@pytest.mark.parametrize(
    ("number", "handed_on_as"),
    [
        (signal.SIGTERM, {}),
        (signal.SIGUSR2, {}),
        (signal.SIGHUP, {}),
        (signal.SIGUSR2, {signal.SIGUSR2: signal.SIGUSR1}),
    ],
)
def test_signals_reach_every_rank_and_handlers_come_back(number, handed_on_as, tmp_path):
    code = f"""
import pathlib, signal, sys, time
signal.signal({int(handed_on_as.get(number, number))}, lambda *_: sys.exit(75))
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""
    files = [tmp_path / "0", tmp_path / "1"]
    commands = [([sys.executable, "-c", code, str(file)], dict(os.environ)) for file in files]

    def send():
        while not all(file.exists() for file in files):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    # Under nohup the suite itself would ignore HUP, and such a signal stays ignored.
    inherited = signal.signal(number, signal.SIG_DFL)
    try:
        sender = threading.Thread(target=send)
        sender.start()
        assert wait_for(commands, None, handed_on_as) == 75
        sender.join()
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, inherited)


@pytest.mark.parametrize("handed_on_as", [None, {signal.SIGUSR2: signal.SIGUSR1}])
def test_a_rank_that_dies_of_a_signal_before_it_listens_was_stopped_early(tmp_path, handed_on_as):
    code = f"import pathlib, time; pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(60)"

    def send():
        while not (tmp_path / "up").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR2)

    sender = threading.Thread(target=send)
    sender.start()
    assert wait_for([python(code)], None, handed_on_as) == 75
    sender.join()


def test_a_signal_that_comes_while_a_rank_is_started_reaches_it_too(monkeypatch):
    class Slow(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            signal.raise_signal(signal.SIGUSR2)

    monkeypatch.setattr(local_ranks.subprocess, "Popen", Slow)
    assert wait_for([python("import time; time.sleep(60); exit(3)")]) == 75


def test_but_not_one_that_dies_of_a_signal_that_nobody_sent_here():
    assert wait_for([python("import os; os.kill(os.getpid(), 12)")]) == 140


def test_output_goes_where_it_is_wanted(tmp_path):
    with (tmp_path / "out").open("wb") as output:
        assert run_ranks(["run", str(tmp_path / "missing.yaml")], 1, output) == 2
    assert "cannot read the configuration" in (tmp_path / "out").read_text()


def test_each_rank_has_its_place_and_all_meet_on_loopback(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    first, second = local_ranks._environments(2)
    assert [first[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")] == ["0", "0", "2", "2"]
    assert [second[name] for name in ("RANK", "LOCAL_RANK")] == ["1", "1"]
    assert first["MASTER_ADDR"] == second["MASTER_ADDR"] == "127.0.0.1"
    assert first["MASTER_PORT"] == second["MASTER_PORT"]
    assert first["OMP_NUM_THREADS"] == "2"
    assert (
        first["FEDMEF_STORE_KEY"] == second["FEDMEF_STORE_KEY"] != local_ranks._environments(2)[0]["FEDMEF_STORE_KEY"]
    )
    assert "RANK" not in local_ranks._environments(1)[0]


def test_under_nohup_the_ranks_go_on_when_the_terminal_is_closed(tmp_path):
    def send():
        while not (tmp_path / "up").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGHUP)
        (tmp_path / "go").touch()

    code = f"""
import os, pathlib, signal, time
folder = pathlib.Path({str(tmp_path)!r})
(folder / "up").touch()
while not (folder / "go").exists():
    time.sleep(0.02)
time.sleep(0.2)
exit(0 if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else 3)
"""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sender = threading.Thread(target=send)
    sender.start()
    assert wait_for([python(code)]) == 0
    sender.join()
