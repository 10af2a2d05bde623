"""Clients beside each other: a step of each in turn."""

from contextlib import closing, contextmanager

import pytest
import torch
from torch import nn

from fedmef_dist.clients.plan import LocalWork
from fedmef_dist.clients.slots import all_steps, take_turns
from fedmef_dist.cluster.gpu import SideStream
from fedmef_dist.sparsity import ParameterSpace


class Noted(SideStream):
    """A stream that notes what it is asked, under its number."""

    def __init__(self, number, noted):
        super().__init__()
        self.number, self.noted = number, noted

    def fork(self):
        self.noted.append(("fork", self.number))

    def join(self):
        self.noted.append(("join", self.number))

    @contextmanager
    def within(self):
        self.noted.append(("enter", self.number))
        yield
        self.noted.append(("leave", self.number))


def job(name, steps, noted):
    """Makes so many steps, notes each, and comes to its name."""

    def play(slot):
        try:
            for step in range(steps):
                noted.append((name, step, slot))
                yield
        finally:
            noted.append((name, "over"))
        return name

    return play


def test_all_steps_give_what_the_work_comes_to():
    noted = []
    assert all_steps(job("a", 3, noted)(0)) == "a"
    assert noted == [("a", 0, 0), ("a", 1, 0), ("a", 2, 0), ("a", "over")]


def test_in_one_slot_jobs_come_one_after_the_other():
    noted = []
    jobs = [job("a", 2, noted), job("b", 1, noted)]
    assert list(take_turns([SideStream()], jobs)) == ["a", "b"]
    assert noted == [("a", 0, 0), ("a", 1, 0), ("a", "over"), ("b", 0, 0), ("b", "over")]


def test_in_two_slots_jobs_make_a_step_in_turn_and_the_next_one_takes_the_slot_that_is_free():
    noted = []
    jobs = [job("a", 3, noted), job("b", 1, noted), job("c", 2, noted)]
    assert list(take_turns([SideStream(), SideStream()], jobs)) == ["b", "a", "c"]
    steps = [one for one in noted if one[1] != "over"]
    assert steps == [("a", 0, 0), ("b", 0, 1), ("a", 1, 0), ("a", 2, 0), ("c", 0, 1), ("c", 1, 1)]


@pytest.mark.parametrize("slots", [0, 1, 3])
def test_without_jobs_nothing_happens(slots):
    assert list(take_turns([SideStream()] * slots, [])) == []


def test_a_job_is_behind_what_was_before_it_and_before_what_uses_its_result():
    noted = []
    with closing(take_turns([Noted(0, noted), Noted(1, noted)], [job("a", 1, noted), job("b", 2, noted)])) as turns:
        for name in turns:
            noted.append(("used", name))
    assert [one for one in noted if one[0] in ("fork", "join", "used")] == [
        *(("fork", 0), ("fork", 1)),
        *(("join", 0), ("used", "a")),
        *(("join", 1), ("used", "b")),
    ]
    inside = None
    for what, *rest in noted:  # every step is made inside of its own slot's stream
        inside = {"enter": rest[0], "leave": None}.get(what, inside)
        assert what not in "ab" or rest[0] == "over" or inside == rest[1]


def test_where_one_fails_the_others_are_closed_and_waited_for():
    noted = []

    def failing(slot):
        yield
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(take_turns([Noted(0, noted), Noted(1, noted)], [failing, job("b", 9, noted), job("c", 9, noted)]))
    assert ("b", "over") in noted
    assert ("c", 0, 0) not in noted
    assert {("join", 0), ("join", 1)} <= {*noted}


class Work(LocalWork):
    """Holds the space directly, in a part, and a view of a state."""

    def __init__(self, space, values):
        self.space, self.parts, self.values = space, [space, {"mask": space.mask}], values[:2]


def test_moved_work_is_on_the_other_space_and_shares_nothing_but_the_mask():
    here, there = (ParameterSpace(nn.Linear(3, 2), ["weight"]) for _ in range(2))
    work = Work(here, torch.arange(8.0))
    moved = work.moved(here, there)
    assert moved.space is moved.parts[0] is there
    assert moved.parts[1]["mask"] is here.mask
    assert work.space is work.parts[0] is here
    moved.values.zero_()
    assert work.values.tolist() == [0.0, 1.0]
