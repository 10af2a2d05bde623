"""A run of two made parts: one of a tensor and plain values, one whose shape follows from the first."""

from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter

from fedmef_dist.base.errors import UserError
from fedmef_dist.runs.checkpoint import Checkpoint, CheckpointStore
from fedmef_dist.runs.snapshot import restore, take, tensors_of


class Sizes:
    """Knows how many numbers there are, and plain values of every kind."""

    def __init__(self, count):
        self.count, self.share, self.label, self.list = count, 0.5, "x", [1.0]
        self.flags = torch.zeros(3, dtype=torch.uint8)

    def state(self):
        return vars(self).copy()

    def restore(self, state):
        if state["count"] < 0:
            raise ValueError("count: below 0")
        TypeAdapter(list[float]).validate_python(state["list"])
        vars(self).update(state)


class Numbers:
    """As many numbers as the sizes say."""

    def __init__(self, sizes):
        self.sizes = sizes
        self.values = torch.arange(sizes.count) / 3

    def state(self):
        return {"values": self.values if len(self.values) == self.sizes.count else torch.zeros(self.sizes.count)}

    def restore(self, state):
        self.values = state["values"]


def parts(count=4):
    sizes = Sizes(count)
    return {"sizes": sizes, "numbers": Numbers(sizes)}


@pytest.fixture
def saved():
    made = parts(4)
    made["sizes"].flags[1] = 7
    return replace(take(3, made, {"wandb/run_id": "y"}), where="some/where")


def changed(saved, part=None, tensors=None, **state):
    """The checkpoint with these tensors and these of its part's plain values, None for those that are left out."""
    kept = {name: tensor for name, tensor in {**saved.tensors, **(tensors or {})}.items() if tensor is not None}
    state = {**saved.state, **state}
    if part is not None:
        sizes = {**state["parts"]["sizes"], **part}
        sizes = {name: value for name, value in sizes.items() if value is not None}
        state["parts"] = {**state["parts"], "sizes": sizes}
    return replace(saved, tensors=kept, state={name: value for name, value in state.items() if value is not None})


def refusal(checkpoint, into=None, **options):
    with pytest.raises(UserError) as caught:
        restore(checkpoint, parts() if into is None else into, **options)
    what, where, mend = str(caught.value).split("\n")
    assert where == f"where: {checkpoint.where}"
    assert mend == "mend: delete that directory, or choose another --run-dir"
    return what.removeprefix("the checkpoint is not of this run: ")


def test_tensors_and_plain_values_have_their_places(saved):
    assert {name: tensor.tolist() for name, tensor in saved.tensors.items()} == {
        "sizes/flags": [0, 7, 0],
        "numbers/values": (torch.arange(4) / 3).tolist(),
    }
    assert saved.state == {
        "round": 3,
        "parts": {"sizes": {"count": 4, "share": 0.5, "label": "x", "list": [1.0]}, "numbers": {}},
        "tracker": {"wandb/run_id": "y"},
    }
    assert tensors_of(saved, "sizes").keys() == {"flags"}
    assert tensors_of(saved, "size") == {}


def test_what_was_taken_comes_back_through_files(saved, tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(saved)
    into = parts(4)
    into["sizes"].share, into["sizes"].label = 0.25, "z"
    restore(store.load(3), into)
    again = take(3, into, {"wandb/run_id": "y"})
    assert again.state == saved.state
    assert all(tensor.equal(saved.tensors[name]) for name, tensor in again.tensors.items())


def test_a_later_part_is_checked_by_what_an_earlier_one_took(saved):
    into = parts(9)
    restore(saved, into)
    assert into["numbers"].values.equal(saved.tensors["numbers/values"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        # parts
        ({"parts": {"sizes": {}}, "tensors": {"numbers/values": None}}, "parts missing or too many: numbers"),
        ({"parts": {"sizes": {}, "numbers": {}, "z": {}}}, "parts missing or too many: z"),
        ({"tensors": {"z/a": torch.zeros(1)}}, "parts missing or too many: z"),
        ({"parts": None}, "parts: Field required"),
        ({"parts": [1]}, "parts: Input should be an object"),
        ({"parts": {"sizes": 5, "numbers": {}}}, "parts.sizes: Input should be an object"),
        # tensors
        ({"tensors": {"sizes/flags": None}}, "sizes: missing or too many: flags"),
        ({"tensors": {"sizes/more": torch.zeros(1)}}, "sizes: missing or too many: more"),
        (
            {"tensors": {"numbers/values": torch.zeros(5)}},
            "tensor numbers/values: torch.float32 (5,) instead of torch.float32 (4,)",
        ),
        (
            {"tensors": {"numbers/values": torch.zeros(4, dtype=torch.float64)}},
            "tensor numbers/values: torch.float64 (4,) instead of torch.float32 (4,)",
        ),
        (
            {"tensors": {"numbers/values": torch.tensor([0.0, float("nan"), 0, 0])}},
            "tensor numbers/values: a value is not finite",
        ),
        (
            {"tensors": {"numbers/values": torch.tensor([0.0, 0, 0, float("-inf")])}},
            "tensor numbers/values: a value is not finite",
        ),
        # plain values
        ({"part": {"count": None}}, "sizes: missing or too many: count"),
        ({"part": {"more": 1}}, "sizes: missing or too many: more"),
        ({"part": {"count": "4"}}, "sizes.count: Input should be a valid integer"),
        ({"part": {"count": 4.5}}, "sizes.count: Input should be a valid integer"),
        ({"part": {"share": "x"}}, "sizes.share: Input should be a valid number"),
        ({"part": {"label": 1}}, "sizes.label: Input should be a valid string"),
        ({"part": {"list": {}}}, "sizes.list: Input should be a valid array"),
        ({"part": {"share": float("inf")}}, "sizes.share: a value is not finite"),
        ({"part": {"list": [1.0, [float("nan")]]}}, "sizes.list: a value is not finite"),
        # of the wrong kind
        ({"part": {"flags": 0}, "tensors": {"sizes/flags": None}}, "sizes: flags is not of the right kind"),
        (
            {"part": {"count": None}, "tensors": {"sizes/count": torch.zeros(1)}},
            "sizes: count is not of the right kind",
        ),
        # what the part itself refuses
        ({"part": {"count": -1}}, "sizes: count: below 0"),
        ({"part": {"list": [1.0, "x"]}}, "sizes.1: Input should be a valid number"),
        # what is no part
        ({"round": None}, "round: Field required"),
        ({"round": 0}, "round: Input should be greater than or equal to 1"),
        ({"round": "3"}, "round: Input should be a valid integer"),
        ({"round": 3.0}, "round: Input should be a valid integer"),
        ({"round": True}, "round: Input should be a valid integer"),
        ({"round": 10**300}, "round: "),
        ({"tracker": None}, "tracker: Field required"),
        ({"tracker": {"id": 5}}, "tracker.id: Input should be a valid string"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
    ],
)
def test_a_strangers_checkpoint_is_refused_by_the_name_of_what_is_wrong(saved, change, reason):
    assert refusal(changed(saved, **change)).startswith(reason)


def test_some_parts_alone_may_be_restored(saved):
    sizes = Sizes(1)
    restore(saved, {"sizes": sizes}, whole=False)
    assert (sizes.count, sizes.flags.tolist()) == (4, [0, 7, 0])
    assert refusal(saved, {"sizes": Sizes(1)}) == "parts missing or too many: numbers"
    assert refusal(saved, {"z": sizes}, whole=False).startswith("parts missing or too many: ")


def test_a_checkpoint_without_a_place_is_still_named(saved):
    assert refusal(Checkpoint({}, saved.state)) == "sizes: missing or too many: flags"
