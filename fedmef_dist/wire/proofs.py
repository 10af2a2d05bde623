"""Proofs of messages by a thread of the host, while the device goes on computing."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.base.transfer import fetched

# A thread that is slower than the device holds it up before the host's memory fills.
_MOST_WAITING = 8


class Proofs:
    """Takes copies of what a device holds without waiting for it, and lets a thread look at them.

    The thread and what it fails of belong to the one who asks: :meth:`settle` raises it.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[None]] = deque()

    def later(self, check: Callable[..., None], *tensors: Tensor) -> None:
        """Calls ``check`` with the tensors as arrays, once the device has come to where this was asked.

        Args:
            check: raises where something is wrong.
            tensors: on a device; a tensor that is given twice is copied once.
        """
        copies = {key: fetched(tensor) for key, tensor in {id(tensor): tensor for tensor in tensors}.items()}
        there = _mark(tensors[0].device)

        def prove() -> None:
            if there is not None:
                there.synchronize()
            check(*(copies[id(tensor)].numpy() for tensor in tensors))

        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "proofs")
        self._waiting.append(self._pool.submit(prove))
        while len(self._waiting) > _MOST_WAITING:
            self._waiting.popleft().result()

    def settle(self) -> None:
        """Waits until everything is proved; raises what the first check that failed has raised."""
        while self._waiting:
            self._waiting.popleft().result()


def _mark(device: torch.device) -> torch.cuda.Event | None:
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(blocking=True)  # the thread sleeps meanwhile, and the main thread has the processor
    event.record()
    return event


def same_bits(received: np.ndarray, sent: np.ndarray) -> bool:
    """Whether two float32 arrays are the same bit for bit, but for which NaN a NaN is."""
    different = received.view(np.int32) != sent.view(np.int32)
    return not different.any() or bool((np.isnan(received) & np.isnan(sent))[different].all())
