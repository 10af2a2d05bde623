"""What was predicted for a cluster, as Markdown."""

from collections.abc import Sequence

from fedmef_dist.report.rendering import markdown_code
from fedmef_dist.report.units import scaled
from fedmef_dist.scaling.cost_model import PARTS
from fedmef_dist.scaling.fitting import Fit
from fedmef_dist.scaling.measurement import Results
from fedmef_dist.scaling.prediction import FEW, Prediction, Predictions, Predictor, held_out
from fedmef_dist.scaling.probe import Probe
from fedmef_dist.scaling.simulation import Simulated
from fedmef_dist.scaling.text import table

_PARTS = {
    "training": "what ranks with equal work would train",
    "slowest client": "what the largest client takes beyond that: no rank ends before it",
    "placement": "what the busiest rank trains beyond both",
    "jitter": "waiting for the rank whose clients happen to be slow",
    "latency": "messages of collectives, one after another, and waking who receives them",
    "bandwidth": "their bytes",
    "server": "average, extrusion, pruning and growing",
    "evaluation": "a rank's share of the test set",
    "drawing": "drawing the cohort and placing it, on every rank",
    "rest": "whatever else a round does",
}


def model_section(fit: Fit) -> str:
    """The coefficients: what each was fitted on, and how wrong its part is on measurements left out."""
    rows = [
        (each.name, each.value, each.fitted_on, "" if each.error is None else f"{100 * each.error:.1f} %")
        for each in fit.coefficients
    ]
    return (
        "A round is the sum of these parts:\n\n"
        + "\n".join(f"- {name}: {_PARTS[name]};" for name in PARTS).rstrip(";")
        + ".\n\nTheir coefficients. The error is that of the part on a measurement that is left out of the fit, median "
        "over all.\n\n" + table(("Coefficient", "Value", "Fitted on", "Error left out"), rows)
    )


def held_out_section(results: Results, probes: Sequence[Probe], draw: float) -> str:
    """Measured points of more ranks than four, predicted from those with at most four; empty without such points."""
    rows = [
        [
            str(each.point.ranks),
            f"{each.point.cohort:,}",
            f"{each.measured:.3f}",
            f"{each.predicted:.3f}",
            f"{100 * each.error:+.1f}",
        ]
        for each in held_out(results, probes, draw)
    ]
    header = ("Ranks", "Cohort", "Measured (s)", "Predicted (s)", "Error (%)")
    return f"What a fit to at most {FEW} ranks says of more:\n\n{table(header, rows)}" if rows else ""


def prediction_section(predictor: Predictor, predictions: Predictions, rounds: int) -> str:
    """Strong and weak scaling, what bounds them, cohorts of 10 to 10 million, and what a whole run would take."""
    start = predictor.model.start
    parts = [
        _where(predictor),
        f"### Strong scaling: {predictions.strong[0].cohort:,} clients a round\n\n"
        + _scaling(predictions.strong, rounds, start),
        "Where the round goes, in seconds:\n\n" + _breakdown(predictions.strong),
        "### Weak scaling: the cohort grows with the ranks\n\n" + _scaling(predictions.weak, rounds, start),
        "Where the round goes, in seconds:\n\n" + _breakdown(predictions.weak),
        "### Cohorts of 10 to 10 million clients\n\nSeconds a round, the efficiency, and what bounds it. *Enough* is "
        "the number of ranks beyond which doubling them again and again makes a round less than 5 % faster; it looks "
        "no further than the most ranks asked for.\n\n" + _cohorts(predictions),
    ]
    return "\n\n".join(parts)


def _where(predictor: Predictor) -> str:
    cluster, work = predictor.cluster, predictor.work
    sizes = (
        f"As of the measured rounds with the most ranks, {100 * work.evaluated:.3g} % evaluate and "
        f"{100 * work.adjusted:.3g} % move the mask. "
        "Clients have the sizes of those that were measured, drawn with replacement: a tail of larger ones, which more "
        "clients would bring, is not in it. None of this was measured."
    )
    if cluster is None:
        network = (
            "on a network as quick as the one measured"
            if predictor.knows_network
            else "with collectives that take no time, since one rank alone shows nothing of them"
        )
        return f"By the cost model, on nodes filled as densely as the fullest one above, {network}. {sizes}"
    links = [
        f"{name} {1e6 * link.latency:.3g} µs and {scaled(link.bandwidth, 'B')}/s"
        for name, link in (("inside a node", cluster.inside), ("between nodes", cluster.between))
    ]
    speed = (
        f"ranks {cluster.speed:g} times as fast as one alone on a node above"
        if cluster.seconds_per_sample is None
        else f"{1e6 * cluster.seconds_per_sample:g} µs a sample"
    )
    return (
        f"Cluster {markdown_code(cluster.name)}: {cluster.nodes:,} nodes with {cluster.ranks_per_node} ranks each, "
        f"{speed}, {cluster.backend}, {links[0]}, {links[1]}. {sizes}"
    )


def _scaling(predictions: Sequence[Prediction], rounds: int, start: float) -> str:
    rows = [
        [
            f"{each.ranks:,}",
            f"{each.cohort:,}",
            _short(each.seconds),
            f"{100 * each.efficiency:.1f}",
            each.bound,
            each.all_reduce,
            _duration(each.run_seconds(rounds, start)),
            f"{each.device_hours(rounds, start):,.1f}",
        ]
        for each in predictions
    ]
    header = ("Ranks", "Cohort", "Round (s)", "Efficiency (%)", "Bound by", "All-reduce")
    return table((*header, f"Run of {rounds:,} rounds", "Device-hours"), rows)


def _breakdown(predictions: Sequence[Prediction]) -> str:
    rows = [[f"{each.ranks:,}", *(_short(each.parts[name]) for name in PARTS)] for each in predictions]
    return table(("Ranks", *PARTS), rows)


def _cohorts(predictions: Predictions) -> str:
    rows = [
        [
            f"{row[0].cohort:,}",
            *(f"{_short(each.seconds)}, {100 * each.efficiency:.0f} %, {each.bound}" for each in row),
            f"{predictions.enough[row[0].cohort]:,}",
        ]
        for row in predictions.cohorts
    ]
    return table(("Clients a round", *(f"{each.ranks:,} ranks" for each in predictions.cohorts[0]), "Enough"), rows)


def simulation_section(simulated: Sequence[Simulated]) -> str:
    """The formula beside SimGrid."""
    rows = [
        [
            f"{each.ranks:,}",
            f"{each.cohort:,}",
            each.all_reduce,
            f"{each.simulated:.5g}",
            f"{each.formula:.5g}",
            f"{100 * each.error:+.2f}",
        ]
        for each in simulated
    ]
    header = ("Ranks", "Cohort", "All-reduce", "SimGrid (s)", "Formula (s)", "Error (%)")
    far = [each for each in simulated if abs(each.error) > 0.05]
    notes = [
        "Rounds that evaluate and adjust, if the run has such, replayed message by message by SimGrid's SMPI on a "
        "platform made from the same description; clients jitter as in the model. Where NCCL would take its trees, "
        "halving and doubling takes their place in the simulation and in this table's formula: SimGrid cannot let "
        "chunks of a message follow each other over a link. Nobody has to be woken for a message in either.",
        table(header, rows),
        *(
            f"Further apart than 5 %: {each.ranks:,} ranks, {each.cohort:,} clients. The formula takes steps of the "
            f"{each.all_reduce} all-reduce as equal and jitter by its mean; the simulation draws it once."
            for each in far
        ),
    ]
    return "\n\n".join(notes)


def _short(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds else "0"


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"
