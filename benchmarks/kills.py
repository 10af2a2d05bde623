"""Random kills: one of three ranks dies at a random moment; resumed on one to four, the run ends with the same bits.

    python benchmarks/kills.py --kills 50 --seed 0

Each attempt starts 30 rounds of FedMef on the bundled digits, kills a random rank with SIGKILL at a random time in a
random round or during start-up, lets the others end, and starts the same command on a random number of ranks. Every
rank is a real process; this script forks them from one that has loaded PyTorch already, instead of paying for its
import in each, and sends what is left a SIGTERM as torchrun and srun do. The kill also hits a checkpoint in the middle
of being written, the all-reduce and the evaluation.
"""

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch

from fedmef_dist.cli import main as command_line
from fedmef_dist.session import session  # noqa: F401 - what the forked ranks need is loaded once

CONFIG = """
name: kills
seed: 3
data: {dataset: digits, partition: {scheme: dirichlet, alpha: 0.5, min_samples: 10}}
model: {name: cnn, width: 0.25, hidden: 32}
federation: {clients: 20, clients_per_round: 5, rounds: 30, local_epochs: 1, batch_size: 32}
optimizer: {lr: 0.1, momentum: 0.5}
method: {name: fedmef, density: 0.4, adjust_every: 3, adjust_until: 30}
evaluation: {every: 10}
checkpoint: {every: 2}
runtime: {threads: 1}
tracking: {console: false, wandb: {mode: disabled}}
"""


def start(ranks: int, arguments: list[str], log: Path) -> list[int]:
    """Forks the ranks; returns their pids."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            become_rank(rank, ranks, port, arguments, log)
        pids.append(pid)
    return pids


def become_rank(rank: int, ranks: int, port: int, arguments: list[str], log: Path) -> None:
    """One rank, as torchrun would start it but without its agent; never returns."""
    place = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="127.0.0.1")
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["fedmef-dist", *arguments]
    status = 1
    try:
        command_line()
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    finally:
        os._exit(status)


def wait(pids: list[int], seconds: float) -> list[int]:
    """Exit statuses of all, in their order; kills what has not ended in time."""
    left, statuses, deadline = list(pids), {}, time.monotonic() + seconds
    while left:
        for pid in tuple(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                left.remove(pid)
                statuses[pid] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [statuses[pid] for pid in pids]


def newest(run_dir: Path) -> int:
    """The round of the newest checkpoint, 0 without one."""
    return max((int(path.name[6:]) for path in (run_dir / "checkpoints").glob("round-*")), default=0)


def digest(run_dir: Path) -> str:
    """The digest that a finished run has written."""
    return str(json.loads((run_dir / "summary.json").read_text())["model/digest"])


def attempt(draw: random.Random, arguments: list[str], run_dir: Path, seconds: float) -> str | None:
    """One kill and one resume; what happened, or None where the run ended before the kill."""
    log = run_dir.with_suffix(".log")
    victim, target, ranks = draw.randrange(3), draw.randrange(30), draw.randint(1, 4)
    began, pids = time.monotonic(), start(3, [*arguments, "--run-dir", str(run_dir)], log)
    # A machine that does other things too is slow and fast by turns: the round says better than a clock where to kill.
    while target > 2 and newest(run_dir) < target and time.monotonic() - began < 20 * seconds:
        time.sleep(0.001)
    time.sleep(draw.uniform(0, seconds / 2 if target <= 2 else seconds / 15))
    moment = time.monotonic() - began
    if (run_dir / "summary.json").exists():
        wait(pids, 30)
        return None
    os.kill(pids[victim], signal.SIGKILL)
    killed = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    statuses = wait(pids, 60)
    ended = time.monotonic() - killed
    found = newest(run_dir)
    resumed = wait(start(ranks, [*arguments, "--run-dir", str(run_dir)], log), 120)
    right = all(status == 0 for status in resumed)
    return (
        f"{'right' if right else 'WRONG'} {digest(run_dir) if right else log.read_text()[-2000:]} rank {victim} killed "
        f"after {moment:.2f} s, others ended {ended:.1f} s later with {statuses}, {ranks} go on from round {found}"
    )


def main() -> None:
    """Prints a line for each kill, and at the end how many ended with the undisturbed digest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(CONFIG)
        arguments = ["run", str(config)]
        calm = Path(folder) / "calm"
        began = time.monotonic()
        statuses = wait(start(3, [*arguments, "--run-dir", str(calm)], calm.with_suffix(".log")), 120)
        seconds = time.monotonic() - began
        if statuses != [0, 0, 0]:
            sys.exit(calm.with_suffix(".log").read_text())
        expected = digest(calm)
        print(f"undisturbed: {seconds:.1f} s on 3 ranks, digest {expected}", flush=True)
        done = right = tries = 0
        while done < options.kills:
            tries += 1
            report = attempt(draw, arguments, Path(folder) / f"run-{tries}", seconds)
            if report is None:
                continue
            done += 1
            right += report.startswith(f"right {expected}")
            print(f"{done:3d} {report.replace(expected + ' ', '')}", flush=True)
    print(f"{right} of {options.kills} ended with the undisturbed digest")
    sys.exit(right != options.kills)


if __name__ == "__main__":
    main()
