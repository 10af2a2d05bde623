import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.sums.exact_sum import LIMIT, FixedPoint, is_summable

CLIENTS = st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 2**32)), min_size=1, max_size=12)


def draw(seed):
    return torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 10


@given(CLIENTS, st.randoms())
def test_the_sum_does_not_depend_on_order_and_equals_the_weighted_average(clients, shuffle):
    total = sum(weight for weight, _ in clients)
    fixed = FixedPoint.for_weight(total)
    one = sum(fixed.encode(draw(seed), weight) for weight, seed in clients)
    shuffled = shuffle.sample(clients, len(clients))
    other = sum(fixed.encode(draw(seed), weight) for weight, seed in shuffled)
    assert torch.equal(one, other)
    exact = sum(draw(seed).double() * weight for weight, seed in clients) / total
    torch.testing.assert_close(fixed.average(one, total), exact.float(), rtol=2e-7, atol=1e-9)


def test_one_client_comes_back_to_the_bit():
    fixed = FixedPoint.for_weight(600)
    values = draw(3)
    assert torch.equal(fixed.average(fixed.encode(values, 600), 600), values)


def test_the_largest_values_allowed_do_not_overflow():
    fixed = FixedPoint.for_weight(1000)
    values = torch.tensor([LIMIT, -LIMIT]) * (1 - 2**-24)
    total = sum(fixed.encode(values, 1) for _ in range(1000))
    assert torch.equal(fixed.average(total, 1000), values)


def test_what_can_be_summed():
    assert is_summable(torch.tensor([0.0, -LIMIT * 0.99]))
    assert is_summable(torch.empty(0))
    for bad in (torch.nan, torch.inf, -torch.inf, LIMIT):
        assert not is_summable(torch.tensor([0.0, bad, 1.0]))
