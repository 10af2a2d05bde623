"""Random draws that do not depend on which rank makes them, or in what order.

Every draw has a generator of its own, keyed by the run's seed, a purpose and what it is for (round, client). Nothing in
the package draws from a global generator after start-up.
"""

import hashlib

import numpy as np
import torch


def _digest(seed: int, purpose: str, keys: tuple[int, ...]) -> bytes:
    return hashlib.sha256(repr((seed, purpose, *map(int, keys))).encode()).digest()


def numpy_generator(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """A NumPy generator for one purpose, for example ``numpy_generator(seed, "cohort", round)``."""
    return np.random.Generator(np.random.Philox(key=np.frombuffer(_digest(seed, purpose, keys)[:16], dtype=np.uint64)))


def torch_seed(seed: int, purpose: str, *keys: int) -> int:
    """A 63-bit seed for one purpose, for where torch wants a number."""
    return int.from_bytes(_digest(seed, purpose, keys)[:8], "little") >> 1


def torch_generator(seed: int, purpose: str, *keys: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one purpose.

    Draw on the CPU and copy where every device is to get the same numbers. CUDA's generators count: a number depends on
    the seed and its place alone, on the same kind of GPU, and costs neither a copy nor a wait.
    """
    return torch.Generator(device).manual_seed(torch_seed(seed, purpose, *keys))


def uniform_per_client(seed: int, purpose: str, clients: np.ndarray, *keys: int) -> np.ndarray:
    """One number in [0, 1) for each of the clients (int64 (n,)), float64 (n,), whoever else is asked for.

    The numbers are SplitMix64's (Steele, Lea and Flood, OOPSLA 2014) at the clients' places, so that a million cost
    milliseconds; generators of their own would take half a minute.
    """
    start = np.frombuffer(_digest(seed, purpose, keys)[:8], dtype=np.uint64)
    mixed = start + (clients.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)) * 2.0**-53
