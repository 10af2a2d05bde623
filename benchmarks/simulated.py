"""Seconds of a round by the formula of `scale`, beside SimGrid's, for the clusters of configs/clusters.

    python benchmarks/simulated.py                                  # 64 and 512 ranks: seconds
    python benchmarks/simulated.py --ranks 4096 --clusters infiniband_gpu ethernet_cpu   # minutes, half a gigabyte
    python benchmarks/simulated.py --shares --values 11000000       # what of a round is what, by the formula alone

A made-up run with round coefficients: a client takes 10 ms and 2 ms a sample, with 5 % jitter; clients hold about 50
samples (lognormal); the model has a million values (8 MB of exact sums); server 10 ms, evaluation 100 ms on one rank,
rest 10 ms. Needs smpirun (apt install libsimgrid-dev), but not for `--shares`.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from fedmef_dist.scaling.cluster_file import load_cluster
from fedmef_dist.scaling.cost_model import CostModel
from fedmef_dist.scaling.measurement import Measurement
from fedmef_dist.scaling.points import Point
from fedmef_dist.scaling.prediction import Prediction, Predictor
from fedmef_dist.scaling.simulation import simulate

CLUSTERS = Path(__file__).parents[1] / "configs" / "clusters"
MODEL = CostModel(client=0.01, sample=0.002, jitter=0.05, server=0.01, evaluate=0.1, rest=0.01)


def made_run(values: int) -> Measurement:
    """A run of one rank whose clients have these sizes, as if it had been measured."""
    sizes = np.maximum(np.random.default_rng(0).lognormal(np.log(50) - 0.125, 0.5, 1000).round(), 10)
    return Measurement(
        point=Point(1, 10_000, len(sizes)), local_ranks=1, rounds=1, seconds=1.0, phases={}, cohorts=(sizes,),
        job_seconds=np.ones(len(sizes)), reduce_bytes=8.0 * values + 8 * (len(sizes) + 1), evaluated=0.0, adjusted=0.1,
        outside=10.0, peak_bytes=0,
    )  # fmt: skip


def shares(found: Prediction) -> list[str]:
    """Of a round in percent: the sum's latency and bandwidth, waiting for the slowest rank, and the evaluation."""
    groups = (("latency",), ("bandwidth",), ("slowest client", "placement", "jitter"), ("evaluation",))
    return [f"{100 * sum(found.parts[name] for name in group) / found.seconds:.2f}" for group in groups]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="*", default=[64, 512])
    parser.add_argument("--clusters", nargs="*", default=["ethernet_cpu", "infiniband_gpu", "workstation_8gpu"])
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, nargs="*", default=[2, 10], help="a rank, on average")
    parser.add_argument("--shares", action="store_true", help="no simulation: the formula's shares of a round")
    options = parser.parse_args()
    (print_shares if options.shares else print_simulated)(options)


def print_simulated(options: argparse.Namespace) -> None:
    """Prints a table of the formula beside SimGrid."""
    print("| Cluster | Ranks | Cohort | All-reduce | SimGrid (s) | Formula (s) | Error (%) | Simulated in (s) |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in options.clusters:
        cluster = load_cluster(CLUSTERS / f"{name}.yaml")
        predictor = Predictor(MODEL, cluster, [made_run(options.values)])
        for ranks in dict.fromkeys(min(ranks, cluster.most_ranks) for ranks in options.ranks):
            for each in options.clients:
                start = time.perf_counter()
                with tempfile.TemporaryDirectory() as folder:
                    found = simulate(predictor, ranks, each * ranks, Path(folder) / "traces")
                row = [name, f"{ranks:,}", f"{each * ranks:,}", found.all_reduce, f"{found.simulated:.5f}"]
                row += [f"{found.formula:.5f}", f"{100 * found.error:+.2f}", f"{time.perf_counter() - start:.0f}"]
                print("| " + " | ".join(row) + " |", flush=True)


def print_shares(options: argparse.Namespace) -> None:
    """Prints a table of what a round consists of."""
    print(
        "| Cluster | Ranks | Cohort | All-reduce | Round (s) | Latency (%) | Bandwidth (%) | Waiting (%) | Test (%) |"
    )
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in options.clusters:
        cluster = load_cluster(CLUSTERS / f"{name}.yaml")
        predictor = Predictor(MODEL, cluster, [made_run(options.values)])
        for ranks in dict.fromkeys(min(ranks, cluster.most_ranks) for ranks in options.ranks):
            for each in options.clients:
                found = predictor.predict(ranks, each * ranks)
                row = [
                    name,
                    f"{ranks:,}",
                    f"{found.cohort:,}",
                    found.all_reduce,
                    f"{found.seconds:.4g}",
                    *shares(found),
                ]
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
