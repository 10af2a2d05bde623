"""Digests of samples: of a whole split, and of each sample for itself.

Both look at the decoded values alone, in one order of memory, so that neither the files' format nor the cache changes
them.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 24  # bytes worked on at once


def tensor_digest(kind: str, *tensors: Tensor) -> str:
    """SHA-256 in hexadecimal over ``kind`` and the tensors' types, shapes and values (little-endian, last axis first).

    A split of images gives (N, H, W, C), whatever the memory order of its (N, C, H, W).
    """
    digest = hashlib.sha256(kind.encode())
    for tensor in tensors:
        digest.update(repr((str(tensor.dtype), tuple(tensor.shape))).encode())
        for chunk in _chunks(tensor):
            digest.update(chunk)
    return digest.hexdigest()


def in_chunks(samples: Tensor) -> Sequence[Tensor]:
    """Some of the samples after the others, so that what is made of them at once is small, however large one is."""
    return samples.split(max(1, _CHUNK // max(1, samples[:1].nbytes)))


def _chunks(tensor: Tensor) -> Iterable[memoryview]:
    for part in in_chunks(tensor):
        values: Any = part.cpu().contiguous().numpy()
        yield memoryview(values.astype(values.dtype.newbyteorder("<"), copy=False)).cast("B")


def sample_hashes(samples: Tensor) -> np.ndarray:
    """One BLAKE2b hash of 64 bits a sample, uint64 (N,); the first axis counts the samples.

    Among a million samples two that differ have the same hash with a probability below 1e-7.
    """
    hashes = np.empty(len(samples), dtype=np.uint64)
    for place, row in enumerate(samples.cpu().contiguous().flatten(1).view(torch.uint8).numpy()):
        hashes[place] = int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little")
    return hashes
