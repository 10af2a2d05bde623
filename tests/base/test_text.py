from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.names import home_expanded, plain_path
from fedmef_dist.base.notices import tell
from fedmef_dist.base.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a plain run_dir-1.5 / größe 数", "a plain run_dir-1.5 / größe 数"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x9b31m", "\\x9b31m"),  # an escape sequence in one character
        ("\u2028\u202etxt.exe", "\\u2028\\u202etxt.exe"),
        ("caf\udce9", "caf\\udce9"),  # a byte of a file name that is not UTF-8
    ],
)
def test_control_characters_are_written_out(text, shown):
    assert printable(text) == shown


@given(st.text())
def test_what_is_printable_stays_and_can_be_written(text):
    once = printable(text)
    assert printable(once) == once
    once.encode("utf-8")
    assert printable(text, keep="\n").count("\n") == text.count("\n")


def test_a_message_has_at_most_three_lines_whatever_the_input_holds():
    error = UserError("unknown key a\x1b[2J", where="x\nmend: rm -rf /", mend="leave\r it out")
    assert str(error) == "unknown key a\\x1b[2J\nwhere: x\\nmend: rm -rf /\nmend: leave\\r it out"


def test_a_notice_is_one_line(capsys):
    tell("W&B stopped: \x1b]0;title\x07\nnext")
    assert capsys.readouterr().err == "W&B stopped: \\x1b]0;title\\x07\\nnext\n"


@pytest.mark.parametrize("path", ["runs/a\nreboot", "\x1b[2J", "a\udcff"])
def test_a_path_with_control_characters_is_refused(path):
    with pytest.raises(UserError, match=r"^a path must not hold line breaks.*\nwhere: --run-dir: .*\nmend: "):
        plain_path(Path(path), "--run-dir")


def test_any_other_path_is_taken():
    assert plain_path(Path("a b/größe 'x' $HOME %j"), "--run-dir") == Path("a b/größe 'x' $HOME %j")


def test_a_home_that_nobody_knows_is_named(monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setenv("HOME", "/home/x")
    assert home_expanded("~/data") == Path("/home/x/data")
    monkeypatch.delenv("HOME")
    assert home_expanded("data") == Path("data")
    with pytest.raises(UserError, match=r"^the home directory in ~/data is not known\nwhere: .*\nmend: "):
        home_expanded("~/data")
