from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import measurement

from fedmef_dist.cluster.collective_costs import Link, Network, all_reduce
from fedmef_dist.scaling.cost_model import SMALL_BYTES, CostModel
from fedmef_dist.scaling.fitting import fit, left_out, non_negative, work_of
from fedmef_dist.scaling.probe import Probe

NEAR, FAR = Link(2e-5, 1e9), Link(1e-4, 1e8)


def probes(link, local):
    """All-reduces on two, three and four ranks, of one node or of a rank a node, as long as the formula says."""
    found = []
    for ranks in (2, 3, 4):
        for size in (8, 10_000, 1_000_000):
            seconds = all_reduce(size, Network(ranks, ranks, link, link), "gloo").total
            found.append(Probe(ranks, ranks if local else 1, "gloo", size, seconds))
    return found


def summed(size, ranks):
    """Seconds of an all-reduce over ranks of one node."""
    return all_reduce(size, Network(ranks, ranks, NEAR, NEAR), "gloo").total


def made(truth, ranks, cohort=(10.0, 20.0, 30.0, 60.0)):
    crowd = 1 + truth.crowding * (ranks - 1)
    seconds = truth.costs(np.array(cohort), ranks)
    run = measurement(
        ranks,
        seconds.sum() / ranks,
        cohort,
        adjust=crowd * truth.server,
        eval=crowd * truth.evaluate / ranks + summed(SMALL_BYTES, ranks),
        other=crowd * truth.rest,
    )
    return replace(run, job_seconds=np.tile(seconds, run.rounds))


def test_the_fit_finds_the_costs_that_made_the_measurements():
    truth = CostModel(
        client=0.5, sample=0.1, neighbour=0.02, inside=NEAR, between=FAR, server=0.125, evaluate=4.0, rest=0.125,
        start=3.0, draw=1e-9, crowding=0.25,
    )  # fmt: skip
    found = fit([made(truth, ranks) for ranks in (1, 2, 4)], probes(NEAR, True) + probes(FAR, False), 1e-9)
    assert found.model.inside.latency == pytest.approx(NEAR.latency)
    assert found.model.inside.bandwidth == pytest.approx(NEAR.bandwidth)
    assert found.model.between.bandwidth == pytest.approx(FAR.bandwidth)
    links = {"inside": NEAR, "between": FAR}
    assert vars(replace(found.model, **links)) == pytest.approx(vars(truth), abs=1e-6)
    errors = {each.name: each.error for each in found.coefficients if each.error is not None}
    assert set(errors) == {
        "a client", "a sample", "a sample, each further rank on the node", "the server's step",
        "latency inside a node", "bandwidth inside a node", "latency between nodes", "bandwidth between nodes",
    }  # fmt: skip
    assert max(errors.values()) < 1e-6


def test_runs_with_equally_many_neighbours_say_nothing_of_what_one_costs():
    """Of 0.1 s a sample none is put down to the neighbour, which other nodes may not have."""
    model = fit([made(CostModel(client=0.5, sample=0.1), 2)], probes(NEAR, True)).model
    assert model.neighbour == 0
    assert model.sample == pytest.approx(0.1)


def test_without_a_probe_links_are_fitted_to_the_rounds_reductions():
    runs = [measurement(ranks, 1.0, reduce=2 * (ranks - 1) * 0.25) for ranks in (1, 2, 4)]
    assert fit(runs).model.inside.latency == pytest.approx(0.25)
    uneven = [measurement(ranks, 1.0, reduce=seconds) for ranks, seconds in ((1, 0), (2, 0.1), (4, 0.5), (8, 2.0))]
    assert fit(uneven).model.waking == 0  # what a fit leaves over is not what a message takes longer than its link


def test_what_sums_take_longer_than_probes_say_is_put_down_to_their_messages():
    """A ring over P ranks has 2 (P - 1) of them, in the round's sum and in an evaluation's."""

    def run(ranks):
        messages = 2 * (ranks - 1)
        reduce, small = (summed(size, ranks) + messages * 0.005 for size in (1000, SMALL_BYTES))
        return measurement(ranks, 1.0, reduce=reduce, eval=0.5 / ranks + small)

    found = fit([run(ranks) for ranks in (1, 2, 4)], probes(NEAR, True))
    assert found.model.waking == pytest.approx(0.005)
    assert found.model.evaluate == pytest.approx(0.5)
    (error,) = [each.error for each in found.coefficients if each.name.startswith("a message")]
    assert error == pytest.approx(0.0, abs=1e-9)


def test_one_number_of_ranks_is_fitted_without_a_network():
    found = fit([measurement(1, 3.0)])
    assert found.model.network(8, 8).inside == Link(0.0, float("inf"))
    assert found.model.client + 30 * found.model.sample / 2 == pytest.approx(1.5)
    assert not [each for each in found.coefficients if "node" in each.name and "latency" in each.name]


def test_jitter_is_the_spread_around_what_samples_say():
    run = measurement(1, 3.0, cohort=(10.0, 20.0))
    run = replace(run, job_seconds=run.job_seconds * np.array([1.1, 1.1, 0.9, 0.9]))
    assert fit([run]).model.jitter == pytest.approx(0.1, rel=0.1)


def test_what_is_left_out_is_predicted_from_the_others():
    error = left_out([1.0, 2.0, 6.0], lambda others, one: abs(sum(others) / len(others) / one - 1))
    assert error == pytest.approx(0.75)  # 4 / 1, 3.5 / 2, 1.5 / 6
    assert left_out([1.0, 2.0], lambda others, one: 0.0) is None


def test_what_rounds_hand_over_is_without_the_slots_of_clients_and_ranks():
    assert work_of(measurement(2, 1.0)).reduce_bytes == 1000 - 8 * 4
    assert work_of(measurement(2, 1.0)).size(100, 50) == 968 + 8 * 150


@given(st.lists(st.tuples(*[st.floats(-10, 10)] * 3), min_size=4, max_size=12))
def test_no_cost_is_negative_and_none_fits_worse_than_zero(rows):
    first, second, values = (np.array(column) for column in zip(*rows, strict=True))
    found = non_negative([first, second], values)
    assert min(found) >= 0
    residual = np.linalg.norm(found[0] * first + found[1] * second - values)
    assert residual <= np.linalg.norm(values) * (1 + 1e-9) + 1e-9


def test_a_negative_cost_is_left_out_and_the_rest_fitted_again():
    # Free, the first column would get -1 and the second 3; alone the second gets 8 / 5.
    first, second = np.array([1.0, 2.0]), np.array([1.0, 2.0 + 1e-3])
    assert non_negative([first, second], 3 * second - first)[0] == 0.0
    assert non_negative([np.array([1.0, 0.0])], np.array([-1.0, 0.0])) == [0.0]
