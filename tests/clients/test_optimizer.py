import pytest
import torch
from torch import nn

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
