import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmef_dist.base.first_normals import first_normals
from fedmef_dist.base.keyed_digests import digest_words
from fedmef_dist.base.randomness import numpy_generator

NUMBERS = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20)


@given(st.binary(max_size=20), NUMBERS, st.binary(max_size=10))
def test_the_words_are_those_of_sha_256(prefix, numbers, suffix):
    found = digest_words(prefix, np.array(numbers), suffix)
    digests = (hashlib.sha256(prefix + b"%d" % number + suffix).digest() for number in numbers)
    assert [row.tobytes() for row in found] == [digest[:16] for digest in digests]


@settings(max_examples=20)
@given(st.integers(0, 2**64), st.sampled_from(["client", "x"]), st.integers(0, 10**7))
def test_the_deviates_are_those_of_the_keyed_generators(seed, purpose, first):
    keys = first + np.arange(300)  # enough for some that leave the fast path
    wanted = [numpy_generator(seed, purpose, key).standard_normal() for key in keys.tolist()]
    np.testing.assert_allclose(first_normals(seed, purpose, keys), wanted, rtol=1e-12, atol=0)


def test_a_prefix_too_long_for_a_block_is_drawn_one_by_one():
    purpose = "p" * 60
    assert first_normals(0, purpose, np.array([5])) == numpy_generator(0, purpose, 5).standard_normal()
