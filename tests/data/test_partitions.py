import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.dirichlet import draw_counts
from fedmef_dist.data.partitions import PartitionSettings, partition_samples


def rng(seed=0):
    return np.random.default_rng(seed)


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 6), min_size=40, max_size=200),
    clients=st.integers(1, 8),
    scheme=st.sampled_from(["iid", "dirichlet", "shards", "quantity"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_sample_belongs_to_exactly_one_client(labels, clients, scheme, seed):
    partition = PartitionSettings(scheme=scheme, alpha=1.0, min_samples=1)
    order, offsets = partition_samples(np.array(labels), clients, partition, rng(seed))
    assert sorted(order) == list(range(len(labels)))
    assert (order.dtype, offsets.dtype) == (np.int64, np.int64)
    assert (offsets[0], offsets[-1], len(offsets)) == (0, len(labels), clients + 1)
    assert (np.diff(offsets) >= 1).all()


def test_iid_shares_differ_by_one_sample_at_most():
    _, offsets = partition_samples(np.zeros(11, int), 3, PartitionSettings(scheme="iid", min_samples=3), rng())
    assert np.diff(offsets).tolist() == [3, 4, 4]


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=12),
    clients=st.integers(1, 30),
    alpha=st.sampled_from([0.001, 0.1, 0.5, 10.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_full_client_gets_no_more_of_a_class(sizes, clients, alpha, seed):
    counts = draw_counts(np.array(sizes), clients, alpha, rng(seed))
    assert counts.sum(axis=1).tolist() == sizes
    assert counts.min() >= 0
    held = np.cumsum(counts, axis=0)
    full = held[:-1] * clients >= sum(sizes)
    assert not counts[1:][full].any()


class FixedShares:
    """Stands in for the generator and hands out proportions worked out by hand."""

    def __init__(self, *shares):
        self.shares = iter(shares)

    def dirichlet(self, alpha):
        return np.array(next(self.shares))


def test_counts_worked_out_by_hand():
    # 20 samples, 2 clients, so 10 each is full. Class 0 (12): cut at floor(0.75 * 12) = 9 -> 9, 3.
    # Client 0 holds 9 < 10 and may take more. Class 1 (4): cut at floor(0.5 * 4) = 2 -> 2, 2; now 11 and 5.
    # Client 0 is full. Class 2 (4): everything to client 1.
    counts = draw_counts(np.array([12, 4, 4]), 2, 0.5, FixedShares([0.75, 0.25], [0.5, 0.5], [0.9, 0.1]))
    assert counts.tolist() == [[9, 3], [2, 2], [0, 4]]


def test_mass_on_full_clients_only_falls_to_the_open_ones():
    # Class 0 fills client 0 (6 of 8, full at 8/3); the second draw names it alone, so clients 1 and 2 share alike.
    counts = draw_counts(np.array([6, 2]), 3, 0.5, FixedShares([1.0, 0.0, 0.0], [1.0, 0.0, 0.0]))
    assert counts.tolist() == [[6, 0, 0], [0, 1, 1]]


def test_smaller_alpha_skews_the_labels_more():
    sizes = np.full(10, 6000)
    dominant = [draw_counts(sizes, 100, alpha, rng(1)).max(axis=0).mean() for alpha in (0.1, 0.5, 100.0)]
    assert dominant[0] > dominant[1] > dominant[2]


def test_labels_follow_the_drawn_counts():
    labels = rng(3).permutation(np.repeat(np.arange(4), 50))
    order, offsets = partition_samples(labels, 5, PartitionSettings(min_samples=5), rng(4))
    clients = [np.bincount(labels[order[offsets[k] : offsets[k + 1]]], minlength=4) for k in range(5)]
    assert np.std([client / client.sum() for client in clients], axis=0).max() > 0.15  # an equal share would give 0
    assert min(client.sum() for client in clients) >= 5


def test_too_few_samples():
    with pytest.raises(UserError, match=r"11 clients with at least 10 samples each need 110 samples, .* has 100"):
        partition_samples(np.zeros(100, int), 11, PartitionSettings(), rng())


def test_no_samples():
    with pytest.raises(UserError, match="the data set has 0"):
        partition_samples(np.zeros(0, int), 1, PartitionSettings(scheme="iid", min_samples=1), rng())


def test_draws_that_never_succeed_end_with_a_message():
    labels = np.repeat(np.arange(2), 100)
    with pytest.raises(UserError, match=r"none of 1000 Dirichlet draws .*alpha 0\.01.* each of 20 clients 10 samples"):
        partition_samples(labels, 20, PartitionSettings(alpha=0.01, min_samples=10), rng())


# --- the plain Dirichlet


def test_plain_counts_worked_out_by_hand():
    # As above, but nobody is ever full. Class 1 (4): floor(0.5 * 4) = 2; class 2 (4): floor(0.9 * 4) = 3.
    shares = FixedShares([0.75, 0.25], [0.5, 0.5], [0.9, 0.1])
    counts = draw_counts(np.array([12, 4, 4]), 2, 0.5, shares, balanced=False)
    assert counts.tolist() == [[9, 3], [2, 2], [3, 1]]


def test_the_plain_form_varies_sizes_more():
    def spread(balanced):
        counts = (draw_counts(np.full(10, 600), 20, 0.5, rng(seed), balanced) for seed in range(20))
        return np.std([count.sum(axis=0) for count in counts])

    assert spread(balanced=False) > 1.3 * spread(balanced=True)


def test_the_setting_chooses_the_form():
    labels = np.repeat(np.arange(10), 600)
    sizes = [
        np.diff(partition_samples(labels, 20, PartitionSettings(balanced=balanced, min_samples=1), rng(7))[1])
        for balanced in (True, False)
    ]
    assert not np.array_equal(*sizes)


# --- shards


def test_shards_give_a_client_few_labels():
    labels = rng(1).permutation(np.repeat(np.arange(10), 20))
    order, offsets = partition_samples(labels, 10, PartitionSettings(scheme="shards"), rng(2))
    held = [np.unique(labels[order[offsets[k] : offsets[k + 1]]]) for k in range(10)]
    # 20 shards of 10 samples and 20 samples a class: each shard has one label.
    assert np.diff(offsets).tolist() == [20] * 10
    assert max(map(len, held)) == 2


def test_shards_too_small():
    # 100 samples in 30 shards of 3 or 4: three of the short ones make 9.
    settings = PartitionSettings(scheme="shards", shards=3)
    with pytest.raises(UserError, match="10 clients with 3 shards each would hold as few as 9 samples"):
        partition_samples(np.zeros(100, int), 10, settings, rng(3))
    for shards in (11, 10**12):
        settings = PartitionSettings(scheme="shards", shards=shards, min_samples=1)
        with pytest.raises(UserError, match="each need as many samples, there are 100"):
            partition_samples(np.zeros(100, int), 10, settings, rng())


# --- quantity


@pytest.mark.parametrize("quantity", ["lognormal", "power_law"])
def test_sizes_differ_and_labels_do_not(quantity):
    labels = np.arange(60_000) % 10
    settings = PartitionSettings(scheme="quantity", quantity=quantity, sigma=1.0, min_samples=5)
    order, offsets = partition_samples(labels, 100, settings, rng(4))
    sizes = np.diff(offsets)
    assert sizes.min() >= 5
    assert sizes.max() > 5 * np.median(sizes)
    largest = sizes.argmax()
    shares = np.bincount(labels[order[offsets[largest] : offsets[largest + 1]]]) / sizes[largest]
    assert np.abs(shares - 0.1).max() < 0.03


def test_the_logarithms_of_lognormal_sizes_have_the_deviation_asked_for():
    settings = PartitionSettings(scheme="quantity", sigma=0.4, min_samples=1)
    _, offsets = partition_samples(np.zeros(10_000_000, np.int8), 10_000, settings, rng(5))
    # 10,000 draws: the deviation is known to about 0.4 / sqrt(20,000) = 0.003.
    assert np.log(np.diff(offsets) - 1).std() == pytest.approx(0.4, abs=0.015)


@pytest.mark.parametrize("exponent", [1.1, 1.5, 100.0])
@pytest.mark.parametrize("clients", [1, 7, 100])
def test_power_laws_at_the_edge_overflow_nowhere(exponent, clients):
    keys = {"scheme": "quantity", "quantity": "power_law", "exponent": exponent, "min_samples": 1}
    with np.errstate(all="raise", under="ignore"):
        order, offsets = partition_samples(np.zeros(500, int), clients, PartitionSettings(**keys), rng(6))
    sizes = np.diff(offsets)
    assert sizes.min() >= 1
    assert sizes.sum() == 500
    assert np.unique(order).size == 500


def test_a_power_law_in_logarithms_equals_the_plain_formula():
    keys = {"scheme": "quantity", "quantity": "power_law", "exponent": 1.5, "min_samples": 2}
    _, offsets = partition_samples(np.zeros(10_000, int), 10, PartitionSettings(**keys), rng(8))
    shares = (1 - rng(8).random(10)) ** -2.0
    expected = np.diff(np.floor(np.cumsum(shares) / shares.sum() * 9_980), prepend=0) + 2
    assert np.abs(np.diff(offsets) - expected).max() <= 1


@settings(max_examples=60)
@given(
    st.sampled_from(["iid", "dirichlet", "shards", "quantity", "natural"]),
    st.sampled_from(["lognormal", "power_law"]),
    st.sampled_from([1e-300, 0.1, 1e6]),
    st.floats(1.1, 100),
    st.integers(1, 30),
    st.integers(1, 5),
)
def test_no_client_is_empty_or_negative_whatever_the_settings(scheme, quantity, alpha, exponent, clients, least):
    labels = np.arange(120) % 3
    keys = {"scheme": scheme, "quantity": quantity, "alpha": alpha, "exponent": exponent, "min_samples": least}
    try:
        order, offsets = partition_samples(
            labels, clients, PartitionSettings(**keys), rng(clients), np.arange(120) % 30
        )
    except UserError:
        return
    assert np.diff(offsets).min() >= least
    assert len(offsets) == clients + 1
    assert np.unique(order[offsets[0] : offsets[-1]]).size == offsets[-1]


# --- natural


OWNERS = np.array([2, 0, 2, 0, 2, 5, 0, 2])  # 0 has 3 samples, 2 has 4, 5 has 1


def test_natural_clients_keep_their_samples():
    settings = PartitionSettings(scheme="natural", min_samples=2)
    order, offsets = partition_samples(np.zeros(8, int), 2, settings, rng(), OWNERS)
    assert [order[offsets[k] : offsets[k + 1]].tolist() for k in range(2)] == [[1, 3, 6], [0, 2, 4, 7]]


def test_fewer_clients_than_there_are_by_nature_are_a_random_choice():
    settings = PartitionSettings(scheme="natural", min_samples=1)
    chosen = set()
    for seed in range(20):
        order, offsets = partition_samples(np.zeros(8, int), 1, settings, rng(seed), OWNERS)
        assert len(order) == offsets[1]
        chosen |= set(OWNERS[order].tolist())
    assert chosen == {0, 2, 5}


def test_more_clients_than_there_are_by_nature():
    settings = PartitionSettings(scheme="natural", min_samples=2)
    with pytest.raises(UserError, match="has 2 clients with 2 samples or more, not 3"):
        partition_samples(np.zeros(8, int), 3, settings, rng(), OWNERS)


def test_natural_clients_of_a_data_set_that_has_none():
    with pytest.raises(UserError, match="does not say whose its samples are"):
        partition_samples(np.zeros(100, int), 3, PartitionSettings(scheme="natural"), rng())
