"""Does the planner keep its word? Plans a model for budgets from the least to the dense peak and measures each plan.

    python benchmarks/budgets.py configs/cifar10_mobilenet_v2.yaml federation.batch_size=16 --budgets 20

For each budget: the peak that was predicted and the one that was measured, how exact the plan's gradient is, and the
share of the operations in blocks that it computes a second time.
"""

import argparse
import platform
from pathlib import Path

import torch

from fedmef_dist.config import load_config
from fedmef_dist.data.shapes import shape_of
from fedmef_dist.simulation.planning import fit, measure_plan, open_planner


def main() -> None:
    """Reads the command line, plans, and says whether every plan fits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--budgets", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(options.config, options.overrides)
    step, planner = open_planner(config, shape_of(config.data))
    candidates = list(planner.sequence())
    most, least = (measure_plan(step, planner.plan(one)).peak_bytes for one in (candidates[0], candidates[-1]))
    everything = sum(part.operations for part in planner.parts) or 1
    print(
        f"{platform.platform()}, torch {torch.__version__}; {config.model.name}, batch {config.federation.batch_size}"
    )
    print(f"{'budget':>12} {'predicted':>12} {'measured':>12} {'error':>8} {'gradient':>9} {'again':>6}")
    worst, kept = 0.0, 0
    for place in range(options.budgets):
        budget = least + (most - least) * place // max(options.budgets - 1, 1)
        found = fit(step, planner, budget)
        error = found.candidate.peak / found.measured - 1
        worst, kept = max(worst, abs(error)), kept + (found.measured <= budget)
        exact = f"p <= {found.candidate.pruned:g}" if found.candidate.pruned else "exact"
        again = 100 * found.candidate.operations / everything
        peaks = f"{budget:12,} {found.candidate.peak:12,} {found.measured:12,}"
        print(f"{peaks} {100 * error:+7.2f}% {exact:>9} {again:5.0f}%", flush=True)
    print(f"{kept} of {options.budgets} plans are within their budget; predictions off by at most {100 * worst:.2f} %")


if __name__ == "__main__":
    main()
