import numpy as np
import pytest
import torch
from tiny import Recorder, alone, restore, started, tiny

from fedmef_dist.base.errors import UserError
from fedmef_dist.clients.cohort import FederationSettings
from fedmef_dist.clients.kept_state import Keepsake, KeptStates, kept_tensors
from fedmef_dist.data.batches import normalise
from fedmef_dist.sparsity import Mask, ParameterSpace

SILOS = {"clients": 4, "clients_per_round": 4, "local_epochs": 1, "batch_size": 16}


def space():
    """Six prunable weights, two biases, and a running mean and variance of two channels: 8 parameters, 12 values."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2, affine=False))
    return ParameterSpace(model, ["0.weight"])


def states(kept, clients):
    """What so many clients keep of the space, on one rank."""
    tensors = kept_tensors(FederationSettings(client_state=kept), 0.9, space())
    return KeptStates(tensors, np.zeros(clients, np.int64), alone(), torch.device("cpu"))


def silos(tmp_path, kept, **changes):
    federation = {**SILOS, "client_state": kept, **changes.pop("federation", {})}
    model = {"name": "resnet8", "width": 0.25, "norm": "batch"}
    changes = {"method": {"name": "fedavg"}, "optimizer": {"momentum": 0.5}, "model": model, **changes}
    return started(tiny(federation=federation, **changes), alone(), tmp_path)


# --- one client's state


def test_a_state_by_hand():
    values = torch.arange(12.0)
    kept = states("both", 2)
    first = kept.recall(1, values)
    assert first.velocity.tolist() == [0] * 8
    assert first.statistics.tolist() == [8, 9, 10, 11]
    first.velocity.add_(3)
    assert kept.recall(1, values).velocity.tolist() == [0] * 8  # nothing stays unless it is kept
    kept.keep(1, first)
    kept.forget()
    assert kept.recall(1, values).velocity.tolist() == [0] * 8  # nor where the round does not count
    kept.keep(1, first)
    kept.settle()
    again = kept.recall(1, values + 100)
    assert again.velocity.tolist() == [3] * 8
    assert again.statistics.tolist() == [8, 9, 10, 11]
    assert kept.recall(0, values + 100).statistics.tolist() == [108, 109, 110, 111]


def test_only_what_is_asked_for_stays():
    values = torch.arange(12.0)
    momentum = states("momentum", 1).recall(0, values)
    assert momentum.statistics is None
    assert momentum.velocity.numel() == 8
    statistics = states("statistics", 1).recall(0, values)
    assert statistics.velocity is None
    assert statistics.statistics.tolist() == [8, 9, 10, 11]


def test_momentum_of_a_pruned_weight_is_gone_and_statistics_replace_the_global_ones():
    flat = space()
    flat.set_mask(Mask(torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)))
    flat.load(torch.zeros(12))
    state = Keepsake(velocity=torch.ones(8), statistics=torch.tensor([1.0, 2, 3, 4]))
    state.enter(flat)
    assert state.velocity.tolist() == [1, 0, 1, 1, 0, 1, 1, 1]
    assert flat.values.tolist() == [0] * 8 + [1, 2, 3, 4]
    flat.values[8:] *= 10
    state.leave(flat)
    assert state.statistics.tolist() == [10, 20, 30, 40]


def test_a_weight_that_is_pruned_and_grows_back_while_its_client_is_away_starts_afresh():
    flat, kept = space(), states("both", 2)
    away = kept.recall(1, flat.values)
    away.velocity.fill_(3)
    kept.keep(1, away)
    kept.settle()
    before = kept.recall(1, flat.values).statistics.tolist()
    flat.set_mask(Mask(torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool), 1))
    kept.forget_pruned(flat)
    flat.set_mask(Mask.full(6, version=2))
    again = kept.recall(1, flat.values)
    assert again.velocity.tolist() == [3, 0, 3, 3, 0, 3, 3, 3]
    assert again.statistics.tolist() == before


# --- whole runs


def test_momentum_goes_on_where_the_last_round_ended(tmp_path):
    """One silo that keeps its momentum trains as if the rounds were epochs of one training."""
    changes = {"federation": {"clients": 1, "clients_per_round": 1, "rounds": 3, "batch_size": 160}}
    optimizer = {"lr": 0.1, "momentum": 0.9, "schedule": "constant"}
    changes["model"] = {"name": "cnn", "width": 0.125, "hidden": 8}
    kept = silos(tmp_path, "momentum", optimizer=optimizer, **changes)
    kept.run(Recorder())
    plain = silos(tmp_path, "none", optimizer=optimizer, **changes)
    plain.run(Recorder())
    assert kept.server.digest() != plain.server.digest()

    flat, client = plain.space, plain.local.client
    flat.load(started(plain.config, alone(), tmp_path).server.values)
    plain.model.train()
    velocity = torch.zeros(flat.n_parameters)
    train = plain.dataset.train
    batch = normalise(plain.dataset, train.images.permute(0, 2, 3, 1)), train.labels
    for _ in range(3):
        flat.gradient.zero_()
        client.loss(batch).backward()
        velocity = 0.9 * velocity + flat.gradient
        flat.values[: flat.n_parameters] -= 0.1 * velocity
    # The order of the samples in the one batch differs, so the sums differ in their last bits.
    torch.testing.assert_close(kept.server.values, flat.values, rtol=1e-3, atol=1e-4)


def test_momentum_of_what_is_pruned_goes_at_clients_that_do_not_train_too(tmp_path):
    method, federation = {"name": "fedmef", "density": 0.5, "adjust_every": 1}, {"rounds": 7, "clients_per_round": 1}
    run = silos(tmp_path, "momentum", federation=federation, method=method)
    seen = 0
    for number in range(1, 7):
        run.round, mask = number, run.space.mask.active
        run.play_round()
        for client in run.local.kept._rows:
            velocity = run.local.kept.recall(client, run.server.values).velocity
            assert not velocity[: mask.numel()][~mask].any()
            seen += 1
    assert seen > 6


def test_statistics_are_the_clients_own(tmp_path):
    run = silos(tmp_path, "statistics", federation={"rounds": 2})
    run.run(Recorder())
    tails = [run.kept.recall(client, run.server.values).statistics for client in range(4)]
    assert not torch.equal(tails[0], tails[1])
    assert not torch.equal(tails[0], run.server.values[run.space.n_parameters :])


def test_a_refused_client_keeps_what_it_had(tmp_path):
    run = silos(tmp_path, "both")
    train = run.local.client.training

    def spoiled(*arguments):
        report = yield from train(*arguments)
        report.values[0] = torch.nan
        return report

    run.local.client.training = spoiled
    run.round = 1
    assert run.play_round()["clients/refused"] == 4
    assert not run.kept.recall(0, run.server.values).velocity.any()


@pytest.mark.parametrize("method", [{"name": "fedavg"}, {"name": "fedmef", "density": 0.5, "adjust_every": 2}])
def test_states_survive_a_checkpoint(tmp_path, method):
    changes = {"method": method, "federation": {"rounds": 3, "clients_per_round": 3}}
    changes["checkpoint"] = {"every": 1, "keep": 9}
    undisturbed = silos(tmp_path, "both", **changes)
    undisturbed.run(Recorder())
    resumed = silos(tmp_path, "both", **changes)
    restore(resumed, undisturbed.store.load(1))
    resumed.run(Recorder())
    assert resumed.server.digest() == undisturbed.server.digest()
    forgetful = silos(tmp_path, "both", **changes)
    restore(forgetful, undisturbed.store.load(1))
    forgetful.kept._rows.clear()
    forgetful.run(Recorder())
    assert forgetful.server.digest() != undisturbed.server.digest()


# --- what cannot be


@pytest.mark.parametrize(
    ("kept", "changes", "message"),
    [
        ("momentum", {"optimizer": {"momentum": 0.0}}, "no momentum to keep"),
        ("both", {"optimizer": {"momentum": 0.0}}, "no momentum to keep"),
        ("statistics", {"model": {"name": "cnn", "norm": "none"}}, "no running statistics to keep"),
    ],
)
def test_there_must_be_something_to_keep(tmp_path, kept, changes, message):
    with pytest.raises(UserError, match=rf"{message}\nwhere: federation.client_state={kept}\n"):
        silos(tmp_path, kept, **changes)


def test_who_trains_with_adam_is_not_sent_to_a_key_that_adam_refuses(tmp_path):
    with pytest.raises(UserError, match=r"mend: set optimizer\.momentum, which is for sgd, or choose"):
        silos(tmp_path, "momentum", optimizer={"name": "adam", "lr": 0.01})


def test_too_many_clients_to_keep_something_for_each(tmp_path):
    data = {"dataset": "digits", "partition": {"scheme": "lazy_dirichlet"}}
    with pytest.raises(UserError, match="20000 clients are too many"):
        silos(tmp_path, "momentum", federation={"clients": 20_000}, data=data)
