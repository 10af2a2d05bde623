"""A cost model fitted to at most 4 real ranks, and what it says of 8, 16 and 32, beside what these really take.

    python benchmarks/predicted.py --out runs/predicted           # all four cases: seven to eight minutes on two cores
    python benchmarks/predicted.py --out runs/predicted --sites machine --backends mpi --most 16

Clients sleep instead of training (`benchmarks/sleeping.yaml`), so that cores hardly matter. Gloo and MPI, on this
machine alone and over two network namespaces that a bridge joins, each behind a gigabit a second (tc's token bucket):
two hosts, as far as ranks can tell, with half of the ranks each; there 16 and 32 ranks are predicted. Namespaces need
root, ``ip`` and ``tc``; mpirun starts their ranks, and its daemon enters them. What was measured lies in ``--out`` and
is not measured again. Ends with status 1 where a prediction is more than 10 % off.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fedmef_dist.cluster.mpirun import find_mpirun
from fedmef_dist.scaling.launch_site import LaunchSite
from fedmef_dist.scaling.measurement import Results, read_measurement
from fedmef_dist.scaling.points import Point
from fedmef_dist.scaling.prediction import held_out
from fedmef_dist.scaling.runs import measure, measure_network

CONFIG = Path(__file__).with_name("sleeping.yaml")
CLIENTS = 10_000
PROBED = (2,)
WITHIN = 0.1
NETWORK, BRIDGE = "10.213.77", "fedmef-bridge"
LIMIT = "rate 1gbit burst 256kb latency 50ms"
# mpirun gives a host and a command line; the namespace gets a name of its own as well.
ENTER = """#!/bin/sh
host=$1
shift
exec ip netns exec "$host" unshare --uts sh -c 'hostname "$1"; shift; eval "exec $*"' enter "$host" "$@"
"""


@contextmanager
def namespaces(number: int) -> Iterator[list[str]]:
    """Network namespaces on one bridge, with an address and a limited rate each; their names."""
    names = [f"fedmef-n{place}" for place in range(1, number + 1)]
    remove(names)  # what a killed run has left
    try:
        call("ip link add", BRIDGE, "type bridge")
        call(f"ip addr add {NETWORK}.254/24 dev", BRIDGE)
        call("ip link set", BRIDGE, "up")
        for place, name in enumerate(names, start=1):
            call("ip netns add", name)
            call(f"ip link add fedmef-v{place} type veth peer name eth0 netns", name)
            call(f"ip link set fedmef-v{place} up master", BRIDGE)
            for command in (
                f"addr add {NETWORK}.{place}/24 dev eth0", "link set lo up", "link set eth0 up",
                f"route add default via {NETWORK}.254",
            ):  # fmt: skip
                call(f"ip -n {name} {command}")
            call(f"tc -n {name} qdisc add dev eth0 root tbf {LIMIT}")
        yield names
    finally:
        remove(names)


def remove(names: list[str]) -> None:
    """Takes away the namespaces and the bridge, as far as they are there."""
    for command in [*(f"ip netns del {name}" for name in names), f"ip link del {BRIDGE}"]:
        subprocess.run(command.split(), stderr=subprocess.DEVNULL, check=False)


def call(*words: str) -> None:
    """A command that must succeed."""
    done = subprocess.run(" ".join(words).split(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip()}")


@contextmanager
def site(name: str, backend: str, ranks_per_node: int) -> Iterator[LaunchSite]:
    """Where the ranks run: ``machine`` or ``namespaces``."""
    if name == "machine":
        yield LaunchSite(None, (), find_mpirun("--backends mpi") if backend == "mpi" else ())
        return
    with namespaces(2) as hosts, tempfile.TemporaryDirectory() as folder:
        enter = Path(folder) / "enter"
        enter.write_text(ENTER)
        enter.chmod(0o755)
        # MPICH would notice that both hosts have one memory, and pass the network by.
        options = (
            "-genv",
            "UCX_TLS",
            "tcp",
            "-launcher",
            "rsh",
            "-launcher-exec",
            str(enter),
            "-localhost",
            f"{NETWORK}.254",
        )
        places = (ranks_per_node,) * len(hosts)
        yield LaunchSite(places, tuple(hosts), (*find_mpirun("--sites namespaces"), *options))


def points(place: LaunchSite, most: int, each: int) -> list[Point]:
    """On at most 4 ranks so many clients a rank, or twice as many; beyond, the cohort of which the most get so many."""
    many = [ranks for ranks in (8, 16, 32) if ranks <= most][-2 if place.hosts else 0 :]
    few = [Point(ranks, CLIENTS, share * each) for ranks, share in ((1, 1), (1, 2), (2, 2), (4, 4))]
    return [*few, *(Point(ranks, CLIENTS, each * most) for ranks in many)]


def halved(place: LaunchSite, ranks: int) -> LaunchSite:
    """The same place, where so many ranks fill half of each host."""
    return replace(place, tasks_per_node=(max(ranks // 2, 1),) * len(place.hosts)) if place.hosts else place


def study(place: LaunchSite, options: argparse.Namespace, backend: str, out: Path) -> list[list[str]]:
    """Rows of the table for one site and backend."""
    overrides = [
        f"runtime.backend={backend}", f"model.options.seconds_per_sample={options.sleep}", "data.root=data",
    ]  # fmt: skip
    probes = measure_network(place, CONFIG, overrides, PROBED, out / "network")
    results: Results = {}
    for repeat in range(options.repeats):
        for point in points(place, options.most, options.clients):
            here = halved(place, point.ranks)
            print(f"{out.name}: {point.name}", flush=True)
            run_dir = measure(here, CONFIG, overrides, point, options.rounds, repeat, out)
            found = read_measurement(run_dir, point, here.local_ranks(point.ranks))
            results.setdefault(point, []).append(found)
    return [
        [
            f"{each.point.ranks}",
            f"{each.point.cohort}",
            f"{each.measured:.3f}",
            f"{each.predicted:.3f}",
            f"{100 * each.error:+.1f}",
        ]
        for each in held_out(results, probes, 0.0)
    ]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sites", nargs="*", choices=("machine", "namespaces"), default=["machine", "namespaces"])
    parser.add_argument("--backends", nargs="*", choices=("gloo", "mpi"), default=["gloo", "mpi"])
    parser.add_argument("--most", type=int, choices=(8, 16, 32), default=32, help="ranks")
    parser.add_argument("--clients", type=int, default=2, help="a rank, at the most ranks and at the fewest")
    parser.add_argument("--sleep", type=float, default=0.005, help="seconds a sample")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    rows = []
    for name in options.sites:
        for backend in options.backends:
            start = time.monotonic()
            with site(name, backend, options.most // 2) as place:
                found = study(place, options, backend, options.out / f"{name}-{backend}")
            rows += [[name, backend, *row] for row in found]
            print(f"{name}, {backend}: {time.monotonic() - start:.0f} s", flush=True)
    print("| Where | Backend | Ranks | Cohort | Measured (s) | Predicted (s) | Error (%) |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    sys.exit(any(abs(float(row[-1])) > 100 * WITHIN for row in rows))


if __name__ == "__main__":
    main()
