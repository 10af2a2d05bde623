"""The memory planner: which parts of a network keep, pack, recompute or prune, so that a step fits a budget.

Three steps are traced: one that keeps all inputs whole, one that packs them without loss, one that computes its blocks
again. From them the peak of any mixture follows: what is held by the parts before a stretch of a step changes, what
that stretch itself takes does not. Plans are compared by bytes and counted operations alone, never by a clock.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedmef_dist.devices.timeline import Segment
from fedmef_dist.models.plan import MemoryPlan

TracedForm = Literal["keep", "pack", "recompute"]
Form = TracedForm | float
RATIOS = (0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Trace:
    """One traced step.

    Attributes:
        segments: of the step.
        held: bytes that each module keeps for the backward pass.
    """

    segments: Sequence[Segment]
    held: Mapping[str, int]


@dataclass(frozen=True)
class PackedLayer:
    """A layer's input: its elements, those of them that are not 0, and bytes of each."""

    elements: int
    nonzeros: int
    value_bytes: int

    def saved(self, ratio: float) -> int:
        """Bytes by which pruning at ``ratio`` takes less than packing without loss."""
        bitmap = (self.elements + 7) // 8
        exact = min(self.elements * self.value_bytes, bitmap + self.nonzeros * self.value_bytes)
        kept = min(self.nonzeros, round((1 - ratio) * self.elements))
        return max(exact - bitmap - kept * self.value_bytes, 0)


# A segment, and the layers of its part whose inputs are kept in it.
_Stretch = tuple[Segment, list[PackedLayer]]


@dataclass
class Part:
    """A block, or a module outside of all blocks; what a plan chooses a form for.

    Attributes:
        name: of the module that it begins with.
        layers: the layers in it whose input may be packed.
        is_block: whether it may be computed again.
        operations: what that would take: FLOPs of its forward pass for one sample.
        members: all followed modules in it, in the order of the forward pass.
    """

    name: str
    layers: dict[str, PackedLayer] = field(default_factory=dict)
    is_block: bool = False
    operations: float = 0
    members: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Candidate:
    """A plan and what it would take.

    Attributes:
        forms: of each part, in order.
        peak: bytes, the state included.
        operations: FLOPs computed a second time, for one sample.
        pruned: the largest ratio, 0 where all gradients are exact.
    """

    forms: tuple[Form, ...]
    peak: int
    operations: float
    pruned: float


class Planner:
    """Searches plans of one model and batch.

    Args:
        parts: in the order of the forward pass.
        traces: of the steps that keep, pack and recompute.
        state: bytes that live from step to step.
        prunes: whether inexact plans may be made at all.
    """

    def __init__(self, parts: Sequence[Part], traces: Mapping[TracedForm, Trace], state: int, prunes: bool) -> None:
        self.parts, self.state, self.prunes = parts, state, prunes
        self._place = {name: place for place, part in enumerate(parts) for name in (part.name, *part.members)}
        self._traces = traces
        self._held = {how: self._by_part(trace) for how, trace in traces.items()}
        self._segments = {how: self._segments_of(trace) for how, trace in traces.items()}
        everything = (segment for trace in traces.values() for segment in trace.segments)
        self._outside = [segment.peak for segment in everything if segment.owner is None]

    def _by_part(self, trace: Trace) -> list[int]:
        held = [0] * len(self.parts)
        for name, size in trace.held.items():
            if name in self._place:
                held[self._place[name]] += size
        return held

    def _segments_of(self, trace: Trace) -> list[list[_Stretch]]:
        """Of each part; a layer's input is kept from its first segment, forward, to its second, backward."""
        found: list[list[_Stretch]] = [[] for _ in self.parts]
        alive: list[list[PackedLayer]] = [[] for _ in self.parts]
        forward: set[str] = set()
        for segment in trace.segments:
            if segment.owner not in self._place:
                continue
            place = self._place[segment.owner]
            layer = self.parts[place].layers.get(segment.owner)
            if layer is not None and segment.owner not in forward:
                alive[place].append(layer)
            found[place].append((segment, list(alive[place])))
            if layer is not None and segment.owner in forward and layer in alive[place]:
                alive[place].remove(layer)
            forward.add(segment.owner)
        return found

    def held(self, place: int, form: Form) -> int:
        """Bytes that a part keeps in this form."""
        if isinstance(form, float):
            return self._held["pack"][place] - sum(layer.saved(form) for layer in self.parts[place].layers.values())
        return self._held[form][place]

    def peak(self, forms: Sequence[Form]) -> int:
        """The predicted peak of a step, the state included."""
        held = [self.held(place, form) for place, form in enumerate(forms)]
        most = max(self._outside)
        changed = dict.fromkeys(self._traces, 0)  # of what is held by the parts before, over what the trace had there
        for place, form in enumerate(forms):
            how = "pack" if isinstance(form, float) else form
            for segment, layers in self._segments[how][place]:
                own = sum(layer.saved(form) for layer in layers) if isinstance(form, float) else 0
                most = max(most, segment.peak + changed[how] - own)
            for trace in changed:
                changed[trace] += held[place] - self._held[trace][place]
        return self.state + most

    def candidate(self, forms: Sequence[Form]) -> Candidate:
        """A plan with what it takes."""
        operations = sum(part.operations for part, form in zip(self.parts, forms, strict=True) if form == "recompute")
        ratios = [form for form in forms if isinstance(form, float)]
        return Candidate(tuple(forms), self.peak(forms), operations, max(ratios, default=0.0))

    def sequence(self) -> Iterator[Candidate]:
        """Plans of rising cost: first keep, then pack, then recompute, then prune more and more. No step takes more."""
        forms: list[Form] = ["keep"] * len(self.parts)
        now = self.candidate(forms)
        yield now
        for place, form in self._moves():
            before = forms[place]
            if self.held(place, form) > self.held(place, before) and not isinstance(form, float):
                continue
            forms[place] = form
            moved = self.candidate(forms)
            if moved.peak > now.peak:
                forms[place] = before
            else:
                now = moved
                yield now

    def _moves(self) -> Iterator[tuple[int, Form]]:
        places = range(len(self.parts))

        def gain(place: int, old: Form, new: Form) -> int:
            return self.held(place, old) - self.held(place, new)

        yield from ((place, "pack") for place in sorted(places, key=lambda place: -gain(place, "keep", "pack")))
        blocks = [place for place in places if self.parts[place].is_block]
        worth = {place: gain(place, "pack", "recompute") / (self.parts[place].operations or 1) for place in blocks}
        yield from ((place, "recompute") for place in sorted(blocks, key=lambda place: -worth[place]))
        for ratio in RATIOS if self.prunes else ():
            layered = [place for place in places if self.parts[place].layers]
            yield from ((place, ratio) for place in sorted(layered, key=lambda place: -gain(place, "pack", ratio)))

    def cheapest(self, budget: int) -> Candidate | None:
        """The plan of least cost whose predicted peak is within ``budget``; None where there is none."""
        history: list[Candidate] = []
        for candidate in self.sequence():
            history.append(candidate)
            if candidate.peak <= budget:
                return self._relaxed(candidate, history, budget)
        return None

    def _relaxed(self, found: Candidate, history: Sequence[Candidate], budget: int) -> Candidate:
        """Takes back what turns out not to be needed, the costliest first: the order of the moves backwards."""
        for before, after in zip(history[-2::-1], history[:0:-1], strict=True):
            pairs = zip(before.forms, after.forms, strict=True)
            place = next(place for place, (old, new) in enumerate(pairs) if old != new)
            if found.forms[place] != after.forms[place]:
                continue
            forms = [*found.forms[:place], before.forms[place], *found.forms[place + 1 :]]
            eased = self.candidate(forms)
            if eased.peak <= budget:
                found = eased
        return found

    def front(self) -> list[Candidate]:
        """Plans none of which is beaten in peak and cost by another, from the largest peak to the smallest."""
        best: dict[int, Candidate] = {}
        for candidate in self.sequence():
            best.setdefault(candidate.peak, candidate)
        return list(best.values())

    def plan(self, candidate: Candidate) -> MemoryPlan:
        """The plan in the form in which a model takes it."""
        layers: dict[str, float | None] = {}
        for part, form in zip(self.parts, candidate.forms, strict=True):
            ratio = form if isinstance(form, float) else 0.0 if form == "pack" else None
            layers |= dict.fromkeys(part.layers, ratio)
        pairs = zip(self.parts, candidate.forms, strict=True)
        return MemoryPlan(layers, frozenset(part.name for part, form in pairs if form == "recompute"))
