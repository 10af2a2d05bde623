"""Every method of the package keeps the promises; methods that break one are named with it."""

import random

import pytest
import torch

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.guests import Kind, lent
from fedmef_dist.clients.plan import LocalWork, RoundPlan
from fedmef_dist.commands.check import check_command, configuration
from fedmef_dist.methods.fedavg import FedAvg
from fedmef_dist.methods.fedmef import FedMef
from fedmef_dist.methods.registry import METHODS, name_of
from fedmef_dist.session.conformance import (
    AGAIN,
    COUNTS,
    FINITE,
    GLOBAL,
    LEDGER,
    MASKED,
    PURE,
    RANKS,
    RESUME,
    SLOTS,
    check_method,
)
from fedmef_dist.wire.traffic import Upload

SMALL = ["model={name: cnn, width: 0.125, hidden: 8}", "federation.rounds=4", "federation.batch_size=32"]


def broken(method, *changes):
    """Which promises a method breaks, and how."""
    name = method if isinstance(method, str) else name_of(method)
    with lent({} if isinstance(method, str) else {(Kind.METHOD, name): method}):
        promises, costs = check_method(configuration(name, None, [*SMALL, *changes]))
    assert costs or promises[0].broken
    return {promise.name: promise.broken for promise in promises if promise.broken is not None}


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_of_the_package_keep_them(name):
    assert broken(name) == {}


def test_adam_keeps_them_too():
    assert broken("fedmef", "optimizer={name: adamw, lr: 0.01, weight_decay: 0.1}") == {}


def test_balanced_fedmef_keeps_them():
    rules = "first_mask=even swap=filter rank_by=acting extrusion_target=mean growth=summed"
    assert broken("fedmef", *(f"method.{rule}" for rule in rules.split())) == {}


def test_flash_with_masks_that_move_keeps_them():
    assert broken("flash", "method.variant=jmwst", "method.initial_epochs=1") == {}


class Careless(FedMef):
    """Draws from a generator that everybody shares."""

    def grown_values(self, values, grown):
        return torch.randn(grown.numel())


class Untidy(FedMef):
    """Leaves a weight outside of the mask."""

    def aggregate(self, plan, received):
        values = received.average.clone()
        values[(~self.space.mask.active).nonzero()[0]] = 1.0
        return values, None


class Forgetful(FedAvg):
    """Counts rounds, and tells no checkpoint."""

    rounds = 0

    def aggregate(self, plan, received):
        self.rounds += 1
        return received.average * (1 + 0.01 * self.rounds), None


class Liar(FedMef):
    """Uploads fewer positions than its collection says."""

    def _work(self, counts, marked):
        work = super()._work(counts, marked)
        uploads = work.uploads
        work.uploads = lambda gradient: {
            name: Upload(one.positions[:-3], one.values[:-3]) for name, one in uploads(gradient).items()
        }
        return work


class Greedy(FedMef):
    """Grows and prunes nothing."""

    def next_mask(self, plan, values, sums):
        grown = super().next_mask(plan, values, sums)
        return grown | self.space.mask.active


class Remembering(FedMef):
    """Remembers in plan() how often it was asked."""

    asked = 0

    def plan(self, round, values):
        self.asked += 1
        return super().plan(round, values)

    def state(self):
        return {"asked": torch.tensor([self.asked])}

    def restore(self, state):
        self.asked = int(state["asked"])


class Boundless(FedMef):
    """Has a metric that is no number."""

    def metrics(self, plan, values):
        return {"own/ratio": float("nan")}


class Enclosed(FedAvg):
    """Its clients reach the parameter space by a function, which no copy takes elsewhere."""

    def plan(self, round, values):
        space = self.space

        class Work(LocalWork):
            def prepare_step(self, step, steps, rate):
                space.gradient.mul_(0.5)
                return rate

        return RoundPlan(round, values, Work())


class LocalRanks(FedMef):
    """Lets the number of clients of its own rank into the state."""

    def observe(self, plan, values, sums):
        values[-1] += self.space.values.abs().sum() * 1e-3


@pytest.mark.parametrize(
    ("method", "promise"),
    [
        (Careless, GLOBAL),
        (Untidy, MASKED),
        (Forgetful, RESUME),
        (Liar, LEDGER),
        (Greedy, COUNTS),
        (Remembering, PURE),
        (Boundless, FINITE),
        (LocalRanks, RANKS),
        (Enclosed, SLOTS),
    ],
)
def test_a_broken_promise_is_named(method, promise):
    assert promise in broken(method)


class Moody(FedAvg):
    """Another result in every run."""

    def aggregate(self, plan, received):
        return received.average * (1 + random.SystemRandom().random() / 100), None


def test_another_result_in_every_run_is_named():
    assert AGAIN in broken(Moody)


class Failing(FedAvg):
    """Cannot aggregate."""

    def aggregate(self, plan, received):
        raise ZeroDivisionError("of clients")


def test_a_method_that_raises_is_named_with_its_line():
    found = broken(Failing)[LEDGER]
    assert found.startswith("ZeroDivisionError: of clients; ")
    assert "test_conformance.py, line " in found


def test_the_command_prints_a_line_for_each_promise_and_has_a_status(capsys):
    with pytest.raises(UserError, match=r"unknown method .fedavgg.\n.*\nmend: did you mean fedavg"):
        check_command("fedavgg", None, SMALL)
    assert check_command("fedavg", None, SMALL) == 0
    assert capsys.readouterr().out.count("yes") == 10
    with lent({(Kind.METHOD, name_of(Untidy)): Untidy}):
        assert check_command(name_of(Untidy), None, SMALL) == 1
    out = capsys.readouterr().out
    assert "NO" in out
    assert "must leave positions outside of the mask at 0" in " ".join(out.split())
