"""Ten thousand rounds of a tiny model: does memory, the number of open files or the time of a round grow?

    python benchmarks/long_run.py --run-dir runs/long                # minutes; goes on where it was interrupted
    python benchmarks/long_run.py --run-dir runs/long --rounds 1000 federation.clients=1000000

FedMef on the digits, two clients of about 20 samples a round, a new mask every tenth round, a checkpoint every
hundredth. At each round of the table the process is looked at from outside: resident memory, open files, threads; then
what lies in the run directory, and the median of the last hundred rounds' seconds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = """
name: long
seed: 0
data: {dataset: digits, augment: false, partition: {scheme: lazy_dirichlet, alpha: 0.5, client_samples: 20}}
model: {name: cnn, width: 0.25, hidden: 8}
federation: {clients: 1000, clients_per_round: 2, rounds: 10000, local_epochs: 1, batch_size: 32}
optimizer: {lr: 0.01, schedule: constant}
method: {name: fedmef, density: 0.3, adjust_every: 10, adjust_until: 1000000}
evaluation: {every: 100}
checkpoint: {every: 100}
tracking: {console: false, wandb: {mode: disabled}}
"""
MEGABYTE = 10**6
LAST_LOOK = 20  # rounds before the end: behind the last one the process may be gone


def last_rounds(metrics: Path) -> list[dict[str, float]]:
    """The last hundred whole lines of metrics; none before the first."""
    if not metrics.exists():
        return []
    with metrics.open("rb") as file:
        file.seek(max(metrics.stat().st_size - 400_000, 0))
        lines = file.read().split(b"\n")[:-1]
    return [json.loads(line) for line in lines[1:] or lines][-100:]


def look(pid: int, run_dir: Path, rounds: list[dict[str, float]]) -> str:
    """A line of the table."""
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    numbers = [
        f"{int(rounds[-1]['round']):,}",
        f"{1024 * int(status['VmRSS'].split()[0]) / MEGABYTE:.0f}",
        str(len([*(process / "fd").iterdir()])),
        status["Threads"].strip(),
        f"{(run_dir / 'metrics.jsonl').stat().st_size / MEGABYTE:.2f}",
        str(sum(path.is_file() for path in run_dir.rglob("*"))),
        f"{1000 * statistics.median(line['time/round'] for line in rounds):.1f}",
    ]
    return "| " + " | ".join(numbers) + " |"


def main() -> None:
    """Runs it and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    print("| Round | Resident (MB) | Open files | Threads | metrics.jsonl (MB) | Files | A round (ms) |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    wanted = [number for number in (10, 100, 1000, 3000, 10_000) if number < options.rounds] + [options.rounds]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        config.write(CONFIG)
        config.flush()
        settings = [f"federation.rounds={options.rounds}", *options.overrides, "--run-dir", str(options.run_dir)]
        with subprocess.Popen([sys.executable, "-m", "fedmef_dist", "run", config.name, *settings]) as process:
            while process.poll() is None:
                rounds = last_rounds(options.run_dir / "metrics.jsonl")
                if rounds and wanted and rounds[-1]["round"] >= min(wanted[0], options.rounds - LAST_LOOK):
                    wanted = [number for number in wanted if number > rounds[-1]["round"] + LAST_LOOK]
                    print(look(process.pid, options.run_dir, rounds), flush=True)
                time.sleep(0.05)
    sys.exit(process.returncode)


if __name__ == "__main__":
    main()
