from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedmef_dist.clients.client import ClientReport
from fedmef_dist.methods.base import WEIGHTS, Collection, RoundPlan, Upload
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.wire.ledger import WireLedger, WireSettings
from fedmef_dist.wire.messages import GarbledMessageError, Messages


def space_of(density, seed):
    """Two prunable layers of 30 and 40 weights, a dense one, running statistics."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(8, 5, bias=False), nn.Linear(4, 3), nn.BatchNorm1d(3))
    space = ParameterSpace(model, ["0.weight", "1.weight"])
    generator = torch.Generator().manual_seed(seed)
    space.values.copy_(torch.randn(space.total, generator=generator))
    space.set_mask(Mask(torch.rand(space.n_prunable, generator=generator) < density, 1))
    return space


def messages_of(space, **settings):
    return Messages(WireLedger(space, 3, WireSettings(**settings)))


def some(space, count, seed):
    """Positions, ``count`` of each layer, ascending."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(
        np.concatenate(
            [layer.start + np.sort(generator.choice(layer.size, count, replace=False)) for layer in space.layers]
        )
    )


def a_round(space, seed, *, client_masks=False):
    """A plan with every kind of collection, and a client's report in it."""
    gradient, wanted, own = (some(space, count, seed + count) for count in (3, 7, 12))
    plan = RoundPlan(
        collections=(
            *([Collection("weights", [12, 12], has_votes=True)] if client_masks else []),
            Collection("gradient", [3, 3]),
            Collection("wanted", [7, 7], has_values=False, has_votes=True),
            Collection("kept", [2, 2], has_values=False, has_votes=True, travels=False),
        ),
        client_masks=client_masks,
    )
    uploads = {
        "gradient": Upload(gradient, torch.randn(6)),
        "wanted": Upload(wanted),
        "kept": Upload(wanted[:4]),
        **({"weights": Upload(own, torch.randn(24))} if client_masks else {}),
    }
    values = torch.randn(space.total - space.n_prunable if client_masks else space.packed_size)
    return plan, ClientReport(values, 0.5, 0.1, uploads)


@given(st.floats(0, 1), st.integers(0, 2**31), st.booleans())
def test_as_fp32_the_server_decodes_what_the_client_sent_in_as_many_bytes_as_counted(density, seed, client_masks):
    space = space_of(density, seed)
    messages = messages_of(space)
    messages.broadcast(space.values, RoundPlan())
    plan, report = a_round(space, seed, client_masks=client_masks)
    received = messages.receive(report, plan)
    assert torch.equal(received.values, report.values)
    assert received.uploads.keys() == report.uploads.keys()
    for name, upload in report.uploads.items():
        assert torch.equal(received.uploads[name].positions, upload.positions)
        if upload.values is not None:
            assert torch.equal(received.uploads[name].values, upload.values)


@pytest.mark.parametrize(("number", "error"), [("fp16", 1e-3), ("int8", 0.5 / 127)])
@pytest.mark.parametrize("client_masks", [False, True])
def test_smaller_types_round_weights_and_gradients_and_leave_the_dense_tail(number, error, client_masks):
    space = space_of(0.5, 3)
    messages = messages_of(space, uplink_values=number)
    plan, report = a_round(space, 3, client_masks=client_masks)
    received = messages.receive(report, plan)
    tail = space.total - space.n_prunable
    assert torch.equal(received.values[-tail:], report.values[-tail:])
    sent, decoded = (one.uploads[WEIGHTS].values if client_masks else one.values[:-tail] for one in (report, received))
    largest = sent.abs().max()
    assert 0 < (decoded - sent).abs().max() <= error * largest
    gradient = report.uploads["gradient"].values
    assert 0 < (received.uploads["gradient"].values - gradient).abs().max() <= error * gradient.abs().max()


def test_an_uplink_by_hand():
    space = space_of(1.0, 0)
    space.set_mask(Mask(torch.arange(70) % 10 == 0, 1))
    ledger = WireLedger(space, 3, WireSettings(uplink_values="int8"))
    # 3 and 4 weights with a scale of 4 bytes each; 6 biases, 15 of the output layer, 6 of the norm, 6 statistics.
    assert ledger.uplink_bytes(space.mask, RoundPlan()) == (3 + 4) + (4 + 4) + 4 * 33
    # Positions of 2 in 30: COO at 5 bits is 2 bytes, of 1 in 40 at 6 bits 1 byte, a tag each.
    wanted = RoundPlan(collections=(Collection("wanted", [2, 1], has_values=False),))
    assert ledger.uplink_bytes(space.mask, wanted) - ledger.uplink_bytes(space.mask, RoundPlan()) == 3 + 2
    # With a mask of its own the client also sends positions: COO, 2 and 3 bytes, and a tag each.
    own = RoundPlan(client_masks=True, collections=(Collection(WEIGHTS, [3, 4], has_votes=True),))
    assert ledger.uplink_bytes(space.mask, own) - ledger.uplink_bytes(space.mask, RoundPlan()) == 3 + 4


def test_the_direction_map_by_hand():
    space = space_of(0.5, 0)
    direction = torch.zeros(70, dtype=torch.int8)
    direction[[0, 1, 2, 35]] = torch.tensor([1, -1, 1, -1], dtype=torch.int8)
    plan = RoundPlan(direction=direction)
    messages = messages_of(space)
    # 3 of 30: COO 15 bits; 1 of 40: 6 bits; a tag and a byte of signs each.
    assert messages.ledger.direction_bytes(plan) == (1 + 2 + 1) + (1 + 1 + 1)
    messages.broadcast(space.values, plan)


def test_a_layer_that_is_nearly_full_still_tells_its_mask():
    space = space_of(1.0, 0)
    active = torch.ones(70, dtype=torch.bool)
    active[0] = False
    space.set_mask(Mask(active, 1))
    space.values[1] = 0.0  # active, and zero
    messages_of(space).broadcast(space.values, RoundPlan())


def test_what_the_ledger_does_not_count_is_a_fault():
    space = space_of(0.5, 0)
    messages = messages_of(space)
    plan, report = a_round(space, 0)
    short = replace(report, uploads=report.uploads | {"gradient": Upload(some(space, 2, 0), torch.randn(4))})
    with pytest.raises(GarbledMessageError, match="the ledger counts"):
        messages.receive(short, plan)
