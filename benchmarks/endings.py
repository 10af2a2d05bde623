"""Disturbs runs around their end: exit status 0 if and only if the run is finished and its files are whole.

    python benchmarks/endings.py --stops 30 --signals 15 --seed 0

Three parts, all with real processes and seven short rounds of FedMef on the bundled digits:

- calm runs on 2 to 4 ranks under torchrun: how long after the run's last file each rank has ended;
- stops: torchrun's agent, which owns the ranks' store, or one rank gets SIGSTOP within 3 s of the summary, and SIGCONT
  a second later; the run must end with status 0 and the undisturbed digest;
- signals: TERM, USR1 or INT reaches one rank or all of them, here without torchrun, whose status would not be the
  ranks'; all ranks must end with 0 and a whole run, or all with 75, and the same command then ends with the undisturbed
  digest.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "processes"))

from processes import ended, rank_processes, started  # noqa: E402

ROUNDS = 7
CONFIG = f"""
name: endings
seed: 3
data: {{dataset: digits, partition: {{scheme: dirichlet, alpha: 0.5, min_samples: 10}}}}
model: {{name: cnn, width: 0.25, hidden: 32}}
federation: {{clients: 20, clients_per_round: 6, rounds: {ROUNDS}, local_epochs: 8, batch_size: 32}}
optimizer: {{lr: 0.05, momentum: 0.5}}
method: {{name: fedmef, density: 0.4, adjust_every: 2, adjust_until: 6}}
evaluation: {{every: 3}}
checkpoint: {{every: 2}}
runtime: {{threads: 1}}
tracking: {{console: false, wandb: {{mode: disabled}}}}
"""
STOPPED_SECONDS = 1.0
NEAR_SECONDS = 3.0
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TORCHRUN = str(Path(sys.executable).parent / "torchrun")


def rounds_done(run_dir: Path) -> int:
    """Rounds in the metrics of a run."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def digest(run_dir: Path) -> str | None:
    """The digest of a run that is whole; None where its summary or a round is missing."""
    path = run_dir / "summary.json"
    if not path.exists() or rounds_done(run_dir) != ROUNDS:
        return None
    return str(json.loads(path.read_text())["model/digest"])


def last_file(run_dir: Path) -> float:
    """When the newest file of a run was written."""
    return max(path.stat().st_mtime for path in run_dir.rglob("*") if path.is_file())


def torchrun(ranks: int, arguments: list[str]) -> list[str]:
    """The command line of a run under torchrun."""
    return [TORCHRUN, "--standalone", "--nproc-per-node", str(ranks), "-m", "fedmef_dist", *arguments]


def wait_for_moment(draw: random.Random, run_dir: Path, running, seconds: float) -> None:
    """A random moment from the fourth last round to a little behind the summary; in a third of all cases there."""
    target = draw.choice([*range(ROUNDS - 4, ROUNDS), *[ROUNDS] * 2])
    path = run_dir / "summary.json"
    while running() and not (path.exists() if target == ROUNDS else rounds_done(run_dir) >= target):
        time.sleep(0.0005)
    time.sleep(draw.uniform(0, seconds if target < ROUNDS else 0.03))


def calm(ranks: int, arguments: list[str], run_dir: Path) -> list[float]:
    """Seconds from the run's last file to the end of each rank."""
    with started(torchrun(ranks, [*arguments, "--run-dir", str(run_dir)])) as process:
        while not (run_dir / "metrics.jsonl").exists():
            time.sleep(0.01)
        pids, ends = rank_processes(process.pid), {}
        while len(ends) < len(pids):
            ends.update({pid: time.time() for pid in pids if pid not in ends and ended(pid)})
            time.sleep(0.001)
        _, error = process.communicate(timeout=60)
    if process.returncode:
        sys.exit(error)
    return [end - last_file(run_dir) for end in ends.values()]


def stop(draw: random.Random, arguments: list[str], run_dir: Path, expected: str) -> str | None:
    """One process stopped for a second; what came of it, or None where it was not near the end."""
    ranks, victim = draw.randint(2, 4), draw.choice(["the agent", "a rank"])
    with started(torchrun(ranks, [*arguments, "--run-dir", str(run_dir)])) as process:
        while not (run_dir / "config.yaml").exists() and process.poll() is None:
            time.sleep(0.005)
        pids = rank_processes(process.pid)
        wait_for_moment(draw, run_dir, lambda: process.poll() is None, 0.3)
        place = draw.randrange(ranks)
        pid = process.pid if victim == "the agent" else pids[place]
        if len(pids) != ranks or ended(pid):
            return None
        os.kill(pid, signal.SIGSTOP)
        stopped = time.time()
        time.sleep(STOPPED_SECONDS)
        os.kill(pid, signal.SIGCONT)
        _, error = process.communicate(timeout=120)
    summary = run_dir / "summary.json"
    offset = stopped - summary.stat().st_mtime if summary.exists() else 0.0
    if abs(offset) > NEAR_SECONDS:
        return None
    right = process.returncode == 0 and digest(run_dir) == expected
    name = victim if victim == "the agent" else f"rank {place}"
    story = f"{ranks} ranks, {name} stopped {offset:+.2f} s from the summary, status {process.returncode}"
    return f"{'right' if right else 'WRONG'} {story}{'' if right else error[-2000:]}"


def direct(ranks: int, arguments: list[str], log: Path) -> list[subprocess.Popen]:
    """The ranks as torchrun would start them, without its agent."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    command, processes = [sys.executable, "-m", "fedmef_dist", *arguments], []
    with log.open("ab") as output:
        for rank in range(ranks):
            own = {key: str(value) for key, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items()}
            processes.append(subprocess.Popen(command, env={**os.environ, **own}, stdout=output, stderr=output))
    return processes


def disturb(draw: random.Random, arguments: list[str], run_dir: Path, expected: str) -> str | None:
    """One signal; what came of it, or None where every process had ended before."""
    ranks, number, log = draw.randint(1, 3), draw.choice(SIGNALS), run_dir.with_suffix(".log")
    whole = [*arguments, "--run-dir", str(run_dir)]
    processes = direct(ranks, whole, log)
    wait_for_moment(draw, run_dir, lambda: any(process.poll() is None for process in processes), 0.3)
    victims = processes if draw.random() < 0.5 else [draw.choice(processes)]
    if all(process.poll() is not None for process in victims):
        return None
    done, sent = rounds_done(run_dir), time.time()
    for process in victims:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
    statuses = [process.wait(120) for process in processes]
    summary = run_dir / "summary.json"
    offset = f" {sent - summary.stat().st_mtime:+.3f} s from the summary" if summary.exists() else ""
    if statuses == [0] * ranks:
        right, outcome = digest(run_dir) == expected, "a whole run"
    elif statuses == [75] * ranks:
        again = [process.wait(120) for process in direct(draw.randint(1, 3), whole, log)]
        right, outcome = not offset and not any(again) and digest(run_dir) == expected, "resumed to the digest"
    else:
        right, outcome = False, log.read_text()[-2000:]
    place = "all ranks" if len(victims) == ranks else f"rank {processes.index(victims[0])} of {ranks}"
    story = f"{number.name} to {place} after round {done}{offset}: {statuses}, {outcome}"
    return f"{'right' if right else 'WRONG'} {story}"


def repeat(count: int, folder: Path, name: str, attempt) -> int:
    """Attempts until so many counted; prints each, returns how many were right."""
    done = right = tries = 0
    while done < count:
        tries += 1
        report = attempt(folder / f"{name}-{tries}")
        if report is not None:
            done, right = done + 1, right + report.startswith("right")
            print(f"{done:3d} {report}", flush=True)
    return right


def main() -> None:
    """Prints a line for each run, and at the end how many ended as they must."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calm", type=int, default=10)
    parser.add_argument("--stops", type=int, default=30)
    parser.add_argument("--signals", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    # A shell starts what it does not wait for with INT ignored, and the ranks would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(CONFIG)
        arguments = ["run", str(folder / "config.yaml")]
        ends = [calm(draw.randint(2, 4), arguments, folder / f"calm-{number}") for number in range(options.calm)]
        last = [max(each) for each in ends]
        print(
            f"last file to the end of the last rank: median {statistics.median(last):.3f} s, at most {max(last):.3f} s"
        )
        expected = digest(folder / "calm-0")
        print(f"undisturbed digest {expected}", flush=True)
        stops = repeat(options.stops, folder, "stop", lambda path: stop(draw, arguments, path, expected))
        signals = repeat(options.signals, folder, "signal", lambda path: disturb(draw, arguments, path, expected))
    print(f"{stops} of {options.stops} stops and {signals} of {options.signals} signals ended as they must")
    sys.exit((stops, signals) != (options.stops, options.signals))


if __name__ == "__main__":
    main()
