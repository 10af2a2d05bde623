import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedmef_dist.data.batches import client_batches, evaluation_batches
from fedmef_dist.data.text import TextSettings, text_dataset


def spell(data, tokens):
    return "".join("?" if token == 0 else data.vocabulary[token - 1] for token in tokens.tolist())


def toy(context=3, owned=True):
    return text_dataset("toy", ["abcabcab", "cc", "bcbcb"], ["cab!ab", "b"], context, owned=owned)


def test_windows_by_hand():
    data = toy()
    # Eight characters hold two windows of 3 + 1, which share one; "cc" holds none, five hold one.
    assert data.vocabulary == "abc"
    assert data.train.tokens.dtype == torch.uint8
    assert data.train.starts.tolist() == [0, 3, 10]
    assert data.owners.tolist() == data.train.labels.tolist() == [0, 0, 2]
    inputs, targets = data.train.windows(data.train.starts)
    assert [spell(data, row) for row in inputs] == ["abc", "abc", "bcb"]
    assert [spell(data, row) for row in targets] == ["bca", "bca", "cbc"]


def test_a_character_that_training_text_lacks_is_unknown():
    data = toy()
    assert [spell(data, row) for row in data.test.windows(data.test.starts)[1]] == ["ab?"]
    assert (data.classes, data.test_owners.tolist()) == (4, [0])


def test_text_of_nobody_has_no_owners_and_one_label():
    data = toy(owned=False)
    assert data.owners is data.test_owners is None
    assert not data.train.labels.any()


def test_shape_example_and_number_of_predictions():
    data = toy()
    assert data.shape == tuple(data.example().shape[1:]) == (3,)
    assert data.example().dtype == torch.int64
    assert (len(data.train), data.train.predictions) == (3, 9)
    part = data.train.take(torch.tensor([2]))
    assert (part.starts.tolist(), part.labels.tolist(), part.predictions) == ([10], [2], 3)


def test_more_characters_than_a_byte_tells_apart():
    rare = "".join(chr(0x4E00 + number) for number in range(300))
    data = text_dataset("toy", [rare + "ab" * 10], [rare], 4, owned=False)
    assert data.classes == 256
    assert {"a", "b"} <= set(data.vocabulary)
    # Of equally rare ones the first by code point stay.
    assert data.vocabulary[2:] == rare[:253]
    assert data.test.tokens[:253].tolist() == list(range(3, 256))
    assert not data.test.tokens[253:].any()


@given(
    passages=st.lists(st.text(alphabet="abé€", max_size=20), min_size=1, max_size=6).filter(lambda texts: any(texts)),
    context=st.integers(1, 5),
)
def test_windows_never_cross_passages_and_leave_less_than_one(passages, context):
    data = text_dataset("toy", passages, ["a"], context, owned=True)
    counts = np.bincount(data.owners.numpy(), minlength=len(passages))
    for owner, passage in enumerate(passages):
        own = data.train.take((data.owners == owner).nonzero().flatten())
        inputs, targets = own.windows(own.starts) if len(own) else (own.starts, own.starts)
        assert counts[owner] == max(len(passage) - 1, 0) // context
        assert "".join(spell(data, row) for row in inputs) == passage[: counts[owner] * context]
        assert "".join(spell(data, row) for row in targets) == passage[1:][: counts[owner] * context]


def test_batches_hold_each_window_once_an_epoch():
    data = toy(context=1)
    key = {"seed": 0, "round": 1, "client": 2}
    found = list(client_batches(data, np.arange(7), batch_size=4, epochs=2, augment=True, device="cpu", **key))
    assert [len(inputs) for inputs, _ in found] == [4, 3, 4, 3]
    pairs = [spell(data, torch.cat(pair)) for inputs, targets in found for pair in zip(inputs, targets, strict=True)]
    assert sorted(pairs[:7]) == sorted(pairs[7:]) == sorted(["ab", "bc", "ca"] * 2 + ["ab"])
    assert pairs[:7] != pairs[7:]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_covers_the_split_once(world_size):
    data = toy(context=1)
    found = []
    for rank in range(world_size):
        batches = evaluation_batches(data.test, data, batch_size=2, rank=rank, world_size=world_size, device="cpu")
        found += [spell(data, torch.cat(pair)) for batch in batches for pair in zip(*batch, strict=True)]
    assert sorted(found) == sorted(["ca", "ab", "b?", "?a", "ab"])


@pytest.mark.parametrize("key", [{"context": 0}, {"stories": 9}, {"context": 8.0}, {"windows": 1}])
def test_wrong_settings_are_refused(key):
    with pytest.raises(ValidationError):
        TextSettings(**key)
