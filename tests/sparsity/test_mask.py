import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.sparsity import Mask


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_bits_are_the_inverse_of_themselves(flags):
    mask = Mask(torch.tensor(flags), version=3)
    bits = mask.to_bits()
    assert bits.numel() == -(-len(flags) // 8)
    again = Mask.from_bits(bits, len(flags), 3)
    assert torch.equal(again.active, mask.active)
    assert again.digest == mask.digest
    assert mask.index.tolist() == [i for i, flag in enumerate(flags) if flag]
    assert mask.count == sum(flags)
    assert mask.is_full == all(flags)


def test_a_swap_makes_the_next_version_and_leaves_the_old_one():
    mask = Mask(torch.tensor([True, True, False, False]))
    after = mask.next(mask.swapped(torch.tensor([0]), torch.tensor([3])))
    assert after.active.tolist() == [False, True, False, True]
    assert (mask.version, after.version) == (0, 1)
    assert mask.active.tolist() == [True, True, False, False]
    assert after.digest != mask.digest


def test_overlap_and_survived_by_hand():
    mask = Mask(torch.tensor([True, True, True, True, False, False]))
    later = Mask(torch.tensor([True, False, False, True, True, False]))
    nothing = Mask(torch.zeros(6, dtype=torch.bool))
    # Both have 2 weights, either has 5; the first has 4, the later one 3.
    assert mask.overlap(later) == later.overlap(mask) == 2 / 5
    assert mask.survived(later) == 2 / 4
    assert later.survived(mask) == 2 / 3
    assert (mask.overlap(mask), mask.overlap(nothing), nothing.overlap(nothing)) == (1, 0, 1)
    assert (mask.survived(nothing), nothing.survived(mask)) == (0, 0)
    single = Mask(torch.tensor([True, False, False, False, False, False]))
    assert single.survived(mask) == 1


def test_a_full_mask_takes_a_byte():
    mask, plain = Mask.full(13, version=2), Mask(torch.ones(13, dtype=torch.bool), version=2)
    assert mask.is_full
    assert mask.active.untyped_storage().nbytes() == 1
    assert mask.digest == plain.digest
    assert mask.index.tolist() == list(range(13))
    again = Mask.from_bits(plain.to_bits(), 13, 2)
    assert torch.equal(again.active, plain.active)
    assert again.active.untyped_storage().nbytes() == 1
    after = mask.next(mask.swapped(torch.tensor([3]), torch.tensor([], dtype=torch.int64)))
    assert (after.count, mask.count) == (12, 13)


def test_a_mask_keeps_nothing_but_a_byte_a_weight():
    mask = Mask(torch.tensor([True, False, True]))
    _ = mask.index, mask.count, mask.is_full
    tensors = [value for value in vars(mask).values() if isinstance(value, torch.Tensor)]
    assert [tensor.nbytes for tensor in tensors] == [3]


def test_a_mask_that_came_as_bits_asks_no_device():
    """Nothing can be read of a tensor on torch's device "meta", as nothing should be of one on a GPU."""
    flags = np.array([True, False, True, True, False])
    here, there = Mask(torch.from_numpy(flags)), Mask(torch.empty(5, dtype=torch.bool, device="meta"), 0, flags)
    assert there.counts([slice(0, 2), slice(2, 5)]) == here.counts([slice(0, 2), slice(2, 5)]) == [1, 2]
    assert there.count == here.count
    assert not there.is_full
    assert there.digest == here.digest
    assert there.index.shape == here.index.shape


def test_what_is_shared_by_two_masks_that_came_as_bits_asks_no_device():
    def there(flags):
        known = None if flags is None else np.array(flags, np.bool_)
        return Mask(torch.empty(4, dtype=torch.bool, device="meta"), 0, known)

    mask, later, untold = there([1, 1, 0, 0]), there([1, 0, 1, 0]), there(None)
    assert mask.within(later).on_host.tolist() == [True, False, False, False]
    assert mask.without(later).on_host.tolist() == [False, True, False, False]
    # Nor where only one of them did, until somebody wants to know.
    for one, other in ((mask, untold), (untold, mask)):
        assert one.within(other).active.shape == one.without(other).active.shape == (4,)
