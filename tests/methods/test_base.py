"""What holds for every method: a plan is a decision and no memory; and what a method does that decides nothing."""

import pytest
import torch
from made_methods import Seeded, server_for
from pydantic import TypeAdapter
from torch import Tensor, nn

from fedmef_dist.clients.plan import RoundPlan
from fedmef_dist.methods.base import Method, MethodContext, Received
from fedmef_dist.methods.registry import METHODS, MethodSettings, create_method
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sums.exact_sum import FixedPoint
from fedmef_dist.sums.position_sum import Sums

NEVER = ("ditto", "fedavg", "feddyn", "scaffold", "sparsyfed", "static")
EVERY_ROUND = {"adjust_every": 2, "adjust_until": 9}
KEYS = {
    "fedtiny": {"candidates": 1},
    "flash": {"variant": "jmwst", "initial_epochs": 0},
    "prunefl": {"initial": "none", "layer_time": "uniform"},
}


def network():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.Linear(6, 3))
    return ParameterSpace(model, ["0.weight", "1.weight"])


def nothing_of(size):
    return Sums(torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64), 1, FixedPoint(20))


def started_method(name):
    """A method of this name and its server, two rounds later."""
    space = network()
    keys = {key: value for key, value in EVERY_ROUND.items() if key in METHODS[name].Settings.model_fields}
    density = {"density": 0.8} if "density" in METHODS[name].Settings.model_fields else {}
    settings = TypeAdapter(MethodSettings).validate_python({"name": name} | density | keys | KEYS.get(name, {}))
    method = create_method(settings, space, MethodContext(rounds=20, total_weight=5))
    server = server_for(method)
    server.start(space.values, method.initial_mask(Seeded(0, space.values)))
    nothing = {wanted.name: nothing_of(wanted.over.size) for wanted in method.plan(1, server.values).collections}
    server.update(RoundPlan(0, server.values), space.pack(server.values) + 0.25, nothing, 1)
    return method, server


def plain(value):
    """Something that compares: tensors as lists, objects as their attributes."""
    if isinstance(value, Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, ParameterSpace):
        return None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return (type(value), plain(vars(value))) if hasattr(value, "__dict__") else value


@pytest.mark.parametrize("name", METHODS)
def test_planning_again_gives_the_same_plan_and_leaves_no_trace(name):
    method, server = started_method(name)
    space, plans = method.space, []

    def trace():
        return plain([method.state(), server.values, space.mask.active, space.mask.version, list(space.tensors)])

    before = trace()
    for number in (1, 2, 3, 4, 2, 9, 20):
        first = method.plan(number, server.values)
        plans.append(first)
        assert first.round == number
        assert first.values is server.values
        assert plain(first) == plain(method.plan(number, server.values))
        assert trace() == before
    # Had it remembered, the second plan of round 2 would differ from the first.
    assert plain(plans[1]) == plain(plans[4])
    assert plans[1].adjusts == (name not in NEVER)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_remembers_has_the_same_names_types_and_shapes_from_the_start(name):
    method, _ = started_method(name)
    fresh = create_method(method.settings, network(), method.context)

    def shapes(state):
        return {key: (tensor.dtype, tensor.shape) for key, tensor in state.items()}

    assert shapes(fresh.state()) == shapes(method.state())
    if method.state():
        fresh.restore({key: tensor.clone() for key, tensor in method.state().items()})
        assert plain(fresh.state()) == plain(method.state())


class Nothing(Method):
    """Decides nothing."""

    def initial_mask(self, preparation):
        return torch.ones(self.space.n_prunable, dtype=torch.bool)


def test_a_method_that_decides_nothing_is_federated_averaging():
    space = network()
    method = Nothing(None, space, MethodContext())
    values, average = space.values.clone(), space.values + 1
    plan = method.plan(3, values)
    assert plain(plan) == plain(RoundPlan(3, values))
    assert (plan.broadcasts, plan.collections, plan.returns_weights, plan.adjusts) == ((), (), True, False)
    made, active = method.aggregate(plan, Received(average, {}, 2))
    assert made is average
    assert active is None
    assert method.kept() == ()
    assert method.personal(values, {}) is values
    assert method.grown_values(values, torch.tensor([4, 7])).tolist() == [0, 0]
    assert method.metrics(plan, values) == {}
    assert method.state() == {}
    method.restore({})


def test_what_it_does_not_know_it_refuses():
    method = Nothing(None, network(), MethodContext())
    with pytest.raises(NotImplementedError, match="Nothing does not adjust its mask"):
        method.next_mask(RoundPlan(1, method.space.values), method.space.values, {})
    with pytest.raises(ValueError, match="Nothing remembers nothing"):
        method.restore({"posterior": torch.ones(1)})
