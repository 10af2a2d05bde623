"""The page's curves, by section: what is drawn over what, and the sentence that says how to read it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fedmef_dist.report.adjustments import STEPS, around_adjustments
from fedmef_dist.report.charts import ROUND, LineChart, Series, line_chart
from fedmef_dist.report.device_time import SECONDS
from fedmef_dist.report.groups import RunGroup
from fedmef_dist.report.masks import survived
from fedmef_dist.report.mean_lines import Line, Quantity, logged, mean_line
from fedmef_dist.report.quantities import per_client
from fedmef_dist.report.units import decimal_prefix

_ROUND = logged("round")


def accuracy_lines(groups: Sequence[RunGroup]) -> list[LineChart]:
    """Test accuracy over rounds, bytes and FLOPs; losses over rounds."""
    accuracy, label = logged("eval/accuracy", 100), "Test accuracy (%)"
    read = {
        "rounds": "Higher is better; further left is sooner.",
        "bytes": "All bytes that server and clients have exchanged so far, as encoded. The line furthest left and "
        "highest gets the most accuracy out of a byte.",
        "flops": "Floating point operations of all clients' training so far, modelled from layers and density.",
        "seconds": "Modelled: a round takes what the mean client receives, computes and sends, at the speeds given "
        "with --device. Who waits for the slowest client of a round takes longer.",
        "loss": "Cross-entropy of the global model on the test set; lower is better. Rising while accuracy stays is "
        "overconfidence.",
        "train": "Mean loss of the clients on their own batches while they train; lower is better. It differs from the "
        "test loss where clients fit their own data alone.",
        "perplexity": "The exponential of the test loss: how many next tokens the model hesitates between.",
    }
    return [
        *_over(groups, "Accuracy over rounds", read["rounds"], (ROUND, label), _ROUND, accuracy),
        *_over_amount(groups, "Accuracy over bytes", read["bytes"], "Bytes on the wire", "B", "wire/total_bytes"),
        *_over_amount(groups, "Accuracy over compute", read["flops"], "Training compute", "FLOP", "flops/total"),
        *_over_amount(groups, "Accuracy over a device's time", read["seconds"], "Time of a device", "s", SECONDS),
        *_over(groups, "Test loss", read["loss"], (ROUND, "Test loss (nats)"), _ROUND, logged("eval/loss")),
        *_over(groups, "Training loss", read["train"], (ROUND, "Loss (nats)"), _ROUND, logged("train/loss")),
        *_over(groups, "Perplexity", read["perplexity"], (ROUND, "Test perplexity"), _ROUND, logged("eval/perplexity")),
    ]


def cost_lines(groups: Sequence[RunGroup]) -> list[LineChart]:
    """What a client sends, receives and computes in a round."""
    up = "What the mean client of a round sends: its update, and what the method asks for in addition, as encoded."
    down = "What the mean client of a round receives: the model, and the mask where it does not know the newest."
    flops = (
        "Of the mean client of a round, modelled: more where clients hold more samples, and in rounds in which they "
        "also compute gradients for the mask."
    )
    return [
        *_amounts(groups, "Upload per client and round", up, "Bytes", "B", _per_client("wire/up_bytes")),
        *_amounts(groups, "Download per client and round", down, "Bytes", "B", _per_client("wire/down_bytes")),
        *_amounts(groups, "Compute per client and round", flops, "Compute", "FLOP", _per_client("flops/train")),
    ]


def mask_lines(groups: Sequence[RunGroup]) -> list[LineChart]:
    """How much of a mask stays, and accuracy around its adjustments."""
    overlap = (
        "Weights active before and after an adjustment, as a share of those active in either. 100 % is no change; "
        "lower is a larger swap."
    )
    first = "Share of the first mask's weights that are still active. A line that levels off: the mask has settled."
    kept = (
        "Share of the weights grown at one adjustment that the next one keeps. Low values: most of what grows is "
        "pruned again."
    )
    label = "Jaccard overlap with the previous mask (%)"
    held = [(number, group, survived(group)) for number, group in enumerate(groups)]
    lasting = [Series(number, group.label, line) for number, group, line in held if line is not None]
    return [
        *_over(groups, "Change of the mask", overlap, (ROUND, label), _ROUND, logged("sparsity/overlap", 100)),
        *line_chart("What is left of the first mask", first, (ROUND, "Still active (%)"), lasting),
        *_over(
            groups,
            "Grown weights that stay",
            kept,
            (ROUND, "Kept by the next adjustment (%)"),
            _ROUND,
            logged("sparsity/grown_survived", 100),
        ),
        *_around(groups),
    ]


def client_lines(groups: Sequence[RunGroup]) -> list[LineChart]:
    """How clients do on their own data."""
    mean = "Accuracy on clients' own data, averaged over clients, each counting the same."
    worst = "Mean accuracy of the tenth of the clients that are served worst. Far below the mean: few are left behind."
    spread = "Standard deviation of the accuracy over clients: how unequally the model serves them; lower is fairer."
    group = "Mean accuracy of the worst group of clients (by commonest label, or by number of samples)."

    def over(title: str, reading: str, key: str) -> list[LineChart]:
        return _over(groups, title, reading, (ROUND, "Accuracy (%)"), _ROUND, logged(key, 100))

    return [
        *over("Clients: mean", mean, "eval/client_accuracy_mean"),
        *over("Clients: worst tenth", worst, "eval/client_accuracy_worst_decile"),
        *over("Clients: spread", spread, "eval/client_accuracy_std"),
        *over("Clients: worst group", group, "eval/group_accuracy_worst"),
    ]


def time_lines(groups: Sequence[RunGroup]) -> list[LineChart]:
    """Seconds a round, and how evenly the ranks were loaded."""
    seconds = "Wall-clock time of a round on the machine that simulated it; it says nothing about a real client's time."
    even = "Training time of the slowest rank over the mean of all ranks: 1 is even, above it the others wait."
    several = [group for group in groups if any((run.value("world_size") or 1) > 1 for run in group.runs)]
    return [
        *_over(groups, "Time of a round", seconds, (ROUND, "Seconds"), _ROUND, logged("time/round")),
        *(
            _over(groups, "Load of the ranks", even, (ROUND, "Slowest / mean"), _ROUND, logged("time/imbalance"))
            if several
            else []
        ),
    ]


def _per_client(key: str) -> Quantity:
    return lambda line: per_client(line, key)


def _over(
    groups: Sequence[RunGroup], title: str, reading: str, axes: tuple[str, str], x: Quantity, y: Quantity
) -> list[LineChart]:
    found = [(number, group.label, mean_line(group, x, y)) for number, group in enumerate(groups)]
    return line_chart(
        title, reading, axes, [Series(number, name, line) for number, name, line in found if line is not None]
    )


def _over_amount(
    groups: Sequence[RunGroup], title: str, reading: str, what: str, unit: str, key: str
) -> list[LineChart]:
    """Accuracy over an amount, in the prefix that the largest reads best in."""
    factor, prefix = decimal_prefix(_largest(groups, logged(key)))
    axes = (f"{what} ({prefix}{unit})", "Test accuracy (%)")
    return _over(groups, title, reading, axes, logged(key, 1 / factor), logged("eval/accuracy", 100))


def _amounts(
    groups: Sequence[RunGroup], title: str, reading: str, what: str, unit: str, quantity: Quantity
) -> list[LineChart]:
    factor, prefix = decimal_prefix(_largest(groups, quantity))
    return _over(groups, title, reading, (ROUND, f"{what} ({prefix}{unit})"), _ROUND, _divided(quantity, factor))


def _divided(quantity: Quantity, factor: float) -> Callable[[Mapping[str, Any]], float | None]:
    return lambda line: None if (value := quantity(line)) is None else value / factor


def _largest(groups: Sequence[RunGroup], quantity: Quantity) -> float:
    found = (quantity(line) for group in groups for run in group.runs for line in run.metrics)
    return max((value for value in found if value is not None), default=0.0)


def _around(groups: Sequence[RunGroup]) -> list[LineChart]:
    reading = (
        "Test accuracy at each step of an adjustment of the mask, mean and standard deviation over all adjustments of "
        "all seeds. A drop at pruning that growing does not undo is what an adjustment costs."
    )
    series = []
    for number, group in enumerate(groups):
        around = around_adjustments(group)
        if around is not None:
            means = np.array([100 * (one.mean or 0.0) for one in around.accuracies])
            deviations = np.array([100 * (one.deviation or 0.0) for one in around.accuracies])
            series.append(Series(number, group.label, Line(np.arange(len(STEPS), dtype=np.float64), means, deviations)))
    names = [step.replace(" ", "\n") for step in STEPS.values()]
    return line_chart("Around an adjustment", reading, ("", "Test accuracy (%)"), series, names)
