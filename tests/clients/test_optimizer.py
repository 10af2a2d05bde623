from contextlib import nullcontext

import pytest
import torch
from torch import nn

from fedmef_dist.clients.adam import local_optimizer
from fedmef_dist.clients.optimizer import MaskedSGD, OptimizerSettings
from fedmef_dist.sparsity import Mask, ParameterSpace


def space_of(weights, active):
    space = ParameterSpace(nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 1, bias=False)), ["0.weight"])
    space.values.copy_(torch.tensor(weights))
    space.set_mask(Mask(torch.tensor(active)))
    return space


def test_rates_over_rounds():
    assert OptimizerSettings(lr=0.1, decay=0.5).rate(3, 10) == pytest.approx(0.025)
    assert OptimizerSettings(lr=0.1, schedule="constant").rate(9, 10) == 0.1
    assert OptimizerSettings(lr=0.1, schedule="cosine").rate(6, 10) == pytest.approx(0.05)


def test_plain_step_leaves_masked_weights_at_0():
    space = space_of([1.0, 2, 3, 4, 5], [True, False, True, False])
    space.gradient.fill_(1.0)
    MaskedSGD(space, OptimizerSettings()).step(0.5)
    assert space.values.tolist() == [0.5, 0, 2.5, 0, 4.5]


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"momentum": 0.5, "weight_decay": 0.2}]
)
def test_steps_equal_those_of_torch_on_the_active_weights(options):
    active = [True, False, True, True]
    space = space_of([1.0, 2, -3, 4, 5], active)
    theirs = nn.Parameter(space.values.clone())
    reference = torch.optim.SGD([theirs], lr=0.1, **options)
    ours = MaskedSGD(space, OptimizerSettings(**options))
    for step in range(4):
        gradient = torch.randn(5, generator=torch.Generator().manual_seed(step))
        space.gradient.copy_(gradient)
        theirs.grad = gradient * torch.tensor([*active, True])
        ours.step(torch.tensor(0.1) if step % 2 else 0.1)
        reference.step()
    torch.testing.assert_close(space.values, theirs.detach())
    assert space.values[1] == 0


def passes(space, model, sgd, in_backward):
    """Three steps on numbers of a seed; the second leaves the last layer alone."""
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        x = torch.randn(2, 4, generator=generator)
        loss = (model[0](x) if step == 1 else model(x)).square().sum()
        if in_backward:
            with sgd.in_backward(0.1) as finish:
                loss.backward()
                finish()
        else:
            space.gradient.zero_()
            loss.backward()
            sgd.step(0.1)
    return space.values.tolist()


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"prox_mu": 0.3}])
def test_steps_in_the_backward_pass_have_the_bits_of_those_behind_it(options):
    found = []
    for in_backward in (False, True):
        model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 1, bias=False))
        space = ParameterSpace(model, ["0.weight"])
        space.values.copy_(torch.tensor([1.0, 2, 3, 4, 5]))
        space.set_mask(Mask(torch.tensor([True, False, True, True])))
        found.append(passes(space, model, MaskedSGD(space, OptimizerSettings(**options)), in_backward))
    assert found[0] == found[1]
    assert found[0][1] == 0


def test_steps_in_the_backward_pass_keep_no_gradient():
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 1, bias=False))
    space = ParameterSpace(model, ["0.weight"])
    with MaskedSGD(space, OptimizerSettings()).in_backward(0.1):
        model(torch.ones(1, 4)).sum().backward()
        assert all(parameter.grad is None for parameter in model.parameters())
        assert len(space.tensors) == 2
    assert space.gradient.tolist() == [0] * 5
    model(torch.ones(1, 4)).sum().backward()
    assert space.gradient[4] == model[0](torch.ones(1, 4)).item()


def test_two_gradients_of_one_parameter_in_one_pass_are_refused():
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 1, bias=False))
    space = ParameterSpace(model, ["0.weight"])
    with MaskedSGD(space, OptimizerSettings()).in_backward(0.1):
        model[0](torch.ones(1, 4)).sum().backward()
        again = model[0](torch.ones(1, 4)).sum()
        with pytest.raises(RuntimeError, match=r"0\.weight is in two blocks"):
            again.backward()


def test_the_proximal_term_pulls_back_to_the_start():
    space = space_of([1.0, 2, 3, 4, 5], [True] * 4)
    sgd = MaskedSGD(space, OptimizerSettings(prox_mu=0.5))
    space.values += 2
    space.gradient.zero_()
    sgd.step(1.0)
    assert space.values.tolist() == [2, 3, 4, 5, 6]


def test_a_mask_that_changes_within_a_round_by_hand():
    """Position 2 is pruned and 1 grown between two steps; momentum 0.5, weight decay 0.1, mu 0.2, all gradients 1.

    The first step's directions are 1 + 0.1 w: 1.1, 1.3, 1.4 and 1.5. The second adds 0.1 w and 0.2 times what has been
    moved: position 0 goes on with 0.55 + (1 + 0.089 - 0.022) = 1.617, 3 with 0.7 + (1 + 0.386 - 0.028) = 2.058, 4 with
    0.75 + (1 + 0.485 - 0.03) = 2.205. Position 1 starts with a direction of 1 from a weight and an origin of 0.
    """
    space = space_of([1.0, 2, 3, 4, 5], [True, False, True, True])
    sgd = MaskedSGD(space, OptimizerSettings(momentum=0.5, weight_decay=0.1, prox_mu=0.2))
    space.gradient.fill_(1.0)
    sgd.step(0.1)
    torch.testing.assert_close(space.values, torch.tensor([0.89, 0, 2.87, 3.86, 4.85]))
    space.set_mask(space.mask.next(space.mask.swapped(torch.tensor([2]), torch.tensor([1]))))
    space.gradient.fill_(1.0)
    sgd.step(0.1)
    torch.testing.assert_close(space.values, torch.tensor([0.7283, -0.1, 0, 3.6542, 4.6295]))
    for _ in range(3):
        space.gradient.fill_(1.0)
        sgd.step(0.1)
        assert space.values[2] == 0


def test_a_kept_momentum_forgets_what_is_pruned_within_a_round():
    space = space_of([1.0, 2, 3, 4, 5], [True, False, True, True])
    velocity = torch.tensor([1.0, 0, 1, 1, 1])
    sgd = MaskedSGD(space, OptimizerSettings(momentum=0.5), velocity)
    space.set_mask(space.mask.next(space.mask.swapped(torch.tensor([2]), torch.tensor([1]))))
    space.gradient.fill_(1.0)
    sgd.step(0.1)
    torch.testing.assert_close(space.values, torch.tensor([0.85, -0.1, 0, 3.85, 4.85]))
    assert velocity.tolist() == [1.5, 1.0, 0.0, 1.5, 1.5]


ADAMS = [
    {"name": "adam"}, {"name": "adam", "weight_decay": 0.1, "beta1": 0.5}, {"name": "adamw", "weight_decay": 0.2},
]  # fmt: skip


@pytest.mark.parametrize("options", ADAMS)
def test_adams_steps_are_those_of_torch_on_the_active_weights(options):
    active = [True, False, True, True]
    space = space_of([1.0, 2, -3, 4, 5], active)
    theirs = nn.Parameter(space.values.clone())
    kind = torch.optim.AdamW if options["name"] == "adamw" else torch.optim.Adam
    decay = options.get("weight_decay", 0.0)
    reference = kind([theirs], lr=0.1, weight_decay=decay, betas=(options.get("beta1", 0.9), 0.999))
    ours = local_optimizer(space, OptimizerSettings(**options))
    for step in range(4):
        gradient = torch.randn(5, generator=torch.Generator().manual_seed(step))
        space.gradient.copy_(gradient)
        ours.step(0.1 if step % 2 else torch.tensor(0.1))
        theirs.grad = gradient * torch.tensor([*active, True])
        reference.step()
        torch.testing.assert_close(space.values, theirs.detach())
    assert space.values[1] == 0
    assert [len(tensor) for tensor in ours.tensors] == [5, 5]
    assert OptimizerSettings(**options).states == 2


@pytest.mark.parametrize("options", [*ADAMS, {"name": "adamw", "prox_mu": 0.5}])
def test_adams_steps_in_the_backward_pass_have_the_same_bits(options):
    found = []
    for in_backward in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(37, 19), nn.ReLU(), nn.Linear(19, 3))
        space = ParameterSpace(model, ["0.weight"])
        space.set_mask(Mask(torch.rand(space.n_prunable) < 0.5))
        space.load(space.values.clone())
        optimizer, inputs = local_optimizer(space, OptimizerSettings(**options)), torch.randn(4, 8, 37)
        with optimizer.in_backward(0.1) if in_backward else nullcontext() as finish:
            for batch in inputs:
                space.gradient.zero_()
                model(batch).square().sum().backward()
                finish() if in_backward else optimizer.step(0.1)
        found.append(space.values.clone())
    assert torch.equal(*found)
    assert optimizer.passes == 4
    assert not found[0][: space.n_prunable][~space.mask.active].any()


def test_what_a_client_prunes_leaves_adams_moments():
    space = space_of([1.0, 2, 3, 4, 5], [True, True, True, False])
    adam = local_optimizer(space, OptimizerSettings(name="adam"))
    space.gradient.fill_(1.0)
    adam.step(0.1)
    space.set_mask(space.mask.next(torch.tensor([True, False, True, False])))
    space.gradient.zero_()
    adam.step(0.1)
    assert space.values[1] == 0
    assert [float(moment[1]) for moment in adam.tensors] == [0.0, 0.0]


def test_momentum_is_refused_beside_adam():
    with pytest.raises(ValueError, match="momentum is for sgd; adam has beta1 in its place"):
        OptimizerSettings(name="adam", momentum=0.5)
