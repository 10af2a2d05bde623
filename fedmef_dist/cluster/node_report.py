"""What a node tells the others through the store: that it lives, and where each of its ranks is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedmef_dist.cluster.board import Note
from fedmef_dist.cluster.progress import Mark, read_mark

_SHOWN = 8
_TYPES = (str, str, str, bool, bool, bool)


@dataclass(frozen=True)
class NodeReport:
    """A node's ranks.

    Attributes:
        beat: changes while the node lives; empty before the first.
        over: whether all of its ranks have left.
        ranks: what each has written last; only what :meth:`text` puts down.
    """

    beat: str = ""
    over: bool = False
    ranks: Mapping[int, Note] = field(default_factory=dict)

    def text(self) -> str:
        """For the store."""
        ranks = {str(rank): [note.mark, *shown(note)] for rank, note in self.ranks.items()}
        return json.dumps([self.beat, self.over, ranks])

    @property
    def mark(self) -> Mark | None:
        """Of all of its main threads that work; None where one need not move, since its neighbour looks after them."""
        marks = [read_mark(note.mark) for note in self.ranks.values() if not note.over]
        found = [mark for mark in marks if mark is not None]
        if len(found) < len(marks) or not found:
            return None
        return Mark(sum(mark.steps for mark in found), max(mark.longest for mark in found))


def shown(note: Note) -> tuple[str, str, bool, bool, bool]:
    """What of a note the other nodes are told as soon as it changes."""
    return note.host, note.place, note.waiting, note.answered, note.over


def read_report(text: str) -> NodeReport:
    """A report as a node has written it; one without ranks where it is something that no node writes."""
    try:
        beat, over, ranks = json.loads(text)
        found = {int(rank): _read_note(values) for rank, values in ranks.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return NodeReport()
    return NodeReport(str(beat), over is True, found)


def _read_note(values: Sequence[object]) -> Note:
    if not isinstance(values, list) or [type(value) for value in values] != [*_TYPES]:
        raise ValueError("no rank has written this")
    mark, host, place, waiting, answered, over = values
    return Note(host, place, waiting, mark, answered=answered, over=over)


def names(ranks: Sequence[int], notes: Mapping[int, Note]) -> str:
    """These ranks in words, with where each was seen last; eight at most."""
    found = [(rank, notes.get(rank, Note())) for rank in ranks[:_SHOWN]]
    words = [f"rank {rank} on {note.host or 'an unknown host'}, last seen in {note.place}" for rank, note in found]
    return "; ".join(words) + (f"; and {len(ranks) - _SHOWN} more" if len(ranks) > _SHOWN else "")
