"""What each rank did and when, in the last rounds of a run that has written its timeline."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedmef_dist.base.text import printable
from fedmef_dist.report.groups import RunGroup
from fedmef_dist.report.page_bars import PHASE_COLOURS, PHASE_WORDS
from fedmef_dist.report.scales import Scale
from fedmef_dist.report.timelines import Span, read_spans

_WIDTH, _LEFT, _ROW = 480, 54, 26
_ROUNDS = 3
_MOST_RANKS, _MOST_SPANS = 32, 1500
_CLIENT = "k7"


@dataclass(frozen=True)
class Rectangle:
    """A span on the paper; a browser shows ``title`` under the pointer."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    title: str


@dataclass(frozen=True)
class SpanChart:
    """Ranks from top to bottom, time from left to right."""

    title: str
    reading: str
    keys: Sequence[tuple[str, str]]
    ticks: Sequence[tuple[float, str]]
    ranks: Sequence[tuple[float, str]]
    spans: Sequence[Rectangle]
    height: int
    bottom: int
    left: int = _LEFT
    width: int = _WIDTH


def span_charts(groups: Sequence[RunGroup]) -> list[SpanChart]:
    """A chart for the first run of a group that has a timeline; of several groups for the first two of them."""
    found = [(group.label, read_spans(group.runs[0].path)) for group in groups[:2]]
    shown = [(label, [span for span in spans if span.rank < _MOST_RANKS]) for label, spans in found]
    return [_chart(label, spans) for label, spans in shown if spans]


def _chart(label: str, spans: Sequence[Span]) -> SpanChart:
    last = max(span.round for span in spans)
    shown = [span for span in spans if span.round > last - _ROUNDS][:_MOST_SPANS]
    start, end = min(span.start for span in shown), max(span.start + span.seconds for span in shown)
    ranks = sorted({span.rank for span in shown})
    scale = Scale(0.0, max(end - start, 1e-6), _LEFT, _WIDTH - 14)
    rows = {rank: place * _ROW for place, rank in enumerate(ranks)}
    first = max(1, last - _ROUNDS + 1)
    return SpanChart(
        f"What each rank did in rounds {first} to {last}: {label}",
        "A row a rank. The upper half is the round's phase, the lower half each client's training. Gaps before the "
        "adding up are ranks that wait for slower ones.",
        [
            *((PHASE_WORDS[name], colour) for name, colour in PHASE_COLOURS.items() if name != "other"),
            ("a client", _CLIENT),
        ],
        scale.ticks(),
        [(row + 0.65 * _ROW, f"rank {rank}") for rank, row in rows.items()],
        [_rectangle(span, rows[span.rank], scale, start) for span in shown],
        height=len(ranks) * _ROW + 40,
        bottom=len(ranks) * _ROW + 2,
    )


def _rectangle(span: Span, row: int, scale: Scale, start: float) -> Rectangle:
    left, right = (
        scale.start + (value - scale.low) / (scale.high - scale.low) * (scale.end - scale.start)
        for value in (span.start - start, span.start - start + span.seconds)
    )
    is_phase = span.name in PHASE_COLOURS
    return Rectangle(
        round(left, 2),
        row + (2 if is_phase else 13),
        max(round(right - left, 2), 0.4),
        11 if is_phase else 8,
        PHASE_COLOURS.get(span.name, _CLIENT),
        printable(
            f"rank {span.rank}, round {span.round}: {PHASE_WORDS.get(span.name, span.name)}, {span.seconds:.4g} s"
        ),
    )
