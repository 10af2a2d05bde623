"""Accuracy and loss of a model on the whole test set, shared out over the ranks."""

from collections.abc import Iterable
from math import ceil, exp, isfinite
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedmef_dist.base.settings import Settings
from fedmef_dist.clients.loss import cross_entropy
from fedmef_dist.cluster.group import Group
from fedmef_dist.data.batches import evaluation_batches
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.text import TextDataset

_LOSS_BITS = 24
_LARGEST_LOSS = 2.0**30  # of a batch
_LARGEST_SUM = 2.0**38  # of all batches: in units of 2^-24 an int64 holds twice as much
_LARGEST_EXPONENT = 700.0  # what a float64 can still show


class EvaluationSettings(Settings):
    """Section ``evaluation``: when and how the global model is tested."""

    every: int = Field(
        10, ge=1, le=10**7, description="rounds between two evaluations; the last round is always evaluated"
    )
    batch_size: int = Field(512, ge=1, le=2**20, description="samples of one forward pass")
    per_client: int = Field(
        0,
        ge=0,
        le=2**31,
        description="how many clients are also tested on their own data, the same ones every time; 0: none",
    )
    client_groups: Literal["none", "label", "size"] = Field(
        "none", description="groups of these clients: by commonest label, or quarters by number of samples"
    )
    around_adjustment: bool = Field(False, description="also test before and after each step of an adjustment")


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset | TextDataset, batch_size: int, group: Group) -> tuple[float, float]:
    """Mean loss and accuracy of the model on the test split, over images or over all tokens to be predicted.

    The batches are fixed and their sums are added as integers, so the result is the same on any number of ranks. A
    model that has diverged has a large loss, never NaN.
    """
    largest = min(_LARGEST_LOSS, _LARGEST_SUM / ceil(len(dataset.test) / batch_size))
    batches = evaluation_batches(
        dataset.test,
        dataset,
        batch_size=batch_size,
        rank=group.rank,
        world_size=group.world_size,
        device=group.device,
    )
    sums = add_up(model, group.watch.progress.through(batches), largest)
    total = torch.tensor(sums, dtype=torch.int64, device=group.device)
    group.all_reduce(total)
    loss_sum, correct = total.tolist()
    return loss_sum / 2**_LOSS_BITS / dataset.test.predictions, correct / dataset.test.predictions


@torch.no_grad()
def add_up(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], largest: float = _LARGEST_LOSS
) -> tuple[int, int]:
    """The sum of the predictions' losses in units of 2^-24, and the number of right ones; sets eval mode.

    A batch's loss that is not finite, or above ``largest``, counts as ``largest``.
    """
    model.eval()
    sums = [0, 0]
    for inputs, labels in batches:
        output = model(inputs)
        loss = cross_entropy(output, labels, reduction="sum").item()
        sums[0] += round((min(loss, largest) if isfinite(loss) else largest) * 2**_LOSS_BITS)
        sums[1] += int((output.argmax(-1) == labels).sum())
    return sums[0], sums[1]


def quality(dataset: Dataset | TextDataset, loss: float, accuracy: float) -> dict[str, float]:
    """The metrics of an evaluation; of text also the perplexity, the exponential of the mean loss in nats."""
    found = {"eval/loss": loss, "eval/accuracy": accuracy}
    if isinstance(dataset, TextDataset):
        found["eval/perplexity"] = exp(min(loss, _LARGEST_EXPONENT))
    return found
