from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.report.intervals import Paired, paired, student_quantile


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281), (29, 2.0452), (120, 1.9799)],
)
def test_quantiles_as_printed_in_tables(freedom, quantile):
    assert student_quantile(freedom) == pytest.approx(quantile, abs=5e-5)


def test_one_and_two_degrees_of_freedom_have_closed_forms():
    # Cauchy's quantile; and for two degrees P(|T| < t) = t / sqrt(2 + t^2).
    assert student_quantile(1, 0.5) == pytest.approx(1)
    assert student_quantile(2, 0.8) == pytest.approx(0.8 * sqrt(2 / (1 - 0.64)))


@pytest.mark.parametrize("freedom", [4, 7])
def test_the_density_between_the_quantiles_integrates_to_the_coverage(freedom):
    def mass(reach):
        t = np.linspace(-reach, reach, 2_000_001)
        return ((1 + t * t / freedom) ** (-(freedom + 1) / 2)).mean() * 2 * reach

    # Beyond 3,000 lies less than 1e-12 of it.
    assert mass(student_quantile(freedom)) / mass(3000.0) == pytest.approx(0.95, abs=1e-4)


def test_five_differences_by_hand():
    # Mean 3, squares 4 + 1 + 0 + 1 + 4 = 10, deviation sqrt(10 / 4), error sqrt(0.5); t with four degrees is 2.7764.
    numbers = paired([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (numbers.pairs, numbers.mean) == (5, 3)
    assert numbers.error == pytest.approx(sqrt(0.5))
    assert numbers.low == pytest.approx(3 - 2.7764 * sqrt(0.5), abs=1e-4)
    assert numbers.high == pytest.approx(3 + 2.7764 * sqrt(0.5), abs=1e-4)
    assert numbers.effect == pytest.approx(3 / sqrt(2.5))
    assert numbers.verdict == "higher"
    assert paired([-1.0, -2.0, -3.0, -4.0, -5.0]).verdict == "lower"


def test_too_few_or_equal_differences():
    assert paired([]) == Paired(0)
    assert paired([0.5]) == Paired(1, 0.5)
    assert [paired(few).verdict for few in ([], [0.5])] == ["not settled"] * 2
    same = paired([0.25, 0.25 + 1e-16, 0.25])
    assert (same.low, same.high, same.error, same.effect, same.verdict) == (same.mean, same.mean, 0, None, "higher")
    assert paired([0.0, 0.0]).verdict == "not settled"


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=30))
def test_nothing_is_higher_or_lower_whose_interval_includes_0(differences):
    numbers = paired(differences)
    assert numbers.low <= numbers.mean <= numbers.high
    assert (numbers.verdict == "not settled") == (numbers.low <= 0 <= numbers.high)


def test_intervals_cover_the_mean_in_95_of_100_studies():
    generator = np.random.default_rng(0)
    studies = [paired(list(sample)) for sample in generator.normal(0.3, 1, (2000, 5))]
    assert 0.94 < np.mean([study.low <= 0.3 <= study.high for study in studies]) < 0.96


def test_what_differs_by_rounding_alone_is_not_settled():
    rounding = (0.1 + 0.2 + 0.3) - (0.3 + 0.2 + 0.1)
    assert rounding > 0
    assert paired([rounding, 0.0, rounding]) == Paired(3, 0.0, 0.0, 0.0, 0.0)
    assert paired([rounding, rounding]).verdict == "not settled"
