"""What methods of guests give, wrong: told before it is used or saved."""

import json
import math

import numpy as np
import pytest
import torch
from tiny import Recorder, alone, started, tiny
from torch import nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.methods.base import Method, MethodContext
from fedmef_dist.simulation.decisions import checked_mask, own_metrics, refuse_taken
from fedmef_dist.sparsity import ParameterSpace


class Any(Method):
    def initial_mask(self, preparation):
        raise AssertionError


@pytest.fixture
def method():
    return Any(None, ParameterSpace(nn.Linear(3, 2), ["weight"]), MethodContext())


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (None, "a NoneType"),
        (torch.ones(6), r"torch\.float32 \(6,\)"),
        (torch.tensor([0, 3]), r"torch\.int64 \(2,\)"),
        (torch.ones(5, dtype=torch.bool), r"torch\.bool \(5,\)"),
        (torch.ones(1, 6, dtype=torch.bool), r"torch\.bool \(1, 6\)"),
        (np.ones(6, dtype=bool), "a ndarray"),
    ],
)
def test_a_mask_is_booleans_for_all_prunable_weights(method, given, what):
    with pytest.raises(UserError, match=rf"Any\.next_mask gives {what}, not a mask, torch\.bool \(6,\)"):
        checked_mask(method, "next_mask", given)
    mask = torch.zeros(6, dtype=torch.bool)
    assert checked_mask(method, "next_mask", mask) is mask


def test_numbers_of_numpy_and_truth_values_become_numbers_that_json_has(method):
    given = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": torch.tensor(2.0),
        "d": True,
        "e": torch.tensor(True),
        "f": "x",
    }
    assert own_metrics(method, {"x": 2**63 - 1}) == {"x": 2**63 - 1}
    own = own_metrics(method, given)
    plain = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in own.items()}
    assert json.dumps(plain) == '{"a": 0.5, "b": 3, "c": 2.0, "d": 1, "e": 1, "f": "x"}'


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (None, "a NoneType, not numbers under names"),
        ([1], "a list, not numbers"),
        ({3: 1}, "a number under 3"),
        ({"x": None}, "x as a NoneType"),
        ({"sparsity/form": "even"}, "sparsity/form as a text, where names that begin so are those of numbers"),
        ({"x": 1j}, "x as a complex"),
        ({"x": 10**400}, "x as a int"),
        ({"x": 2**63}, "x as a int"),
        ({"x": -(2**63)}, "x as a int"),
        ({"x": torch.ones(2)}, r"x as a Tensor of shape \(2,\)"),
        ({"x": np.ones(3)}, r"x as a ndarray of shape \(3,\)"),
    ],
)
def test_metrics_are_single_numbers_under_names(method, given, what):
    with pytest.raises(UserError, match=rf"Any\.metrics gives {what}"):
        own_metrics(method, given)


def test_a_method_takes_no_name_of_the_runs(method):
    refuse_taken(method, {"own/x": 1}, {"round"})
    with pytest.raises(UserError, match="gives round, which the run measures itself"):
        refuse_taken(method, {"round": 77}, {"round"})
    # Measured by now, or later in the round.
    for name, taken in (("own/x", {"own/x"}), ("eval/accuracy", set())):
        with pytest.raises(UserError, match=f"gives {name}, which the run measures itself"):
            refuse_taken(method, {name: 77}, taken)


def test_a_round_holds_a_method_to_it_and_a_nan_is_no_end(tmp_path):
    run = started(tiny(federation={"rounds": 1}), alone(), tmp_path)
    run.method.metrics = lambda plan, values: {"own/x": math.nan}
    run.run(recorder := Recorder())
    assert math.isnan(recorder.rounds[0]["own/x"])
    assert run.store.rounds() == [1]

    run = started(tiny(), alone())
    run.round = 1
    for name in ("round", "eval/accuracy", "time/round", "cluster/reduce_bytes", "memory/peak_bytes"):
        run.method.metrics = lambda plan, values, name=name: {name: 77}
        with pytest.raises(UserError, match=f"gives {name}, which the run measures itself"):
            run.play_round()
    run.method.initial_mask = lambda preparation: None
    with pytest.raises(UserError, match="initial_mask gives a NoneType"):
        run.start()
