from contextlib import suppress
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.layers.activation_pruning import SapSettings
from fedmef_dist.models.convert import prunable_weights
from fedmef_dist.models.registry import ModelSettings, build_model
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.wire.layer_encoding import (
    FP16,
    FP32,
    INT8,
    NUMBERS,
    decode,
    decode_positions,
    decode_signs,
    decode_values,
    encode,
    encode_positions,
    encode_signs,
    encode_values,
    encoded_bytes,
    positions_bytes,
    signs_bytes,
    values_bytes,
)

EVERY_NUMBER = pytest.mark.parametrize("number", NUMBERS.values(), ids=list(NUMBERS))
ONE = bytes.fromhex("0000803f")


@st.composite
def layers(draw):
    """Values, mask and rows of a layer; the mask's density is between 0.001 and 1, in equal shares of the decades."""
    rows, columns = draw(st.integers(1, 64)), draw(st.integers(1, 80))
    density, decade = 10 ** draw(st.floats(-3, 0)), draw(st.integers(-6, 4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    active = generator.random(rows * columns) < density
    return (generator.standard_normal(active.size) * 10.0**decade).astype(np.float32), active, rows


def digits(choices):
    """Binary digits of the largest of so many numbers, from 0 on."""
    return len(f"{choices - 1:b}")


def four_sizes(size, count, rows, value_bytes, scale_bytes):
    """Bytes of dense, bitmap, COO and CSR from their definitions."""
    columns = size // rows
    values = value_bytes * count + scale_bytes * (count > 0)
    return [
        1 + value_bytes * size + scale_bytes,
        1 + ceil(size / 8) + values,
        1 + ceil(count * digits(size) / 8) + values,
        1 + ceil(rows * digits(columns + 1) / 8) + ceil(count * digits(columns) / 8) + values,
    ]


def filled(message, size, rows, number=FP32):
    positions, values = decode(message, size, rows, number)
    received = np.zeros(size, np.float32)
    received[positions] = values
    return received


@EVERY_NUMBER
@given(layers())
def test_a_message_is_the_shortest_of_four_and_as_long_as_computed(number, layer):
    values, active, rows = layer
    size, count = active.size, int(active.sum())
    message = encode(values, active, rows, number)
    sizes = four_sizes(size, count, rows, *{FP32: (4, 0), FP16: (2, 0), INT8: (1, 4)}[number])
    assert len(message) == min(sizes) == encoded_bytes(size, count, rows, number)
    assert message[0] == sizes.index(min(sizes))
    assert len(encode_values(values[active], number)) == values_bytes(count, number)


@EVERY_NUMBER
@given(layers())
def test_positions_come_back_and_so_do_zeros_between_them(number, layer):
    values, active, rows = layer
    message = encode(values, active, rows, number)
    positions, _ = decode(message, active.size, rows, number)
    assert np.array_equal(positions, np.arange(active.size) if message[0] == 0 else np.flatnonzero(active))
    assert not filled(message, active.size, rows, number)[~active].any()


@given(layers(), st.integers(0, 2**32 - 1))
def test_fp32_comes_back_to_the_bit_whatever_the_bits(layer, seed):
    _, active, rows = layer
    values = np.random.default_rng(seed).integers(0, 2**32, active.size, np.uint32).view(np.float32)
    received = filled(encode(values, active, rows), active.size, rows)
    assert np.array_equal(received.view(np.uint32)[active], values.view(np.uint32)[active])
    alone = decode_values(encode_values(values[active], FP32), FP32)
    assert np.array_equal(alone.view(np.uint32), values.view(np.uint32)[active])


@given(layers())
def test_fp16_is_the_nearest_half(layer):
    values, active, rows = layer
    received = filled(encode(values, active, rows, FP16), active.size, rows, FP16)
    assert np.array_equal(received[active], values[active].astype(np.float16).astype(np.float32))


@given(layers())
def test_int8_is_within_half_a_scale_and_does_not_change_again(layer):
    values, active, rows = layer
    message = encode(values, active, rows, INT8)
    received = filled(message, active.size, rows, INT8)
    scale = np.abs(values[active]).max(initial=0).astype(np.float64) / 127
    # What is decoded is rounded to float32, by at most 127 scales times 2^-24.
    assert np.abs(received.astype(np.float64) - values)[active].max(initial=0) <= scale * (0.5 + 127 * 2**-24)
    assert encode(received, active, rows, INT8) == message


@given(layers())
def test_positions_and_signs_have_the_length_computed_and_come_back(layer):
    values, active, rows = layer
    size, count = active.size, int(active.sum())
    message = encode_positions(active, rows)
    assert len(message) == positions_bytes(size, count, rows) == min(four_sizes(size, count, rows, 0, 0)[1:])
    assert np.array_equal(decode_positions(message, size, rows), np.flatnonzero(active))
    signs = np.where(active, np.sign(values), 0).astype(np.int8)
    message = encode_signs(signs, rows)
    assert len(message) == signs_bytes(size, count, rows) == positions_bytes(size, count, rows) + ceil(count / 8)
    assert np.array_equal(decode_signs(message, size, rows), signs)


def mask(size, *positions):
    active = np.zeros(size, bool)
    active[list(positions)] = True
    return active


@pytest.mark.parametrize(
    ("active", "rows", "positions"),
    [
        # Bits 0 and 3 of the first byte, bit 1 of the second.
        (mask(16, 0, 3, 9), 2, "01 0902"),
        # 5 + 17 * 2^5 = 0x0225, in 5 bits each.
        (mask(32, 5, 17), 2, "02 2502"),
        # Rows hold 8, 0, 0, 12 of 64, in 7 bits each: 8 + 12 * 2^21. Columns 0 to 19, in 6 bits each, four to 3 bytes:
        # 0 + 1 * 2^6 + 2 * 2^12 + 3 * 2^18 = 0x0c2040, and 4 * (1 + 2^6 + 2^12 + 2^18) = 0x104104 more each time.
        (mask(256, *range(8), *range(200, 212)), 4, "03 08008001 40200c 44611c 48a22c 4ce33c 50244d"),
    ],
    ids=["bitmap", "coo", "csr"],
)
def test_sparse_encodings_byte_by_byte(active, rows, positions):
    assert encode_positions(active, rows) == bytes.fromhex(positions)
    message = bytes.fromhex(positions) + ONE * int(active.sum())
    assert encode(np.ones(active.size, np.float32), active, rows) == message


def test_dense_values_and_signs_byte_by_byte():
    values = np.array([1, -2], np.float32)
    assert encode(values, np.ones(2, bool), 1) == bytes.fromhex("00 0000803f 000000c0")
    assert encode(values, np.ones(2, bool), 1, FP16) == bytes.fromhex("00 003c 00c0")
    # 15 of 16 half-precision values take 2 + 1 + 30 bytes with a bitmap, 16 of them 33; the inactive one is sent as 0.
    almost = encode(np.ones(16, np.float32), mask(16, *range(15)), 2, FP16)
    assert almost == bytes.fromhex("00" + "003c" * 15 + "0000")
    # A scale of 1; half a step goes to the even neighbour.
    message = encode_values(np.array([127, -1.5, 0.5, 2.5, 3.5], np.float32), INT8)
    assert message == bytes.fromhex("0000fe42 7f fe 00 02 04")
    assert decode_values(message, INT8).tolist() == [127, -2, 0, 2, 4]
    # 1, -1, 1 at 0, 3, 9: the second sign bit is set.
    signs = np.zeros(16, np.int8)
    signs[[0, 3, 9]] = 1, -1, 1
    assert encode_signs(signs, 2) == bytes.fromhex("01 0902 02")


@EVERY_NUMBER
def test_nothing_active_costs_the_tag_alone_and_no_values_nothing(number):
    nothing = np.zeros(0, np.float32)
    assert encode_values(nothing, number) == b"" == encode_values(np.ones(9, np.float32)[:0], number)
    assert values_bytes(0, number) == decode_values(b"", number).size == 0
    assert encode(np.ones(64, np.float32), mask(64), 8, number) == b"\x02"
    assert [part.size for part in decode(b"\x02", 64, 8, number)] == [0, 0]


def test_int8_of_zeros_and_of_what_is_not_finite():
    with np.errstate(all="raise"):  # no number is divided by a scale of 0
        assert encode_values(np.zeros(3, np.float32), INT8) == bytes(7)
    assert decode_values(bytes(7), INT8).tolist() == [0, 0, 0]
    # The smallest number that there is would have a scale of 0 in float32.
    tiny = np.array([1e-45, 0], np.float32)
    assert decode_values(encode_values(tiny, INT8), INT8).tolist() == tiny.tolist()
    for wrong in (np.nan, np.inf, -np.inf):
        message = encode_values(np.array([1, wrong], np.float32), INT8)
        assert np.isnan(decode_values(message, INT8)).all()


@pytest.mark.parametrize("columns", [126, 127, 128])
def test_rows_whose_counts_just_fit_their_bits_come_back(columns):
    # 0 to 127 take seven bits, 0 to 128 eight. Thirty indices of ten bits would be longer.
    active = mask(8 * columns, *range(columns - 10, columns), *range(7 * columns, 7 * columns + 20))
    message = encode_positions(active, 8)
    assert message[0] == 3
    assert len(message) == 1 + (8 if columns == 128 else 7) + 27
    assert np.array_equal(decode_positions(message, active.size, 8), np.flatnonzero(active))


@pytest.mark.parametrize("size", [4, 8, 16, 100, 128])
def test_few_indices_of_few_bits_are_counted_right(size):
    # 7 and 8 indices of 7 bits fill 7 bytes alike; only their zeros tell them apart.
    for count in range(size + 1):
        for first in {0, size - count}:
            active = mask(size, *range(first, first + count))
            assert np.array_equal(decode_positions(encode_positions(active, 1), size, 1), np.flatnonzero(active))
            assert np.array_equal(decode_signs(encode_signs(active.astype(np.int8), 1), size, 1), active)


@pytest.mark.parametrize(
    ("message", "size", "rows", "why"),
    [
        ("", 8, 2, "an empty message"),
        ("07 09", 8, 2, "unknown encoding 7"),
        ("00 0000803f", 8, 2, "no dense message of 8"),
        ("02 616263", 8, 2, "fits no count"),
        ("01", 16, 2, "fits no count"),
        ("01 0901" + "0000803f" * 2, 16, 2, "3 positions and 2 values"),
        ("01 0120" + "0000803f" * 2, 12, 2, "bits are set after the last"),
        # 17 then 5, and 5 twice, in 5 bits each.
        ("02 b100" + "0000803f" * 2, 32, 2, "do not ascend"),
        ("02 a500" + "0000803f" * 2, 32, 2, "do not ascend"),
        # 5 then 25 of 20.
        ("02 2503" + "0000803f" * 2, 20, 2, "do not ascend within 20"),
        # 5 and 17, with a bit set behind them.
        ("02 2586" + "0000803f" * 2, 32, 2, "bits are set after the last"),
        # Two rows of 33 hold 1 and 1; columns 1 and 40, in 6 bits each.
        ("03 4100 010a" + "0000803f" * 2, 66, 2, "a column beyond 33"),
        # 33 and 1: the first would be column 0 of the next row.
        ("03 4100 6100" + "0000803f" * 2, 66, 2, "a column beyond 33"),
        # They hold 1 and 2, and there are two columns.
        ("03 8100 0102" + "0000803f" * 2, 66, 2, "2 bytes where 18 bits"),
    ],
)
def test_damaged_messages_are_refused(message, size, rows, why):
    with pytest.raises(ValueError, match=why):
        decode(bytes.fromhex(message), size, rows)


def test_damaged_positions_and_signs_are_refused():
    with pytest.raises(ValueError, match="unknown encoding 0"):
        decode_positions(b"\x00" + bytes(4), 8, 2)
    with pytest.raises(ValueError, match="more than the positions of 16 weights need"):
        decode_positions(b"\x02" + bytes(10**6), 16, 2)
    with pytest.raises(ValueError, match="more than the positions of 16 weights need"):  # 0 to 4, in 4 bits each
        decode_positions(bytes.fromhex("02 103204"), 16, 2)
    with pytest.raises(ValueError, match="do not ascend"):  # nine bytes are nine indices, whatever the last one is
        decode_positions(bytes.fromhex("02 0102030405060708 00"), 256, 1)
    with pytest.raises(ValueError, match="1 bytes where 16 bits"):
        decode_positions(b"\x01\x09", 16, 2)
    with pytest.raises(ValueError, match="after the last"):  # a fourth sign of three
        decode_signs(bytes.fromhex("01 0902 08"), 16, 2)
    with pytest.raises(ValueError, match="2 bytes where 7 bits"):
        decode_signs(bytes.fromhex("01 7f00 0000"), 16, 2)


@pytest.mark.parametrize(
    ("message", "number", "why"),
    [
        ("000080", FP32, "3 bytes fit no count of values of fp32"),
        ("003c00", FP16, "3 bytes fit no count of values of fp16"),
        ("0000fe", INT8, "3 bytes fit no count of values of int8"),
        ("0000fe42", INT8, "4 bytes fit no count of values of int8"),
        ("0000fec2 01", INT8, "largest magnitude -127"),
        ("0000807f 01", INT8, "largest magnitude inf"),
        ("0000fe42 80", INT8, "smallest integer -128"),
        ("0000fe42 0180", INT8, "smallest integer -128"),
    ],
)
def test_damaged_values_are_refused(message, number, why):
    with pytest.raises(ValueError, match=why):
        decode_values(bytes.fromhex(message), number)


def ascend_within(positions, size):
    return not positions.size or (positions[0] >= 0 and positions[-1] < size and bool((np.diff(positions) > 0).all()))


@EVERY_NUMBER
@given(layers(), st.data())
def test_any_damage_is_refused_or_gives_a_possible_layer(number, layer, data):
    values, active, rows = layer
    size = active.size
    whole = bytearray(encode(values, active, rows, number))
    whole[0] = data.draw(st.integers(0, 4))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    head = positions_bytes(size, int(active.sum()), rows)
    damaged = bytes(whole[: data.draw(st.sampled_from([len(whole), head]) | st.integers(0, size))])
    with suppress(ValueError):
        positions, received = decode(damaged, size, rows, number)
        assert len(positions) == len(received)
        assert ascend_within(positions, size)
    with suppress(ValueError):
        assert ascend_within(decode_positions(damaged, size, rows), size)
    with suppress(ValueError):
        assert set(decode_signs(damaged, size, rows).tolist()) <= {-1, 0, 1}


def test_the_published_bytes_of_a_round_of_resnet18():
    settings = ModelSettings(name="resnet18", stem="imagenet")
    model = build_model(settings, SapSettings(enabled=False), norm="batch", classes=10, shape=(3, 224, 224), seed=0)
    space = ParameterSpace(model, prunable_weights(model))
    assert (space.n_parameters, space.total - space.n_parameters) == (11_181_642, 9_600)
    # All 20 convolutions are prunable, the stem and the three shortcuts too; the output layer is not.
    assert len(space.layers) == 20
    assert {len(layer.shape) for layer in space.layers} == {4}
    tail = values_bytes(space.total - space.n_prunable, FP32)

    # Up and down, in MB: 89.53 dense, and 20.853 with a bitmap for each convolution at density 0.2.
    assert 2 * values_bytes(space.total, FP32) == 89_529_936
    counts = [round(0.2 * layer.size) for layer in space.layers]
    pairs = list(zip(space.layers, counts, strict=True))
    bitmaps = sum(layer.size // 8 + values_bytes(count, FP32) for layer, count in pairs)
    assert 2 * (tail + bitmaps) == 20_853_432

    # A bitmap is the shortest for each of them, so all that is added are 20 tags.
    shortest = sum(encoded_bytes(layer.size, count, layer.rows) for layer, count in pairs)
    assert shortest == bitmaps + 20
    values = space.values.numpy()
    messages = [
        encode(values[layer.start : layer.stop], np.arange(layer.size) < count, layer.rows) for layer, count in pairs
    ]
    assert sum(map(len, messages)) == shortest
    assert len(encode_values(values[space.n_prunable :], FP32)) == tail


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e6, 3e38, np.inf, np.nan])
def test_a_value_beyond_fp16_arrives_as_not_finite_and_nothing_is_said(value):
    received = decode_values(encode_values(np.array([value, 1], np.float32), FP16), FP16)
    assert not np.isfinite(received[0])
    assert received[1] == 1
