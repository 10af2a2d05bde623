"""Ranks as threads, so that a collective's arithmetic can be tested without processes."""

import threading

import torch


class ThreadGroup:
    """One rank of several in this process."""

    def __init__(self, rank, world_size, shared):
        self.rank, self.world_size, self.device = rank, world_size, torch.device("cpu")
        self._tensors, self._barrier = shared
        self.calls = []

    def all_gather(self, tensor):
        self.calls.append("all_gather")
        self._tensors[self.rank] = tensor.clone()
        self._barrier.wait(10)
        gathered = torch.stack([self._tensors[rank] for rank in range(self.world_size)])
        self._barrier.wait(10)
        return gathered

    def all_reduce(self, tensor):
        tensor.copy_(self.all_gather(tensor).sum(0))
        self.calls[-1] = "all_reduce"

    def broadcast(self, tensor, source=0):
        tensor.copy_(self.all_gather(tensor)[source])
        self.calls[-1] = "broadcast"


def on_ranks(world, work):
    shared = ({}, threading.Barrier(world))
    results = [None] * world

    def body(rank):
        try:
            results[rank] = work(ThreadGroup(rank, world, shared))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
