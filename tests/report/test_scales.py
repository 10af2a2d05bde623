import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.report.scales import Scale, plain, widened


def texts(*args, **more):
    return [text for _, text in Scale(*args, 0, 100, **more).ticks()]


def test_ticks_are_round_numbers():
    assert texts(0, 10) == ["0", "2", "4", "6", "8", "10"]
    assert texts(0.13, 0.17) == ["0.13", "0.14", "0.15", "0.16", "0.17"]
    assert texts(1, 6) == ["1", "2", "3", "4", "5", "6"]
    assert texts(1, 12) == ["2", "4", "6", "8", "10", "12"]


def test_rounds_have_no_halves():
    assert "7.5" in texts(3, 18)
    assert texts(3, 18, whole=True) == ["3", "6", "9", "12", "15", "18"]
    assert texts(1, 3, whole=True) == ["1", "2", "3"]


def test_a_logarithmic_axis_has_no_powers_of_ten():
    assert texts(0.06, 6, logarithmic=True) == ["0.1", "0.2", "0.5", "1", "2", "5"]
    assert texts(1e-4, 1e6, logarithmic=True)[:2] == ["0.0001", "0.01"]


def test_places_by_hand():
    np.testing.assert_allclose(Scale(10, 20, 0, 100).at(np.array([10, 15, 20])), [0, 50, 100])
    np.testing.assert_allclose(Scale(1, 100, 0, 100, logarithmic=True).at(np.array([10])), [50])


@pytest.mark.parametrize(
    ("value", "text"), [(0.6, "0.6"), (1500.0, "1500"), (2.5e7, "25,000,000"), (2e-5, "0.00002"), (-3.0, "-3")]
)
def test_numbers_as_people_write_them(value, text):
    assert plain(value) == text


@given(low=st.floats(-1e9, 1e9), more=st.floats(0, 1e9))
def test_every_range_gets_some_ticks_inside(low, more):
    scale = Scale(*widened(low, low + more), 0, 100)
    places = [place for place, _ in scale.ticks()]
    assert 2 <= len(places) <= 8
    assert min(places) >= -0.1
    assert max(places) <= 100.1
