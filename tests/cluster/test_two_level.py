import logging

import pytest
import torch
from gloo_threads import LINK, on_levels

from fedmef_dist.cluster.collective_costs import Link, Network
from fedmef_dist.cluster.two_level import LevelTransport, measure_link


@pytest.mark.parametrize(("ranks", "local"), [(1, 1), (2, 1), (4, 2), (6, 3), (6, 2), (16, 4)])
@pytest.mark.parametrize("short", [False, True])
def test_levels_add_up_every_integer(ranks, local, short):
    rows = torch.randint(-(2**40), 2**40, (ranks, 3, 1111), generator=torch.Generator().manual_seed(ranks))

    def work(rank, transport):
        values = rows[rank].clone()
        return values, transport.sum_in_levels(values, short)

    for values, width in on_levels(ranks, local, work):
        assert torch.equal(values, rows.sum(0))
        assert width == 8.0 if not short else width >= 6


def test_large_sums_wrap_as_int64_does():
    rows = torch.full((4, 10), 2**62)
    for values in on_levels(4, 2, lambda rank, transport: (transport.sum_in_levels(rows[rank], True), rows[rank])[1]):
        assert values.tolist() == [0] * 10


def transport(between, sums="auto", local=4):
    """Of two nodes, without anybody to talk to."""

    class Nobody:
        size, rank = 2, 0

    return LevelTransport(Nobody(), Nobody(), Network(2 * local, local, LINK, between), sums)


def test_short_sums_are_for_links_that_are_slower_than_packing():
    gigabit, fast = Link(5e-5, 1.25e8), Link(1e-6, 1e12)
    assert transport(gigabit).is_short(1_000_000)
    assert not transport(gigabit).is_short(10)  # a message more costs more than it saves
    assert not transport(fast).is_short(1_000_000)
    assert transport(fast, "short").is_short(10)
    assert not transport(gigabit, "whole").is_short(1_000_000)


def test_floats_go_over_the_ring_whose_order_is_the_old_one(monkeypatch, caplog):
    calls, made = [], transport(Link(1e-3, 1e9))
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: calls.append(tensor.dtype))
    monkeypatch.setattr(made, "sum_in_levels", lambda tensor, short: calls.append("two-level"))
    caplog.set_level(logging.INFO)
    for kind in (torch.float64, torch.int64, torch.int64):
        made.all_reduce(torch.zeros(4, dtype=kind))
    assert calls == [torch.float64, "two-level", "two-level"]
    assert [record.getMessage() for record in caplog.records] == [
        "an all-reduce of 32 bytes goes in two levels, as others of its size"
    ]


def test_a_measured_link_is_the_same_on_every_rank():
    class Everybody:
        """The sum of one rank is its own."""

        def all_reduce(self, tensor):
            pass

    def work(rank, transport):
        return measure_link(transport.peers, Everybody())

    for link in on_levels(2, 1, work):
        assert 0 < link.latency < 1
        assert link.bandwidth > 1e5
