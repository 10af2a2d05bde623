"""A memory plan, and the front of all plans of a model, as tables and as a plot."""

from collections.abc import Sequence
from pathlib import Path

from fedmef_dist.devices.planner import Candidate, Planner
from fedmef_dist.report.figures import new_figure
from fedmef_dist.report.memory import gradient, label, save_plot, table
from fedmef_dist.report.units import decimal_prefix, scaled
from fedmef_dist.simulation.footprint import Footprint
from fedmef_dist.simulation.planning import Planned

_ROWS = 20
_NOTE = """\
front: plans of which none is beaten. again: operations that are computed a second time, as a share of a step's forward
pass in all blocks. pruned: the largest share of an input that is dropped; exact where it is none. Peaks are predicted
from three traced steps, of the round that takes most: where the method ever reads the gradient of all parameters, that
is in them."""


def plan_report(found: Planned, budget: int) -> str:
    """What each part does under the plan, the peak as predicted and as measured, and the front."""
    planner, candidate = found.planner, found.candidate
    rows = [
        (part.name or "(all stages)", _form(form), scaled(planner.held(place, form), "B"))
        for place, (part, form) in enumerate(zip(planner.parts, candidate.forms, strict=True))
        if part.layers or part.is_block
    ]
    front = [_front_row(planner, one) for one in thinned(planner.front())]
    difference = 100 * (candidate.peak / found.measured - 1)
    return "\n".join(
        [
            f"Plan for {scaled(budget, 'B')}:\n",
            *table(("part", "form", "held"), rows, words=2),
            f"\npeak predicted {candidate.peak:,} bytes, measured {found.measured:,} ({difference:+.2f} %); "
            f"gradient {'exact' if not candidate.pruned else 'not exact'}\n",
            *table(("peak", "again", "pruned"), front, words=0),
            f"\n{_NOTE}",
        ]
    )


def _form(form: object) -> str:
    return f"prune p = {form:g}" if isinstance(form, float) else str(form)


def _front_row(planner: Planner, candidate: Candidate) -> tuple[str, ...]:
    again = candidate.operations / (sum(part.operations for part in planner.parts) or 1)
    pruned = f"p = {candidate.pruned:g}" if candidate.pruned else "exact"
    return f"{candidate.peak / 1e6:.3f} MB", f"{100 * again:.0f} %", pruned


def thinned(front: Sequence[Candidate]) -> list[Candidate]:
    """At most twenty plans of a front, its ends among them."""
    if len(front) <= _ROWS:
        return list(front)
    return [front[round(place * (len(front) - 1) / (_ROWS - 1))] for place in range(_ROWS)]


def save_front(planner: Planner, footprints: Sequence[Footprint], path: Path) -> None:
    """Draw the front, predicted peak over repeated operations, exact and pruned plans apart, and the named settings.

    These have to be measured in the round that takes most (``every_round``), as plans are.

    Raises UserError where ``path`` cannot be written.
    """
    figure, (axes,) = new_figure(1)
    figure.set_size_inches(7.2, 4.2)
    everything = sum(part.operations for part in planner.parts) or 1
    front = planner.front()
    unit, prefix = decimal_prefix(max(candidate.peak for candidate in front))
    for exact, marker, colour in ((True, "o", "#1b4f8a"), (False, "s", "#e08a3c")):
        some = [candidate for candidate in front if (not candidate.pruned) == exact]
        axes.plot(
            [candidate.peak / unit for candidate in some],
            [100 * candidate.operations / everything for candidate in some],
            ls="-",
            marker=marker,
            ms=4,
            color=colour,
            label=f"plans, {'exact' if exact else 'pruned'}",
        )
    for place, footprint in enumerate(footprints):
        at = footprint.measured.peak_bytes / unit
        axes.axvline(at, color="#555555", lw=0.6, ls=":")
        name = f"{label(footprint.setting)} ({gradient(footprint)})"
        axes.annotate(name, (at, 1 - 0.08 * (place % 12)), xycoords=("data", "axes fraction"), fontsize=6, va="top")
    axes.set(xlabel=f"Peak of a training step ({prefix}B)", ylabel="Operations of blocks computed again (%)")
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    save_plot(figure, path)
