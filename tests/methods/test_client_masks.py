import pytest
import torch
from made_methods import Seeded, adjust, positions, server_for, sums_of, vector
from torch import nn

from fedmef_dist.clients.client import Client
from fedmef_dist.clients.optimizer import OptimizerSettings
from fedmef_dist.clients.plan import LocalClient
from fedmef_dist.layers.nsconv import NSConv2d
from fedmef_dist.methods.base import MethodContext, Received
from fedmef_dist.methods.client_masks import WEIGHTS, LocalSwap, prune_to_counts
from fedmef_dist.methods.feddst import FedDst, FedDstSettings
from fedmef_dist.methods.fedsgc import FedSgc, FedSgcSettings
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.growth import GrowthOrder
from fedmef_dist.wire.encodings import WithMask
from fedmef_dist.wire.ranges import prunable


def twelve(active):
    space = ParameterSpace(nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 2)), ["0.weight"])
    space.set_mask(Mask(vector(dict.fromkeys(active, 1.0)) != 0))
    return space


@pytest.mark.parametrize(
    ("share", "steps", "when"),
    [(0.5, 8, 4), (0.5, 1, 0), (0.5, 5, 2), (0.5, 7, 4), (0.0, 4, 0), (1.0, 4, 3), (0.3, 10, 3)],
)
def test_a_client_swaps_once_behind_the_share_of_its_steps(share, steps, when):
    space = twelve([0, 1])
    space.values[:2] = torch.tensor([3.0, 2.0])
    work = LocalSwap(space, [1], share, GrowthOrder())
    first, changed = space.mask, []
    for step in range(steps):
        space.gradient.zero_()
        space.gradient[4 + step % 2] = -1.0
        before = space.mask
        assert work.prepare_step(step, steps, 0.25) == 0.25
        changed += [step] if space.mask is not before else []
    assert changed == [when]
    # The smaller of two weights has gone; the gradient of that very step has chosen what came.
    assert space.mask.index.tolist() == [0, 4 + when % 2]
    assert space.mask.version == first.version + 1


def test_what_has_just_been_pruned_does_not_grow_back():
    space = twelve([0, 1])
    space.values[:2] = torch.tensor([3.0, 2.0])
    space.gradient[1], space.gradient[7] = 9.0, 0.1
    LocalSwap(space, [1], 0.0, GrowthOrder()).prepare_step(0, 1, 0.1)
    assert space.mask.index.tolist() == [0, 7]
    assert space.values[:2].tolist() == [3.0, 0.0]


def test_a_gradient_that_is_not_finite_keeps_the_count():
    space = twelve([0, 1, 2])
    space.values[:3] = 1.0
    space.gradient.fill_(float("nan"))
    LocalSwap(space, [2], 0.0, GrowthOrder()).prepare_step(0, 1, 0.1)
    assert space.mask.count == 3
    assert space.mask.active[:3].tolist() == [False, False, True]


def test_the_union_is_pruned_to_the_counts_and_an_inactive_weight_never_stays():
    space = twelve([1, 2, 5, 8])
    kept = prune_to_counts(space, vector({1: 0.3, 5: 0.2, 8: 0.9}), [3])
    assert positions(kept) == [1, 5, 8]
    # All four: one of them is 0, as all that is inactive.
    assert positions(prune_to_counts(space, vector({1: 0.3, 5: 0.2, 8: 0.9}), [4])) == [1, 2, 5, 8]


def test_pruning_the_union_spares_the_floors_of_depthwise_filters():
    space = ParameterSpace(nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Conv2d(2, 1, 1)), ["0.weight"])
    magnitude = torch.tensor([9.0, 8, 7, 6, 5, 4, 3, 2, 1, 0.2, 0.1, 0, 0, 0, 0, 0, 0, 0])
    space.set_mask(Mask(magnitude > 0))
    # Five weights: without a floor all would be of the first filter.
    assert positions(prune_to_counts(space, magnitude, [5])) == [0, 1, 2, 9, 10]


def test_what_the_server_makes_of_masks_of_their_own():
    space = twelve([0, 1])
    method = FedDst(
        FedDstSettings(density=0.7, adjust_every=2, adjust_rate=0.5, adjust_until=9), space, MethodContext()
    )
    average, sums = torch.arange(space.total) + 20.0, {WEIGHTS: sums_of((1, {0: 8.0, 3: 4.0}), (3, {3: 8.0, 5: 0.0}))}
    # In an ordinary round the average, under the mask as it is.
    made, active = method.aggregate(method.plan(1, space.values), Received(average, {}, 2))
    assert made is average
    assert active is None
    # Position 3: (1 * 4 + 3 * 8) / 4 = 7; 0 and 5 have one voter each, and 1 has none.
    made, active = method.aggregate(method.plan(2, space.values), Received(average, sums, 2))
    assert made.tolist() == [8, 0, 0, 7, *[0] * 8, *average[12:].tolist()]
    assert positions(active) == [0, 3, 5]
    assert space.mask.index.tolist() == [0, 1]  # only the server makes masks


def depthwise(method_class, settings):
    torch.manual_seed(0)
    model = nn.Sequential(
        NSConv2d(3, 8, 3, padding=1), nn.ReLU(), NSConv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 36, 4)
    )
    space = ParameterSpace(model, ["0.weight", "2.weight"])
    method = method_class(settings, space, MethodContext(total_weight=7))
    server = server_for(method)
    server.start(space.values, method.initial_mask(Seeded(0, space.values)))
    return model, space, method, server


def batches(seed, count):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(4, 3, 8, 8, generator=generator), torch.randint(4, (4,), generator=generator)


def uploaded(space, upload):
    """What a client names, after its promises are checked."""
    active = torch.zeros(space.n_prunable, dtype=torch.bool)
    active[upload.positions] = True
    assert int(active.sum()) == len(upload.positions)
    return active, dict(zip(upload.positions.tolist(), upload.values.tolist(), strict=True))


KEYS = {"density": 0.95, "adjust_every": 1, "adjust_until": 100, "adjust_rate": 0.5}


@pytest.mark.parametrize(
    ("method_class", "settings"),
    [
        (FedDst, FedDstSettings(**KEYS)),
        (FedSgc, FedSgcSettings(**KEYS, congruity_lambda=0.5)),
        (FedSgc, FedSgcSettings(**KEYS, congruity_lambda=1.0, absent="keep_old")),
    ],
)
def test_clients_and_server_keep_every_layers_count_and_every_filters_floor(method_class, settings):
    model, space, method, server = depthwise(method_class, settings)
    client = Client(model, space, OptimizerSettings(momentum=0.9, weight_decay=0.01), autocast=False)
    counts, moved = space.layer_counts(), 0
    for number in range(1, 25):
        plan, mask, sent = method.plan(number, server.values), space.mask, []
        receiver = LocalClient(0, {down.name: down.values for down in plan.broadcasts})
        for weight in (1, 2, 3):
            report = client.train(plan, batches(10 * number + weight, 3), 3, 0.1, receiver)
            assert space.mask is mask
            active, entries = uploaded(space, report.uploads[WEIGHTS])
            assert space.layer_counts(Mask(active)) == counts
            assert active[space.layers[1].start :].view(8, 9).sum(1).min() >= 2
            sent.append((weight, entries))
        sums = {WEIGHTS: sums_of(*sent, size=space.n_prunable)}
        server.update(plan, server.values[space.n_prunable :].clone(), sums, 3)
        assert all(union <= now for union, now in zip(counts, space.layer_counts(), strict=True))
        adjust(server, plan, sums)
        assert space.layer_counts() == counts
        assert space.mask.active[space.layers[1].start :].view(8, 9).sum(1).min() >= 2
        assert not server.values[: space.n_prunable][~space.mask.active].any()
        moved += int((space.mask.active & ~mask.active).sum())
    assert moved > 50


@pytest.mark.parametrize("settings", [FedDstSettings(**KEYS | {"density": 1.0}), FedSgcSettings(density=1.0)])
def test_a_dense_model_has_nothing_to_swap(settings):
    method_class = FedDst if isinstance(settings, FedDstSettings) else FedSgc
    _, space, method, server = depthwise(method_class, settings)
    plan = method.plan(10, server.values)
    assert plan.swap_counts == [0, 0]
    plan.work.begin(LocalClient(0, {down.name: down.values for down in plan.broadcasts}))
    plan.work.prepare_step(0, 1, 0.1)
    assert space.mask.is_full


def test_what_an_adjusting_round_asks_for_and_an_ordinary_one_does_not():
    _, space, method, server = depthwise(FedDst, FedDstSettings(**KEYS | {"adjust_every": 3}))
    ordinary, adjusting = method.plan(2, server.values), method.plan(3, server.values)
    assert (ordinary.adjusts, ordinary.returns_weights, ordinary.collections) == (False, True, ())
    assert ordinary.work.dense_batches == 0
    (weights,) = adjusting.collections
    assert (adjusting.adjusts, adjusting.returns_weights, adjusting.work.dense_batches) == (True, False, 1)
    assert (weights.name, weights.over, weights.counts) == (WEIGHTS, prunable(space), space.layer_counts())
    assert (weights.has_values, weights.has_votes, weights.travels) == (True, True, True)
    assert isinstance(weights.encoding, WithMask)
