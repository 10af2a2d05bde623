import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_methods import messages_for
from torch import nn

from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.filter_swaps import count_in_filters
from fedmef_dist.wire.encodings import InFilters, Positions, Signs, Sparse, Whole, WithMask
from fedmef_dist.wire.messages import GarbledMessageError
from fedmef_dist.wire.ranges import parameters, prunable, small, statistics
from fedmef_dist.wire.traffic import Broadcast, Upload, at_positions, whole


def space_of(density, seed):
    """Two prunable layers of 30 and 40 weights, a dense one, running statistics."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(8, 5, bias=False), nn.Linear(4, 3), nn.BatchNorm1d(3))
    space = ParameterSpace(model, ["0.weight", "1.weight"])
    generator = torch.Generator().manual_seed(seed)
    space.values.copy_(torch.randn(space.total, generator=generator))
    space.set_mask(Mask(torch.rand(space.n_prunable, generator=generator) < density, 1))
    return space


def some(space, count, seed):
    """Positions, ``count`` of each layer, ascending."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(
        np.concatenate(
            [layer.start + np.sort(generator.choice(layer.size, count, replace=False)) for layer in space.layers]
        )
    )


def a_round(space, seed, *, returns_weights=True):
    """Every kind of collection with what a client contributes to it, and its packed state."""
    gradient, wanted, own = (some(space, count, seed + count) for count in (3, 7, 12))
    found = [
        (at_positions("gradient", space, [3, 3]), Upload(gradient, torch.randn(6))),
        (at_positions("wanted", space, [7, 7], Positions(), has_votes=True), Upload(wanted)),
        (at_positions("kept", space, [2, 2], Positions(), has_votes=True, travels=False), Upload(wanted[:4])),
        (whole("control", parameters(space)), Upload(None, torch.randn(space.n_parameters))),
        (whole("statistics", statistics(space)), Upload(None, torch.randn(6))),
        (whole("losses", small(3)), Upload(None, torch.randn(3))),
        (whole("nothing", small(0)), Upload(None, torch.randn(0))),
    ]
    if not returns_weights:
        found.append(
            (at_positions("weights", space, [12, 12], WithMask(), has_votes=True), Upload(own, torch.randn(24)))
        )
    return found, torch.randn(space.packed_size(returns_weights))


@given(st.floats(0, 1), st.integers(0, 2**31), st.booleans())
def test_as_fp32_the_server_decodes_what_the_client_sent_in_as_many_bytes_as_counted(density, seed, returns_weights):
    space = space_of(density, seed)
    messages = messages_for(space)
    messages.send_model(space.values, space.mask)
    found, packed = a_round(space, seed, returns_weights=returns_weights)
    assert torch.equal(messages.return_state(packed, returns_weights=returns_weights), packed)
    for wanted, sent in found:
        received = messages.collect(sent, wanted)
        assert (received.positions is None) == (sent.positions is None)
        assert sent.positions is None or torch.equal(received.positions, sent.positions)
        assert (received.values is None) == (sent.values is None)
        assert sent.values is None or torch.equal(received.values, sent.values)


@given(st.floats(0, 1), st.integers(0, 2**31))
def test_a_new_mask_is_proved_to_decode_for_those_who_know_the_filters_counts(density, seed):
    space = space_of(density, seed)
    messages = messages_for(space)
    counts = count_in_filters(space, space.mask.index)
    messages.send_model(space.values, space.mask, InFilters(space, counts))
    if not space.mask.is_full and counts[0] < 5:
        counts[0] += 1
        with pytest.raises((GarbledMessageError, ValueError)):
            messages.send_model(space.values, space.mask, InFilters(space, counts))


@pytest.mark.parametrize(("number", "error"), [("fp16", 1e-3), ("int8", 0.5 / 127)])
@pytest.mark.parametrize("returns_weights", [True, False])
def test_smaller_types_round_weights_and_gradients_and_leave_the_dense_tail(number, error, returns_weights):
    space = space_of(0.5, 3)
    messages = messages_for(space, uplink_values=number)
    found, packed = a_round(space, 3, returns_weights=returns_weights)
    received = messages.return_state(packed, returns_weights=returns_weights)
    tail = space.total - space.n_prunable
    assert torch.equal(received[-tail:], packed[-tail:])
    uploads = {wanted.name: (sent.values, messages.collect(sent, wanted).values) for wanted, sent in found}
    pairs = [uploads["gradient"], uploads["weights"] if not returns_weights else (packed[:-tail], received[:-tail])]
    # Of all parameters those of the prunable layers.
    control, decoded = uploads["control"]
    pairs.append((control[: space.n_prunable], decoded[: space.n_prunable]))
    assert torch.equal(decoded[space.n_prunable :], control[space.n_prunable :])
    for sent, decoded in pairs:
        assert 0 < (decoded - sent).abs().max() <= error * sent.abs().max()
    for name in ("statistics", "losses"):
        assert torch.equal(*uploads[name])


@pytest.mark.parametrize(("number", "error"), [("fp32", 0), ("fp16", 1e-3), ("int8", 0.5 / 127)])
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
def test_a_whole_state_comes_up_with_the_clients_own_mask(number, error, density):
    space = space_of(0.2, 3)
    own = Mask(torch.rand(70) < density)
    state = torch.randn(space.total)
    received = messages_for(space, uplink_values=number).return_model(state, own)
    assert torch.equal(received[70:], state[70:])
    assert not received[:70][~own.active].any()
    off = (received[own.index] - state[own.index]).abs()
    assert (off <= error * state.abs().max()).all()
    assert bool(off.any()) == (error > 0 and density > 0)


def test_an_uplink_by_hand():
    space = space_of(1.0, 0)
    space.set_mask(Mask(torch.arange(70) % 10 == 0, 1))
    ledger = messages_for(space, uplink_values="int8").ledger
    # 3 and 4 weights with a scale of 4 bytes each; 6 biases, 15 of the output layer, 6 of the norm, 6 statistics.
    assert ledger.uplink_bytes(space.mask) == (3 + 4) + (4 + 4) + 4 * 33
    # Positions of 2 in 30: COO at 5 bits is 2 bytes, of 1 in 40 at 6 bits 1 byte, a tag each.
    wanted = at_positions("wanted", space, [2, 1], Positions())
    assert ledger.uplink_bytes(space.mask, (wanted,)) - ledger.uplink_bytes(space.mask) == 3 + 2
    # With a mask of its own the client also sends positions: COO, 2 and 3 bytes, and a tag each.
    own = at_positions("weights", space, [3, 4], WithMask(), has_votes=True)
    assert ledger.uplink_bytes(space.mask, (own,), False) - ledger.uplink_bytes(space.mask) == 3 + 4


def test_the_direction_map_by_hand():
    space = space_of(0.5, 0)
    direction = torch.zeros(70)
    direction[[0, 1, 2, 35]] = torch.tensor([1.0, -1, 1, -1])
    sent = Broadcast("direction", prunable(space), direction, Signs())
    messages = messages_for(space)
    # 3 of 30: COO 15 bits; 1 of 40: 6 bits; a tag and a byte of signs each.
    assert messages.ledger.broadcast_bytes(sent) == (1 + 2 + 1) + (1 + 1 + 1)
    assert messages.broadcast(sent).tolist() == direction.tolist()


@given(st.floats(0, 1), st.integers(0, 2**31), st.sampled_from([torch.float32, torch.int8, torch.bool]))
def test_what_every_client_decodes_of_a_broadcast(share, seed, dtype):
    space = space_of(0.5, seed)
    # Clients send weights up as int8; what goes down is fp32.
    messages = messages_for(space, uplink_values="int8")
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(space.total, generator=generator) * 1e3 if dtype == torch.float32 else torch.ones(space.total)
    values = (values * (torch.rand(space.total, generator=generator) < share)).to(dtype)
    plain = values.float()
    for over in (prunable(space), parameters(space), statistics(space), small(9), small(0)):
        part = slice(over.offset, over.offset + over.size)
        for encoding, expected in [
            (Whole(), plain[part]),
            (Sparse(), plain[part]),
            (WithMask(), plain[part]),
            (Signs(), plain[part].sign()),
            (Positions(), (plain[part] != 0).float()),
        ]:
            received = messages.broadcast(Broadcast("sent", over, values[part], encoding))
            assert received.dtype == torch.float32
            assert torch.equal(received, expected)


def test_a_broadcast_is_whole_unless_said_otherwise():
    assert isinstance(Broadcast("control", small(2), torch.zeros(2)).encoding, Whole)


def test_a_layer_that_is_nearly_full_still_tells_its_mask():
    space = space_of(1.0, 0)
    active = torch.ones(70, dtype=torch.bool)
    active[0] = False
    space.set_mask(Mask(active, 1))
    space.values[1] = 0.0  # active, and zero
    messages = messages_for(space)
    messages.send_model(space.values, space.mask)
    assert torch.equal(messages.return_model(space.values, space.mask), space.values)


def test_a_contribution_to_all_positions_names_none():
    space = space_of(0.5, 0)
    upload = Upload(None, torch.randn(70))
    # Where positions could be named it is dense.
    for wanted in (whole("all", prunable(space)), at_positions("all", space, [30, 40])):
        received = messages_for(space).collect(upload, wanted)
        assert received.positions is None
        assert torch.equal(received.values, upload.values)


def test_a_state_without_a_prunable_layer_comes_up_as_it_is():
    space = ParameterSpace(nn.Linear(3, 2), [])
    packed = torch.randn(8)
    assert messages_for(space).return_state(packed, returns_weights=True).equal(packed)


def test_what_does_not_travel_is_taken_as_it_is():
    space = space_of(0.5, 0)
    upload = Upload(torch.arange(50), torch.randn(50))
    wanted = at_positions("kept", space, [1, 1], travels=False)
    assert messages_for(space).collect(upload, wanted) is upload


# --- what the ledger does not count


@pytest.mark.parametrize(
    ("encoding", "has_values"), [(Sparse(), True), (WithMask(), True), (Positions(), False), (Signs(), True)]
)
@pytest.mark.parametrize("count", [1, 8])
def test_another_count_of_positions_is_a_fault(encoding, has_values, count):
    space = space_of(0.5, 0)
    upload = Upload(some(space, count, 0), torch.ones(2 * count) if has_values else None)
    with pytest.raises(GarbledMessageError, match=r"a client's gradient takes \d+ bytes, the ledger counts"):
        messages_for(space).collect(upload, at_positions("gradient", space, [3, 3], encoding))


def test_a_value_for_all_positions_where_some_are_due_is_a_fault():
    space = space_of(0.5, 0)
    with pytest.raises(GarbledMessageError, match="the ledger counts"):
        messages_for(space).collect(Upload(None, torch.ones(70)), at_positions("gradient", space, [3, 3]))


@pytest.mark.parametrize("returns_weights", [True, False])
@pytest.mark.parametrize("number", ["fp32", "int8"])
@pytest.mark.parametrize("more", [-1, 1])
def test_a_state_of_another_length_is_a_fault(returns_weights, number, more):
    space = space_of(0.5, 0)
    packed = torch.ones(space.packed_size(returns_weights) + more)
    with pytest.raises(GarbledMessageError, match=r"a client's state takes \d+ bytes, the ledger counts"):
        messages_for(space, uplink_values=number).return_state(packed, returns_weights=returns_weights)


class Lossy(WithMask):
    """Forgets the last position of a block."""

    def decode(self, message, block, number):
        positions, values = super().decode(message, block, number)
        return positions[:-1], values[:-1]


class Longer(Whole):
    """Says that it needs a byte less than it does."""

    def length(self, block, count, number):
        return super().length(block, count, number) - 1


class Wrong(WithMask):
    """Gets the signs wrong."""

    def decode(self, message, block, number):
        positions, values = super().decode(message, block, number)
        return positions, -values


@pytest.mark.parametrize("encoding", [Lossy, Wrong])
def test_a_model_that_decodes_to_something_else_is_a_fault(monkeypatch, encoding):
    space = space_of(0.5, 0)
    messages = messages_for(space)
    monkeypatch.setattr("fedmef_dist.wire.messages.WithMask", encoding)
    for send in (messages.send_model, messages.return_model):
        with pytest.raises(GarbledMessageError, match="does not decode to what was sent"):
            send(space.values, space.mask)


def test_a_model_or_broadcast_of_another_length_is_a_fault(monkeypatch):
    space = space_of(0.5, 0)
    messages = messages_for(space)
    with pytest.raises(GarbledMessageError, match="the broadcast control takes 12 bytes, the ledger counts 11"):
        messages.broadcast(Broadcast("control", small(3), torch.zeros(3), Longer()))
    monkeypatch.setattr(messages.ledger, "weights_with_mask_bytes", lambda *asked: 1)
    for send in (messages.send_model, messages.return_model):
        with pytest.raises(GarbledMessageError, match=r"a model's weights takes \d+ bytes, the ledger counts 1"):
            send(space.values, space.mask)
