import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import Recorder, alone, restore, started, tiny

from fedmef_dist.clients.cohort import draw_cohort
from fedmef_dist.cluster.interruption import RoundAbandonedError
from fedmef_dist.session import session
from fedmef_dist.session.session import simulate

EVERY_ROUND = {
    "round",
    "train/loss",
    "train/samples",
    "sparsity/density",
    "sparsity/changed",
    "wire/up_bytes",
    "wire/down_bytes",
    "wire/total_bytes",
    "flops/train",
    "flops/overhead",
    "flops/total",
    "time/round",
    "time/train",
    "time/wait",
    "time/reduce",
    "time/adjust",
    "time/eval",
    "time/imbalance",
    "time/imbalance_bound",
    "cluster/reduce_bytes",
    "clients/trained",
    "clients/refused",
    "clients/dropped",
    "clients/late",
    "clients/surplus",
    "model/digest",
}
EVALUATED = {"eval/loss", "eval/accuracy"}
ADJUSTED = {
    "extrusion/shrinkage",
    "extrusion/norm_before",
    "extrusion/norm_after",
    "cluster/gradient_exchange",
}
AROUND = {f"adjust/accuracy_{step}" for step in ("before_extrusion", "after_extrusion", "after_prune", "after_grow")}
LAYERS = {f"layer_density/{name}.weight" for name in ("conv1", "conv2", "hidden")} | {
    "sparsity/survived",
    "sparsity/thin_filters",
}
HEALTH = {"sparsity/overlap", "sparsity/growth_concentration"}
MEASURED_ONCE = {"memory/device_bytes", "memory/activation_bytes", "memory/peak_bytes"}
SUMMARY = {
    "data/digest",
    "eval/accuracy_last",
    "eval/accuracy_best",
    "eval/loss_last",
    "rounds",
    "wire/total_bytes",
    "flops/total",
    "memory/activation_bytes",
    "memory/peak_bytes",
    "time/total",
    "model/digest",
    "launcher",
    "world_size",
    "versions",
}
MORE_IN_SUMMARY = {
    "sparsity/density",
    "memory/device_bytes",
    "reference/activation_bytes",
    "reference/peak_bytes",
    "reference/wire_bytes",
    "threads",
    "device",
    "metrics/lines",
    "metrics/digest",
}

ADAM = {"name": "adam", "lr": 0.01}
OWN_MASKS = {"name": "feddst", "density": 0.5, "adjust_every": 2, "adjust_until": 6}


@pytest.fixture
def simulation(tmp_path):
    """`simulation(federation={"rounds": 2})` is a tiny one with these keys changed."""

    def make(**changes):
        (tmp_path / "run").mkdir(exist_ok=True)
        return started(tiny(**changes), alone(), tmp_path / "run")

    return make


def play(simulation):
    """Plays all rounds that are left; returns their metrics."""
    recorder = Recorder()
    simulation.run(recorder)
    return recorder.rounds


def untimed(rounds):
    return [{key: value for key, value in metrics.items() if not key.startswith("time/")} for metrics in rounds]


# --- the mask


def test_sixty_rounds_keep_every_layers_count_and_nothing_outside_the_mask(simulation):
    run = simulation(
        model={"name": "resnet8", "width": 0.25},
        federation={"rounds": 60, "clients_per_round": 2},
        method={"density": 0.3, "adjust_until": 60},
        optimizer={"momentum": 0.5, "weight_decay": 0.001},
        evaluation={"every": 60},
        checkpoint={"every": 60},
    )
    counts, uploads = run.space.layer_counts(), []
    train = run.local.client.training

    def watch(*arguments):
        report = yield from train(*arguments)
        inactive = ~run.space.mask.active
        assert not run.space.values[: run.space.n_prunable][inactive].any()
        uploads.append(report.values.numel())
        return report

    run.local.client.training = watch
    changed, masks = [], {run.space.mask.digest}
    for _ in range(60):
        run.round += 1
        metrics = run.play_round()
        assert run.space.layer_counts() == counts
        assert not run.server.values[: run.space.n_prunable][~run.space.mask.active].any()
        assert metrics["sparsity/density"] == pytest.approx(0.3, abs=0.5 / run.space.n_parameters)
        changed.append(metrics["sparsity/changed"])
        masks.add(run.space.mask.digest)
    assert set(uploads) == {sum(counts) + run.space.total - run.space.n_prunable}
    # Every second round adjusts, but for the last one, in which the share has reached 0.
    assert [number for number, count in enumerate(changed, start=1) if count] == list(range(2, 60, 2))[: len(masks) - 1]
    assert len(masks) > 20


def test_fedavg_has_no_mask(simulation):
    run = simulation(method={"name": "fedavg"})
    metrics = play(run)
    assert run.space.mask.is_full
    assert {row["sparsity/density"] for row in metrics} == {1.0}
    assert run.config.norm == "batch"


def test_a_server_optimizer_leaves_nothing_outside_the_mask_and_changes_the_run(simulation):
    digests = set()
    for section in ({"name": "none"}, {"name": "avgm", "lr": 0.3}, {"name": "adam", "lr": 0.01}):
        run = simulation(server_optimizer=section)
        metrics = play(run)
        outside = run.server.values[: run.space.n_prunable][~run.space.mask.active]
        assert outside.numpy().tobytes() == bytes(4 * outside.numel())
        digests |= {row["model/digest"] for row in metrics}
    assert len(digests) == 18


def test_the_metrics_of_a_mask_are_those_of_the_masks(simulation):
    run = simulation()
    first = run.space.mask.active.clone()
    for run.round in (1, 2, 3, 4):
        before = run.space.mask.active.clone()
        metrics = run.play_round()
        after = run.space.mask.active
        if run.round == 3:  # neither the first round nor one that adjusts
            assert not LAYERS & metrics.keys()
            continue
        weights = dict(run.model.named_parameters())
        for name in ("conv1", "conv2", "hidden"):
            layer = next(layer for layer in run.space.layers if layer.name == f"{name}.weight")
            active = after[layer.start : layer.stop].sum().item()
            assert metrics[f"layer_density/{name}.weight"] == active / weights[layer.name].numel()
        assert metrics["sparsity/survived"] == (first & after).sum().item() / first.sum().item()
        if run.round == 1:
            assert metrics["sparsity/survived"] == 1
            assert "sparsity/overlap" not in metrics
        else:
            assert metrics["sparsity/overlap"] == (before & after).sum().item() / (before | after).sum().item()
            assert 0 < metrics["sparsity/overlap"] < 1
    assert metrics["sparsity/survived"] < 1
    assert run.server.first_mask.active.equal(first)


# --- the average


def watched(run):
    """Lists that get the reports of the clients that are trained from now on, and their numbers of samples."""
    reports, samples, train = [], [], run.local.client.training

    def watch(*arguments):
        report = yield from train(*arguments)
        reports.append(report)
        samples.append(len(run.population.samples(arguments[4].number)))
        return report

    run.local.client.training = watch
    return reports, samples


def test_a_round_is_the_weighted_average_of_its_clients(simulation):
    run = simulation(method={"name": "fedavg"})
    reports, samples = watched(run)
    run.round = 1
    metrics = run.play_round()
    weights = np.array(samples) / sum(samples)
    expected = sum(weight * report.values.double() for weight, report in zip(weights, reports, strict=True))
    torch.testing.assert_close(run.server.values, expected.float(), rtol=0, atol=1e-7)
    assert metrics["train/samples"] == sum(samples)
    losses = np.array([report.loss for report in reports])
    assert metrics["train/loss"] == pytest.approx((weights * losses).sum(), abs=1e-6)


def test_with_uniform_weights_every_client_counts_once(simulation):
    run = simulation(method={"name": "fedavg"}, federation={"weighting": "uniform", "rounds": 1})
    reports, _ = watched(run)
    (metrics,) = play(run)
    expected = torch.stack([report.values.double() for report in reports]).mean(0)
    torch.testing.assert_close(run.server.values, expected.float(), rtol=0, atol=1e-7)
    assert metrics["train/loss"] == pytest.approx(np.mean([report.loss for report in reports]), abs=1e-6)
    assert (
        metrics["train/samples"]
        == run.population.sizes(draw_cohort(run.population, run.config.federation, 0, 1).clients).sum()
    )


def test_clients_that_do_not_answer_cost_their_download_and_nothing_else(simulation):
    run = simulation(federation={"clients_per_round": 6, "dropout": 0.5, "rounds": 6})
    downloads = []
    for row in play(run):
        assert row["clients/trained"] + row["clients/dropped"] == 6
        if row["clients/trained"]:
            downloads.append(row["wire/up_bytes"] / row["clients/trained"])
        else:
            assert row["wire/up_bytes"] == row["flops/train"] == 0
        assert row["wire/down_bytes"] > 0
    assert len({*downloads}) <= 3  # a client's uplink in an ordinary round, and in the adjusting ones


def test_a_round_that_finds_nobody_leaves_the_state_as_it_was(simulation):
    run = simulation(
        federation={"clients": 2, "clients_per_round": 1, "availability": 0.2, "day_rounds": 6, "rounds": 6}
    )
    rounds = play(run)
    trained = [row["clients/trained"] for row in rounds]
    assert 0 in trained
    assert sum(trained) > 0
    for before, row in pairwise(rounds):
        if not row["clients/trained"]:
            assert row["model/digest"] == before["model/digest"]
            assert row["wire/total_bytes"] == before["wire/total_bytes"]


def test_the_clients_start_is_the_servers_state(simulation):
    run = simulation()
    starts, train = [], run.local.client.training
    run.local.client.training = lambda plan, *rest: starts.append(plan.values.clone()) or train(plan, *rest)
    run.round = 1
    before = run.server.values.clone()
    run.play_round()
    assert len(starts) == 3
    assert all(torch.equal(start, before) for start in starts)


def test_the_data_may_give_clients_less_than_a_batch(simulation):
    run = simulation(data={"partition": {"scheme": "dirichlet", "alpha": 0.3, "min_samples": 1}})
    assert run.population.sizes(np.arange(8)).min() < run.config.federation.batch_size
    assert all(metrics["clients/trained"] == 3 for metrics in play(run))


# --- refused clients


def spoil(run, slots, spoiled):
    """Lets `spoiled` change the reports of every round's clients number `slots`, in the order of their training."""
    train, calls = run.local.client.training, []

    def train_and_spoil(*arguments):
        report = yield from train(*arguments)
        calls.append(report)
        if (len(calls) - 1) % run.config.federation.clients_per_round in slots:
            spoiled(report)
        return report

    run.local.client.training = train_and_spoil
    return calls


def break_a_value(report):
    report.values[3] = float("nan")


def overflow_a_value(report):
    report.values[-1] = 1e20


def break_the_gradient(report):
    if "gradient" in report.uploads:
        report.uploads["gradient"].values[0] = float("inf")


@pytest.mark.parametrize("spoiled", [break_a_value, overflow_a_value])
def test_an_update_that_is_not_sane_is_refused_and_the_others_average(simulation, spoiled):
    run = simulation(method={"name": "fedavg"})
    spoil(run, {1}, spoiled)
    reports, samples = watched(run)
    run.round = 1
    metrics = run.play_round()
    assert (metrics["clients/trained"], metrics["clients/refused"]) == (2, 1)
    assert metrics["train/samples"] == samples[0] + samples[2]
    one, other = (samples[slot] * reports[slot].values.double() for slot in (0, 2))
    expected = (one + other) / (samples[0] + samples[2])
    torch.testing.assert_close(run.server.values, expected.float(), rtol=0, atol=1e-7)


def test_the_run_goes_on_with_the_others(simulation):
    run = simulation()
    spoil(run, {0}, break_a_value)
    rounds = play(run)
    assert len(rounds) == 6
    assert {(row["clients/trained"], row["clients/refused"]) for row in rounds} == {(2, 1)}
    assert run.server.values.isfinite().all()
    assert rounds[1]["sparsity/changed"] > 0


def test_a_gradient_that_is_not_finite_refuses_the_client_in_the_adjusting_round(simulation):
    run = simulation()
    spoil(run, {2}, break_the_gradient)
    rounds = play(run)
    assert [row["clients/refused"] for row in rounds] == [0, 1, 0, 1, 0, 0]
    assert rounds[1]["sparsity/changed"] > 0
    assert run.server.values.isfinite().all()


@pytest.mark.parametrize(
    "method",
    [
        {},
        OWN_MASKS,
        OWN_MASKS | {"name": "fedsgc", "congruity_lambda": 1.0},
        {"name": "flash", "variant": "jmwst", "initial_epochs": 0},
    ],
)
def test_clients_whose_training_diverges_are_refused(simulation, method):
    run = simulation(method=method | {"adjust_every": 1}, optimizer={"lr": 1e3}, federation={"local_epochs": 3})
    assert [row["clients/refused"] for row in play(run)] == [3] * 6
    assert run.server.values.isfinite().all()


@pytest.mark.parametrize("method", [{}, OWN_MASKS, OWN_MASKS | {"name": "fedsgc"}])
def test_a_round_whose_clients_are_all_refused_leaves_the_state_as_it_was(simulation, method):
    run = simulation(method=method)
    run.round = 1
    before = run.play_round()
    values, mask = run.server.values.clone(), run.space.mask
    spoil(run, {0, 1, 2}, break_a_value)
    for run.round in (2, 3):  # an adjusting and an ordinary round
        metrics = run.play_round()
        assert (metrics["clients/trained"], metrics["clients/refused"], metrics["train/samples"]) == (0, 3, 0)
        assert metrics["model/digest"] == before["model/digest"]
        assert metrics["sparsity/changed"] == 0
        assert not {"train/loss", "extrusion/shrinkage"} & metrics.keys()
        assert metrics["time/imbalance"] == 1.0
    assert torch.equal(run.server.values, values)
    assert run.space.mask is mask


# --- clients with masks of their own


@pytest.mark.parametrize("method", [OWN_MASKS, OWN_MASKS | {"name": "fedsgc", "absent": "keep_old"}])
@pytest.mark.parametrize(
    "others",
    [
        {"model": {"norm": "nsconv"}, "sap": {"enabled": True}},
        {"optimizer": {"momentum": 0.5, "weight_decay": 0.01, "prox_mu": 0.1}, "federation": {"batch_size": 64}},
        {"federation": {"client_state": "momentum"}, "optimizer": {"momentum": 0.5}, "server_optimizer": ADAM},
        {"method": {"density": 1.0}},
    ],
)
def test_a_run_keeps_every_layers_count_and_nothing_outside_the_mask(simulation, method, others):
    run = simulation(**others | {"method": method | others.get("method", {})})
    counts, last = run.space.layer_counts(), run.space.mask.active
    for number in range(1, 7):
        run.round = number
        metrics = run.play_round()
        active = run.space.mask.active
        assert metrics["clients/refused"] == 0
        assert run.space.layer_counts() == counts
        assert not run.server.values[: run.space.n_prunable][~active].any()
        assert metrics["sparsity/changed"] == int((active & ~last).sum())
        assert (metrics["sparsity/changed"] > 0) == (number in (2, 4) and not run.space.mask.is_full)
        assert torch.equal(run.space.mask.active, active)
        last = active


def test_the_accuracies_around_an_adjustment_are_those_of_union_and_pruned_union(simulation):
    run = simulation(method=OWN_MASKS | {"adjust_rate": 0.9}, evaluation={"around_adjustment": True})
    densities, test = [], run.test
    run.test = lambda: densities.append(run.space.mask.count / run.space.n_prunable) or test()
    run.round = 1
    run.play_round()
    run.round = 2
    metrics = run.play_round()
    before, union, pruned, grown = densities
    assert before == pruned == grown < union
    assert metrics.keys() >= AROUND
    assert metrics["adjust/accuracy_after_prune"] == metrics["adjust/accuracy_after_grow"]


def test_a_round_abandoned_behind_a_clients_swap_leaves_the_rounds_mask(simulation):
    run = simulation(method=OWN_MASKS | {"local_share": 0.0})
    run.round = 1
    run.play_round()
    digest, mask = run.server.digest(), run.space.mask

    def leave_out(batches):
        yield next(batches)
        raise RoundAbandonedError

    run.grace.heed = leave_out
    run.round = 2
    assert run.play_round() is None
    assert run.space.mask is mask
    assert run.server.digest() == digest


def test_methods_know_what_all_clients_weigh(simulation):
    assert simulation().method.context.total_weight == 160
    assert simulation(federation={"weighting": "uniform"}).method.context.total_weight == 8


def test_the_method_observes_every_round_in_which_a_client_counts(simulation):
    run = simulation()
    seen = []
    run.method.observe = lambda plan, values, sums: seen.append((plan.adjusts, values.clone(), list(sums)))
    run.round = 1
    run.play_round()
    assert torch.equal(seen[0][1], run.server.values)
    run.round = 2
    before = run.space.mask.active
    run.play_round()
    assert [(adjusts, names) for adjusts, _, names in seen] == [(False, []), (True, ["gradient"])]
    assert not seen[1][1][: run.space.n_prunable][~before].any()  # it has not been adjusted yet
    assert not torch.equal(seen[1][1], run.server.values)
    spoil(run, {0, 1, 2}, break_a_value)
    run.round = 3
    run.play_round()
    assert len(seen) == 2


# --- what is measured

DROPPED = {"sap/dropped_mass", "sap/dropped_nonzeros"}


def test_metrics_and_summary_have_the_documented_keys_where_they_are_due(tmp_path):
    config = tiny(evaluation={"every": 4, "around_adjustment": True}, federation={"rounds": 7})
    simulate(config, alone(), tmp_path, "auto")
    rounds = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rounds] == list(range(1, 8))
    for row in rounds:
        due = EVERY_ROUND
        due = due | (EVALUATED | DROPPED if row["round"] in (4, 7) else set())
        due = due | (ADJUSTED | AROUND | LAYERS | HEALTH if row["round"] in (2, 4) else set())
        due = due | ({"sparsity/grown_survived"} if row["round"] == 4 else set())
        due = due | (MEASURED_ONCE | LAYERS if row["round"] == 1 else set())
        assert row.keys() == due, row["round"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary.keys() == SUMMARY | MORE_IN_SUMMARY
    last = rounds[-1]
    assert summary["eval/accuracy_last"] == last["eval/accuracy"]
    assert summary["eval/accuracy_best"] == max(row["eval/accuracy"] for row in rounds if "eval/accuracy" in row)
    assert summary["eval/loss_last"] == last["eval/loss"]
    assert summary["wire/total_bytes"] == sum(row["wire/up_bytes"] + row["wire/down_bytes"] for row in rounds)
    assert summary["flops/total"] == sum(row["flops/train"] for row in rounds)
    assert summary["memory/activation_bytes"] == rounds[0]["memory/activation_bytes"] > 0
    assert summary["time/total"] == pytest.approx(sum(row["time/round"] for row in rounds))
    assert (summary["rounds"], summary["launcher"], summary["world_size"]) == (7, "single", 1)
    assert summary["model/digest"] == last["model/digest"]
    assert summary["versions"].keys() == {"fedmef_dist", "torch", "python"}


def test_a_run_that_ends_before_its_first_test_has_no_accuracy(tmp_path):
    simulate(tiny(callbacks=[{"name": "time_budget", "seconds": 1e-9}]), alone(), tmp_path, "auto")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rounds"] == 1
    assert [summary[key] for key in ("eval/accuracy_best", "eval/accuracy_last", "eval/loss_last")] == [None] * 3


def test_a_rounds_flops_are_those_of_its_clients_batches(simulation):
    run = simulation(federation={"clients_per_round": 8, "local_epochs": 3})
    ordinary, adjusting = play(run)[:2]
    counts = run.space.layer_counts()
    sizes = run.population.sizes(np.arange(8))
    batches, first = sum(-(-sizes // 16)), sum(np.minimum(sizes, 16))
    cost = run.accounting.flops.round(counts, samples=3 * 160, steps=3 * batches)
    assert (ordinary["flops/train"], ordinary["flops/overhead"]) == (cost.total, cost.overhead)
    cost = run.accounting.flops.round(
        counts, samples=3 * 160, steps=3 * batches + 8, extrusion_steps=3 * batches, gradient_samples=first
    )
    assert (adjusting["flops/train"], adjusting["flops/overhead"]) == (cost.total, cost.overhead)


def test_watching_an_adjustment_changes_nothing_but_its_keys(simulation):
    plain, watched = (play(simulation(evaluation={"around_adjustment": around})) for around in (False, True))
    added = [watched_row.keys() - row.keys() for row, watched_row in zip(plain, watched, strict=True)]
    assert added == [set(), AROUND, set(), AROUND, set(), set()]
    rest = [{key: value for key, value in row.items() if key not in AROUND} for row in watched]
    assert untimed(rest) == untimed(plain)
    assert all(0 <= row[key] <= 1 for row in watched for key in AROUND & row.keys())


def test_the_times_add_up(simulation):
    for row in play(simulation()):
        parts = [row[f"time/{phase}"] for phase in ("train", "wait", "reduce", "adjust", "eval")]
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(row["time/round"])
        assert row["time/wait"] == 0.0
        assert row["time/imbalance"] == 1.0


# --- going on


@pytest.mark.parametrize(
    "sections",
    [
        {},
        *({"method": {"name": name}} for name in ("fedavg", "scaffold", "feddyn", "ditto")),
        {"method": OWN_MASKS},
        {"method": OWN_MASKS | {"name": "fedsgc"}},
        {"method": {"name": "fedrts", "density": 0.5, "adjust_every": 2, "adjust_until": 6}},
        {"method": {"name": "prunefl", "density": 0.5, "adjust_every": 2, "initial_steps": 2}},
        {"method": {"name": "fedtiny", "density": 0.5, "adjust_every": 2, "adjust_until": 6}},
        {"method": {"name": "static", "density": 0.5, "criterion": "snip", "scores": "clients"}},
        *({"server_optimizer": {"name": name, "lr": 0.05}} for name in ("avgm", "adam", "yogi")),
    ],
)
@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_restored_run_ends_like_an_undisturbed_one(simulation, sections, after):
    undisturbed = simulation(**sections, checkpoint={"every": 1, "keep": 9})
    rounds = play(undisturbed)
    resumed = simulation(**sections, checkpoint={"every": 1, "keep": 9})
    restore(resumed, undisturbed.store.load(after))
    assert resumed.round == after
    assert resumed.server.digest() == rounds[after - 1]["model/digest"]
    assert untimed(play(resumed)) == untimed(rounds[after:])
    assert resumed.totals.best_accuracy == undisturbed.totals.best_accuracy
    assert resumed.totals.seconds > 0


def test_the_first_mask_survives_a_resume(simulation):
    undisturbed = simulation(checkpoint={"every": 4})
    first = undisturbed.space.mask
    play(undisturbed)
    resumed = simulation(seed=1)  # which starts with another one
    assert resumed.server.first_mask.digest != first.digest
    restore(resumed, undisturbed.store.load(4))
    assert resumed.server.first_mask.active.equal(first.active)
    assert resumed.space.mask.digest != first.digest


def test_a_resumed_run_has_the_same_files_as_an_undisturbed_one(tmp_path):
    config = tiny(checkpoint={"every": 2})
    calm = simulate(config, alone(), tmp_path / "calm", "auto")
    simulate(tiny(checkpoint={"every": 2}, federation={"rounds": 4}), alone(), tmp_path / "two parts", "auto")
    parts = simulate(config, alone(), tmp_path / "two parts", "must")
    # The digest of the metrics stands for the times in them too.
    keys = [key for key in calm.values if not key.startswith(("time/", "memory/", "reference/", "metrics/digest"))]
    assert [parts.values[key] for key in keys] == [calm.values[key] for key in keys]
    digests = [
        [json.loads(line)["model/digest"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("calm", "two parts")
    ]
    assert digests[0] == digests[1]


def test_a_finished_run_resumed_gives_the_same_summary(tmp_path):
    first = simulate(tiny(), alone(), tmp_path, "auto")
    again = simulate(tiny(), alone(), tmp_path, "auto")
    assert again.values["model/digest"] == first.values["model/digest"]
    assert again.values["eval/accuracy_last"] == first.values["eval/accuracy_last"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6


def test_checkpoints_come_when_due_and_at_the_end(simulation):
    run = simulation(federation={"rounds": 5}, checkpoint={"every": 2, "keep": 9})
    play(run)
    assert run.store.rounds() == [2, 4, 5]


def test_only_rank_0_saves(simulation):
    run = simulation(federation={"rounds": 1})
    run.round = 1
    for run.group.rank, found in ((1, []), (0, [1])):
        session._save(run, run.store, Recorder())
        assert run.store.rounds() == found


def test_the_seed_decides_everything(simulation):
    runs = [play(simulation(seed=seed, federation={"rounds": 2})) for seed in (0, 0, 1)]
    assert untimed(runs[0]) == untimed(runs[1])
    assert runs[0][-1]["model/digest"] != runs[2][-1]["model/digest"]
