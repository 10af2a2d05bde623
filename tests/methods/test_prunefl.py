"""One adjustment of twelve weights in two layers, worked out by hand, and what must hold for any adjustment.

Layer 0 has 8 weights of 16 FLOPs together, t = 2; layer 1 has 4 weights of 32 FLOPs, t = 8; all else takes T_0 = 10.
Active weights:   position  0    1     2    5    8    9
                  value     0.5 -0.1   0.9  0.3  0.4 -0.2
Share in round 1: 0.6 * 0.5^(1 / 10000) = 0.59996, so floor(2.4) = 2 and floor(1.2) = 1 do not keep their place by size:
1, 5 and 9. What is never pruned has g^2 = 6 together; with those kept, 0, 2 and 8, it is 6 + 1 + 3 + 8 = 18, and t = 10
+ 2 + 2 + 8 = 22.
The others:       position  3    10   4    11   6    9    5    1    7
                  g^2       6    12   2    6.4  1.4  4    0.8  0.2  0
                  g^2 / t   3    1.5  1    0.8  0.7  0.5  0.4  0.1  0
3 joins (3 > 18 / 22), 10 joins (1.5 > 24 / 24), 4 does not (1 < 36 / 32). Without the 6, 4 would join (1 > 30 / 32).
"""

import pytest
import torch
from made_methods import FORMAT, Seeded, adjust, server_for, vector
from pydantic import ValidationError
from tiny import alone, started, tiny
from torch import nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.randomness import numpy_generator
from fedmef_dist.clients.cohort import draw_cohort
from fedmef_dist.clients.plan import LocalClient
from fedmef_dist.methods.base import MethodContext
from fedmef_dist.methods.prunefl import PruneFl, PruneFlSettings, SquaredGradients, compete
from fedmef_dist.simulation.loop import Simulation
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sums.position_sum import Sums

WEIGHTS = {0: 0.5, 1: -0.1, 2: 0.9, 5: 0.3, 8: 0.4, 9: -0.2}
GAINS = {0: 1, 2: 3, 8: 8, 3: 6, 10: 12, 4: 2, 11: 6.4, 6: 1.4, 9: 4, 5: 0.8, 1: 0.2}
FAST = {"name": "prunefl", "density": 0.5, "adjust_every": 2, "initial_adjustments": 2, "initial_steps": 3}


def squared_gradients(values, rest=0.0):
    found = {"squared_gradient": values, "squared_gradient_of_rest": torch.tensor([rest])}
    return {name: Sums(FORMAT.encode(one, 1), None, 1, FORMAT) for name, one in found.items()}


def example(**settings):
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    space = ParameterSpace(model, ["0.weight", "1.weight"])
    options = {"density": 0.6, "adjust_every": 1, "adjust_rate": 0.6} | settings
    method = PruneFl(PruneFlSettings(**options), space, MethodContext(layer_flops=[16, 32], other_flops=10.0))
    space.values[:12] = vector(WEIGHTS)
    server = server_for(method)
    server.start(space.values, vector(WEIGHTS) != 0)
    return method, server


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0, 2, 3, 8, 10]),
        # 18 parameters, 6 of them never pruned: 10 / 18 leaves room for four.
        ({"density": 0.5, "max_density": 10 / 18}, [0, 2, 3, 8]),
        # t = 1, T_0 = 6: 10 (12 > 18 / 9), 11 (6.4 > 30 / 10), 3 (6 > 36.4 / 11), 9 (4 > 42.4 / 12), but not
        # 4 (2 < 46.4 / 13).
        ({"layer_time": "uniform"}, [0, 2, 3, 8, 9, 10, 11]),
        # Two and one go, and the inactive ones of largest g^2 in their layer come.
        ({"layer_time": "uniform", "fixed_density": True}, [0, 2, 3, 4, 8, 10]),
    ],
)
def test_an_adjustment(settings, expected):
    method, server = example(**settings)
    plan = method.plan(1, server.values)
    assert plan.swap_counts == [2, 1]
    adjust(server, plan, squared_gradients(vector(GAINS), 6.0))
    assert method.space.mask.index.tolist() == expected
    assert method.space.mask.version == 1
    kept = {0: 0.5, 2: 0.9, 8: 0.4} | ({9: 0.0} if 9 in expected else {})
    survivors = {position: WEIGHTS[position] for position in kept}
    torch.testing.assert_close(server.values[:12], vector(survivors))


def test_a_full_layer_contests_its_weights_too():
    method, server = example()
    server.start(server.values, torch.ones(12, dtype=torch.bool))
    assert method.plan(1, server.values).swap_counts == [4, 2]
    method, server = example(fixed_density=True)
    server.start(server.values, torch.ones(12, dtype=torch.bool))
    assert method.plan(1, server.values).swap_counts == [0, 0]


def test_equal_ratios_go_to_the_lower_position_or_are_drawn():
    # Enough for a sort that is not stable to leave their order.
    gain, time = torch.full((1000,), 5.0).double(), torch.ones(1000).double()
    kept = torch.arange(1000) == 500
    gain[500] = 1.0
    for most, expected in [(3, [0, 1, 500]), (0, [500])]:
        assert compete(gain, time, kept, 0.0, 1.0, most).nonzero().flatten().tolist() == expected
    drawn = compete(gain, time, kept, 0.0, 1.0, 3, numpy_generator(0, "any")).nonzero().flatten().tolist()
    assert len(drawn) == 3
    assert max(set(drawn) - {500}) > 100


def published_rule(weights, active, squares, rest, times, other_time, share):
    """Algorithm 2 one step after the other, as the authors' code does it, for layers that are not full.

    Lists with an entry for each layer; the masks, nested lists of bool.
    """
    gain, spent, rivals, masks = rest, other_time, [], []
    for layer, (size, on, square, time) in enumerate(zip(weights, active, squares, times, strict=True)):
        present = sorted((abs(size[j]), j) for j in range(len(size)) if on[j])
        stays = {j for _, j in present[int(share * len(present)) :]}
        masks.append([j in stays for j in range(len(size))])
        gain += sum(square[j] for j in stays)
        spent += time * len(stays)
        rivals += [(square[j] / time, layer, j) for j in range(len(size)) if j not in stays]
    for ratio, layer, j in sorted(rivals, reverse=True):
        if ratio <= gain / spent:
            break
        masks[layer][j] = True
        gain, spent = gain + squares[layer][j], spent + times[layer]
    return masks


@pytest.mark.parametrize("seed", range(6))
def test_masks_are_those_of_the_published_rule(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(8, 4))
    space = ParameterSpace(model, ["0.weight", "2.weight"])
    flops = [4000.0, 900.0]
    method = PruneFl(
        PruneFlSettings(density=0.4, initial="none", adjust_every=1, adjust_rate=0.3),
        space,
        MethodContext(layer_flops=flops, other_flops=150.0, rounds=9),
    )
    server = server_for(method)
    server.start(space.values, method.initial_mask(Seeded(seed)))
    images, labels = torch.randn(16, 2, 5, 5), torch.randint(4, (16,))
    work = method.plan(1, server.values).work
    work.begin(LocalClient())
    for _ in range(3):
        space.gradient.zero_()
        nn.functional.cross_entropy(model(images + 0.1 * torch.randn(16, 2, 5, 5)), labels).backward()
        work.prepare_step(0, 3, 0.1)
    sent = {name: upload.values for name, upload in work.uploads(None).items()}
    squares, rest = sent["squared_gradient"], float(sent["squared_gradient_of_rest"])
    rows = [slice(layer.start, layer.stop) for layer in space.layers]

    def expected(rest):
        parts = ([one[row].double().tolist() for row in rows] for one in (server.values, space.mask.active, squares))
        times = [total / layer.size for total, layer in zip(flops, space.layers, strict=True)]
        masks = published_rule(*parts, rest, times, 150.0, method.settings.share(1))
        return [active for mask in masks for active in mask]

    masks = expected(rest), expected(0.0)
    adjust(server, method.plan(1, server.values), squared_gradients(squares, rest))
    assert space.mask.active.tolist() == masks[0]
    assert sum(masks[0]) < sum(masks[1])  # the bar is higher with what is never pruned


def test_the_share_halves():
    settings = PruneFlSettings(adjust_rate=0.3, adjust_half_life=2)
    assert [settings.share(number) for number in (0, 2, 4)] == [0.3, 0.15, 0.075]


def test_when_it_adjusts():
    always, until = PruneFlSettings(adjust_every=3), PruneFlSettings(adjust_every=3, adjust_until=6)
    assert [number for number in range(1, 13) if always.adjusts(number)] == [3, 6, 9, 12]
    assert [number for number in range(1, 13) if until.adjusts(number)] == [3, 6]
    method, server = example(adjust_every=3)
    assert not method.plan(2, server.values).collections


def test_dense_gradients_are_taken_as_long_as_an_adjustment_is_to_come():
    def due(**settings):
        method, server = example(adjust_every=3, **settings)
        method.context = MethodContext(rounds=10)
        plans = [method.plan(number, server.values) for number in range(1, 11)]
        return [plan.round for plan in plans if plan.work.dense_batches], [plan.round for plan in plans if plan.adjusts]

    assert due() == ([1, 2, 3, 4, 5, 6, 7, 8, 9], [3, 6, 9])
    assert due(adjust_until=6) == ([1, 2, 3, 4, 5, 6], [3, 6])
    assert due(accumulate="round") == ([3, 6, 9], [3, 6, 9])


def test_a_run_may_end_with_the_adjustment_that_is_to_come():
    settings = PruneFlSettings(adjust_every=4)
    assert [settings.adjusts_from(5, rounds) for rounds in (7, 8, 9)] == [False, True, True]


def test_rounds_up_to_an_adjustment_add_up_together_and_only_it_collects():
    method, server = example(adjust_every=3)
    method.context = MethodContext(layer_flops=[16, 32], other_flops=10.0, rounds=6)
    plans = [method.plan(number, server.values) for number in range(1, 7)]
    assert [plan.work.adjustments for plan in plans] == [0, 0, 0, 1, 1, 1]
    assert [[one.over.size for one in plan.collections] for plan in plans] == [[], [], [12, 1]] * 2
    quiet = SquaredGradients(method.space, collects=False)
    quiet.begin(LocalClient())
    assert (quiet.collections, quiet.uploads(None)) == ((), {})


def test_what_a_client_adds_up_stays_with_it_until_an_adjustment():
    method, _ = example()
    kept = {one.name: torch.zeros(one.size) for one in method.kept()}
    sums = []
    for adjustments in (0, 0, 1, 1):
        work = SquaredGradients(method.space, adjustments)
        work.begin(LocalClient(3, kept=kept))
        method.space.gradient.fill_(3.0)
        method.space.gradient[:12] = vector({4: 2.0})
        work.prepare_step(0, 1, 0.1)
        sums.append([float(work.uploads(None)[name].values.sum()) for name in list(kept)[:2]])
    # Six parameters are never pruned.
    assert sums == [[4.0, 54.0], [8.0, 108.0], [4.0, 54.0], [8.0, 108.0]]
    assert example(accumulate="round")[0].kept() == ()


def test_a_client_adds_up_its_squared_gradients_and_begins_anew():
    method, _ = example()
    work = SquaredGradients(method.space)
    for gradients in ([2.0, -3.0], [1.0, 0.0]):
        work.begin(LocalClient())
        for gradient in gradients:
            method.space.gradient.fill_(9.0)
            method.space.gradient[:12] = vector({0: gradient, 7: 0.5})
            assert work.prepare_step(0, 2, 0.1) == 0.1
        upload = work.uploads(None)["squared_gradient"]
        assert upload.positions.tolist() == list(range(12))
        expected = vector({0: sum(gradient**2 for gradient in gradients), 7: 0.5})
        torch.testing.assert_close(upload.values, expected)
        assert float(work.uploads(None)["squared_gradient_of_rest"].values) == 2 * 6 * 81.0
    assert work.collections[0].counts == [8, 4]
    assert work.held == 2 * 12 - 6 + 1


def test_a_large_square_is_capped_and_what_is_not_a_number_stays():
    method, _ = example()
    work = SquaredGradients(method.space)
    work.begin(LocalClient())
    method.space.gradient[:12] = vector({0: 181.0, 1: 1e30, 2: -256.0, 3: float("nan")})
    work.prepare_step(0, 1, 0.1)
    values = work.uploads(None)["squared_gradient"].values
    assert values[:3].tolist() == [32761.0, 32768.0, 32768.0]
    assert values[3].isnan()
    method.space.gradient[12:] = 256.0
    work.prepare_step(0, 1, 0.1)
    assert work.uploads(None)["squared_gradient_of_rest"].values.tolist() == [32768.0]


def test_a_ratio_that_is_the_models_own_does_not_pay():
    # 2 / 2 is what the first has: with the second it would stay at 1.
    kept = torch.tensor([True, False])
    found = compete(torch.tensor([1.0, 2.0]).double(), torch.tensor([1.0, 2.0]).double(), kept, 0.0, 0.0, 2)
    assert found.tolist() == [True, False]


@pytest.mark.parametrize("settings", [{}, {"max_density": 0.7}, {"fixed_density": True}])
def test_any_adjustment_keeps_floors_and_bounds(settings):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8, 4))
    space = ParameterSpace(model, ["0.weight", "1.weight"])
    method = PruneFl(
        PruneFlSettings(density=0.6, adjust_every=1, initial="none", adjust_rate=0.5, **settings),
        space,
        MethodContext(layer_flops=[5000.0, 700.0], other_flops=300.0),
    )
    server = server_for(method)
    server.start(space.values, method.initial_mask(Seeded(0)))
    first, seen = space.layer_counts(), set()
    for number in range(1, 40):
        server.values[: space.n_prunable] += 0.1 * torch.randn(space.n_prunable) * space.mask.active
        gains = torch.randn(space.n_prunable).square() * 10.0 ** -(number % 4)
        adjust(server, method.plan(number, server.values), squared_gradients(gains))
        counts = space.layer_counts()
        seen.add(tuple(counts))
        assert min(counts) > 0
        assert space.mask.active[space.layers[1].start :].view(8, 9).sum(1).min() >= 2
        assert space.density <= settings.get("max_density", 1) + 0.5 / space.n_parameters
        assert not server.values[: space.n_prunable][~space.mask.active].any()
    assert (seen == {tuple(first)}) == ("fixed_density" in settings)


# --- before the first round


def test_a_client_prunes_before_the_first_round():
    plain = started(tiny(method=FAST | {"initial": "none"}), alone())
    run = started(tiny(method=FAST), alone())
    space, mask = run.space, run.space.mask
    assert not torch.equal(mask.active, plain.space.mask.active)
    assert not run.server.values[: space.n_prunable][~mask.active].any()
    assert not torch.equal(run.server.values[space.n_prunable :], plain.server.values[space.n_prunable :])
    assert mask.version == 0
    # Down the random mask's model, up the client's: 4 bytes a value, and a tag and a bit a position in each of the
    # layers of 100, 800 and 256 weights. A full one, as the first and the last of the random mask, is a tag alone.
    assert [layer.size for layer in space.layers] == [100, 800, 256]
    assert space.layer_counts(plain.space.mask)[::2] == [100, 256]
    assert not {100, 256} & set(space.layer_counts())
    tail, down, up = 4 * (space.total - space.n_prunable), 1 + 101 + 1, 14 + 101 + 33
    assert run.totals.wire_bytes == 4 * (plain.space.mask.count + mask.count) + 2 * tail + down + up
    assert run.totals.flops > plain.totals.flops == 0


def test_its_weights_come_up_in_the_type_of_the_uplink():
    exact, run = (started(tiny(method=FAST, wire={"uplink_values": number}), alone()) for number in ("fp32", "fp16"))
    assert run.space.mask.active.equal(exact.space.mask.active)
    active = exact.server.values[exact.space.mask.index]
    assert run.server.values[run.space.mask.index].equal(active.half().float())
    assert not run.server.values[run.space.mask.index].equal(active)
    tail = slice(run.space.n_prunable, None)
    assert run.server.values[tail].equal(exact.server.values[tail])
    assert exact.totals.wire_bytes - run.totals.wire_bytes == 2 * run.space.mask.count


def test_it_is_the_client_with_the_most_samples_and_they_are_counted():
    run = Simulation(tiny(method=FAST), alone())
    cohort = draw_cohort(run.population, run.config.federation, 0, 0)
    taken, own_batches = [], run.own_batches

    def watch(client, epochs):
        for batch in own_batches(client, epochs):
            taken.append((client, len(batch[1])))
            yield batch

    run.own_batches = watch
    run.start()
    assert len(taken) == 2 * 3
    assert {client for client, _ in taken} == {cohort.clients[cohort.samples.argmax()]}
    sizes, samples = [layer.size for layer in run.space.layers], sum(count for _, count in taken)
    expected = run.accounting.flops.round(sizes, samples=0, steps=0, gradient_samples=samples).total
    assert run.totals.flops == expected


def test_a_rehearsal_counts_the_costs_and_trains_nobody():
    plain, run, rehearsed = (
        Simulation(tiny(method=FAST | {"initial": initial}), alone()) for initial in ("none", "client", "client")
    )
    plain.start()
    run.start()
    rehearsed.start(rehearses=True)
    assert rehearsed.server.digest() == plain.server.digest()
    assert rehearsed.totals.flops == run.totals.flops
    assert rehearsed.totals.wire_bytes > 0


def test_where_no_client_answers_the_random_mask_stays():
    nobody = {"dropout": 0.99}
    runs = [
        started(tiny(method=FAST | {"initial": initial}, federation=nobody), alone()) for initial in ("client", "none")
    ]
    assert not len(draw_cohort(runs[0].population, runs[0].config.federation, 0, 0).clients)
    assert runs[0].server.digest() == runs[1].server.digest()
    assert runs[0].totals.wire_bytes == 0


def test_numbers_that_are_not_finite_end_it():
    with pytest.raises(UserError, match="which prunes before the first round") as error:
        started(tiny(method=FAST, optimizer={"lr": 1e3}), alone())
    assert str(error.value).count("\n") == 2


# --- settings


def test_contradicting_settings_are_refused():
    with pytest.raises(ValidationError, match="fixed_density is on"):
        PruneFlSettings(fixed_density=True, max_density=0.5)
    with pytest.raises(ValidationError, match=r"density 0.6 is above max_density 0.5"):
        PruneFlSettings(density=0.6, max_density=0.5)
    assert PruneFlSettings(density=0.5, max_density=0.5).max_density == 0.5
