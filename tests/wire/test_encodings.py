"""Every encoding on random blocks; its bytes are held in test_layer_encoding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.wire.encodings import Positions, Signs, Sparse, Whole, WithMask
from fedmef_dist.wire.layer_encoding import FP16, FP32, INT8
from fedmef_dist.wire.ranges import Block

NUMBERS = st.sampled_from([FP32, FP16, INT8])
EVERY_ENCODING = pytest.mark.parametrize("encoding", [Whole(), WithMask(), Sparse(), Positions(), Signs()])


@st.composite
def blocks(draw):
    """A block, which of its positions are named, and values, none of them 0."""
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 40))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    active = generator.random(rows * columns) < draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.95, 1.0]))
    start = draw(st.integers(0, 1000))  # positions count within the block, wherever it lies
    values = generator.uniform(0.5, 2, active.size) * generator.choice([-1, 1], active.size)
    return Block(start, start + active.size, rows), active, values.astype(np.float32)


def through(encoding, block, active, values, number):
    """What is decoded, once the message has proved as long as it should be."""
    message = encoding.encode(block, active, values, number)
    named = np.count_nonzero(active) if encoding.names_positions else block.size
    assert len(message) == encoding.length(block, named, number)
    positions, decoded = encoding.decode(message, block, number)
    assert decoded.dtype == np.float32
    assert positions.dtype.kind == "i"
    return positions, decoded


def close(decoded, sent, number):
    """To the bit as fp32; fp16 has 11 bits, int8 127 steps to the largest, which is below 2."""
    error = {"fp32": 0, "fp16": 2.0**-11 * 2, "int8": 2 / 127 / 2 * 1.001}[number.name]
    return decoded.shape == sent.shape and (np.abs(decoded - sent) <= error).all()


@given(blocks(), NUMBERS)
def test_whole_sends_every_value_whatever_is_named(block, number):
    block, active, values = block
    positions, decoded = through(Whole(), block, active, values, number)
    assert positions.tolist() == list(range(block.size))
    assert close(decoded, values, number)


@given(blocks(), NUMBERS)
def test_weights_come_with_exactly_their_mask(block, number):
    block, active, values = block
    positions, decoded = through(WithMask(), block, active, values, number)
    assert positions.tolist() == np.flatnonzero(active).tolist()
    assert close(decoded, values[active], number)


@given(blocks(), NUMBERS)
def test_what_a_sparse_message_does_not_name_is_0(block, number):
    block, active, values = block
    positions, decoded = through(Sparse(), block, active, values, number)
    spread = np.zeros(block.size, np.float32)
    spread[positions] = decoded
    assert close(spread, np.where(active, values, 0), number)
    assert len(positions) in (np.count_nonzero(active), block.size)


@given(blocks(), NUMBERS)
def test_positions_alone(block, number):
    block, active, values = block
    positions, decoded = through(Positions(), block, active, values, number)
    assert positions.tolist() == np.flatnonzero(active).tolist()
    assert len(decoded) == 0


@given(blocks(), NUMBERS)
def test_signs_of_what_is_named(block, number):
    block, active, values = block
    positions, decoded = through(Signs(), block, active, values, number)
    assert positions.tolist() == np.flatnonzero(active).tolist()
    assert decoded.tolist() == np.sign(values[active]).tolist()


def test_what_each_encoding_says_of_itself():
    has_values = {kind: kind.has_values for kind in (Whole, WithMask, Sparse, Positions, Signs)}
    assert has_values == {Whole: True, WithMask: True, Sparse: True, Positions: False, Signs: True}
    assert [kind for kind in has_values if not kind.names_positions] == [Whole]


def test_a_nearly_full_block_is_dense_as_sparse_but_tells_its_mask_with_one():
    block, active, values = Block(0, 64, 2), np.arange(64) > 0, np.ones(64, np.float32)
    # Dense: a tag and 64 values. With a mask: a tag, a bitmap of 8 bytes and 63 values.
    assert Sparse().length(block, 63, FP32) == 1 + 4 * 64
    assert WithMask().length(block, 63, FP32) == 1 + 8 + 4 * 63
    assert through(Sparse(), block, active, values, FP32)[0].tolist() == list(range(64))
    assert through(WithMask(), block, active, values, FP32)[0].tolist() == list(range(1, 64))
    # A full block takes its tag alone, even where all is 0.
    assert WithMask().length(block, 64, FP32) == 1 + 4 * 64
    assert len(through(WithMask(), block, active | True, 0 * values, FP32)[0]) == 64


@EVERY_ENCODING
@given(block=blocks(), number=NUMBERS, data=st.data())
def test_a_damaged_message_is_refused_or_names_what_the_block_has(encoding, block, number, data):
    block, active, values = block
    message = encoding.encode(block, active, values, number)
    cut, place = data.draw(st.integers(1, 4)), data.draw(st.integers(0, max(len(message) - 1, 0)))
    noise = data.draw(st.binary(max_size=2 * len(message)))
    for damaged in (message[:-cut], message + b"\x01" * cut, message[:place] + noise[:1] + message[place + 1 :], noise):
        try:
            positions, decoded = encoding.decode(damaged, block, number)
        except ValueError:
            continue
        assert (np.diff(positions) > 0).all()
        assert not len(positions) or 0 <= positions[0] <= positions[-1] < block.size
        assert len(decoded) == (len(positions) if encoding.has_values else 0)


@EVERY_ENCODING
def test_damage_is_told(encoding):
    block = Block(0, 12, 3)
    message = encoding.encode(block, np.arange(12) < 5, np.ones(12, np.float32), FP32)
    for damaged in (b"", b"\x09" + message[1:], message + bytes(50)):
        if isinstance(encoding, Whole) and len(damaged) == len(message):
            continue  # any four bytes are a value
        with pytest.raises(ValueError, match=r"\w"):
            encoding.decode(damaged, block, FP32)


def test_whole_refuses_another_number_of_values_than_the_block_has():
    message = Whole().encode(Block(0, 3), np.ones(3, np.bool_), np.ones(3, np.float32), FP32)
    with pytest.raises(ValueError, match="3 values where 4 are due"):
        Whole().decode(message, Block(0, 4), FP32)
