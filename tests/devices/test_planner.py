import pytest

from fedmef_dist.devices.planner import PackedLayer, Part, Planner, Trace
from fedmef_dist.devices.timeline import Segment

# A stem and two blocks. Kept whole they hold 10, 100 and 60; packed 10, 50 and 40; computed again 10, 20 and 20.
HELD = {"keep": (10, 100, 60), "pack": (10, 50, 40), "recompute": (10, 20, 20)}
OPEN = {"keep": 30, "pack": 30, "recompute": 55}  # what a block's backward pass takes beside what is held


def trace(form):
    stem, one, two = HELD[form]
    segments = [
        Segment(None, 0),
        Segment("stem", stem + 5),
        Segment("one", stem + one + 10),
        Segment("two", stem + one + two + OPEN[form]),
        Segment("two", stem + one + two + OPEN[form] - 3),
        Segment("one", stem + one + OPEN[form]),
        Segment("stem", stem),
        Segment(None, 8),
    ]
    return Trace(segments, {"stem": stem, "one": one, "two": two, "": 1})


def planner(prunes=True):
    # Packed, 100 elements of 4 bytes would take 13 + 4 * 50; these are only as many as the held bytes above allow.
    layer = PackedLayer(elements=16, nonzeros=10, value_bytes=4)
    parts = [
        Part("stem", members=["stem"]),
        Part("one", {"one": layer}, is_block=True, operations=4, members=["one"]),
        Part("two", {"two": layer}, is_block=True, operations=1, members=["two"]),
    ]
    return Planner(parts, {form: trace(form) for form in HELD}, state=1000, prunes=prunes)


def test_the_traced_steps_come_back():
    for form, held in HELD.items():
        assert planner().peak([form] * 3) == 1000 + sum(held) + OPEN[form]


def test_a_mixture_by_hand():
    # When the second block's backward pass runs, the first holds its 20; the second is as it was traced.
    assert planner().peak(["keep", "recompute", "pack"]) == 1000 + 10 + 20 + 40 + 30
    # Now the second block's takes 55 beside 10 + 100 + 20.
    assert planner().peak(["keep", "keep", "recompute"]) == 1000 + 10 + 100 + 20 + 55


def test_what_pruning_saves_by_hand():
    layer = PackedLayer(elements=80, nonzeros=50, value_bytes=4)
    assert layer.saved(0.3) == 0  # 56 may stay, and there are 50
    assert layer.saved(0.5) == 4 * (50 - 40)
    assert layer.saved(0.9) == 4 * (50 - 8)
    # Without zeros packing takes more than the whole: 10 + 320 bytes.
    assert PackedLayer(80, 80, 4).saved(0.5) == 320 - (10 + 4 * 40)


def test_exact_plans_come_first_and_those_that_compute_least_again():
    found = planner()
    assert found.cheapest(1200).forms == ("keep", "keep", "keep")
    # 1150 needs 50 less: packing the first block does, and nothing else is touched.
    assert found.cheapest(1150).forms == ("keep", "pack", "keep")
    assert found.cheapest(1130).forms == ("keep", "pack", "pack")
    tight = found.cheapest(1100)
    assert tight.pruned == 0
    assert tight.forms == ("keep", "recompute", "pack")
    assert tight.operations == 4


def test_inexact_plans_only_where_nothing_else_fits_and_where_they_are_allowed():
    smallest = min(candidate.peak for candidate in planner(prunes=False).sequence())
    assert planner(prunes=False).cheapest(smallest - 1) is None
    below = planner().cheapest(smallest - 1)
    assert below.pruned > 0
    assert below.peak < smallest


def test_no_step_of_the_sequence_takes_more_and_the_front_is_sorted():
    peaks = [candidate.peak for candidate in planner().sequence()]
    assert peaks == sorted(peaks, reverse=True)
    front = planner().front()
    assert [candidate.peak for candidate in front] == sorted({candidate.peak for candidate in front}, reverse=True)


@pytest.mark.parametrize("budget", range(1080, 1210, 10))
def test_the_cheapest_plan_fits(budget):
    found = planner().cheapest(budget)
    if found is not None:
        assert found.peak <= budget
        plan = planner().plan(found)
        assert plan.is_exact == (found.pruned == 0)
        assert plan.recomputed == {
            name for name, form in zip(("stem", "one", "two"), found.forms, strict=True) if form == "recompute"
        }
