import socket
from types import SimpleNamespace

from tiny import alone, started, tiny

from fedmef_dist.session.opening import opening_lines


def test_a_run_says_what_runs_where_and_how_much_memory_it_takes(tmp_path, monkeypatch):
    run = started(tiny(), alone(), tmp_path)
    run.round = 2
    monkeypatch.setattr("resource.getrusage", lambda who: type("Usage", (), {"ru_maxrss": 300_000}))
    what, long, where, memory = opening_lines(
        run, tmp_path, SimpleNamespace(metrics=lambda: {"memory/device_bytes": 1_234_000})
    )
    assert what == "tiny: fedmef on synthetic, cnn at density 0.5"
    assert long == f"6 rounds, 3 of 8 clients in each, goes on after round 2; files in {tmp_path}"
    assert where.endswith(f"on {socket.gethostname()}, cpu, without a launcher")
    assert where.startswith("1 rank with ")
    # 307.2 MB so far and two buffers of 8 bytes a value
    host = (300_000 * 1024 + 16 * run.space.total) / 1e6
    assert memory == f"memory: about {host:.0f} MB a rank, 1.2 MB on a simulated device"


def test_a_rank_with_slots_needs_a_step_in_each(tmp_path, monkeypatch):
    run = started(tiny(runtime={"slots": 5}), alone(), tmp_path)  # three clients take part in a round
    monkeypatch.setattr("resource.getrusage", lambda who: type("Usage", (), {"ru_maxrss": 300_000}))
    step = {"memory/device_bytes": 1_234_000, "memory/peak_bytes": 10**9}
    *_, memory = opening_lines(run, tmp_path, SimpleNamespace(metrics=lambda: step))
    assert memory.startswith(f"memory: about {3000 + (300_000 * 1024 + 16 * run.space.total) / 1e6:,.0f} MB a rank, ")
