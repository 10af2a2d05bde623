"""A plan as text, and a partition as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmef_dist.config import Config
from fedmef_dist.devices.device_memory import DeviceMemory
from fedmef_dist.report.figures import COLOURS, new_figure
from fedmef_dist.report.memory import label, save_plot
from fedmef_dist.report.units import scaled
from fedmef_dist.simulation.footprint import Setting
from fedmef_dist.simulation.forecast import Forecast, PartitionView, PlannedRound
from fedmef_dist.sparsity import ParameterSpace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 100  # bars that can be told apart


def describe(
    config: Config,
    space: ParameterSpace,
    view: PartitionView,
    forecast: Forecast,
    memory: Sequence[tuple[Setting, DeviceMemory]],
    before: tuple[int, float] = (0, 0.0),
) -> str:
    """What the command ``plan`` prints: a name and a value on each line.

    ``before`` is what was sent (bytes) and computed (FLOPs) to choose the first mask.
    """
    lines = [
        ("run", f"{config.name}: {config.method.name}, {config.model.name}, {space.n_parameters:,} parameters"),
        ("density", f"{space.density:.3f}, {space.mask.count + space.n_dense:,} parameters are active"),
        *_partition_lines(view),
        *([("before round 1", f"{scaled(before[0], 'B')} sent, {scaled(before[1], 'FLOP')}")] if any(before) else []),
        *_round_lines(config, forecast),
        *_rank_lines(forecast.rounds),
        *_memory_lines(memory),
    ]
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in lines)


def _partition_lines(view: PartitionView) -> list[tuple[str, str]]:
    looked = (
        f"{view.clients:,}"
        if len(view.counts) == view.clients
        else f"{view.clients:,}, of which {len(view.counts):,} drawn"
    )
    return [
        ("clients", looked),
        ("samples a client", _spread(view.sizes, "{:,.0f}")),
        ("labels a client", f"{_spread(view.labels, '{:.0f}')}, of {np.count_nonzero(view.counts.sum(axis=0))}"),
        ("commonest label", f"{_spread(100 * view.dominance, '{:.0f} %')} of a client's samples"),
    ]


def _spread(values: np.ndarray, form: str) -> str:
    low, middle, high = (form.format(value) for value in np.quantile(values, (0.0, 0.5, 1.0)))
    return f"{low} to {high}, median {middle}"


def _round_lines(config: Config, forecast: Forecast) -> list[tuple[str, str]]:
    total, rounds = config.federation.rounds, forecast.rounds

    def mean(key: str) -> float:
        return float(np.mean([getattr(one, key) for one in rounds]))

    def most(key: str) -> float:
        return float(max(getattr(one, key) for one in rounds))

    up, down, flops = mean("up_bytes"), mean("down_bytes"), mean("flops")
    looked = "all of them" if len(rounds) == total else f"the first {len(rounds)}"
    return [
        ("rounds", f"{total:,}; means and maxima below are over {looked}"),
        (
            "clients a round",
            f"{mean('asked'):.1f} asked, {mean('trained'):.1f} trained, {mean('dropped'):.1f} dropped, "
            f"{mean('surplus'):.1f} surplus",
        ),
        ("bytes a round", f"{scaled(down, 'B')} down, {scaled(up, 'B')} up, encoded"),
        ("  at most", f"{scaled(most('down_bytes'), 'B')} down, {scaled(most('up_bytes'), 'B')} up"),
        ("bytes of the run", f"about {scaled(forecast.wire_bytes, 'B')}"),
        ("compute a round", f"{scaled(flops, 'FLOP')}, at most {scaled(most('flops'), 'FLOP')}"),
        ("compute of the run", f"about {scaled(forecast.flops, 'FLOP')}"),
    ]


def _rank_lines(rounds: Sequence[PlannedRound]) -> list[tuple[str, str]]:
    clients = np.array([one.rank_clients for one in rounds])
    return [
        ("ranks", f"{clients.shape[1]}"),
        ("clients a rank", f"{clients.mean():.1f} a round, {clients.min()} to {clients.max()}"),
        ("imbalance", f"{np.mean([one.imbalance for one in rounds]):.2f} (samples of the busiest rank over the mean)"),
    ]


def _memory_lines(memory: Sequence[tuple[Setting, DeviceMemory]]) -> list[tuple[str, str]]:
    return [
        ("" if number else "device memory", f"{label(setting)}: {scaled(device.total, 'B')} in a step, modelled")
        for number, (setting, device) in enumerate(memory)
    ]


def save_partition(view: PartitionView, path: Path) -> None:
    """Draws samples a client and labels a client as a PNG. Raises UserError where ``path`` cannot be written."""
    save_plot(partition_figure(view.sizes, view.counts), path)


def partition_figure(sizes: np.ndarray, counts: np.ndarray) -> "Figure":
    """Samples of each client, int64 (n,), and of each of its labels, int64 (n, classes), side by side."""
    from matplotlib.ticker import MaxNLocator

    figure, (left, right) = new_figure(2)
    order = np.argsort(-sizes, kind="stable")
    left.step(np.arange(len(order)), sizes[order], where="mid", color=COLOURS[0])
    left.set(xlabel="Clients, largest first", ylabel="Samples", ylim=(0, None))
    left.grid(alpha=0.3, lw=0.5)
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), _SHOWN)).astype(np.int64))]
    shares = counts[shown] / sizes[shown, None]
    image = right.imshow(shares.T, aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=1)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(xlabel=f"{len(shown)} clients, largest first", ylabel="Label")
    figure.colorbar(image, ax=right, label="Share of the client's samples")
    return figure
