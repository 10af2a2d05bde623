"""What a simulation takes over from a checkpoint, and what it refuses although the files are whole."""

from dataclasses import replace

import pytest
import torch
from tiny import Recorder, alone, started, tiny

from fedmef_dist.base.errors import UserError
from fedmef_dist.runs.checkpoint import Checkpoint, read_model
from fedmef_dist.runs.snapshot import restore, take_checkpoint


@pytest.fixture
def simulation(tmp_path):
    return started(tiny(), alone(), tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoint of an adjusting round, in which pruned weights have just become 0."""
    simulation = started(tiny(federation={"rounds": 2}), alone(), tmp_path_factory.mktemp("saved"))
    simulation.run(Recorder())
    return simulation.store.load_newest()


def changed(saved, state=None, **tensors):
    kept = {name: tensor for name, tensor in {**saved.tensors, **tensors}.items() if tensor is not None}
    return replace(saved, tensors=kept, state={**saved.state, **(state or {})})


def refusal(simulation, checkpoint):
    with pytest.raises(UserError) as caught:
        restore(simulation, checkpoint)
    what, where, _ = str(caught.value).split("\n")
    assert where == f"where: {checkpoint.where}"
    return what.removeprefix("the checkpoint is not of this run: ")


def test_active_weights_alone_are_saved_and_come_back_bit_by_bit(simulation, saved):
    space = simulation.space
    restore(simulation, saved)
    assert saved.tensors["values"].numel() == space.packed_size < space.total
    assert simulation.server.digest() == saved.state["digest"]
    inactive = simulation.server.values[: space.n_prunable][~space.mask.active]
    assert inactive.numpy().tobytes() == bytes(4 * inactive.numel())  # zeros, none of them with a sign


def test_a_restored_model_stands_in_for_the_one_that_was_saved(simulation, saved):
    values, mask = read_model(saved, simulation.space)
    assert mask.to_bits().equal(saved.tensors["mask"])
    assert simulation.space.pack(values).equal(saved.tensors["values"])


def test_what_a_method_remembers_comes_back(simulation, saved):
    remembered = {}
    simulation.method.state = lambda: {"momentum": torch.zeros(3)}
    simulation.method.restore = remembered.update
    restore(simulation, changed(saved, **{"method/momentum": torch.tensor([1.0, 2.0, 3.0])}))
    assert {name: tensor.tolist() for name, tensor in remembered.items()} == {"momentum": [1.0, 2.0, 3.0]}


def test_a_method_may_refuse_what_it_is_given(simulation, saved):
    def refuse(state):
        raise ValueError("a momentum is negative")

    simulation.method.restore = refuse
    assert refusal(simulation, saved) == "fedmef: a momentum is negative"


def test_impossible_memory_of_a_server_optimizer_is_refused(tmp_path):
    run = started(tiny(server_optimizer={"name": "adam", "lr": 0.01}), alone(), tmp_path)
    run.round = 1
    run.play_round()
    saved = take_checkpoint(run, {}, {})
    squares = saved.tensors["server_optimizer/squares"].clone()
    restore(run, changed(saved, **{"server_optimizer/squares": squares}))
    squares[0] = -1
    reason = "fedmef: the server optimiser remembers a square below 0"
    assert refusal(run, changed(saved, **{"server_optimizer/squares": squares})) == reason
    squares[0] = float("nan")
    reason = "tensor server_optimizer/squares: a value is not finite"
    assert refusal(run, changed(saved, **{"server_optimizer/squares": squares})) == reason
    short = changed(saved, **{"server_optimizer/direction": torch.zeros(0)})
    assert refusal(run, short).startswith("tensor server_optimizer/direction: torch.float32 (0,) instead of ")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mask": None}, "tensors missing or too many: mask"),
        ({"values": None}, "tensors missing or too many: values"),
        ({"known_version": None}, "tensors missing or too many: known_version"),
        ({"method/x": torch.zeros(1)}, "tensors missing or too many: method/x"),
        ({"mask": torch.zeros(3, dtype=torch.uint8)}, "tensor mask: torch.uint8 (3,) instead of "),
        ({"values": torch.zeros(5)}, "tensor values: torch.float32 (5,) instead of "),
        ({"state": {"round": 0}}, "round: "),
        ({"state": {"totals": {"wire_bytes": "many"}}}, "wire_bytes: "),
        ({"state": {"digest": "0" * 64}}, "weights and mask have another digest than it says"),
    ],
)
def test_a_strangers_checkpoint_is_refused(simulation, saved, change, reason):
    assert refusal(simulation, changed(saved, **change)).startswith(reason)


def test_another_mask_is_refused_by_the_digest(simulation, saved):
    bits = saved.tensors["mask"].clone()
    mixed = next(place for place, byte in enumerate(bits.tolist()) if bin(byte).count("1") == 4)
    bits[mixed] ^= 255  # as many weights are active as before, others
    assert refusal(simulation, changed(saved, mask=bits)) == "weights and mask have another digest than it says"


def test_a_weight_that_is_not_finite_is_refused(simulation, saved):
    values = saved.tensors["values"].clone()
    values[1] = float("inf")
    assert refusal(simulation, changed(saved, values=values)) == "tensor values: a value is not finite"


def test_a_checkpoint_without_a_place_is_still_named(simulation, saved):
    assert refusal(simulation, Checkpoint({}, saved.state)) == "tensors missing or too many: mask"
