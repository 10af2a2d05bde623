import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedmef_dist.data.partitions import PartitionSettings
from fedmef_dist.data.population import FederationSettings, Population, build_population, sample_cohort

IID = PartitionSettings(scheme="iid", min_samples=1)


def test_a_population_by_hand():
    population = Population(order=np.array([3, 0, 4, 1, 2]), offsets=np.array([0, 2, 5]))
    assert population.clients == 2
    assert population.sizes.tolist() == [2, 3]
    assert population.samples(1).tolist() == [4, 1, 2]
    assert np.shares_memory(population.samples(1), population.order)


def test_the_same_seed_gives_the_same_population():
    labels = torch.arange(1000) % 10
    federation = FederationSettings(clients=20)
    first, again, other = (build_population(labels, federation, PartitionSettings(), seed) for seed in (1, 1, 2))
    assert np.array_equal(first.order, again.order)
    assert np.array_equal(first.offsets, again.offsets)
    assert not np.array_equal(first.offsets, other.offsets)


def test_a_cohort_is_drawn_without_replacement_and_anew_each_round():
    population = Population(order=np.arange(50), offsets=np.arange(51))
    cohort = sample_cohort(population, 20, seed=0, round=3)
    assert cohort.dtype == np.int64
    assert len(set(cohort.tolist())) == 20
    assert set(cohort.tolist()) <= set(range(50))
    assert np.array_equal(cohort, sample_cohort(population, 20, seed=0, round=3))
    assert not np.array_equal(cohort, sample_cohort(population, 20, seed=0, round=4))


def test_every_client_is_drawn_about_equally_often():
    population = Population(order=np.arange(10), offsets=np.arange(11))
    cohorts = np.concatenate([sample_cohort(population, 3, seed=0, round=round) for round in range(1000)])
    # 300 expected with a standard deviation of 14.5: five deviations either way.
    assert np.abs(np.bincount(cohorts, minlength=10) - 300).max() < 73


def test_a_million_clients_are_two_arrays():
    federation = FederationSettings(clients=1_000_000, clients_per_round=100)
    population = build_population(torch.zeros(1_000_000, dtype=torch.int64), federation, IID, seed=0)
    assert population.order.nbytes + population.offsets.nbytes < 17_000_000
    assert population.samples(999_999).shape == (1,)


def test_more_clients_a_round_than_clients():
    with pytest.raises(ValidationError, match="clients_per_round is 11 but there are only 10 clients"):
        FederationSettings(clients=10, clients_per_round=11)
    assert FederationSettings(clients=10, clients_per_round=10).clients_per_round == 10


@pytest.mark.parametrize("key", ["clients", "clients_per_round", "rounds", "local_epochs", "batch_size"])
def test_zero_is_out_of_range(key):
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        FederationSettings(**{key: 0})
