"""Four weights worked out by hand, and what holds for every criterion on a network with depthwise filters.

W = [[1.2, 0.7], [0, 1]], the output layer is the identity. One sample x = (1, 4) of label 0: both logits are 4, so the
loss's gradient in them is (-1/2, 1/2), that in W is [[-0.5, -2], [0.5, 2]], and |g * theta| = 0.6, 1.4, 0, 2.
"""

import pytest
import torch
from made_methods import Seeded, positions, preparation_for
from pydantic import ValidationError
from torch import nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.layers.batchnorm import BatchNorm2d
from fedmef_dist.methods.base import MethodContext
from fedmef_dist.methods.static import Static, StaticSettings
from fedmef_dist.sparsity import Mask, ParameterSpace

SAMPLE = torch.tensor([[1.0, 4.0]]), torch.tensor([0])
OTHERS = torch.tensor([[4.0, -1.0], [0.5, 0.0], [-2.0, 1.0]]), torch.tensor([0, 1, 1])


def by_hand(**settings):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    space = ParameterSpace(model, ["0.weight"])
    space.values.copy_(torch.tensor([1.2, 0.7, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]))
    # 4 of the 8 parameters are never pruned; 6 of 8 leave two in W.
    return model, space, Static(StaticSettings(density=0.75, **settings), space, MethodContext())


def test_magnitude_by_hand():
    model, space, method = by_hand(criterion="magnitude")
    assert positions(method.initial_mask(preparation_for(model, space, [SAMPLE]))) == [0, 3]


def test_snip_by_hand():
    model, space, method = by_hand(criterion="snip")
    preparation = preparation_for(model, space, [SAMPLE])
    assert positions(method.initial_mask(preparation)) == [1, 3]
    costs = preparation.costs
    assert (costs.up, costs.down, costs.gradient_samples) == (0, 0, 0)  # the server's own work


def test_snip_of_clients_is_that_of_all_their_samples_and_is_paid_for():
    model, space, method = by_hand(criterion="snip", scores="clients")
    preparation = preparation_for(model, space, [SAMPLE, OTHERS])
    torch.testing.assert_close(method._sensitivity(preparation), sensitivity_of_one_batch(model, space))
    costs = preparation.costs
    assert (costs.up, costs.down, costs.gradient_samples, costs.forwards) == (2 * 4 * 4, 2 * 4 * 8, 4, [])


@pytest.mark.parametrize(("number", "up", "error"), [("fp16", 2 * 4, 1e-3), ("int8", 4 + 4, 0.5 / 127)])
def test_gradients_come_up_in_the_type_of_the_uplink(number, up, error):
    model, space, method = by_hand(criterion="snip", scores="clients")
    preparation = preparation_for(model, space, [SAMPLE, OTHERS], {"uplink_values": number})
    found, exact = (
        method._of_clients(preparation),
        method._of_clients(preparation_for(model, space, [SAMPLE, OTHERS])),
    )
    largest = max(method._gradient(preparation, [batch]).abs().max() for batch in (SAMPLE, OTHERS))
    assert 0 < (found - exact).abs().max() <= error * largest
    # Two clients, 4 weights in one layer, which as int8 has a scale; the model goes down as fp32.
    assert (preparation.costs.up, preparation.costs.down) == (2 * up, 2 * 4 * 8)


def sensitivity_of_one_batch(model, space):
    space.gradient.zero_()
    inputs, labels = torch.cat([SAMPLE[0], OTHERS[0]]), torch.cat([SAMPLE[1], OTHERS[1]])
    nn.functional.cross_entropy(model(inputs), labels).backward()
    return (space.gradient[:4] * space.values[:4]).abs()


def test_a_rehearsal_asks_no_client_but_counts_the_same():
    model, space, method = by_hand(criterion="snip", scores="clients")
    preparation = preparation_for(model, space, [SAMPLE, OTHERS], rehearses=True)
    preparation.average = None
    assert method.initial_mask(preparation).count_nonzero() == 2
    assert preparation.costs.gradient_samples == 4


def test_random_masks_differ_by_seed():
    _, _, method = by_hand()
    assert len({tuple(positions(method.initial_mask(Seeded(seed)))) for seed in range(20)}) > 2


def test_the_mask_is_never_adjusted():
    _, space, method = by_hand()
    assert not any(method.plan(number, space.values).adjusts for number in range(1, 100))
    assert method.state() == {}


def depthwise():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1), BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, groups=6), BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 1), nn.Flatten(), nn.Linear(8 * 16, 3)),
    )


@pytest.mark.parametrize("density", [0.8, 0.9, 1.0])
@pytest.mark.parametrize("criterion", ["random", "magnitude", "snip", "synflow"])
def test_every_criterion_keeps_total_floors_and_the_start_state(criterion, density):
    model = depthwise()
    space = ParameterSpace(model, ["0.weight", "3.weight", "6.weight"])
    method = Static(StaticSettings(criterion=criterion, density=density), space, MethodContext())
    data = torch.randn(9, 2, 6, 6), torch.arange(9) % 3
    preparation = preparation_for(model, space, [data])
    start = space.values.clone()
    mask = Mask(method.initial_mask(preparation))
    assert mask.count + space.n_dense == round(density * space.n_parameters)
    assert mask.active[108:162].view(6, 9).sum(1).min() >= 2
    assert min(space.layer_counts(mask)) >= 1
    if criterion in ("random", "magnitude"):
        assert space.layer_counts(mask) == method.counts
    assert preparation.values.equal(start)
    assert space.mask.is_full


def test_weights_from_which_no_gradient_comes_are_refused():
    model, space, method = by_hand(criterion="snip", scores="clients")
    space.values[0] = torch.nan
    with pytest.raises(UserError, match="that are finite"):
        method.initial_mask(preparation_for(model, space, [SAMPLE]))


def test_scores_of_the_server_that_are_not_finite_are_refused():
    model, space, method = by_hand(criterion="snip")
    space.values[0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        method.initial_mask(preparation_for(model, space, [SAMPLE]))


def test_a_first_cohort_without_clients_is_refused():
    model, space, method = by_hand(criterion="snip", scores="clients")
    with pytest.raises(UserError, match="no client answers"):
        method.initial_mask(preparation_for(model, space, []))


def test_clients_that_disagree_have_saliency_but_no_mean_gradient():
    """Client 0: (1, 4) of label 0; client 1: the same of label 1, whose gradient is the opposite.

    The mean gradient is 0; the mean of |g * theta| is that of either: 0.6, 1.4, 0, 2.
    """
    other = SAMPLE[0], torch.tensor([1])
    for average, expected in (("gradient", [0.0] * 4), ("saliency", [0.6, 1.4, 0.0, 2.0])):
        model, space, method = by_hand(criterion="snip", scores="clients", average=average)
        preparation = preparation_for(model, space, [SAMPLE, other])
        torch.testing.assert_close(method._sensitivity(preparation), torch.tensor(expected))
        assert (preparation.costs.up, preparation.costs.down) == (2 * 4 * 4, 2 * 4 * 8)
    assert positions(method.initial_mask(preparation_for(model, space, [SAMPLE, other]))) == [1, 3]


def test_only_snip_asks_clients():
    with pytest.raises(ValidationError, match="scores: clients"):
        StaticSettings(criterion="snip", average="saliency")
    with pytest.raises(ValidationError, match="looks at no data"):
        StaticSettings(criterion="synflow", scores="clients")
