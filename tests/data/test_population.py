import numpy as np
import pytest
import torch

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.partitions import PartitionSettings
from fedmef_dist.data.population import FixedPopulation, LazyPopulation, build_population

IID = PartitionSettings(scheme="iid", min_samples=1)


def test_a_population_by_hand():
    population = FixedPopulation(order=np.array([3, 0, 4, 1, 2]), offsets=np.array([0, 2, 5]))
    assert population.clients == 2
    assert population.sizes(np.array([1, 0])).tolist() == [3, 2]
    assert population.samples(1).tolist() == [4, 1, 2]
    assert np.shares_memory(population.samples(1), population.order)


def test_the_same_seed_gives_the_same_population():
    labels = torch.arange(1000) % 10
    first, again, other = (build_population(labels, None, 20, PartitionSettings(), seed) for seed in (1, 1, 2))
    assert np.array_equal(first.order, again.order)
    assert np.array_equal(first.offsets, again.offsets)
    assert not np.array_equal(first.offsets, other.offsets)


def test_a_million_clients_are_two_arrays():
    population = build_population(torch.zeros(1_000_000, dtype=torch.int64), None, 1_000_000, IID, seed=0)
    assert population.order.nbytes + population.offsets.nbytes < 17_000_000
    assert population.samples(999_999).shape == (1,)


def test_natural_clients():
    owners = torch.tensor([1, 0, 1, 0, 1])
    population = build_population(
        torch.zeros(5, dtype=torch.int64), owners, 2, PartitionSettings(scheme="natural", min_samples=1), seed=0
    )
    assert [population.samples(client).tolist() for client in range(2)] == [[1, 3], [0, 2, 4]]


# --- lazy


def lazy(clients=1_000_000, seed=0, labels=None, **settings):
    labels = torch.arange(6000) % 10 if labels is None else labels
    return build_population(labels, None, clients, PartitionSettings(scheme="lazy_dirichlet", **settings), seed)


def test_a_lazy_client_depends_on_seed_and_number_alone():
    population, again = lazy(), lazy(clients=1000)
    again.samples(5)  # the order of asking does not matter
    for client in (999, 0, 7):
        assert np.array_equal(population.samples(client), again.samples(client))
        assert not np.array_equal(population.samples(client), lazy(seed=1).samples(client))
    assert not np.array_equal(population.samples(0)[:20], population.samples(1)[:20])


def test_a_lazy_client_holds_as_many_samples_as_it_says():
    population = lazy(client_samples=50, sigma=1.0, min_samples=20)
    clients = np.array([0, 999_999, 31])
    sizes = population.sizes(clients)
    assert sizes.dtype == np.int64
    assert [len(population.samples(client)) for client in clients] == sizes.tolist()
    assert population.sizes(np.arange(200)).min() == 20  # a lognormal of this width is below 20 in one case of three


def test_lazy_sizes_have_the_mean_and_the_spread_asked_for():
    sizes = lazy(client_samples=1000, sigma=0.5).sizes(np.arange(4000))
    # Deviation of a size: 1000 * sqrt(exp(0.25) - 1) = 533; of the mean of 4,000: 8.
    assert sizes.mean() == pytest.approx(1000, abs=40)
    assert np.log(sizes).std() == pytest.approx(0.5, abs=0.03)
    assert (lazy(client_samples=80, sigma=0.0).sizes(np.arange(10)) == 80).all()


def test_lazy_labels_are_skewed_by_alpha_and_even_over_all_clients():
    labels = torch.arange(6000) % 10

    def counts(alpha):
        population = lazy(alpha=alpha, sigma=0.0)
        return np.stack([np.bincount(labels[population.samples(k)], minlength=10) for k in range(400)])

    skewed, even = counts(0.1), counts(100.0)
    assert skewed.max(axis=1).mean() > 60 > 25 > even.max(axis=1).mean()
    # A class's share of a client has deviation sqrt(0.09 / 2) = 0.21 at alpha 0.1; of the mean of 400: 0.011.
    assert np.abs(skewed.sum(axis=0) / skewed.sum() - 0.1).max() < 0.045


def test_lazy_clients_know_only_classes_that_there_are_and_reach_all_their_samples():
    labels = torch.tensor([7, 2, 7, 2, 7])
    population = lazy(labels=labels, alpha=100.0)
    drawn = np.concatenate([population.samples(client) for client in range(5)])
    assert set(drawn.tolist()) == {0, 1, 2, 3, 4}


def test_lazy_clients_of_nothing():
    with pytest.raises(UserError, match="no training samples"):
        lazy(labels=torch.empty(0, dtype=torch.int64))
    assert isinstance(lazy(), LazyPopulation)


def test_samples_of_all_clients():
    fixed = FixedPopulation(np.arange(5), np.array([0, 2, 5]))
    assert fixed.total_samples == 5
    many = lazy(client_samples=100, sigma=0.5)
    assert many.total_samples == many.clients * 100
    assert lazy(client_samples=5, min_samples=20).total_samples == many.clients * 20


def test_a_lazy_size_does_not_depend_on_who_else_is_asked_for():
    population, clients = lazy(sigma=1.5), np.random.default_rng(0).integers(0, 1_000_000, 5000)
    at_once = population.sizes(clients)
    assert at_once[::-500].tolist() == [population.sizes(clients[[place]])[0] for place in range(4999, -1, -500)]
    assert at_once.min() == 10  # min_samples, reached
