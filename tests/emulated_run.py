"""Plays everything on the emulated device and prints what came out, as JSON; for a process of its own.

    python tests/emulated_run.py [PART ...]

``digests``: the model's digest after two rounds on the CPU and on the device, for each method and setting.
``ranks``: the digests of two ranks with the collectives that NCCL has. ``slots``: those with clients beside each
other, on one rank and on two. ``steps``: what one training step would wait for, copy and launch on a GPU. ``rounds``:
the same for a whole round, with the places of the waits. ``kernels``, which is played only where it is named and needs
Triton: the launches of a step with the package's own kernels, which are counted and not carried out, by pass and name.
"""

import json
import os
import sys
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import emulated_device
import pytest
import torch
from tiny import alone, tiny

from fedmef_dist.clients.adam import local_optimizer
from fedmef_dist.clients.passes import Passes
from fedmef_dist.cluster.ending import end_with
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.group import Group
from fedmef_dist.cluster.thread_ranks import ThreadTransport, _Meeting
from fedmef_dist.layers import kernels
from fedmef_dist.layers.activation_pruning import prunings
from fedmef_dist.layers.room import without_waiting
from fedmef_dist.methods.registry import METHODS
from fedmef_dist.simulation.loop import Simulation

ROUNDS = 2
# What NCCL moves; bool travels as bytes.
NCCL_TYPES = {
    *(torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
}
ADJUSTING = {"adjust_every": 2, "adjust_until": 6}
FEDMEF = {"name": "fedmef", "density": 0.5, **ADJUSTING}
BALANCED = {**FEDMEF, "form": "balanced"}
RESNET = {"name": "resnet8", "width": 0.25}


def method(name):
    fields = METHODS[name].Settings.model_fields
    return {"name": name, **{key: value for key, value in ADJUSTING.items() if key in fields}}


SETTINGS = {
    "balanced": {"method": BALANCED},
    "resnet8": {"model": RESNET},
    "resnet8, recomputed": {"model": {**RESNET, "recompute": "blocks"}},
    "mobilenet_v2": {"model": {"name": "mobilenet_v2", "width": 0.25}},
    "carried": {"model": RESNET, "sap": {"selection": "carried"}},
    "by sample": {"sap": {"scope": "sample"}},
    "without loss": {"sap": {"prune_ratio": 0}},
    "kept as fp16": {"sap": {"storage": "fp16"}},
    "up as fp16": {"wire": {"uplink_values": "fp16"}},
    "up as int8": {"wire": {"uplink_values": "int8"}},
    "with momentum": {"optimizer": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "prox_mu": 0.1}},
    "diverging": {"optimizer": {"lr": 1000.0}},
    "kept states": {
        "model": {**RESNET, "norm": "batch"},
        "method": {"name": "fedavg"},
        "optimizer": {"lr": 0.1, "momentum": 0.9},
        "federation": {"client_state": "both"},
        "evaluation": {"per_client": 3},
        "server_optimizer": {"name": "adam"},
    },
}
CASES = {name: {"method": method(name)} for name in METHODS} | {
    name: {"method": FEDMEF, **setting} for name, setting in SETTINGS.items()
}
ON_TWO_RANKS = ("fedmef", "feddst", "scaffold")
IN_SLOTS = ("fedmef", "scaffold", "prunefl")
STEPS = {
    "fedavg": {"method": {"name": "fedavg"}},
    "nsconv": {"method": FEDMEF, "sap": {"enabled": False}},
    "p=0.5 exact": {"method": FEDMEF, "sap": {"prune_ratio": 0.5}},
    "p=0.5 by sample": {"method": FEDMEF, "sap": {"prune_ratio": 0.5, "scope": "sample"}},
    "without loss": {"method": FEDMEF, "sap": {"prune_ratio": 0}},
    "p=0.5 recomputed": {"method": FEDMEF, "sap": {"prune_ratio": 0.5}, "model": {**RESNET, "recompute": "blocks"}},
}
# As on a GPU the network is trained for, but for few images.
RESNET18 = {
    "model": {"name": "resnet18"},
    "data": {"synthetic": {"samples": 160, "test_samples": 4, "classes": 4, "channels": 3, "image_size": 32}},
    "federation": {"batch_size": 2},
}
KERNELS = {
    "fedavg": {"method": {"name": "fedavg"}},
    "nsconv": {"method": FEDMEF, "sap": {"enabled": False}},
    "p=0.9 exact": {"method": FEDMEF, "sap": {"prune_ratio": 0.9}},
}


class NcclRules(ThreadTransport):
    """Refuses what NCCL refuses: tensors on the host, types that it has not, gaps in memory."""

    def _exchange(self, tensor):
        assert tensor.device.type == emulated_device.NAME, f"a collective of a tensor on {tensor.device}"
        assert tensor.dtype in NCCL_TYPES, f"a collective of {tensor.dtype}"
        assert tensor.is_contiguous(), "a collective of a tensor with gaps"
        return super()._exchange(tensor)


def started(changes, group):
    simulation = Simulation(tiny(**changes), group)
    simulation.start()
    return simulation


def play(simulation):
    for number in range(1, ROUNDS + 1):
        simulation.round = number
        simulation.play_round()
    return simulation.server.digest()


def play_all(changes, group):
    return play(started(changes, group))


def on(device):
    return Group(Environment("single", 0, 1, 0, 1, None, None), device, "gloo")


def two_ranks(changes, device):
    """The digest of each of two ranks."""
    meeting, found = _Meeting(2), {}
    places = [Environment("torchrun", rank, 2, rank, 2, "localhost", 1) for rank in range(2)]
    groups = [Group(place, device, "nccl", NcclRules(place.rank, meeting)) for place in places]
    # One after another: first weights are drawn from torch's generator, which all threads share.
    simulations = [Simulation(tiny(**changes), group) for group in groups]

    def be(rank):
        try:
            simulations[rank].start()
            found[rank] = play(simulations[rank])
        except Exception as error:
            found[rank] = f"{type(error).__name__}: {error}"
            meeting.barrier.abort()

    ranks = [threading.Thread(target=be, args=(rank,)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return [found[0], found[1]]


def in_slots(changes, device):
    """The digests with two and three clients beside each other on one rank, and with two on each of two ranks."""
    two, three = ({**changes, "runtime": {"slots": slots}} for slots in (2, 3))
    return [*(attempt(play_all, one, on(device)) for one in (two, three)), *two_ranks(two, device)]


def step_of(changes, device, recorder):
    """The third step of a client; the first ones fill caches."""
    simulation = started(changes, on(device))
    client, space = simulation.local.client, simulation.space
    optimizer = local_optimizer(space, client.optimizer)
    passes = Passes(simulation.model, space, client.loss, None)
    batch = next(iter(simulation.own_batches(0, 1)))
    simulation.model.train()
    rooms = [pruning.room for pruning in prunings(simulation.model.modules())]
    for step in range(3):
        with without_waiting(rooms), recorder if step == 2 else nullcontext():
            passes.run(batch)
            recorder.part = "optimiser"
            optimizer.step(0.1)
            recorder.part = "forward"
    return recorder


def step_counts(changes, device):
    """What a step counts in torch's operations."""
    recorder = step_of({"model": RESNET, **changes}, device, emulated_device.Recorder())
    return {**recorder.counts(), "where": recorder.waits.most_common(8)}


def kernel_counts(changes, device):
    """What a step launches where Triton is, by part and name. No kernel runs, so the numbers are nobody's."""
    from triton.runtime.jit import JITFunction

    from fedmef_dist.layers.kernels import gpu

    recorder = emulated_device.Recorder()

    def note(kernel, *args, **how):
        if recorder.is_on:
            recorder.launched(kernel.__name__)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", note)
        find = kernels._kernels
        patch.setattr(kernels, "_kernels", lambda device: gpu if device == emulated_device.NAME else find(device))
        step_of({**RESNET18, **changes}, device, recorder)
    parts = {"forward": {}, "backward": {}, "optimiser": {}}
    for (part, name), count in recorder.launches.most_common():
        parts[part][name] = count
    return {"launches": recorder.launches.total(), **parts}


def round_counts(changes, device, last):
    """What the last of some rounds counts, all in all and for its clients alone; it begins with warm caches."""
    simulation = started(changes, on(device))
    local, recorder, clients = simulation.local, emulated_device.Recorder(), emulated_device.Recorder()
    whole = local._train_all

    def counted(*arguments):
        with clients:
            return whole(*arguments)

    for number in range(1, last + 1):
        simulation.round = number
        if number == last:
            local._train_all = counted
            with recorder:
                simulation.play_round()
        else:
            simulation.play_round()
    beside = recorder.waits - clients.waits
    return {
        "clients": clients.counts(),
        "beside": beside.total(),
        "where beside": beside.most_common(20),
        "where": clients.waits.most_common(12),
        "copies": clients.copies.most_common(12),
    }


def attempt(action, *arguments):
    try:
        return action(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main():
    os.environ.pop("TRITON_INTERPRET", None)  # tests of kernels set it for their process; here none is carried out
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    device = emulated_device.load()
    wanted = sys.argv[1:] or ["digests", "ranks", "slots", "steps", "rounds"]
    found = {}
    if "digests" in wanted:
        found["digests"] = {
            name: [attempt(play_all, changes, group) for group in (alone(), on(device))]
            for name, changes in CASES.items()
        }
    if "ranks" in wanted:
        found["ranks"] = {name: two_ranks({"method": method(name)}, device) for name in ON_TWO_RANKS}
    if "slots" in wanted:
        found["slots"] = {name: in_slots({"method": method(name)}, device) for name in IN_SLOTS}
    if "steps" in wanted:
        found["steps"] = {name: attempt(step_counts, changes, device) for name, changes in STEPS.items()}
    if "rounds" in wanted:
        plain = {"federation": {"rounds": 10}, "evaluation": {"every": 100}, "checkpoint": {"every": 100}}
        # Every second round ends with a new mask, which the third one therefore begins with.
        cases = {"fedavg": (method("fedavg"), 3)}
        for name, settings in (("fedmef", method("fedmef")), ("balanced", BALANCED)):
            cases |= {name: (settings, 3), f"{name}, new mask": (settings, 4)}
        found["rounds"] = {
            case: attempt(round_counts, {**plain, "method": settings}, device, last)
            for case, (settings, last) in cases.items()
        }
    if "kernels" in wanted:
        found["kernels"] = {name: attempt(kernel_counts, changes, device) for name, changes in KERNELS.items()}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    # A device has a thread of its own in autograd, which lets go of the recorder some time after a step has ended; the
    # interpreter's own end aborts where that thread asks for it then.
    end_with(main)
