from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedmef_dist.base import randomness
from fedmef_dist.base.randomness import uniform_per_client
from fedmef_dist.clients.cohort import FederationSettings, draw_cohort
from fedmef_dist.data.population import FixedPopulation


def population(clients, samples=lambda client: 1):
    offsets = np.concatenate([[0], np.cumsum([samples(client) for client in range(clients)])])
    return FixedPopulation(np.arange(offsets[-1]), offsets)


def cohort(people=None, round=3, seed=0, **settings):
    people = people or population(50, lambda client: client + 1)
    return draw_cohort(people, FederationSettings(clients=people.clients, **settings), seed, round)


# --- one number a client


def test_numbers_per_client_are_splitmix64(monkeypatch):
    # The first outputs of SplitMix64 from state 0 are published test values: e220a8397b1dcdaf, 6e789e6aa1b965f4.
    monkeypatch.setattr(randomness, "_digest", lambda *_: bytes(32))
    found = uniform_per_client(0, "any", np.array([0, 1]))
    assert found.tolist() == [(0xE220A8397B1DCDAF >> 11) * 2.0**-53, (0x6E789E6AA1B965F4 >> 11) * 2.0**-53]


def test_numbers_per_client_do_not_depend_on_who_else_is_asked():
    everyone = uniform_per_client(1, "dropout", np.arange(1000), 5)
    assert uniform_per_client(1, "dropout", np.array([999, 3]), 5).tolist() == [everyone[999], everyone[3]]
    for other in [(2, "dropout", 5), (1, "speed", 5), (1, "dropout", 6)]:
        assert not np.isin(uniform_per_client(other[0], other[1], np.arange(1000), other[2]), everyone).any()
    # Uniform: the mean of 1,000 has a deviation of 0.009, and each tenth holds 100 of them, +- 9.5.
    assert everyone.mean() == pytest.approx(0.5, abs=0.05)
    assert np.abs(np.histogram(everyone, 10, (0, 1))[0] - 100).max() < 48


# --- who is asked


def test_a_cohort_is_drawn_without_replacement_and_anew_each_round():
    first, again, other = cohort(clients_per_round=20), cohort(clients_per_round=20), cohort(None, 4)
    assert first.clients.dtype == np.int64
    assert len(set(first.clients.tolist())) == 20
    assert set(first.clients.tolist()) <= set(range(50))
    assert np.array_equal(first.clients, again.clients)
    assert not np.array_equal(first.clients[:10], other.clients)
    assert np.array_equal(first.asked, first.clients)
    assert np.array_equal(first.samples, first.clients + 1)
    assert (first.dropped, first.late, first.surplus) == (0, 0, 0)


def test_every_client_is_drawn_about_equally_often():
    people = population(10)
    cohorts = np.concatenate([cohort(people, round, clients_per_round=3).clients for round in range(1000)])
    # 300 expected with a standard deviation of 14.5: five deviations either way.
    assert np.abs(np.bincount(cohorts, minlength=10) - 300).max() < 73


def test_weighting():
    assert np.array_equal(cohort().weights, cohort().samples)
    assert cohort(weighting="uniform").weights.tolist() == [1] * 10


def test_clients_can_be_asked_in_their_hours_only():
    people = population(2000)
    settings = {"clients_per_round": 2000, "availability": 0.25, "day_rounds": 8}
    online = np.zeros((16, 2000), dtype=int)
    for round in range(16):
        online[round, cohort(people, round, **settings).asked] = 1
    assert np.array_equal(online[:8], online[8:])  # every day is alike
    assert (online[:8].sum(axis=0) == 2).all()  # a quarter of eight rounds
    starts = (np.diff(online, axis=0, prepend=online[-1:]) == 1).sum(axis=0)
    assert (starts == 2).all()  # once a day, in one piece
    # 500 of 2,000 in a round, with a deviation of 19.
    assert np.abs(online.sum(axis=1) - 500).max() < 97


def test_a_round_may_find_nobody():
    nobody = [cohort(population(1), round, clients_per_round=1, availability=0.1, day_rounds=10) for round in range(10)]
    assert sorted(len(found.asked) for found in nobody) == [0] * 9 + [1]
    assert all(found.weights.sum() == len(found.clients) for found in nobody)


# --- who stays


def test_dropouts_are_counted_and_follow_the_probability():
    people = population(1000)
    found = [cohort(people, round, clients_per_round=500, dropout=0.2) for round in range(20)]
    assert all(len(one.clients) + one.dropped == 500 for one in found)
    # 2,000 of 10,000 expected with a deviation of 40.
    assert sum(one.dropped for one in found) == pytest.approx(2000, abs=200)
    assert not np.array_equal(found[0].clients, found[1].clients)


def test_a_deadline_drops_those_with_too_much_to_do():
    # 1 to 9 samples at equal speeds: the median is 5, so at 1.4 times the median whoever has more than 7 is late.
    people = population(9, lambda client: client + 1)
    found = cohort(people, clients_per_round=9, deadline=1.4)
    assert sorted(found.samples.tolist()) == [1, 2, 3, 4, 5, 6, 7]
    assert (found.dropped, found.late, found.surplus) == (2, 2, 0)


def test_speeds_belong_to_the_client():
    people = population(400, lambda client: 10)
    found = [cohort(people, round, clients_per_round=400, speed_sigma=0.5, deadline=1.5) for round in (1, 2)]
    assert set(found[0].clients.tolist()) == set(found[1].clients.tolist())
    # Slower than 1.5 times the median: log(1.5) / 0.5 = 0.81 deviations, a share of 0.209, or 84 of 400, +- 8.
    assert found[0].late == pytest.approx(84, abs=41)


@pytest.mark.parametrize(("wanted", "factor", "asked"), [(10, 1.1, 11), (50, 1.1, 55), (25, 2.2, 55), (10, 1.11, 12)])
def test_as_many_are_asked_as_the_product_says_in_decimals(wanted, factor, asked):
    # In binary 50 * 1.1 is 55.00000000000001, of which the next whole number would be 56.
    found = cohort(population(100), clients_per_round=wanted, oversample=factor)
    assert (len(found.asked), found.surplus) == (asked, asked - wanted)


def test_more_are_asked_than_taken_and_the_quickest_win():
    people = population(9, lambda client: client + 1)
    found = cohort(people, clients_per_round=6, oversample=1.5)
    assert len(found.asked) == 9
    assert sorted(found.samples.tolist()) == [1, 2, 3, 4, 5, 6]
    assert (found.dropped, found.surplus) == (0, 3)
    assert [client for client in found.asked if client in found.clients] == found.clients.tolist()


@given(
    clients=st.integers(1, 60), dropout=st.floats(0, 0.9), oversample=st.floats(1, 3), sigma=st.floats(0, 3),
    deadline=st.none() | st.floats(0.1, 3), availability=st.floats(0.05, 1), round=st.integers(1, 100), data=st.data(),
)  # fmt: skip
def test_everyone_who_was_asked_is_accounted_for(
    clients, dropout, oversample, sigma, deadline, availability, round, data
):
    per_round = data.draw(st.integers(1, clients))
    found = cohort(
        population(clients, lambda client: client % 7 + 1), round, clients_per_round=per_round, dropout=dropout,
        oversample=oversample, speed_sigma=sigma, deadline=deadline, availability=availability,
    )  # fmt: skip
    assert len(found.asked) == len(found.clients) + found.dropped + found.surplus
    assert len(found.asked) <= min(ceil(per_round * Fraction(str(oversample))), clients)
    assert len(found.clients) <= per_round
    assert set(found.clients.tolist()) <= set(found.asked.tolist())
    assert found.late <= found.dropped
    assert len(found.clients) == len(found.samples) == len(found.weights)


# --- settings


def test_more_clients_a_round_than_clients():
    with pytest.raises(ValidationError, match="clients_per_round is 11 but there are only 10 clients"):
        FederationSettings(clients=10, clients_per_round=11)
    assert FederationSettings(clients=10, clients_per_round=10).clients_per_round == 10


@pytest.mark.parametrize("key", ["clients", "clients_per_round", "rounds", "local_epochs", "batch_size", "day_rounds"])
def test_zero_is_out_of_range(key):
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        FederationSettings(**{key: 0})


@pytest.mark.parametrize("values", [{"dropout": 1.0}, {"availability": 0.0}, {"oversample": 0.9}, {"deadline": 0.0}])
def test_shares_out_of_range(values):
    with pytest.raises(ValidationError):
        FederationSettings(**values)
