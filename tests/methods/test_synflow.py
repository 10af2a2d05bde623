"""The synaptic flow of eight weights worked out by hand, and its laws.

W1 = [[1, -2], [3, 0.5]], W2 = [[2, 0], [-1, 1]], output layer V = [[1, 1]]. |V||W2| = (3, 1) and |W1| 1 = (3, 3.5), so
the scores are 3, 6, 3, 0.5 in W1 and 6, 0, 3, 3.5 in W2; each layer's add up to the flow, 12.5.

Four of eight at once: the two sixes, 3.5, and the first of the threes. In two iterations: first round(8 / sqrt(2)) = 6
stay, all but the scores 0.5 and 0. Then |W1| 1 = (3, 3), the last score of W2 is 3 too, and ties go to W1.
"""

import pytest
import torch
from torch import nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.config import parse_config
from fedmef_dist.methods.synflow import _ones, _scores, linear_twin, synaptic_flow
from fedmef_dist.models import build_model, prunable_weights
from fedmef_dist.sparsity import ParameterSpace


def by_hand():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Linear(2, 1))
    space = ParameterSpace(model, ["0.weight", "2.weight"])
    space.values[:8] = torch.tensor([1.0, -2.0, 3.0, 0.5, 2.0, 0.0, -1.0, 1.0])
    with torch.no_grad():
        model[3].weight.copy_(torch.tensor([[1.0, -1.0]]))
    return model, space


def scores_of(model, space, shape):
    twin = linear_twin(model)
    ones = _ones(twin, shape)
    parameters = dict(twin.named_parameters())
    return _scores(twin, ones, [parameters[layer.name] for layer in space.layers], space), twin(ones).sum()


def test_scores_by_hand():
    scores, flow = scores_of(*by_hand(), (2,))
    assert scores.tolist() == [3, 6, 3, 0.5, 6, 0, 3, 3.5]
    assert flow.item() == 12.5


@pytest.mark.parametrize(("iterations", "kept"), [(1, [0, 1, 4, 7]), (2, [0, 1, 2, 4])])
def test_iterations_by_hand(iterations, kept):
    model, space = by_hand()
    start = space.values.clone()
    assert synaptic_flow(model, space, (2,), 4, iterations).nonzero().flatten().tolist() == kept
    assert space.values.equal(start)
    assert space.mask.is_full


def network(name, norm, sap=False, **sections):
    config = parse_config(
        {
            "name": "flow",
            "data": {"dataset": "synthetic"},
            "model": {"name": name, "norm": norm, "width": 0.25, **sections},
            "sap": {"enabled": sap},
            "method": {"name": "fedavg"},
        },
        "here",
    )
    shape = (8,) if name == "gpt" else (3, 8, 8)
    model = build_model(config.model, config.resolved_sap, norm=norm, classes=4, shape=shape, seed=0)
    return model, ParameterSpace(model, prunable_weights(model)), shape


def test_flow_is_conserved_through_a_chain():
    model, space, shape = network("cnn", "batch", hidden=16)
    scores, flow = scores_of(model, space, shape)
    for layer in space.layers:
        torch.testing.assert_close(scores[layer.start : layer.stop].sum(), flow)


@pytest.mark.parametrize("norm", ["nsconv", "group", "none"])
@pytest.mark.parametrize("sap", [False, True])
def test_neither_normalisation_nor_activation_pruning_changes_the_flow(norm, sap):
    model, space, shape = network("resnet8", norm, sap)
    expected_model, expected_space, _ = network("resnet8", "batch")
    found, expected = (
        scores_of(one, its_space, shape)[0] for one, its_space in ((model, space), (expected_model, expected_space))
    )
    torch.testing.assert_close(found, expected)
    assert found.min() > 0


@pytest.mark.parametrize("norm", ["nsconv", "layer"])
def test_queries_keys_and_values_all_have_their_flow(norm):
    model, space, shape = network("gpt", norm, gpt={"depth": 2, "width": 8, "heads": 2})
    assert scores_of(model, space, shape)[0].min() > 0


def test_a_flow_beyond_float64_is_refused():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(10)))
    space = ParameterSpace(model, [f"{number}.weight" for number in range(9)])
    space.values.fill_(1e38)
    with pytest.raises(UserError, match="float64"):
        synaptic_flow(model, space, (4,), 20, 1)
