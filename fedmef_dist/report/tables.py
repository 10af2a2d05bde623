"""The comparison as tables for people, and as CSV with plain numbers for programs."""

import csv
import io
from collections.abc import Sequence

from fedmef_dist.report.adjustments import STEPS, around_adjustments
from fedmef_dist.report.groups import RunGroup, Spread
from fedmef_dist.report.quantities import LATE_EVALUATIONS, QUANTITIES, accuracy_late, bytes_per_client_round
from fedmef_dist.report.rendering import Table, csv_cell
from fedmef_dist.report.targets import AccuracyTarget, reached
from fedmef_dist.report.units import DASH, duration, percent, ratio, scaled, scaled_spread


def tables(groups: Sequence[RunGroup], target: AccuracyTarget | None) -> list[Table]:
    """All tables that the runs have numbers for, one row a group."""
    return [
        accuracy_table(groups),
        costs_table(groups),
        memory_table(groups),
        *target_tables(groups, target),
        *adjustment_tables(groups),
        *mask_tables(groups),
    ]


def accuracy_table(groups: Sequence[RunGroup]) -> Table:
    """Accuracy and density at the end."""
    text = any(group.mean("eval/perplexity_last") is not None for group in groups)
    late = any(group.spread(accuracy_late).mean is not None for group in groups)
    late_note = f"Late is the mean of the last {LATE_EVALUATIONS} tests of a run. " if late else ""
    optional = (*(["Late (%)"] if late else []), *(["Perplexity, final"] if text else []))
    return Table(
        "Accuracy",
        ("Run", "Method", "Seeds", "Best (%)", "Final (%)", *optional, "Density"),
        [
            (
                group.label,
                group.method,
                str(len(group.runs)),
                _percent(group.spread(QUANTITIES["accuracy_best"])),
                _percent(group.spread(QUANTITIES["accuracy_last"])),
                *([_percent(group.spread(accuracy_late))] if late else []),
                *([_plain(group.mean("eval/perplexity_last"))] if text else []),
                _plain(group.mean("sparsity/density")),
            )
            for group in groups
        ],
        "On the test set: the mean and, over several seeds, ± the sample standard deviation. "
        f"{late_note}Density is the final one.",
    )


def costs_table(groups: Sequence[RunGroup]) -> Table:
    """Bytes on the wire, compute and time of whole runs."""
    return Table(
        "Communication, compute and time",
        ("Run", "Down", "Up", "Total", "Total / dense", "Per client and round", "FLOPs", "Time"),
        [
            (
                group.label,
                scaled(group.spread(QUANTITIES["down_bytes"]).mean, "B"),
                scaled(group.spread(QUANTITIES["up_bytes"]).mean, "B"),
                scaled(group.mean("wire/total_bytes"), "B"),
                ratio(group.mean("wire/total_bytes"), group.mean("reference/wire_bytes")),
                scaled(group.spread(bytes_per_client_round).mean, "B"),
                scaled(group.mean("flops/total"), ""),
                duration(group.mean("time/total")),
            )
            for group in groups
        ],
        "Means over the seeds. Bytes on the simulated wire, 1 MB = 1,000,000 bytes; per client and round: the total "
        "over all trainings that counted. The total has what is sent before round 1, too. FLOPs of all clients' "
        "training are modelled, time is that of the simulation. "
        '"dense" is dense FedAvg of the same model, rounds and cohort.',
    )


def memory_table(groups: Sequence[RunGroup]) -> Table:
    """Memory of a training step."""
    return Table(
        "Memory of a training step",
        (
            *("Run", "Device, modelled", "Peak, measured", "Peak / dense"),
            *("Activations, measured", "Activations / dense"),
        ),
        [
            (
                group.label,
                scaled(group.mean("memory/device_bytes"), "B"),
                scaled(group.mean("memory/peak_bytes"), "B"),
                ratio(group.mean("memory/peak_bytes"), group.mean("reference/peak_bytes")),
                scaled(group.mean("memory/activation_bytes"), "B"),
                ratio(group.mean("memory/activation_bytes"), group.mean("reference/activation_bytes")),
            )
            for group in groups
        ],
        "Means over the seeds. Modelled: weights, gradients, mask, momentum and activations on a device that stores "
        "them packed. Measured where the simulation ran: the most that was allocated at once, and what was kept for "
        'the backward pass. "dense" is dense FedAvg, measured on the same batch.',
    )


def target_tables(groups: Sequence[RunGroup], target: AccuracyTarget | None) -> list[Table]:
    """What it took to reach the target, where there is one."""
    if target is None:
        return []
    found = [(group, reached(group, target)) for group in groups]
    timed = any(one.seconds.mean is not None for _, one in found)
    origin = "That is 95 % of the best row's mean best accuracy, rounded down to a whole per cent. "
    return [
        Table(
            f"To reach {100 * target.accuracy:g} % test accuracy",
            ("Run", "Seeds that did", "Rounds", "Bytes", "FLOPs", *(["Time of a device"] if timed else [])),
            [
                (
                    group.label,
                    f"{one.seeds} of {len(group.runs)}",
                    scaled_spread(one.rounds.mean, one.rounds.deviation, ""),
                    scaled_spread(one.bytes.mean, one.bytes.deviation, "B"),
                    scaled_spread(one.flops.mean, one.flops.deviation, ""),
                    *([scaled_spread(one.seconds.mean, one.seconds.deviation, "s")] if timed else []),
                )
                for group, one in found
            ],
            f"{origin if target.chosen else ''}Up to the first test with at least this accuracy; the mean ± the sample "
            "standard deviation is over the seeds that reached it, and leaves the others out."
            f"{_TIMED if timed else ''}",
        )
    ]


_TIMED = (
    " Time of a device, modelled: a round takes what the mean client receives, computes and sends, at the speeds given."
)


def adjustment_tables(groups: Sequence[RunGroup]) -> list[Table]:
    """Accuracy around the adjustments of the mask, where runs have tested there."""
    around = [(group.label, found) for group in groups if (found := around_adjustments(group)) is not None]
    if not around:
        return []
    steps = (f"{step.capitalize()} (%)" for step in STEPS.values())
    return [
        Table(
            "Accuracy around an adjustment of the mask",
            ("Run", "Adjustments", *steps, "Change by prune + grow"),
            [
                (label, str(one.adjustments), *(_percent(value) for value in one.accuracies), _percent(one.change))
                for label, one in around
            ],
            "Test accuracy: the mean ± the sample standard deviation over all adjustments of all seeds. The change is "
            "after growing less after extrusion, taken adjustment by adjustment, in percentage points.",
        )
    ]


def mask_tables(groups: Sequence[RunGroup]) -> list[Table]:
    """What adjustments do to the masks, where any have been made."""
    if all(group.spread(QUANTITIES["overlap"]).mean is None for group in groups):
        return []
    return [
        Table(
            "How masks move",
            (
                *("Run", "Jaccard overlap with the previous mask (%)", "Grown weights that stay (%)"),
                *("Growth in one filter (%)", "Thin filters"),
            ),
            [
                (
                    group.label,
                    *(_percent(group.spread(QUANTITIES[key])) for key in ("overlap", "grown_survived")),
                    _percent(group.spread(QUANTITIES["growth_concentration"])),
                    scaled_spread(thin.mean, thin.deviation, ""),
                )
                for group in groups
                for thin in [group.spread(QUANTITIES["thin_filters"])]
            ],
            "Of a run's adjustments the mean; over several seeds ± the sample standard deviation. Grown weights that "
            "stay: the share of what one adjustment grows that the next one keeps. Growth in one filter: the largest "
            "share of a layer's growth that goes into a single filter, the layers weighted by what they grow. Thin "
            "filters: those with fewer than two active weights at the end, which no normalisation of filters can use.",
        )
    ]


def _percent(value: Spread) -> str:
    return percent(value.mean, value.deviation)


def _plain(value: float | None) -> str:
    return DASH if value is None else f"{value:.3g}"


_REACHED = ("rounds", "bytes", "flops", "seconds")


def comma_separated(groups: Sequence[RunGroup], target: AccuracyTarget | None) -> str:
    """All numbers as CSV, one row a group: means, and standard deviations over the seeds where there are several.

    Bytes, FLOPs, seconds and shares as they are; empty where a run lacks the value, or no seed has reached the target.
    """
    out = io.StringIO()
    columns = [*QUANTITIES, *(f"{name}_to_target" for name in _REACHED)]
    writer = csv.writer(out, lineterminator="\n")
    names = [name for column in columns for name in (f"{column}_mean", f"{column}_sd")]
    writer.writerow(["run", "method", "seeds", "target_accuracy", "seeds_that_reached_target", *names])
    for group in groups:
        found = reached(group, target) if target is not None else None
        spreads = [group.spread(quantity) for quantity in QUANTITIES.values()]
        spreads += [getattr(found, name) if found is not None else Spread(None, None) for name in _REACHED]
        numbers = [number for one in spreads for number in (one.mean, one.deviation)]
        told = [target.accuracy, found.seeds] if target is not None and found is not None else [None, None]
        cells = [group.label, group.method, len(group.runs), *told, *numbers]
        writer.writerow(map(csv_cell, cells))
    return out.getvalue()
