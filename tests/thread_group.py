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
        self._barrier.wait(100)
        gathered = torch.stack([self._tensors[rank] for rank in range(self.world_size)])
        self._barrier.wait(100)
        return gathered

    def all_reduce(self, tensor):
        tensor.copy_(self.all_gather(tensor).sum(0))
        self.calls[-1] = "all_reduce"

    def is_short(self, count):
        return False

    def broadcast(self, tensor, source=0):
        tensor.copy_(self.all_gather(tensor)[source])
        self.calls[-1] = "broadcast"


class ThreadLevel:
    """The exchanges of a level over ranks that are threads."""

    def __init__(self, group):
        self.group, self.size, self.rank = group, group.world_size, group.rank

    def all_reduce(self, tensor):
        self.group.all_reduce(tensor)

    def all_to_all(self, output, tensor):
        output.copy_(self.group.all_gather(tensor)[:, self.rank])

    def all_gather(self, output, tensor):
        output.copy_(self.group.all_gather(tensor))


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
