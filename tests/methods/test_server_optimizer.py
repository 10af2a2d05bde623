from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.config import parse_config
from fedmef_dist.methods.server_optimizer import ServerOptimizer, ServerOptimizerSettings
from fedmef_dist.sparsity import Mask, ParameterSpace

# Numbers that float32 holds exactly, and squares with exact roots.
AVGM = {"name": "avgm", "lr": 0.5, "beta1": 0.5}
ADAM = {"name": "adam", "lr": 12.0, "beta1": 0.5, "beta2": 0.5, "tau": 1.0}
YOGI = {"name": "yogi", "lr": 2.0, "beta1": 0.5, "beta2": 0.25, "tau": 1.0}
RULES = [AVGM, ADAM, YOGI]
FULL = [True] * 6


def optimizer_of(settings, active=FULL):
    """Over six prunable weights, two biases and four running statistics; these weights are active."""
    space = ParameterSpace(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False)), ["0.weight"])
    space.set_mask(Mask(torch.tensor(active)))
    return ServerOptimizer(ServerOptimizerSettings(**settings), space)


def state(**places):
    """float32 (12,) that is 0 but for these: `state(w0=1.0)` is 1 at place 0."""
    values = torch.zeros(12)
    for place, value in places.items():
        values[int(place[1:])] = value
    return values


def step(optimizer, old, average):
    """One round in which nothing is pruned or grown."""
    return optimizer.step(old, average, optimizer.space.mask)


def two_rounds(settings, first, second):
    """Where a weight and a bias that start at 1 are after each round, if the clients' average is there."""
    optimizer = optimizer_of(settings)
    seen, old = [], state(w0=1.0, w6=1.0)
    for average in (first, second):
        old = step(optimizer, old, state(w0=average, w6=average))
        assert old[0] == old[6]
        assert not old[[1, 2, 3, 4, 5, 7]].any()
        seen.append(old[0].item())
    return seen, {name: tensor[0].item() for name, tensor in optimizer.state().items() if len(tensor)}


def test_avgm_by_hand():
    # Delta 2, direction 2, 1 + 2 / 2. Then Delta 1, direction 2 / 2 + 1 = 2, 2 + 2 / 2.
    assert two_rounds(AVGM, 3.0, 3.0) == ([2.0, 3.0], {"direction": 2.0})


def test_adam_by_hand():
    # Delta 7: m = 7 / 2, v = (1 + 49) / 2 = 25, 1 + 12 * 3.5 / (5 + 1) = 8.
    # Delta -5: m = (3.5 - 5) / 2 = -0.75, v = (25 + 25) / 2 = 25, 8 - 12 * 0.75 / (5 + 1) = 6.5.
    assert two_rounds(ADAM, 8.0, 3.0) == ([8.0, 6.5], {"direction": -0.75, "squares": 25.0})


def test_yogi_by_hand():
    # Delta 2: m = 1, v = 1 + 3/4 * 4 = 4 since 4 > 1, 1 + 2 * 1 / (2 + 1) = 5/3.
    # Delta 1: m = 1, v = 4 - 3/4 * 1 = 3.25 since 1 < 4, 5/3 + 2 * 1 / (sqrt(3.25) + 1).
    seen, memory = two_rounds(YOGI, 3.0, 1 + 5 / 3)
    assert seen == pytest.approx([5 / 3, 5 / 3 + 2 / (sqrt(3.25) + 1)])
    assert memory == pytest.approx({"direction": 1.0, "squares": 3.25})


def test_yogi_leaves_squares_that_equal_the_new_one():
    optimizer = optimizer_of(YOGI)
    step(optimizer, state(), state(w0=1.0, w1=2.0))
    assert optimizer.state()["squares"][:3].tolist() == [1.0, 4.0, 1.0]


def test_each_operation_rounds_once_so_that_every_processor_gives_the_same_bits():
    space = ParameterSpace(nn.Linear(1000, 1, bias=False), [])
    optimizer = ServerOptimizer(ServerOptimizerSettings(name="adam", lr=0.01), space)
    direction, squares = np.zeros(1000, np.float32), np.full(1000, 1e-6, np.float32)
    beta1, beta2, lr, tau = (np.float32(number) for number in (0.9, 0.99, 0.01, 1e-3))
    old = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for seed in (1, 2):
        average = torch.randn(1000, generator=torch.Generator().manual_seed(seed))
        delta = average.numpy() - old.numpy()
        direction = direction * beta1 + delta * np.float32(1 - 0.9)
        squares = squares * beta2 + delta * delta * np.float32(1 - 0.99)
        expected = old.numpy() + direction / (np.sqrt(squares) + tau) * lr
        old = step(optimizer, old, average)
        assert np.array_equal(old.numpy(), expected)


def test_none_returns_the_average_bit_for_bit():
    average = torch.randn(12, generator=torch.Generator().manual_seed(0))
    assert step(optimizer_of({}), torch.randn(12), average) is average


@given(st.lists(st.floats(-100, 100, width=32), min_size=24, max_size=24))
def test_avgm_without_memory_at_rate_1_takes_the_average(numbers):
    old, average = torch.tensor(numbers).view(2, 12)
    new = step(optimizer_of({"name": "avgm", "beta1": 0.0}), old, average)
    torch.testing.assert_close(new, average, rtol=0, atol=3e-5)


@pytest.mark.parametrize("rule", RULES)
def test_running_statistics_are_taken_as_averaged(rule):
    old, average = state(w8=1.0, w11=2.0), state(w8=0.1, w9=0.2, w10=0.3, w11=0.7)
    optimizer = optimizer_of(rule)
    for _ in range(2):
        assert torch.equal(step(optimizer, old, average)[8:], average[8:])


@pytest.mark.parametrize("rule", RULES)
def test_the_states_that_are_given_stay_as_they_are(rule):
    old, average = torch.arange(12.0), torch.arange(12.0) * 2
    new = step(optimizer_of(rule), old, average)
    assert not torch.equal(new, average)
    assert torch.equal(old, torch.arange(12.0))
    assert torch.equal(average, torch.arange(12.0) * 2)


@pytest.mark.parametrize("rule", RULES)
def test_an_inactive_weight_is_0_without_a_sign_and_remembers_nothing(rule):
    optimizer = optimizer_of(rule, [True, False, True, True, True, True])
    new = step(optimizer, state(w0=1.0), state(w0=-1.0, w1=-5.0))
    assert new[1].numpy().tobytes() == bytes(4)
    assert optimizer.state()["direction"][1] == 0
    assert new[0] < 1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rounds_between", [0, 1])
def test_what_is_pruned_and_grows_again_starts_afresh(rule, rounds_between):
    pruned = Mask(torch.tensor([True, False, True, True, True, True]))
    optimizer = optimizer_of(rule)
    step(optimizer, state(w0=1.0, w1=1.0), state(w0=3.0, w1=3.0))
    optimizer.space.set_mask(pruned)  # the round ended with an adjustment
    for _ in range(rounds_between):
        step(optimizer, state(w0=1.0), state(w0=1.0))
    # A client grows it, so it is in the average but not in the state that was sent out.
    grown = optimizer.step(state(w0=1.0), state(w0=1.0, w1=2.0), Mask(torch.tensor(FULL)))
    fresh = optimizer_of(rule).step(state(), state(w1=2.0), Mask(torch.tensor(FULL)))
    assert grown[1] == fresh[1] != 0
    assert grown[0] != 1.0  # which was never pruned goes on in its direction


def test_a_weight_that_no_client_keeps_moves_towards_0():
    optimizer = optimizer_of(AVGM)
    assert step(optimizer, state(w0=4.0), state())[0] == 2.0


@pytest.mark.parametrize("rule", RULES)
def test_what_is_restored_goes_on_alike(rule):
    one, other = optimizer_of(rule), optimizer_of(rule)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, 12, generator=generator)
    step(one, states[0], states[1])
    other.restore({name: tensor.clone() for name, tensor in one.state().items()})
    assert torch.equal(step(one, states[2], states[3]), step(other, states[2], states[3]))
    assert not torch.equal(step(optimizer_of(rule), states[2], states[3]), step(one, states[2], states[3]))


@pytest.mark.parametrize(
    ("name", "names"),
    [("none", []), ("avgm", ["direction"]), ("adam", ["direction", "squares"]), ("yogi", ["direction", "squares"])],
)
def test_a_rule_keeps_no_more_than_it_needs(name, names):
    kept = optimizer_of({"name": name}).state()
    assert list(kept) == names
    assert all(tensor.numel() == 8 for tensor in kept.values())


def test_a_square_below_0_is_refused():
    with pytest.raises(ValueError, match="remembers a square below 0"):
        optimizer_of(ADAM).restore({"direction": torch.zeros(8), "squares": state(w3=-1e-9)[:8]})


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"lr": 0.5}, "lr"),
        ({"name": "none", "tau": 0.1}, "tau"),
        ({"name": "avgm", "beta2": 0.9}, "beta2"),
        ({"name": "avgm", "tau": 0.1}, "tau"),
    ],
)
def test_a_key_that_the_rule_does_not_use_is_refused(section, key):
    with pytest.raises(UserError) as caught:
        parse_config({"server_optimizer": section}, "here")
    rule = section.get("name", "none")
    assert str(caught.value) == (
        f"server_optimizer: {key} is given although the rule {rule} does not use it; leave it out\n"
        "where: here\nmend: correct server_optimizer"
    )


def test_the_defaults_may_be_written_out():
    section = ServerOptimizerSettings().model_dump()
    assert parse_config({"server_optimizer": section}, "here").server_optimizer == ServerOptimizerSettings()


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"beta1": 1.0}, {"beta2": 1.0}, {"tau": 1e-9}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        ServerOptimizerSettings(name="adam", **wrong)
