import pytest
import torch

from fedmef_dist.layers import room as room_module
from fedmef_dist.layers.activation_pruning import LOSSLESS, keep, restore
from fedmef_dist.layers.kernels import portable
from fedmef_dist.layers.room import HEADROOM, Room, overflowed, without_waiting

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _a_device_on_the_cpu(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setattr(room_module, "kernels_for", lambda tensor: portable)


def row_with(count, length=100):
    row = torch.zeros(1, length, device=DEVICE)
    row[0, :count] = torch.arange(1.0, count + 1)
    return row


def back(packed, length=100):
    bitmap, values = packed
    return portable.unpack(bitmap, values.view(torch.int32), length).view(torch.float32)


def test_the_room_is_what_was_counted():
    room = Room()
    for count in (20, 30, 4):
        packed = room.pack(row_with(count), 90)
        assert packed[1].shape == (1, count)
        assert torch.equal(back(packed), row_with(count))
    assert room.pack(row_with(0), 90)[1].tolist() == [[0]]
    assert room.pack(row_with(90), 90) is None
    assert not overflowed([room])


def test_without_waiting_it_is_a_quarter_more_than_the_first_needed():
    room = Room()
    with without_waiting([room]):
        assert room.pack(row_with(20), 90)[1].shape == (1, 20)
        packed = room.pack(row_with(22), 90)
    assert packed[1].shape == (1, HEADROOM * 20)
    assert torch.equal(back(packed), row_with(22))
    assert not overflowed([room])


def test_too_little_room_is_flagged_once_and_the_next_count_makes_more():
    room = Room()
    with without_waiting([room]):
        room.pack(row_with(20), 90)
        room.pack(row_with(26), 90)
    assert overflowed([Room(), room])
    assert not overflowed([room])
    room.pack(row_with(26), 90)
    with without_waiting([room]):
        assert room.pack(row_with(28), 90)[1].shape == (1, 33)
    assert not overflowed([room])


def test_where_packing_would_save_nothing_it_is_left():
    room = Room()
    with without_waiting([room]):
        assert room.pack(row_with(80), 90) is not None
        assert room.pack(row_with(1), 90) is None
    assert not overflowed([room])


def test_every_size_has_its_room():
    room = Room()
    with without_waiting([room]):
        room.pack(row_with(20), 90)
        assert room.pack(row_with(4, length=10), 9)[1].shape == (1, 4)
        assert room.pack(row_with(4, length=10), 9)[1].shape == (1, 5)


def test_what_is_kept_of_a_tensor_without_data_has_a_shape():
    x = torch.empty(2, 3, 4, 4, device="meta")
    assert restore(*keep(x, LOSSLESS)).shape == x.shape
