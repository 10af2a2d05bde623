"""What a simulation takes over from a checkpoint, and what it refuses although the files are whole."""

from dataclasses import replace

import pytest
import torch
from tiny import Recorder, Run, alone, restore, started, tiny

from fedmef_dist.base.errors import UserError
from fedmef_dist.runs.checkpoint import Checkpoint
from fedmef_dist.runs.snapshot import take
from fedmef_dist.session.saved import fill


@pytest.fixture
def simulation(tmp_path):
    return started(tiny(), alone(), tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoint of an adjusting round, in which pruned weights have just become 0."""
    simulation = started(tiny(federation={"rounds": 2}), alone(), tmp_path_factory.mktemp("saved"))
    simulation.run(Recorder())
    return simulation.store.load_newest()


def changed(saved, part=None, plain=None, **tensors):
    """The checkpoint with these tensors, None for those that are left out, and these plain values of a part."""
    kept = {name: tensor for name, tensor in {**saved.tensors, **tensors}.items() if tensor is not None}
    parts = saved.state["parts"]
    if part is not None:
        parts = {**parts, part: {**parts[part], **plain}}
    return replace(saved, tensors=kept, state={**saved.state, "parts": parts})


def refusal(simulation, checkpoint):
    with pytest.raises(UserError) as caught:
        restore(simulation, checkpoint)
    what, where, _ = str(caught.value).split("\n")
    assert where == f"where: {checkpoint.where}"
    return what.removeprefix("the checkpoint is not of this run: ")


def test_active_weights_alone_are_saved_and_come_back_bit_by_bit(simulation, saved):
    space = simulation.space
    restore(simulation, saved)
    assert saved.tensors["model/values"].numel() == space.packed_size() < space.total
    assert simulation.server.digest() == saved.state["parts"]["model"]["digest"]
    inactive = simulation.server.values[: space.n_prunable][~space.mask.active]
    assert inactive.numpy().tobytes() == bytes(4 * inactive.numel())  # zeros, none of them with a sign


def test_the_model_alone_stands_in_for_the_one_that_was_saved(simulation, saved):
    fill(simulation.model, saved)
    restore(simulation, saved)
    weights = {name: tensor.clone() for name, tensor in simulation.model.state_dict().items()}
    other = Run(tiny(seed=5), alone()).model
    fill(other, saved)
    assert all(tensor.equal(weights[name]) for name, tensor in other.state_dict().items())


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
    assert refusal(simulation, saved) == "method: a momentum is negative"


def test_impossible_memory_of_a_server_optimizer_is_refused(tmp_path):
    run = started(tiny(server_optimizer={"name": "adam", "lr": 0.01}), alone(), tmp_path)
    run.round = 1
    run.play_round()
    saved = take(1, run.parts, {})
    squares = saved.tensors["server_optimizer/squares"].clone()
    restore(run, changed(saved, **{"server_optimizer/squares": squares}))
    squares[0] = -1
    reason = "server_optimizer: the server optimiser remembers a square below 0"
    assert refusal(run, changed(saved, **{"server_optimizer/squares": squares})) == reason
    squares[0] = float("nan")
    reason = "tensor server_optimizer/squares: a value is not finite"
    assert refusal(run, changed(saved, **{"server_optimizer/squares": squares})) == reason
    short = changed(saved, **{"server_optimizer/direction": torch.zeros(0)})
    assert refusal(run, short).startswith("tensor server_optimizer/direction: torch.float32 (0,) instead of ")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mask/active": None}, "mask: missing or too many: active"),
        ({"model/values": None}, "model: missing or too many: values"),
        ({"wire/known_version": None}, "wire: missing or too many: known_version"),
        ({"method/x": torch.zeros(1)}, "method: missing or too many: x"),
        ({"mask/active": torch.zeros(3, dtype=torch.uint8)}, "tensor mask/active: torch.uint8 (3,) instead of "),
        ({"model/values": torch.zeros(5)}, "tensor model/values: torch.float32 (5,) instead of "),
        ({"part": "mask", "plain": {"version": -1}}, "mask: version: not between 0 and 2147483647"),
        ({"part": "mask", "plain": {"version": 10**300}}, "mask: version: not between 0 and 2147483647"),
        ({"part": "mask", "plain": {"version": True}}, "mask.version: Input should be a valid integer"),
        ({"part": "placement", "plain": {"sums": [1.0]}}, "placement: 1 sums of training times instead of 5"),
        ({"part": "placement", "plain": {"sums": [{}] * 5}}, "placement.0: Input should be a valid number"),
        ({"part": "placement", "plain": {"sums": [float("inf")] * 5}}, "placement.sums: a value is not finite"),
        ({"part": "totals", "plain": {"wire_bytes": "many"}}, "totals.wire_bytes: "),
        ({"part": "totals", "plain": {"flops": float("inf")}}, "totals.flops: a value is not finite"),
        ({"part": "totals", "plain": {"flops": 10**400}}, "totals.flops: Input should be a finite number"),
        ({"part": "totals", "plain": {"last": {"x": [1]}}}, "totals.last.x."),
        ({"part": "model", "plain": {"digest": "0" * 64}}, "model: weights and mask have another digest than it says"),
        ({"part": "model", "plain": {"digest": 7}}, "model.digest: Input should be a valid string"),
    ],
)
def test_a_strangers_checkpoint_is_refused(simulation, saved, change, reason):
    assert refusal(simulation, changed(saved, **change)).startswith(reason)


def test_another_mask_is_refused_by_the_digest(simulation, saved):
    bits = saved.tensors["mask/active"].clone()
    mixed = next(place for place, byte in enumerate(bits.tolist()) if bin(byte).count("1") == 4)
    bits[mixed] ^= 255  # as many weights are active as before, others
    reason = "model: weights and mask have another digest than it says"
    assert refusal(simulation, changed(saved, **{"mask/active": bits})) == reason


def test_a_weight_that_is_not_finite_is_refused(simulation, saved):
    values = saved.tensors["model/values"].clone()
    values[1] = float("inf")
    reason = "tensor model/values: a value is not finite"
    assert refusal(simulation, changed(saved, **{"model/values": values})) == reason


def test_a_checkpoint_without_a_place_is_still_named(simulation, saved):
    assert refusal(simulation, Checkpoint({}, saved.state)) == "mask: missing or too many: active, first"


def adjusting(name):
    return {"name": name, "density": 0.5, "adjust_every": 1, "adjust_until": 6}


@pytest.mark.parametrize(
    "sections",
    [
        {"method": adjusting("fedmef"), "server_optimizer": {"name": "yogi", "lr": 0.01}},
        {"method": adjusting("fedrts"), "server_optimizer": {"name": "avgm", "lr": 0.5}},
        {"method": adjusting("fedsgc")},
        {"method": {"name": "scaffold"}},
        {"method": {"name": "feddyn"}},
        {"method": {"name": "ditto"}},
        {
            "method": {"name": "ditto"},
            "model": {"name": "resnet8", "width": 0.25, "norm": "batch"},
            "federation": {"client_state": "both"},
            "optimizer": {"momentum": 0.5},
        },
    ],
)
def test_every_part_comes_back_as_it_was(sections):
    run = started(tiny(**sections), alone())
    for run.round in (1, 2):
        run.play_round()
    saved = take(2, run.parts, {})
    other = started(tiny(**sections, seed=9), alone())
    fresh = take(2, other.parts, {})
    still = {"placement"} | ({"mask", "health"} if run.space.mask.is_full else set())
    still |= {"health"} if run.space.mask.version == 0 else set()
    for part in run.parts.keys() - still:
        kept = [name for name in saved.tensors if name.startswith(f"{part}/")]
        differs = any(not fresh.tensors[name].equal(saved.tensors[name]) for name in kept)
        assert differs or fresh.state["parts"][part] != saved.state["parts"][part] or run.parts[part].state() == {}
    restore(other, saved)
    again = take(2, other.parts, {})
    assert again.state == saved.state
    assert again.tensors.keys() == saved.tensors.keys()
    assert all(tensor.equal(saved.tensors[name]) for name, tensor in again.tensors.items())
