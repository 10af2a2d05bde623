"""What a run must leave behind as it found it, where a program goes on after it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def caller_as_before() -> Iterator[None]:
    """Afterwards torch's number of threads, its current device and the environment are as they were."""
    threads, environment = torch.get_num_threads(), dict(os.environ)
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if device is not None:
            torch.cuda.set_device(device)
        for name in {*os.environ} - {*environment}:
            del os.environ[name]
        os.environ.update(environment)
