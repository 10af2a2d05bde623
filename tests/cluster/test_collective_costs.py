import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.cluster.collective_costs import (
    ALL_REDUCE,
    Link,
    Network,
    all_gather,
    all_reduce,
    broadcast,
    choose_all_reduce,
)

NEAR, FAR = Link(1.0, 100.0), Link(10.0, 50.0)  # latency in s, bytes a second


def network(ranks, local):
    return Network(ranks, local, NEAR, FAR)


@pytest.mark.parametrize(
    ("name", "ranks", "local", "latency", "transfer"),
    [
        ("ring", 4, 4, 6.0, 6 / 4 * 10),  # 2 * 3 steps with a quarter of 1000 bytes each
        ("ring", 8, 4, 140.0, 14 / 8 * 20),  # every step waits for the link between the nodes
        ("recursive doubling", 4, 4, 2.0, 2 * 10),
        ("recursive doubling", 8, 4, 12.0, 2 * 10 + 4 * 20),  # four ranks share the link with everything
        ("halving and doubling", 8, 4, 4.0 + 20.0, 1.5 * 10 + 1.0 * 20),
        ("two-level", 8, 4, 6.0 + 20.0 + 3.0, 1.5 * 10 + 1.0 * 20 + 0.75 * 10),
        ("tree", 8, 4, 6.0 + 20.0, 2 * 20),
    ],
)
def test_an_all_reduce_by_hand(name, ranks, local, latency, transfer):
    found = ALL_REDUCE[name](1000, network(ranks, local))
    assert (found.latency, found.transfer) == pytest.approx((latency, transfer))
    assert found.total == pytest.approx(latency + transfer)


def test_other_collectives_by_hand():
    assert broadcast(1000, network(8, 4)) == pytest.approx((2.0 + 10.0, 2 * 10 + 20))
    assert all_gather(1000, network(4, 4)) == pytest.approx((3.0, 30.0))
    assert all_gather(1000, network(8, 4)) == pytest.approx((70.0, 140.0))


def test_a_single_rank_waits_for_nobody():
    assert all_reduce(1000, network(1, 4), "gloo").total == 0.0
    assert broadcast(1000, network(1, 4)).total == 0.0


def test_gloo_takes_two_levels_where_latency_counts_and_never_on_one_node():
    assert choose_all_reduce(8, network(64, 8), "gloo") == "two-level"
    assert choose_all_reduce(8, network(8, 8), "gloo") == "ring"
    assert choose_all_reduce(8, Network(8, 1, NEAR, FAR), "gloo") == "ring"  # a rank a node: one level is all there is
    slow_inside = Network(64, 8, Link(1e-6, 1.0), Link(1e-6, 1000.0))
    assert choose_all_reduce(10**6, slow_inside, "gloo") == "ring"


def test_mpi_and_nccl_choose_by_size():
    assert choose_all_reduce(2048, network(64, 8), "mpi") == "recursive doubling"
    assert choose_all_reduce(2049, network(64, 8), "mpi") == "halving and doubling"
    assert choose_all_reduce(8, network(64, 8), "nccl") == "tree"
    assert choose_all_reduce(8, network(8, 8), "nccl") == "ring"


@given(st.sampled_from([*ALL_REDUCE]), st.integers(0, 10**9), st.integers(0, 6), st.integers(0, 3))
def test_no_all_reduce_is_faster_than_light(name, size, nodes, local):
    """Two thirds of the ranks' bytes at least cross the slowest link twice, and no step is free."""
    ranks = 2 ** (nodes + local)
    cost = ALL_REDUCE[name](size, network(ranks, 2**local))
    assert cost.latency >= 0
    if ranks > 1:
        link = NEAR if nodes == 0 else FAR
        assert cost.total >= link.latency + size / link.bandwidth
