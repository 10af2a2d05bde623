import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.sources import DataSettings, load_dataset
from fedmef_dist.data.tinystories import FILE


def load(tmp_path, **text):
    settings = DataSettings(dataset="tinystories", root=str(tmp_path), text={"context": 2, **text})
    return load_dataset(settings, seed=0)


def write(tmp_path, stories):
    (tmp_path / FILE).write_text("<|endoftext|>\n".join(stories), encoding="utf-8")


def spell(data, split):
    return "".join(data.vocabulary[token - 1] if token else "?" for token in split.tokens)


def test_every_tenth_story_is_test_text(tmp_path):
    write(tmp_path, [f"Story é{number}.\nEnd.\n" for number in range(21)])
    data = load(tmp_path)
    # Training text has no 9.
    assert spell(data, data.test) == "Story é?.\nEnd.\nStory é1?.\nEnd.\n"
    assert spell(data, data.train).count("Story") == 19
    assert data.owners is None


def test_only_the_first_stories_are_read(tmp_path):
    write(tmp_path, ["ab\n"] * 12)
    assert len(load(tmp_path, stories=10).train.tokens) == 9 * 3


def test_an_empty_story_does_not_count(tmp_path):
    write(tmp_path, ["", "ab\n"] * 9 + ["ab\n"])
    assert len(load(tmp_path).test) == 1


def test_the_message_says_what_to_put_where(tmp_path):
    with pytest.raises(UserError, match=r"missing\n.*tinystories\.txt\n.*TinyStories-train\.txt") as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"", "found 0"), (b"one\n<|endoftext|>\ntwo\n", "10 stories or more, .* found 2"), (b"\xff\xff", "UTF-8")],
)
def test_a_foreign_file(tmp_path, content, found):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=rf"damaged: expected .*{found}[\s\S]*tinystories\.txt"):
        load(tmp_path)


def test_an_unreadable_file(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(UserError, match="a regular file"):
        load(tmp_path)


def test_a_context_that_only_the_test_text_fills_is_refused(tmp_path):
    write(tmp_path, ["short\n" if number % 10 else "x" * 100 + "\n" for number in range(1, 21)])
    with pytest.raises(UserError, match="no training samples") as caught:
        load(tmp_path, context=50)
    assert "smaller context" in caught.value.mend
