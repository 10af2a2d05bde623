"""What a million clients cost: start-up, resident memory, and drawing a cohort with its data, beside a hundred clients.

    python benchmarks/population.py

Both programs are configs/million_clients.yaml with another number of clients, each in a process of its own. A round
here is drawing the cohort, every one of its clients' samples and gathering their images, all on one rank; training
is left out.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

CONFIG = Path(__file__).parent.parent / "configs" / "million_clients.yaml"


def resident_bytes() -> int:
    """The most memory that this process has had resident so far."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["VmHWM"].split()[0])


def measure(clients: int, per_round: int, rounds: int, started: float) -> dict[str, object]:
    """One program, from the start of its process."""
    import torch

    from fedmef_dist.clients.cohort import draw_cohort
    from fedmef_dist.cluster.environment import detect
    from fedmef_dist.cluster.group import open_group
    from fedmef_dist.config import load_config
    from fedmef_dist.runs.snapshot import take
    from fedmef_dist.simulation.loop import Simulation

    overrides = [f"federation.clients={clients}", f"federation.clients_per_round={per_round}", "runtime.device=cpu"]
    config = load_config(CONFIG, overrides)
    imported = time.time()
    with open_group(detect({}), config.runtime) as group:
        simulation = Simulation(config, group)
        simulation.start()
        ready = time.time()
        images = simulation.dataset.train.images.permute(0, 2, 3, 1)
        busy = time.process_time()
        seconds = []
        for number in range(1, rounds + 1):
            start = time.perf_counter(), time.process_time()
            cohort = draw_cohort(simulation.population, config.federation, config.seed, number)
            for client in cohort.clients.tolist():
                images.index_select(0, torch.from_numpy(simulation.population.samples(client)))
            seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        checkpoint = sum(tensor.nbytes for tensor in take(rounds, simulation.parts, {}).tensors.values())
    return {
        "import_seconds": imported - started,
        "start_seconds": ready - started,
        "start_processor_seconds": busy,
        "resident_bytes": resident_bytes(),
        "checkpoint_bytes": checkpoint,
        "round_seconds": sorted(wall for wall, _ in seconds),
        "round_processor_seconds": sorted(processor for _, processor in seconds),
    }


def report(clients: int, per_round: int, found: dict[str, object]) -> str:
    """Wall seconds, and those of the processor, which a busy machine does not stretch."""
    lines = [
        f"{clients:,} clients, {per_round:,} a round",
        f"  start     {found['start_seconds']:.2f} s, of them imports {found['import_seconds']:.2f} s; "
        f"processor {found['start_processor_seconds']:.2f} s",
        f"  resident  {found['resident_bytes'] / 1e6:.0f} MB; a checkpoint {found['checkpoint_bytes'] / 1e6:.2f} MB",
    ]
    for name, key in (("wall", "round_seconds"), ("processor", "round_processor_seconds")):
        low, middle, high = (found[key][int(share * (len(found[key]) - 1))] for share in (0.25, 0.5, 0.75))
        lines.append(f"  a round   {middle:.3f} s (quartiles {low:.3f} to {high:.3f}), {name}")
    return "\n".join(lines)


def main() -> None:
    """Starts both programs in turn and prints what they took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="rounds drawn")
    parser.add_argument("--child", type=float, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        clients, per_round, started = options.child
        print(json.dumps(measure(int(clients), int(per_round), options.rounds, started)))
        return
    found = {}
    for clients, per_round in ((100, 100), (1_000_000, 1000)):
        child = ["--child", str(clients), str(per_round), str(time.time()), "--rounds", str(options.rounds)]
        done = subprocess.run([sys.executable, __file__, *child], check=True, stdout=subprocess.PIPE)
        found[clients] = json.loads(done.stdout)
        print(report(clients, per_round, found[clients]))
    more = found[1_000_000]["resident_bytes"] - found[100]["resident_bytes"]
    print(f"a million clients take {more / 1e6:.0f} MB more resident memory than a hundred")


if __name__ == "__main__":
    main()
