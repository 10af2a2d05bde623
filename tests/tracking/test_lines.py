"""The chain of metrics.jsonl: whatever is done to the lines is named."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.base.errors import UserError
from fedmef_dist.tracking.lines import (
    Head,
    check_head,
    head_in,
    head_of,
    kept_lines,
    parse_line,
    parse_rounds,
    read_lines,
    split,
)


def a_line(number):
    return json.dumps({"round": number, "train/loss": 1 / number}).encode() + b"\n"


PATH = Path("run/metrics.jsonl")
LINES = [a_line(number) for number in range(1, 9)]
STATE = head_of(LINES).state(b"")


def refusal(lines, path, state=STATE):
    with pytest.raises(UserError) as caught:
        kept_lines(lines, path, 8, state)
    assert str(caught.value).split("\n")[1].startswith(f"where: {path}")
    return caught.value


def test_the_digest_is_that_of_the_files_bytes(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(LINES) + b'{"rou')
    lines, rest = read_lines(tmp_path)
    assert (lines, rest) == (LINES, b'{"rou')
    assert head_of(lines) == Head(8, hashlib.sha256(b"".join(LINES)).hexdigest())


def test_a_head_survives_checkpoint_and_summary():
    head = head_of(LINES)
    assert head_in(head.state(b"")) == head_in(head.summary()) == head
    assert head_in({}) is None
    assert head_in({"metrics/lines": "x", "metrics/digest": "0"}) is None
    assert head_in({"metrics/lines": "9" * 5000, "metrics/digest": "0"}) is None


@given(st.integers(0, 7))
def test_a_line_cut_out_is_named(place):
    error = refusal(LINES[:place] + LINES[place + 1 :], PATH)
    assert f"round {place + 1} is missing" in error.what
    assert error.where.endswith(f"line {place + 1}" if place < 7 else "after line 7")


@given(st.integers(0, 7), st.integers(0, 8))
def test_a_line_that_stands_twice_is_named(place, again):
    lines = list(LINES)
    lines.insert(again, LINES[place])
    if lines[:8] == LINES:  # after the last line: of a round after the checkpoint, which is dropped
        assert kept_lines(lines, PATH, 8, STATE) == LINES
    else:
        error = refusal(lines, PATH)
        assert re.search("line [1-8]$", error.where)
        assert "stands twice" in error.what or "missing before it" in error.what


@given(st.integers(0, 6), st.integers(1, 7))
def test_lines_that_changed_places_are_named(first, distance):
    second = min(7, first + distance)
    lines = list(LINES)
    lines[first], lines[second] = lines[second], lines[first]
    error = refusal(lines, PATH)
    assert error.where.endswith(f"line {first + 1}")


@given(st.integers(0, len(b"".join(LINES)) - 1), st.integers(0, 7))
def test_a_flipped_bit_is_named(place, bit):
    data = bytearray(b"".join(LINES))
    data[place] ^= 1 << bit
    error = refusal(split(bytes(data))[0], PATH)
    number = len(split(b"".join(LINES)[:place])[0]) + 1
    # Where the line still looks like one, the SHA-256 tells; where not, its number is said, or the last good one's.
    named = [int(text) for text in re.findall(r"\d+", error.where.rpartition("line")[2])]
    assert "do not have the SHA-256" in error.what or abs(named[-1] - number) <= 1


@given(st.binary(max_size=60))
def test_a_foreign_line_is_named(foreign):
    lines = [*LINES[:3], foreign.replace(b"\n", b"") + b"\n", *LINES[4:]]
    assert "line 4" in refusal(lines, PATH).where


@given(st.integers(0, 8), st.integers(0, 8))
def test_lines_that_the_disk_refused_come_from_the_checkpoint(waiting, written_later):
    """Of 8 rounds the last ``waiting`` were refused, and so many of them written after the checkpoint."""
    state = head_of(LINES).state(b"".join(LINES[8 - waiting :]))
    lines = LINES[: 8 - waiting + min(waiting, written_later)]
    assert kept_lines(lines, PATH, 8, state) == LINES


@given(st.integers(0, 7), st.integers(0, 7))
def test_a_file_shorter_than_the_disk_had_taken_is_named(waiting, there):
    state = head_of(LINES).state(b"".join(LINES[8 - waiting :]))
    if there >= 8 - waiting:
        assert kept_lines(LINES[:there], PATH, 8, state) == LINES
    else:
        assert " missing: the checkpoint knows 8" in refusal(LINES[:there], PATH, state).what


def test_a_changed_line_in_the_checkpoint_itself_is_found(tmp_path):
    state = head_of(LINES).state(LINES[7].replace(b"0.125", b"0.126"))
    assert "do not have the SHA-256" in refusal(LINES[:7], tmp_path / "metrics.jsonl", state).what


def test_without_a_head_the_rounds_alone_are_checked():
    assert kept_lines(LINES, PATH, 8, {}) == LINES
    with pytest.raises(UserError, match="rounds 4 to 8 are missing"):
        kept_lines(LINES[:3], PATH, 8, {})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"round": 1, "x": NaN}', "'x' is neither a finite number nor a text"),
        ('{"round": 1, "x": 1e999}', "'x' is neither a finite number nor a text"),
        ('{"round": 1, "x": 1' + "0" * 400 + "}", "'x' is neither a finite number nor a text"),
        ('{"round": 1, "x": [1]}', "'x' is neither a finite number nor a text"),
        ('{"round": 1.0}', "it has no round"),
        ('{"round": "1"}', "it has no round"),
        ("[" * 100_000, "recursion limit"),
        ("", "EOF"),
    ],
)
def test_what_no_run_writes_is_not_a_line(line, reason):
    with pytest.raises(ValueError, match=reason):
        parse_line(line.encode())


def test_what_runs_write_is_a_line():
    values = {"round": 3, "a": 1, "b": -0.5, "c": "text", "d": None, "e": True, "f": 10**18}
    assert parse_line(json.dumps(values).encode()) == values


@pytest.mark.parametrize(("rounds", "what"), [([0], "there is no round 0"), ([1, 2, 5], "rounds 3 to 4 are missing")])
def test_rounds_begin_with_1_and_leave_none_out(rounds, what):
    lines = [json.dumps({"round": number}).encode() for number in rounds]
    with pytest.raises(UserError, match=what):
        parse_rounds(lines, PATH)


def test_a_head_knows_the_lines_it_was_made_of():
    check_head(LINES, head_of(LINES[:3]), PATH, "x")
    with pytest.raises(
        UserError, match=r"do not have the SHA-256 that x holds\nwhere: run.metrics.jsonl, lines 1 to 3"
    ):
        check_head(LINES[1:], head_of(LINES[:3]), PATH, "x")
