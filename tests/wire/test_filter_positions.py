from contextlib import suppress
from math import comb, log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.wire.filter_positions import decode_in_filters, encode_in_filters, in_filters_bytes
from fedmef_dist.wire.layer_encoding import positions_bytes


@st.composite
def layers(draw):
    """Which weights of a layer are chosen, and its rows; some filters are empty, some full."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 150))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = 10 ** draw(st.floats(-3, 0))
    chosen = generator.random((rows, columns)) < density * generator.choice([0, 1, 1, 1 / density], (rows, 1))
    return chosen.flatten(), rows


def counts_of(chosen, rows):
    return np.count_nonzero(chosen.reshape(rows, -1), axis=1)


@given(layers())
def test_positions_come_back_and_have_the_length_computed_from_counts_alone(layer):
    chosen, rows = layer
    counts, columns = counts_of(chosen, rows), chosen.size // rows
    message = encode_in_filters(chosen, rows)
    assert len(message) == in_filters_bytes(counts, columns)
    assert np.array_equal(decode_in_filters(message, counts, columns), np.flatnonzero(chosen))


@given(layers())
def test_it_is_never_longer_than_column_numbers_or_a_bitmap_or_what_knows_no_counts(layer):
    chosen, rows = layer
    counts, columns = counts_of(chosen, rows), chosen.size // rows
    told = counts[(counts > 0) & (counts < columns)]
    length = in_filters_bytes(counts, columns)
    assert length <= -(-int(told.sum()) * max((columns - 1).bit_length(), 1) // 8)
    assert length <= -(-len(told) * columns // 8)
    assert length <= positions_bytes(chosen.size, int(counts.sum()), rows)


@pytest.mark.parametrize(
    ("columns", "count", "bits"), [(144, 1, 0.84), (144, 2, 1.4), (576, 23, 0.65), (576, 58, 0.65), (4608, 92, 0.6)]
)
def test_a_position_takes_few_bits_more_than_the_shortest_that_there_can_be(columns, count, bits):
    least = 64 * log2(comb(columns, count))
    assert least < 8 * in_filters_bytes(np.full(64, count), columns) <= least + 64 * count * bits
    # What knows no counts takes half as much again at least.
    assert 1.5 * in_filters_bytes(np.full(64, count), columns) <= positions_bytes(64 * columns, 64 * count, 64)


def chosen_of(size, *positions):
    chosen = np.zeros(size, bool)
    chosen[list(positions)] = True
    return chosen


@pytest.mark.parametrize(
    ("chosen", "rows", "message"),
    [
        # Two of eight columns: bits 1 and 4. Split columns would take 2 + 3 bits at l = 1, and 8 bits are one byte.
        (chosen_of(8, 1, 4), 1, "12"),
        # One column of 16 a filter, 5 and 11, in four bits each: 5 + 11 * 16.
        (chosen_of(32, 5, 27), 2, "b5"),
        # Columns 3, 20, 40 and 63 of 64. Alone: 24 bits. With l = 4: 3, 4, 8, 15, and high parts 0, 1, 2, 3 in 4 + 3
        # bits, ends at 0, 2, 4, 6: also three bytes, and the lower l comes first.
        (chosen_of(64, 3, 20, 40, 63), 1, "43f8 55"),
        # Nothing and everything are known from the counts.
        (chosen_of(8, 4, 5, 6, 7), 2, ""),
    ],
    ids=["bitmap", "columns", "split", "known"],
)
def test_encodings_byte_by_byte(chosen, rows, message):
    assert encode_in_filters(chosen, rows) == bytes.fromhex(message)
    counts = counts_of(chosen, rows)
    assert np.array_equal(
        decode_in_filters(bytes.fromhex(message), counts, chosen.size // rows), np.flatnonzero(chosen)
    )


@pytest.mark.parametrize(
    ("message", "counts", "columns", "why"),
    [
        ("1200", [2], 8, "2 bytes where 1 are due"),
        ("13", [2], 8, "another count than the filter"),
        ("43f8 15", [4], 64, "3 columns where 4 are due"),
        ("43f8 d5", [4], 64, "bits are set after the last"),
        # Five ends in the first filter and three in the second, of four each.
        ("888668 1f0038", [4, 4], 64, "another number of columns"),
        # Columns 20 and 3 in this order; twice the same.
        ("b400 03", [2], 1024, "do not ascend within 1024"),
        # Column 20 of as many, in five bits.
        ("14", [1], 20, "do not ascend within 20"),
    ],
)
def test_damaged_messages_are_refused(message, counts, columns, why):
    with pytest.raises(ValueError, match=why):
        decode_in_filters(bytes.fromhex(message), np.array(counts), columns)


@given(layers(), st.data())
def test_any_damage_is_refused_or_gives_other_positions_of_the_same_counts(layer, data):
    chosen, rows = layer
    counts, columns = counts_of(chosen, rows), chosen.size // rows
    damaged = bytearray(encode_in_filters(chosen, rows))
    for _ in range(data.draw(st.integers(0, 3)) if damaged else 0):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.sampled_from([len(damaged), len(damaged) // 2]))]
    with suppress(ValueError):
        positions = decode_in_filters(bytes(damaged), counts, columns)
        found = chosen_of(chosen.size, *positions)
        assert np.array_equal(counts_of(found, rows), counts)
        # One set of positions has one message.
        assert encode_in_filters(found, rows) == bytes(damaged)
