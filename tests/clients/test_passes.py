import pytest
import torch
from torch import nn

from fedmef_dist.clients import passes
from fedmef_dist.clients.client import Client
from fedmef_dist.clients.optimizer import OptimizerSettings
from fedmef_dist.clients.passes import WARM_UPS, CudaRecorder, Passes
from fedmef_dist.clients.plan import LocalWork, RoundPlan
from fedmef_dist.layers.activation_pruning import SapSettings
from fedmef_dist.layers.random import Dropout, StochasticDepth, set_generator
from fedmef_dist.layers.recompute import recomputed_block
from fedmef_dist.models import ModelSettings, build_model, prunable_weights
from fedmef_dist.sparsity import Mask, ParameterSpace


class Remembers:
    """Records what is computed by remembering how."""

    def __init__(self):
        self.records = self.replays = 0

    def record(self, function):
        self.records += 1
        place = torch.zeros(())

        def replay():
            self.replays += 1
            place.copy_(function())

        return replay, place


class Refuses:
    def record(self, function):
        raise RuntimeError("operation not permitted when stream is capturing")


def network(recorder, *more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), *more, nn.ReLU(), nn.Linear(5, 3))
    space = ParameterSpace(model, ["0.weight"])
    space.set_mask(Mask(torch.arange(30) % 3 > 0))
    return Client(model, space, OptimizerSettings(momentum=0.9), autocast=False, recorder=recorder)


def batches_of(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


def train(client, batches, values=None):
    values = client.space.values.clone() if values is None else values
    return client.train(RoundPlan(1, values), iter(batches), len(batches), 0.1)


def test_each_shape_is_recorded_once_and_replayed_to_the_same_result():
    recorder, batches = Remembers(), batches_of(8, 8, 3, 8, 8, 8, 3, 3, 8, 3, 3)
    mine, plain = train(network(recorder), batches), train(network(None), batches)
    assert torch.equal(mine.values, plain.values)
    assert mine.loss == plain.loss
    assert (recorder.records, recorder.replays) == (2, len(batches) - 2 * WARM_UPS)


def test_another_mask_is_another_record():
    recorder = Remembers()
    client = network(recorder)
    batches = batches_of(*[4] * (WARM_UPS + 2))
    train(client, batches)
    first = client.space.mask
    client.space.set_mask(first.next(~first.active))
    train(client, batches)
    assert recorder.records == 2
    client.space.set_mask(first)  # which comes back with the record's own tensors still there
    train(client, batches)
    assert recorder.records == 2
    assert recorder.replays == 2 * 2 + len(batches)


def test_what_draws_numbers_is_replayed_with_the_numbers_that_would_be_drawn():
    """Two clients with generators of their own, one behind the other, on batches of two sizes."""
    recorder, batches = Remembers(), batches_of(*[8, 8, 3, 8] * 4)
    clients = [network(one, Dropout(0.5), StochasticDepth(0.3, "row")) for one in (recorder, None)]
    values = clients[0].space.values.clone()
    for seed in (1, 2):
        for client in clients:
            set_generator(client.model, torch.Generator().manual_seed(seed))
        mine, plain = (train(client, batches, values) for client in clients)
        assert torch.equal(mine.values, plain.values)
        assert mine.loss == plain.loss
    assert (recorder.records, recorder.replays) == (2, 2 * len(batches) - 2 * WARM_UPS)


def test_what_draws_numbers_twice_is_not_recorded():
    recorder = Remembers()
    block = nn.Sequential(nn.Linear(5, 5), Dropout(0.5), nn.Linear(5, 5))
    client = network(recorder, recomputed_block(block, packs=False))
    train(client, batches_of(*[4] * 9))
    assert recorder.records == 0
    block[1].p = 0.0
    train(client, batches_of(*[4] * 9))
    assert recorder.records == 1


def test_what_cannot_be_recorded_is_computed(caplog):
    batches = batches_of(*[4] * 9)
    refused, plain = train(network(Refuses()), batches), train(network(None), batches)
    assert torch.equal(refused.values, plain.values)
    assert [record.message for record in caplog.records] == [
        "steps are not recorded as CUDA graphs: operation not permitted when stream is capturing"
    ]


def test_what_there_is_no_room_for_is_computed_until_another_mask_comes(monkeypatch):
    monkeypatch.setattr(passes, "MOST_GRAPHS", 2)
    recorder = Remembers()
    client = network(recorder)
    run = Passes(client.model, client.space, client.loss, recorder)

    def see(*sizes):
        for size in sizes:
            for batch in batches_of(*[size] * (WARM_UPS + 1)):
                run.run(batch)
        return recorder.records

    assert see(2, 3, 4, 2, 4) == 2
    first = client.space.mask
    client.space.set_mask(first.next(~first.active))
    assert see(4) == 3
    client.space.set_mask(first)  # the record of 2 has left, that of 3 is there
    assert see(3) == 3
    assert see(2) == 4


CUDA_CASES = [
    ("resnet8", "nsconv", SapSettings(enabled=True, prune_ratio=0.9), "none"),
    ("resnet8", "nsconv", SapSettings(enabled=True, prune_ratio=0.5, selection="carried", scope="sample"), "none"),
    ("resnet8", "nsconv", SapSettings(enabled=True, prune_ratio=0.5, selection="sampled", storage="bf16"), "none"),
    ("resnet8", "batch", SapSettings(enabled=True, prune_ratio=0.0), "blocks"),
    ("resnet8", "batch", SapSettings(enabled=False), "none"),
    ("gpt", "nsconv", SapSettings(enabled=True, prune_ratio=0.5), "none"),
    ("mobilenet_v2", "nsconv", SapSettings(enabled=True, prune_ratio=0.5), "none"),  # draws
]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("name", "norm", "sap", "recompute"), CUDA_CASES)
def test_a_graph_gives_the_bits_of_the_steps_it_stands_for(name, norm, sap, recompute, autocast, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    shape = (16,) if name == "gpt" else (3, 32, 32)
    found = {}
    for recorder in (None, CudaRecorder()):
        settings = ModelSettings(name=name, recompute=recompute)
        model = build_model(settings, sap, norm=norm, classes=10, shape=shape, seed=0).cuda()
        space = ParameterSpace(model, prunable_weights(model))
        space.set_mask(Mask(torch.rand(space.n_prunable, generator=torch.Generator().manual_seed(0)).cuda() < 0.5))
        client = Client(model, space, OptimizerSettings(momentum=0.9), autocast, recorder)
        generator = torch.Generator().manual_seed(1)
        batches = []
        for size in [8] * (WARM_UPS + 4) + [5] * (WARM_UPS + 2):
            inputs = torch.randint(10, (size, *shape), generator=generator)
            if name != "gpt":
                inputs = torch.randn(size, *shape, generator=generator).contiguous(memory_format=torch.channels_last)
            labels = torch.randint(10, (size, *shape) if name == "gpt" else (size,), generator=generator)
            batches.append((inputs.cuda(), labels.cuda()))
        reports = [
            client.train(RoundPlan(1, space.values.clone(), LocalWork()), iter(batches), len(batches), 0.01)
            for _ in range(2)
        ]
        found[recorder is None] = [(report.values, report.loss) for report in reports]
        assert recorder is None or len(client._passes._recorded) == 2, "nothing was recorded"
    for (mine, my_loss), (theirs, their_loss) in zip(found[False], found[True], strict=True):
        assert torch.equal(mine, theirs)
        assert my_loss == their_loss
