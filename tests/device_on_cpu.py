"""Lets the CPU stand for a device whose numbers the host does not look at: torch's operations, static shapes."""

from fedmef_dist.clients import client
from fedmef_dist.layers import activation_pruning, bits, kernels, largest, nsconv
from fedmef_dist.layers.kernels import portable


def take_the_cpu_for_a_device(monkeypatch):
    """From now on, until the test ends."""
    for module in (activation_pruning, bits, kernels, largest, nsconv, client):
        monkeypatch.setattr(module, "on_host", lambda tensor: False)
    monkeypatch.setattr(kernels, "_kernels", lambda device: portable)
