from math import log

import pytest
import torch
from pydantic import ValidationError
from tiny import alone
from torch import nn
from torch.nn import functional as F

from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.group import Group
from fedmef_dist.data.batches import normalise
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.synthetic import SyntheticSettings, load_synthetic
from fedmef_dist.evaluation.test_set import EvaluationSettings, evaluate


@pytest.fixture(scope="module")
def dataset():
    return load_synthetic(SyntheticSettings(samples=1, test_samples=53, classes=4, channels=2, image_size=8), 0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(6 * 36, 4)
    )


class Logits(nn.Module):
    """Gives class 1 the logit `value`, class 0 the logit 0, whatever the image."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, images):
        return torch.tensor([[0.0, self.value]]).repeat(len(images), 1)


def labelled(*labels):
    split = Split(torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8), torch.tensor(labels))
    return Dataset("by hand", split, split, 2, mean=(0.5,), std=(0.2,), pad=0, flip=False)


def test_by_hand():
    # Probabilities 1/4 and 3/4; the arg-max is class 1.
    loss, accuracy = evaluate(Logits(log(3)), labelled(1, 1, 0), 2, alone())
    assert accuracy == 2 / 3
    assert loss == pytest.approx((2 * log(4 / 3) + log(4)) / 3, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 53, 512])
def test_any_batch_size_is_the_plain_computation_on_the_whole_test_set(dataset, model, batch_size):
    images = normalise(dataset, dataset.test.images.permute(0, 2, 3, 1).contiguous())
    with torch.no_grad():
        output = model.eval()(images)
    model.train()
    loss, accuracy = evaluate(model, dataset, batch_size, alone())
    assert loss == pytest.approx(F.cross_entropy(output, dataset.test.labels).item(), rel=1e-5)
    assert accuracy == (output.argmax(1) == dataset.test.labels).double().mean().item()


class OneOf(Group):
    """A rank whose sums are kept instead of reduced."""

    def __init__(self, rank, world_size):
        environment = Environment("torchrun", rank, world_size, rank, world_size, "localhost", 1)
        super().__init__(environment, torch.device("cpu"), "gloo")

    def all_reduce(self, tensor):
        self.sums = tensor.clone()


@pytest.mark.parametrize("world_size", [2, 3, 9])
def test_the_ranks_sums_add_up_to_that_of_one_rank_bit_for_bit(dataset, model, world_size):
    whole = OneOf(0, 1)
    evaluate(model, dataset, 7, whole)
    ranks = [OneOf(rank, world_size) for rank in range(world_size)]
    for rank in ranks:
        evaluate(model, dataset, 7, rank)
    # 8 batches: the last of nine ranks has none.
    assert torch.equal(sum(rank.sums for rank in ranks), whole.sums)
    assert whole.sums[1] > 0


@pytest.mark.parametrize("logit", [float("nan"), float("inf"), 1e30])
def test_a_model_that_has_diverged_has_a_large_finite_loss(logit):
    assert evaluate(Logits(logit), labelled(0, 0), 1, alone()) == (2.0**30, 0.0)


def test_the_sums_of_a_model_that_has_diverged_have_room_on_all_ranks_together():
    ranks = [OneOf(rank, 2) for rank in range(2)]
    for rank in ranks:
        evaluate(Logits(float("nan")), labelled(*[0] * 1024), 1, rank)
    assert ranks[0].sums[0] + ranks[1].sums[0] == 2**62


def test_it_changes_nothing_in_the_model(dataset, model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, dataset, 16, alone())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("values", [{"every": 0}, {"batch_size": 0}, {"around_adjustment": 1}, {"often": 1}])
def test_settings_refuse(values):
    with pytest.raises(ValidationError):
        EvaluationSettings(**values)
