import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.strict_yaml import parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("2E5", 200000.0),
        ("-1.5e+2", -150.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("12", 12),
        ("-7", -7),
        ("+7", 7),
        ("0", 0),
        ("-0", 0),
        ("0.5", 0.5),
        ("0x1F", 31),
        ("1_000", 1000),
        (".inf", float("inf")),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("'010'", "010"),
        ("1.2.3", "1.2.3"),
        ("٣", "٣"),
        ("'1e-3'", "1e-3"),
        ("1e", "1e"),
        ("e-3", "e-3"),
        ("true", True),
        ("null", None),
        ("", None),
        ("word", "word"),
        ("[1, a, {b: 2.5}]", [1, "a", {"b": 2.5}]),
        ("a: {b: c}", {"a": {"b": "c"}}),
        (r'"\ud83e\udd8a, \u00e9"', "\U0001f98a, é"),  # as JSON writes it
        (r'{"\ud83e\udd8a": "\udcff"}', {"\U0001f98a": "\udcff"}),
    ],
)
def test_values_are_what_they_look_like(text, value):
    parsed = parse_yaml(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", "expected"),
        ("a: b: c", "mapping values are not allowed"),
        ("\tindent: 1", "cannot start any token"),
        ("a: \x00", "special characters are not allowed"),
        ("a: 1\nb: 2\na: 3", "the key a stands twice"),
        ("a: {b: 1, b: 2}", "the key b stands twice"),
        ("? [a]\n: 1", "a key is a word"),
        ("a: &x 1\nb: *x", "anchors, aliases and tags are not allowed"),
        ("a: *x", "anchors, aliases and tags are not allowed"),
        ("a: &x [*x]", "anchors, aliases and tags are not allowed"),
        ("a: !!python/object/apply:os.getcwd []", "anchors, aliases and tags are not allowed"),
        ("a: !!timestamp never", "anchors, aliases and tags are not allowed"),
        ("!!bool perhaps", "anchors, aliases and tags are not allowed"),
        ("a: =", "could not determine a constructor"),
        ("a: 2020-13-45", "month must be in 1..12"),
        ("---\na: 1\n---\nb: 2", "expected a single document"),
        ("[" * 100_000, "recursion"),
        ("{a: " * 100_000, "recursion"),
        ("9" * 5_000, "limit"),
        ("a: 010", "010 begins with a zero, which some take for octal"),
        ("[-007]", "-007 begins with a zero"),
        ("08", "08 begins with a zero"),
        ("00", "00 begins with a zero"),
        ("01.5", "01.5 begins with a zero"),
    ],
    ids=lambda text: text[:20].strip(),
)
def test_anything_else_is_refused_in_three_lines(text, reason):
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "here")
    first, *others = str(caught.value).split("\n")
    assert reason in first
    assert len(first) < 400
    assert others == ["where: here", "mend: correct or quote it"]


def test_nested_aliases_end_at_once_instead_of_filling_the_memory():
    levels = ["a: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    with pytest.raises(UserError, match="aliases"):
        parse_yaml("\n".join(levels), "here")
