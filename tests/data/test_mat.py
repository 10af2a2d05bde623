"""The reader of MATLAB files against SciPy's writer, and files that are not whole."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from fedmef_dist.data.mat import read_mat

ARRAYS = {
    "pixels": np.arange(2 * 3 * 3 * 4, dtype=np.uint8).reshape(2, 3, 3, 4),
    "small": np.array([[7]], np.uint8),  # fits into its tag
    "signed": np.array([[-1, 2], [300, -40000]], np.int64),
    "fractions": np.array([[0.5, np.inf, -1e300]]),
    "singles": np.array([[0.1], [3.0]], np.float32),
    "whole": np.array([[1.0, 2.0, 255.0]]),  # MATLAB stores these in one byte each
}


def written(folder, arrays, **options):
    savemat(folder / "x.mat", arrays, **options)
    return (folder / "x.mat").read_bytes()


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_are_those_that_were_written(tmp_path, compressed):
    other = {"text": "abc", "parts": {"a": 1}, "cells": np.array([1, "x"], object), "complex": np.array([1j])}
    found = read_mat(written(tmp_path, ARRAYS | other, do_compression=compressed))
    assert {*found} == {*ARRAYS}
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def test_numbers_are_stored_in_a_smaller_type_and_in_either_byte_order():
    """A double array (1, 3) with its numbers in one and in two bytes each, worked out by hand."""
    for order, mark in (("<", b"IM"), (">", b"MI")):
        for kind, dtype in ((2, "u1"), (3, "i2")):

            def words(*numbers, order=order):
                return np.array(numbers, f"{order}u4").tobytes()

            numbers = np.array([1, 2, 255], f"{order}{dtype}").tobytes()
            name = words(1, 1) + b"y" + bytes(7)
            inside = words(6, 8, 6, 0) + words(5, 8, 1, 3) + name + words(kind, len(numbers)) + numbers.ljust(8, b"\0")
            head = b"MATLAB 5.0 MAT-file".ljust(124) + np.array(0x0100, f"{order}u2").tobytes() + mark
            found = read_mat(head + words(14, len(inside)) + inside)
            assert found["y"].tolist() == [[1.0, 2.0, 255.0]]
            assert found["y"].dtype == np.float64


@pytest.mark.parametrize("place", ["flags", "sizes"])
def test_flags_and_sizes_are_whole_numbers(place):
    def element(kind, data):
        return np.array([kind, len(data)], "<u4").tobytes() + data

    infinite = element(9, np.array([np.inf, 1.0]).tobytes())
    flags = infinite if place == "flags" else element(6, np.array([6, 0], "<u4").tobytes())
    sizes = infinite if place == "sizes" else element(5, np.array([1, 1], "<i4").tobytes())
    inside = flags + sizes + element(1, b"y" + bytes(7)) + element(9, np.array([1.0]).tobytes())
    head = b"MATLAB 5.0 MAT-file".ljust(124) + np.array(0x0100, "<u2").tobytes() + b"IM"
    with pytest.raises(ValueError, match="whole numbers"):
        read_mat(head + element(14, inside))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "compressed"])
def whole(request, tmp_path_factory):
    return written(tmp_path_factory.mktemp("mat"), ARRAYS, do_compression=request.param)


@given(share=st.floats(0, 0.999), position=st.integers(128, 10**6), value=st.integers(0, 255))
def test_a_spoilt_file_is_refused_or_read_and_nothing_else(whole, share, position, value):
    cut = whole[: int(len(whole) * share)]
    spoilt = bytearray(whole)
    spoilt[128 + position % (len(whole) - 128)] = value
    for content in (cut, bytes(spoilt)):
        try:
            found = read_mat(content)
        except ValueError:
            continue
        assert len(found) <= len(ARRAYS)


def test_a_stream_that_grows_beyond_what_its_element_says_is_not_decompressed():
    bomb = zlib.compress(np.array([14, 16], "<u4").tobytes() + bytes(10**7))
    content = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + np.array([15, len(bomb)], "<u4").tobytes() + bomb
    with pytest.raises(ValueError, match=r"an array without its parts|unknown kind"):
        read_mat(content)
