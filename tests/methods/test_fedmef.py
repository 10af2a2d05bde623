"""One adjustment of twelve weights, worked out by hand, and what must hold for any adjustment.

Active weights:   position  0    2     3    6    9     11
                  value     0.5 -0.1   0.9  0.2 -0.7   0.05
Share in round 1: 0.8 / 2 * (1 + cos(pi / 2)) = 0.4, so floor(0.4 * 6) = 2 weights are marked: positions 2 and 11.
Their norm is sqrt(0.01 + 0.0025) = 0.111803, and 2 sigmoid(0.111803) - 1 = 0.055844.
Gradients of inactive weights: 1: 0.3, 4: -0.9, 5: 0.2, 7: 0.8, 8: 0, 10: 0.1; the two largest are at 4 and 7.
"""

import pytest
import torch
from made_methods import Seeded, adjust, gradients, server_for, vector
from pydantic import ValidationError
from torch import nn

from fedmef_dist.clients.optimizer import MaskedSGD, OptimizerSettings
from fedmef_dist.clients.plan import LocalClient, RoundPlan
from fedmef_dist.layers.nsconv import NSConv2d
from fedmef_dist.methods.base import MethodContext
from fedmef_dist.methods.extrusion import Deviation
from fedmef_dist.methods.fedmef import FORMS, FedMef, FedMefSettings
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.wire.layer_encoding import FP32
from fedmef_dist.wire.ranges import prunable

WEIGHTS = {0: 0.5, 2: -0.1, 3: 0.9, 6: 0.2, 9: -0.7, 11: 0.05}
GRADIENT = {0: 5.0, 1: 0.3, 4: -0.9, 5: 0.2, 7: 0.8, 10: 0.1, 11: -5.0}


@pytest.fixture
def example():
    space = ParameterSpace(nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 2)), ["0.weight"])
    settings = FedMefSettings(density=2 / 3, adjust_every=1, adjust_until=2, adjust_rate=0.8, extrusion_lambda=1.0)
    method = FedMef(settings, space, MethodContext(base_rate=0.1))
    space.values[:12] = vector(WEIGHTS)
    server = server_for(method)
    server.start(space.values, vector(WEIGHTS) != 0)
    return space, method, server


def test_mark(example):
    _, method, server = example
    plan = method.plan(1, server.values)
    assert method.counts == [6]
    assert plan.swap_counts == [2]
    assert plan.marked.tolist() == [2, 11]


def test_no_adjustment_outside_the_schedule(example):
    _, method, server = example
    assert not method.plan(2, server.values).adjusts


def test_extrude(example):
    space, method, server = example
    plan = method.plan(1, server.values)
    space.gradient.zero_()
    rate = plan.work.prepare_step(0, 4, 0.1)
    # The penalty's gradient is 2 * lambda * theta on the marked weights only; the ordinary rate is the larger one.
    torch.testing.assert_close(space.gradient[:12], vector({2: -0.2, 11: 0.1}))
    assert rate.item() == pytest.approx(0.1)
    MaskedSGD(space, OptimizerSettings()).step(rate)
    torch.testing.assert_close(space.values[:12], vector(WEIGHTS | {2: -0.08, 11: 0.045 - 0.005}))


def test_the_extrusion_rate_follows_rex(example):
    space, method, server = example
    work = method.plan(1, server.values).work
    assert work.prepare_step(0, 4, 0.001).item() == pytest.approx(0.1 * 0.055844, rel=1e-4)
    # Step 2 of 4: (8 - 4) / (8 - 2) = 2 / 3.
    assert work.prepare_step(2, 4, 0.001).item() == pytest.approx(0.1 * 0.055844 * 2 / 3, rel=1e-4)
    space.values[[2, 11]] = 0.0
    assert work.prepare_step(0, 4, 0.001).item() == pytest.approx(0.001)


def with_settings(example, **changed):
    space, method, server = example
    method.settings = method.settings.model_copy(update=changed)
    return space, method, server


def test_without_extrusion_nothing_is_added(example):
    space, method, server = with_settings(example, extrusion=False)
    work = method.plan(1, server.values).work
    work.begin(LocalClient(0))
    space.gradient.zero_()
    assert work.prepare_step(0, 4, 0.001) == 0.001
    assert not space.gradient.any()
    assert not work.penalises
    assert [wanted.name for wanted in work.collections] == ["gradient"]


def test_the_strength_is_a_factor_of_the_penalty(example):
    space, method, server = with_settings(example, extrusion_lambda=3.0)
    space.gradient.zero_()
    method.plan(1, server.values).work.prepare_step(0, 4, 0.1)
    torch.testing.assert_close(space.gradient[:12], vector({2: -0.6, 11: 0.3}))


def test_a_client_sends_the_largest_gradients_of_fresh_batches(example):
    _, method, server = with_settings(example, gradient_batches=3)
    work = method.plan(1, server.values).work
    assert (work.gradient_batches, work.dense_batches, work.held) == (3, 0, 0)
    upload = work.uploads(vector(GRADIENT))["gradient"]
    assert upload.positions.tolist() == [4, 7]
    torch.testing.assert_close(upload.values, torch.tensor([-0.9, 0.8]))


def test_summed_growth_adds_up_the_steps_of_a_client_and_compares_channel_by_channel(example):
    space, method, server = with_settings(example, growth="summed", extrusion=False)
    work = method.plan(1, server.values).work
    assert (work.gradient_batches, work.dense_batches, work.held) == (0, float("inf"), 12)
    (wanted,) = work.collections
    assert (wanted.name, wanted.counts) == ("gradient", [2])
    # Columns (0, 6), (1, 7), ... share a channel. 1 has all of its channel's gradient, 10 is 1 of (0.1, 0.1), and the
    # large one at 4 shares its channel with it; 7 and 8 have nothing.
    summed = {0: 5.0, 1: 0.3, 4: -0.9, 5: 0.2, 10: 9.0, 11: -5.0}
    for client in (0, 1):  # the sum begins anew
        work.begin(LocalClient(client))
        for share in (0.25, 0.75):
            space.gradient[:12] = share * vector(summed)
            assert work.prepare_step(0, 2, 0.1) == 0.1
        # Over the root mean square of (0.3, 0) and of (-0.9, 9): 1.41 and 1.41; 0.14 and 0.06 are behind.
        upload = work.uploads(None)["gradient"]
        assert upload.positions.tolist() == [1, 10]
        torch.testing.assert_close(upload.values, torch.tensor([0.3, 9.0]))
    assert work.strongest(vector(summed | {1: 1e-3})).tolist() == [1, 10]


def test_random_growth_asks_nobody_and_is_drawn_for_each_round(example):
    space, method, server = with_settings(example, growth="random")
    grown = []
    for number in (1, 1, 2, 3):
        method.schedule = method.schedule.__class__(1, 9, 0.8)
        plan = method.plan(number, server.values)
        assert plan.collections == ()
        assert plan.work.uploads(None) == {}
        after = method.next_mask(plan, server.values, {})
        assert space.layer_counts() == [int(after.count_nonzero())]
        grown.append((after & ~space.mask.active).nonzero().flatten().tolist())
    assert grown[0] == grown[1]
    assert len({tuple(positions) for positions in grown}) > 1


def test_equal_gradients_are_drawn_for_each_client_and_round(example):
    _, method, server = example
    method.schedule = method.schedule.__class__(1, 99, 0.8)

    def sent(number, client):
        work = method.plan(number, server.values).work
        work.begin(LocalClient(client))
        return tuple(work.uploads(torch.ones(12))["gradient"].positions.tolist())

    assert sent(1, 4) == sent(1, 4)
    assert len({sent(1, client) for client in range(9)}) > 1
    assert len({sent(number, 0) for number in range(1, 9)}) > 1


@pytest.mark.parametrize("rank_by", ["weight", "acting"])
def test_marking_by_what_a_weight_does_looks_at_its_filters_gain(rank_by):
    _, space, method, server = normalised("zero", rank_by=rank_by)
    server.values[space.gain_of(space.layers[0]).start] = 1e-3  # the first filter hardly acts
    first = set(space.mask.active[:27].nonzero().flatten().tolist())
    assert (first <= set(method.plan(1, server.values).marked.tolist())) == (rank_by == "acting")


def test_a_filter_of_a_single_weight_and_a_plain_layer_have_no_mean_to_be_drawn_to():
    model = nn.Sequential(NSConv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 3), nn.Linear(3, 2))
    space = ParameterSpace(model, ["0.weight", "2.weight"])
    active = torch.ones(14, dtype=torch.bool)
    active[1:4] = False  # of the first filter one weight is left
    space.set_mask(Mask(active))
    values = torch.arange(1.0, 1 + space.total)
    deviation = Deviation(space, "mean")
    # The second filter's mean is 6.5.
    assert deviation.of(values).tolist() == [1, 0, 0, 0, -1.5, -0.5, 0.5, 1.5, *range(9, 15)]
    gradient = torch.ones(14)
    gradient[4] = 5.0
    deviation.subtract_row_means(gradient)
    assert gradient.tolist() == [1, 1, 1, 1, 3, -1, -1, -1, *[1] * 6]


def test_prune_and_grow(example):
    space, method, server = example
    plan = method.plan(1, server.values)
    seen = adjust(server, plan, gradients(vector(GRADIENT)), lambda: server.values[:12].clone())
    assert space.mask.index.tolist() == [0, 3, 4, 6, 7, 9]
    assert space.mask.version == 1
    torch.testing.assert_close(server.values[:12], vector({0: 0.5, 3: 0.9, 6: 0.2, 9: -0.7}))
    torch.testing.assert_close(seen["after_prune"], seen["after_grow"])


def test_marking_on_the_aggregate_ranks_again(example):
    space, method, server = example
    method.settings = method.settings.model_copy(update={"marking": "aggregate"})
    plan = method.plan(1, server.values)
    server.values[11] = 0.6
    adjust(server, plan, gradients(vector(GRADIENT)))
    # Position 11 has grown; now 2 and 6 are the smallest.
    assert space.mask.index.tolist() == [0, 3, 4, 7, 9, 11]


def test_shrinkage_is_the_ratio_of_the_marked_norms(example):
    _, method, server = example
    plan = method.plan(1, server.values)
    after = server.values.clone()
    after[[2, 11]] /= 4
    found = method.metrics(plan, after)
    assert found["extrusion/shrinkage"] == pytest.approx(0.25)
    assert found["extrusion/norm_after"] == pytest.approx(0.25 * found["extrusion/norm_before"])
    empty = RoundPlan(1, torch.zeros_like(after), marked=plan.marked)
    assert method.metrics(empty, after)["extrusion/shrinkage"] == 0


def normalised(target, seed=0, **settings):
    torch.manual_seed(seed)
    model = nn.Sequential(
        NSConv2d(3, 8, 3, padding=1), nn.ReLU(), NSConv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 36, 4)
    )
    space = ParameterSpace(model, ["0.weight", "2.weight"])
    options = {"density": 0.95, "adjust_every": 1, "adjust_until": 100, "extrusion_target": target} | settings
    method = FedMef(FedMefSettings(**options), space, MethodContext(base_rate=0.1))
    server = server_for(method)
    server.start(space.values, method.initial_mask(Seeded(seed)))
    return model, space, method, server


def outputs(model, space, server):
    space.load(server.values)
    return model(torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(9))).detach()


def test_with_target_mean_growing_leaves_the_function_unchanged():
    model, space, method, server = normalised("mean")
    plan = method.plan(1, server.values)
    gradient = torch.randn(space.n_prunable)
    before = space.mask
    seen = adjust(server, plan, gradients(gradient), lambda: outputs(model, space, server))
    assert (space.mask.active & ~before.active).sum() > 20
    torch.testing.assert_close(seen["after_grow"], seen["after_prune"], rtol=1e-4, atol=1e-5)


def test_with_target_zero_growing_does_change_the_function():
    model, space, method, server = normalised("zero")
    plan = method.plan(1, server.values)
    grown = gradients(torch.randn(space.n_prunable))
    seen = adjust(server, plan, grown, lambda: outputs(model, space, server))
    assert (seen["after_grow"] - seen["after_prune"]).abs().max() > 0.01


def test_with_target_mean_pruning_what_is_fully_extruded_leaves_the_function_unchanged():
    model, space, method, server = normalised("mean")
    plan = method.plan(1, server.values)
    # Moving a weight to its filter's mean moves the mean; a few repetitions settle it.
    for _ in range(200):
        centres = method.grown_values(server.values, plan.marked)
        server.values[plan.marked] = centres
    before = outputs(model, space, server)
    grown = gradients(torch.randn(space.n_prunable))
    seen = adjust(server, plan, grown, lambda: outputs(model, space, server))
    torch.testing.assert_close(seen["after_prune"], before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("of_a_tier", [False, True])
def test_the_penalty_towards_the_mean_has_the_gradient_of_autograd(of_a_tier):
    _, space, method, server = normalised("mean")
    plan = method.plan(1, server.values)
    space.load(server.values)
    if of_a_tier:  # the client trains a part of the mask, and its filters have means of their own
        part = torch.rand(space.n_prunable, generator=torch.Generator().manual_seed(1)) < 0.6
        space.set_mask(space.mask.next(space.mask.active & part))
    plan.work.begin(LocalClient(0))
    space.gradient.zero_()
    plan.work.prepare_step(0, 10, 0.1)
    theta = space.values[: space.n_prunable].clone().requires_grad_()
    penalty = 0.0
    for layer in space.layers:
        active = space.mask.active[layer.start : layer.stop].view(layer.rows, -1)
        rows = theta[layer.start : layer.stop].view(layer.rows, -1)
        deviation = rows - (rows * active).sum(1, keepdim=True) / active.sum(1, keepdim=True)
        marked = plan.marked[space.mask.active[plan.marked]]
        chosen = marked[(marked >= layer.start) & (marked < layer.stop)] - layer.start
        penalty = penalty + deviation.flatten()[chosen].square().sum()
    (expected,) = torch.autograd.grad(penalty, theta)
    ours = space.gradient[: space.n_prunable] * space.mask.active
    torch.testing.assert_close(ours, expected * space.mask.active, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["zero", "mean"])
def test_every_adjustment_keeps_every_layers_count_and_every_filters_floor(target):
    _, space, method, server = normalised(target)
    counts = space.layer_counts()
    for round_number in range(1, 40):
        plan = method.plan(round_number, server.values)
        space.load(server.values)
        server.values = server.values + torch.randn(space.total) * 0.1
        server.values[: space.n_prunable] *= space.mask.active
        adjust(server, plan, gradients(torch.randn(space.n_prunable)))
        assert space.layer_counts() == counts
        assert space.mask.active[space.layers[1].start :].view(8, 9).sum(1).min() >= 2
        assert not server.values[: space.n_prunable][~space.mask.active].any()
    assert space.mask.version == 39


@pytest.mark.parametrize("swap", ["layer", "filter"])
def test_only_where_filters_keep_their_counts_a_new_mask_travels_without_them(swap):
    model = nn.Sequential(nn.Linear(16, 4, bias=False), nn.Linear(4, 2))
    space = ParameterSpace(model, ["0.weight"])
    method = FedMef(FedMefSettings(density=0.6, adjust_every=1, swap=swap), space, MethodContext())
    server = server_for(method)
    server.start(space.values, torch.arange(64) % 16 < torch.tensor([6, 7, 7, 8]).repeat_interleave(16))
    block = prunable(space).blocks[0]
    for round_number in (1, 2):
        plan = method.plan(round_number, server.values)
        if swap == "layer":
            assert plan.mask_update is None
        else:
            message = plan.mask_update.encode(block, space.mask.active.numpy(), server.values[:64].numpy(), FP32)
            assert len(message) == plan.mask_update.length(block, 28, FP32) == 8 + 4 * 28
            assert plan.mask_update.decode(message, block, FP32)[0].tolist() == space.mask.index.tolist()
        adjust(server, plan, gradients(torch.randn(64)))


def thin(weights, **settings):
    """A method whose four filters of sixteen have ``weights`` active ones each, started."""
    space = ParameterSpace(nn.Sequential(nn.Linear(16, 4, bias=False), nn.Linear(4, 2)), ["0.weight"])
    density = (4 * weights + space.n_dense) / space.n_parameters
    method = FedMef(FedMefSettings(density=density, adjust_every=1, **settings), space, MethodContext())
    server = server_for(method)
    server.start(space.values, method.initial_mask(Seeded(0)))
    return space, method, server


@pytest.mark.parametrize(
    ("swap", "weights", "warns"),
    [("filter", 2, True), ("filter", 2.25, False), ("filter", 3, False), ("filter", 16, False), ("layer", 2, False)],
)
def test_a_run_whose_filters_are_too_thin_to_swap_says_so(swap, weights, warns):
    _, method, _ = thin(weights, swap=swap)
    assert (method.caution() is not None) == warns


@pytest.mark.parametrize(("weights", "keeps"), [(2, False), (3, True)])
def test_where_filters_are_too_thin_weights_move_anywhere_in_their_layer(weights, keeps):
    space, method, server = thin(weights, form="balanced", adjust_rate=0.8)
    before, started = space.mask.active, space.mask.active.view(4, 16).sum(1)
    assert started.tolist() == [weights] * 4
    for round_number in range(1, 4):
        gradient = torch.zeros(64)
        gradient[:16] = 1.0
        plan = method.plan(round_number, server.values)
        assert (plan.mask_update is not None) == keeps
        adjust(server, plan, gradients(gradient))
    assert not torch.equal(space.mask.active, before)
    assert space.layer_counts() == [4 * weights]
    assert torch.equal(space.mask.active.view(4, 16).sum(1), started) == keeps


def test_contradicting_settings_are_refused():
    with pytest.raises(ValidationError, match="extrusion is off"):
        FedMefSettings(extrusion=False, extrusion_lambda=3.0)
    with pytest.raises(ValidationError, match="swap: filter needs marking: broadcast"):
        FedMefSettings(swap="filter", marking="aggregate")
    for growth in ("summed", "random"):
        with pytest.raises(ValidationError, match=f"gradient_batches is given although growth is {growth}"):
            FedMefSettings(growth=growth, gradient_batches=2)
    assert FedMefSettings(extrusion_lambda=3.0, gradient_batches=2, marking="aggregate").gradient_batches == 2


def test_a_form_sets_its_keys_and_refuses_others():
    balanced = FedMefSettings(form="balanced")
    assert {key: getattr(balanced, key) for key in FORMS["balanced"]} == FORMS["balanced"]
    assert FedMefSettings(form="published") == FedMefSettings().model_copy(update={"form": "published"})
    assert FedMefSettings(**balanced.model_dump()) == balanced
    with pytest.raises(ValidationError, match="swap: layer is not of form: balanced, which has filter"):
        FedMefSettings(form="balanced", swap="layer")
    with pytest.raises(ValidationError, match="'published' or 'balanced'"):
        FedMefSettings(form="even")
