import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.report.units import duration, percent, ratio, scaled, scaled_spread


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.00 kB"),
        (1_000, "1 kB"),
        (1_234, "1.23 kB"),
        (12_345_678, "12.3 MB"),
        (999_499, "999 kB"),
        (999_600, "1.00 MB"),
        (456e9, "456 GB"),
        (7.5e21, "7500 EB"),
    ],
)
def test_bytes_have_three_digits_and_a_decimal_prefix(value, text):
    assert scaled(value, "B") == text


def test_a_number_without_a_unit_ends_in_its_prefix_or_its_digits():
    assert scaled(2.5e12, "") == "2.50 T"
    assert scaled(12, "") == "12"


@given(st.floats(min_value=1, max_value=9e20))
def test_a_scaled_number_is_within_its_rounding(value):
    number, unit = scaled(value, "B").split()
    factor = 1000 ** ("", "k", "M", "G", "T", "P", "E").index(unit[:-1])
    assert float(number) * factor == pytest.approx(value, rel=0.006)
    assert len(number.replace(".", "")) <= 3 or unit == "EB"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.25, "0.25 s"), (90, "90 s"), (119.96, "120 s"), (150, "2.50 min"), (9000, "2.50 h")],
)
def test_durations_change_unit_where_people_do(seconds, text):
    assert duration(seconds) == text


def test_a_deviation_has_the_prefix_of_its_mean():
    assert scaled_spread(12_345_678, 400_000, "B") == "12.3 ± 0.40 MB"
    assert scaled_spread(3, 1.41, "") == "3 ± 1.41"
    assert scaled_spread(12, None, "B") == "12 B"
    assert scaled_spread(None, None, "B") == "-"


def test_percent_and_ratio():
    assert percent(0.95314) == "95.31"
    assert percent(0.95314, 0.0042) == "95.31 ± 0.42"
    assert percent(None) == "-"
    assert ratio(2e6, 1e7) == "0.2x"
    assert ratio(2e6, None) == ratio(None, 1e7) == ratio(2e6, 0) == "-"
