"""One linear layer y = W x with W = 0 and one sample x = (1, 2) of class 0 of 2, worked out by hand.

Both probabilities are 1/2, so the loss is ln 2 and the gradient (p - y) x^T = [[-1/2, -1], [1/2, 1]].
"""

from math import log

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedmef_dist.clients.client import Client
from fedmef_dist.clients.kept_state import Keepsake
from fedmef_dist.clients.optimizer import OptimizerSettings
from fedmef_dist.clients.plan import LocalWork, RoundPlan
from fedmef_dist.data.batches import client_batches
from fedmef_dist.data.synthetic import SyntheticSettings, load_synthetic
from fedmef_dist.layers.activation_pruning import Pruning, SapSettings
from fedmef_dist.layers.nsconv import NSConv2d
from fedmef_dist.methods.swapping import TopGradients
from fedmef_dist.models import ModelSettings, build_model, prunable_weights
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.wire.traffic import Upload

SAMPLE = (torch.tensor([[1.0, 2.0]]), torch.tensor([0]))


def linear(mask=(1, 1, 1, 1), **optimizer):
    """The layer with W = 0, and a client that trains it."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    space = ParameterSpace(model, ["0.weight"])
    space.values.zero_()
    space.set_mask(Mask(torch.tensor(mask, dtype=torch.bool)))
    return Client(model, space, OptimizerSettings(**optimizer), autocast=False)


def plan_of(space, work=None, values=None, **fields):
    """A plan that broadcasts these values, by default the space's own."""
    values = space.values.clone() if values is None else values
    return RoundPlan(1, values, work or LocalWork(), **fields)


def train(client, batches, rate=0.1, plan=None):
    plan = plan_of(client.space) if plan is None else plan
    steps = len(batches) - plan.work.gradient_batches
    return client.train(plan, iter(batches), steps, rate)


def test_one_step_by_hand():
    report = train(linear(), [SAMPLE])
    torch.testing.assert_close(report.values, torch.tensor([0.05, 0.1, -0.05, -0.1]))
    assert report.loss == pytest.approx(log(2))
    assert report.uploads == {}
    assert report.seconds > 0


def test_an_inactive_weight_stays_0_and_is_not_uploaded():
    client = linear(mask=(1, 0, 0, 1))
    report = train(client, [SAMPLE, SAMPLE])
    assert client.space.values[[1, 2]].tolist() == [0.0, 0.0]
    assert report.values.tolist() == client.space.values[[0, 3]].tolist()
    # The second step sees logits 0.05 * 1 and -0.1 * 2, so p = 1 / (1 + exp(0.25)) for class 1.
    p = 1 / (1 + torch.tensor(0.25).exp())
    torch.testing.assert_close(report.values, torch.stack([0.05 + 0.1 * p, -0.1 - 0.2 * p]))


def test_the_loss_is_the_mean_over_samples_not_over_batches():
    # Without a learning rate both batches see W = 0 and a bias of 1 for class 0.
    model = nn.Sequential(nn.Linear(2, 2))
    space = ParameterSpace(model, ["0.weight"])
    space.values.copy_(torch.tensor([0.0, 0, 0, 0, 1, 0]))
    client = Client(model, space, OptimizerSettings(), autocast=False)
    right, wrong = log(1 + torch.tensor(-1.0).exp()), log(1 + torch.tensor(1.0).exp())
    batches = [(torch.ones(3, 2), torch.tensor([0, 0, 0])), (torch.ones(1, 2), torch.tensor([1]))]
    assert train(client, batches, rate=0.0).loss == pytest.approx((3 * right + wrong) / 4)


def test_top_gradients_by_hand():
    client = linear(mask=(1, 0, 0, 0))
    plan = plan_of(client.space, TopGradients(client.space, [1], batches=2))
    other = (torch.tensor([[4.0, 0.0]]), torch.tensor([1]))
    report = train(client, [SAMPLE, SAMPLE, other], rate=0.0, plan=plan)
    # Mean of [[-1/2, -1], [1/2, 1]] and [[2, 0], [-2, 0]]; of the inactive 1: -1/2, 2: -3/4, 3: 1/2 the second wins.
    assert report.uploads["gradient"].positions.tolist() == [2]
    torch.testing.assert_close(report.uploads["gradient"].values, torch.tensor([-0.75]))
    assert report.values.tolist() == [0.0]


def test_top_gradients_are_those_of_the_trained_weights():
    client = linear(mask=(1, 0, 0, 1))
    plan = plan_of(client.space, TopGradients(client.space, [2], batches=1))
    report = train(client, [SAMPLE, SAMPLE], plan=plan)
    p = 1 / (1 + torch.tensor(0.25).exp())  # as in the second step above
    assert report.uploads["gradient"].positions.tolist() == [1, 2]
    torch.testing.assert_close(report.uploads["gradient"].values, torch.stack([-2 * p, p]))


def test_an_active_weight_never_wins_even_where_all_gradients_are_0():
    client = linear(mask=(1, 1, 1, 0))
    plan = plan_of(client.space, TopGradients(client.space, [1], batches=1))
    nothing = (torch.zeros(1, 2), torch.tensor([0]))
    report = train(client, [SAMPLE, nothing], plan=plan)
    assert report.uploads["gradient"].positions.tolist() == [3]
    assert report.uploads["gradient"].values.tolist() == [0.0]


def test_the_objective_changes_gradient_and_rate():
    class Pull(LocalWork):
        def prepare_step(self, step, steps, rate):
            seen.append((step, steps, rate))
            client.space.gradient[0] += 1
            return torch.tensor(0.2)

    seen, client = [], linear()
    start = client.space.values.clone()
    report = train(client, [SAMPLE], plan=plan_of(client.space, Pull(), start))
    torch.testing.assert_close(report.values, torch.tensor([-0.1, 0.2, -0.1, -0.2]))
    train(client, [SAMPLE] * 3, plan=plan_of(client.space, Pull(), start))
    assert seen == [(0, 1, 0.1), (0, 3, 0.1), (1, 3, 0.1), (2, 3, 0.1)]


class Swap(LocalWork):
    """At one step of a round, the third or another, the client prunes position 0 and grows position 2."""

    def __init__(self, space, at=2):
        self.space, self.at = space, at

    def prepare_step(self, step, steps, rate):
        if step == self.at:
            self.space.set_mask(self.space.mask.next(self.space.mask.swapped(torch.tensor([0]), torch.tensor([2]))))
        return rate

    def uploads(self, gradient):
        index = self.space.mask.index
        return {"weights": Upload(index, self.space.values[index])}


def swapping(steps, at=2):
    """A client that swaps, and its report; with biases as the dense part."""
    model = nn.Sequential(nn.Linear(2, 2))
    space = ParameterSpace(model, ["0.weight"])
    space.values.copy_(torch.tensor([1.0, 0, 0, 1, 0, 0]))
    space.set_mask(Mask(torch.tensor([True, False, False, True])))
    client = Client(model, space, OptimizerSettings(), autocast=False)
    return client, train(client, [SAMPLE] * steps, plan=plan_of(space, Swap(space, at), returns_weights=False))


def test_a_client_with_a_mask_of_its_own_sends_its_own_positions():
    _, report = swapping(1, at=0)
    # The gradient is still that of W = [[1, 0], [0, 1]], with logits 1 and 2: p x^T in the second row, p = e / (1 + e).
    p = 1 / (1 + torch.tensor(-1.0).exp())
    upload = report.uploads["weights"]
    assert upload.positions.tolist() == [2, 3]
    torch.testing.assert_close(upload.values, torch.stack([-0.1 * p, 1 - 0.2 * p]))
    torch.testing.assert_close(report.values, torch.stack([0.1 * p, -0.1 * p]))  # the biases alone


def test_the_rounds_mask_is_back_when_the_client_has_trained():
    client, report = swapping(3)
    assert client.space.mask.index.tolist() == [0, 3]
    assert client.space.mask.active.tolist() == [1, 0, 0, 1]
    assert client.space.values[:4].tolist() == [0, 0, 0, report.uploads["weights"].values[1]]


@pytest.mark.parametrize("kept", [False, True])
def test_momentum_does_not_revive_what_the_client_pruned(kept):
    model = nn.Sequential(nn.Linear(2, 2))
    space = ParameterSpace(model, ["0.weight"])
    space.values.copy_(torch.tensor([1.0, 0, 0, 1, 0, 0]))
    space.set_mask(Mask(torch.tensor([True, False, False, True])))
    client = Client(model, space, OptimizerSettings(momentum=0.9), autocast=False)
    state = Keepsake(torch.ones(6), None) if kept else None
    seen = []

    class Watched(Swap):
        def uploads(self, gradient):
            seen.append(space.values[:4].clone())
            return super().uploads(gradient)

    plan = plan_of(space, Watched(space), returns_weights=False)
    report = client.train(plan, iter([SAMPLE] * 6), 6, 0.1, None, state)
    assert seen[0][:2].tolist() == [0, 0]  # what was pruned, and what never was active
    assert (seen[0][2:] != 0).all()
    assert report.uploads["weights"].values.tolist() == seen[0][2:].tolist()
    if kept:
        assert state.velocity[:2].tolist() == [0, 0]
        assert (state.velocity[2:] != 0).all()


def test_a_client_that_is_interrupted_leaves_the_rounds_mask():
    class Interrupted(Exception):
        pass

    def batches():
        for _ in range(4):
            yield SAMPLE
        raise Interrupted

    client, _ = swapping(3)
    mask = client.space.mask
    plan = plan_of(client.space, Swap(client.space), returns_weights=False)
    with pytest.raises(Interrupted):
        client.train(plan, batches(), 6, 0.1)
    assert client.space.mask is mask
    assert client.space.mask.active.tolist() == [1, 0, 0, 1]


def test_fedprox_by_hand():
    # After one step W - W0 = [[0.05, 0.1], [-0.05, -0.1]], and mu times that joins the second gradient.
    p = 1 / (1 + torch.tensor(0.5).exp())
    gradient = torch.stack([-p, -2 * p, p, 2 * p])
    moved = torch.tensor([0.05, 0.1, -0.05, -0.1])
    report = train(linear(prox_mu=0.5), [SAMPLE, SAMPLE])
    torch.testing.assert_close(report.values, moved - 0.1 * (gradient + 0.5 * moved))


@pytest.mark.parametrize(
    "optimizer",
    [{"prox_mu": 0.3}, {"momentum": 0.9, "weight_decay": 0.01}, {"prox_mu": 1.0, "momentum": 0.5}],
)
def test_a_round_is_that_of_torch_sgd_on_the_written_out_loss(optimizer):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    twin = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    twin.load_state_dict(model.state_dict())
    space = ParameterSpace(model, ["0.weight"])
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(5, 1, 4, 4, generator=generator), torch.randint(3, (5,), generator=generator)) for _ in range(4)
    ]
    train(Client(model, space, OptimizerSettings(**optimizer), autocast=False), batches)

    start = [parameter.detach().clone() for parameter in twin.parameters()]
    rest = {key: value for key, value in optimizer.items() if key != "prox_mu"}
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1, **rest)
    for images, labels in batches:
        sgd.zero_grad()
        distance = sum(
            (parameter - old).square().sum() for parameter, old in zip(twin.parameters(), start, strict=True)
        )
        (F.cross_entropy(twin(images), labels) + optimizer.get("prox_mu", 0.0) / 2 * distance).backward()
        sgd.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def sparse_network():
    """Normalised, plain and linear layers with a random half of their weights, and running statistics."""
    model = nn.Sequential(
        NSConv2d(1, 8, 3, padding=1, pruning=Pruning(0.5)),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 36, 6),
        nn.Linear(6, 4),
    )
    space = ParameterSpace(model, prunable_weights(model))
    generator = torch.Generator().manual_seed(0)
    space.set_mask(Mask(torch.rand(space.n_prunable, generator=generator) < 0.5))
    return model, space


@pytest.fixture(scope="module")
def dataset():
    return load_synthetic(SyntheticSettings(samples=40, classes=4, channels=1, image_size=8, test_samples=1), 0)


def batches_of(dataset, samples, batch_size, epochs):
    keys = {"seed": 0, "round": 1, "client": 0, "augment": False, "device": "cpu"}
    return client_batches(dataset, samples, batch_size=batch_size, epochs=epochs, **keys)


@pytest.mark.parametrize("optimizer", [{}, {"momentum": 0.9, "weight_decay": 0.1}, {"prox_mu": 1.0}])
def test_nothing_outside_the_mask_becomes_non_zero_or_is_uploaded(dataset, optimizer):
    model, space = sparse_network()
    before = space.values.clone()
    client = Client(model, space, OptimizerSettings(**optimizer), autocast=False)
    samples = torch.arange(40).numpy()
    plan = plan_of(space, TopGradients(space, [2, 3, 5], batches=2))
    report = client.train(plan, batches_of(dataset, samples, 8, 2), 5, 0.1)
    inactive = ~space.mask.active
    assert not space.values[: space.n_prunable][inactive].any()
    assert (space.values[: space.n_prunable] != before[: space.n_prunable])[space.mask.active].float().mean() > 0.9
    assert report.values.numel() == space.mask.count + space.total - space.n_prunable
    # The gradient's batches move the running statistics, after these have been packed.
    assert torch.equal(space.unpack(report.values)[: space.n_parameters], space.values[: space.n_parameters])
    # What is uploaded of inactive positions are gradients only, as many a layer as asked for.
    assert inactive[report.uploads["gradient"].positions].all()
    in_layer = [
        ((report.uploads["gradient"].positions >= layer.start) & (report.uploads["gradient"].positions < layer.stop))
        .sum()
        .item()
        for layer in space.layers
    ]
    assert in_layer == [2, 3, 5]


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("norm", ["nsconv", "batch"])
def test_a_client_smaller_than_one_batch_trains(dataset, samples, norm):
    model = build_model(
        ModelSettings(name="resnet8", width=0.25),
        SapSettings(enabled=norm == "nsconv"),
        norm=norm,
        classes=4,
        shape=(1, 8, 8),
        seed=0,
    )
    space = ParameterSpace(model, prunable_weights(model))
    before = space.values.clone()
    client = Client(model, space, OptimizerSettings(), autocast=False)
    report = client.train(
        plan_of(space, values=before), batches_of(dataset, torch.arange(samples).numpy(), 64, 2), 2, 0.1
    )
    assert report.values.isfinite().all()
    assert report.loss > 0
    assert not torch.equal(report.values, before)


def test_one_client_does_not_see_the_one_before(dataset):
    model, space = sparse_network()
    client = Client(model, space, OptimizerSettings(momentum=0.9, prox_mu=0.1), autocast=False)
    plan = plan_of(space, TopGradients(space, [2, 3, 5], batches=1))

    def report(first, last):
        return client.train(plan, batches_of(dataset, torch.arange(first, last).numpy(), 8, 2), 3, 0.1)

    one, other = report(0, 20), report(20, 40)
    again = report(0, 20)
    assert torch.equal(again.values, one.values)
    assert torch.equal(again.uploads["gradient"].values, one.uploads["gradient"].values)
    assert again.loss == one.loss
    assert not torch.equal(other.values, one.values)


def test_bfloat16_is_for_the_layers_only(dataset):
    model, space = sparse_network()
    start = space.values.clone()
    exact, rounded = (
        Client(model, space, OptimizerSettings(), autocast).train(
            plan_of(space, values=start), batches_of(dataset, torch.arange(40).numpy(), 8, 1), 5, 0.1
        )
        for autocast in (False, True)
    )
    assert rounded.values.dtype == torch.float32
    assert not torch.equal(exact.values, rounded.values)
    torch.testing.assert_close(exact.values, rounded.values, rtol=0.1, atol=0.02)
