"""Pruning at initialisation: the first mask stays.

``random`` and ``magnitude`` keep the allocation's counts in every layer. The other two criteria rank the weights of all
layers together, as their papers do, and take only the total from the allocation:

``snip``: Lee, Ajanthan, Torr: "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019, arXiv
1810.02340, equation 6: what a weight's removal would change of the loss, |g * theta|. Asked of clients, their gradients
are averaged, or their |g * theta|: Ohib, Thapaliya, Dziugaite, Liu, Calhoun, Plis: "SSFL: Discovering Sparse Unified
Subnetworks at Initialization for Efficient Federated Learning", 2024, arXiv 2405.09037.
``synflow``: Tanaka, Kunin, Yamins, Ganguli: "Pruning neural networks without any data by iteratively conserving
synaptic flow", NeurIPS 2020, arXiv 2006.05467, algorithm 1.
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.batches import Batch
from fedmef_dist.layers.activation_pruning import forget_thresholds
from fedmef_dist.layers.batchnorm import normalise_by_batch
from fedmef_dist.methods.base import Method, MethodContext
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.methods.swapping import RandomStartSettings
from fedmef_dist.methods.synflow import ITERATIONS, REHEARSED_ITERATIONS, synaptic_flow
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sparsity.allocation import (
    even_mask,
    keep_largest_of_all,
    layer_counts,
    magnitude_mask,
    random_mask,
)
from fedmef_dist.wire.ranges import prunable
from fedmef_dist.wire.traffic import whole


class StaticSettings(RandomStartSettings):
    """Section ``method`` with ``name: static``."""

    name: Literal["static"] = Field("static", description="pruning at initialisation, the mask stays")
    criterion: Literal["random", "magnitude", "snip", "synflow"] = Field(
        "random", description="which weights are kept; snip and synflow also decide how many in each layer"
    )
    scores: Literal["server", "clients"] = Field(
        "server", description="snip: from one batch on the server, or from all samples of one cohort of clients"
    )

    average: Literal["gradient", "saliency"] = Field(
        "gradient", description="scores: clients: average g, or |g * theta| of each client (SSFL)"
    )

    @model_validator(mode="after")
    def _keys_fit_the_criterion(self) -> "StaticSettings":
        if self.scores == "clients" and self.criterion != "snip":
            raise ValueError(f"scores: clients is for criterion snip; {self.criterion} looks at no data")
        if self.average == "saliency" and self.scores != "clients":
            raise ValueError("average: saliency is for scores: clients; the server's batch gives a single gradient")
        if self.first_mask == "even" and self.criterion != "random":
            raise ValueError(f"first_mask: even is for criterion random; {self.criterion} chooses by its scores")
        return self


class Static(Method[StaticSettings]):
    """Sparse federated averaging under one mask."""

    Settings: ClassVar[type[StaticSettings]] = StaticSettings
    plain_steps = True

    def __init__(self, settings: StaticSettings, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        self.counts = layer_counts(space, settings.density, settings.allocation)

    def initial_mask(self, preparation: Preparation) -> Tensor:
        """By the criterion. Raises UserError where its scores are not finite."""
        criterion = self.settings.criterion
        if criterion == "random":
            draw = even_mask if self.settings.first_mask == "even" else random_mask
            return draw(self.space, self.counts, preparation.generator("mask"))
        if criterion == "magnitude":
            return magnitude_mask(self.space, preparation.values, self.counts)
        total = sum(self.counts)
        if criterion == "snip":
            active = keep_largest_of_all(self.space, self._sensitivity(preparation), total)
        else:
            shape = next(preparation.server_batches())[0].shape[1:]
            iterations = REHEARSED_ITERATIONS if preparation.rehearses else ITERATIONS
            self.space.load(preparation.values)
            active = synaptic_flow(preparation.client.model, self.space, shape, total, iterations)
        # Processors of other kinds may round a score otherwise, but there is one mask.
        chosen = active.to(torch.uint8)
        preparation.share(chosen)
        return chosen.bool()

    def _sensitivity(self, preparation: Preparation) -> Tensor:
        """|g * theta|, float32 (n_prunable,)."""
        of_clients = self.settings.scores == "clients"
        found = self._of_clients(preparation) if of_clients else self._of_server(preparation)
        if not bool(found.isfinite().all()):
            raise UserError(
                "the start model gives gradients that are not finite",
                where="method.criterion snip",
                mend="choose another model.norm, or check the data",
            )
        return found if self.settings.average == "saliency" else self._saliency(preparation, found)

    def _saliency(self, preparation: Preparation, gradient: Tensor) -> Tensor:
        return (gradient * preparation.values[: self.space.n_prunable]).abs()

    def _of_server(self, preparation: Preparation) -> Tensor:
        """The gradient of one batch, or its saliency where clients' saliencies would be averaged."""
        gradient = self._gradient(preparation, [next(preparation.server_batches())])
        return self._saliency(preparation, gradient) if self.settings.average == "saliency" else gradient

    def _of_clients(self, preparation: Preparation) -> Tensor:
        """The clients' mean gradient, which is that of their round's objective, or the mean of their saliencies."""
        cohort, wanted = preparation.cohort, whole(self.settings.average, prunable(self.space))
        preparation.send_model(self.space.mask, len(cohort.asked))
        preparation.costs.gradient_samples += int(cohort.samples.sum())
        if preparation.rehearses:
            preparation.count_collection(wanted)
            return self._of_server(preparation)

        def measure(client: int) -> Tensor:
            gradient = self._gradient(preparation, preparation.client_batches(client))
            return self._saliency(preparation, gradient) if self.settings.average == "saliency" else gradient

        return preparation.average(wanted, measure)

    def _gradient(self, preparation: Preparation, batches: Iterable[Batch]) -> Tensor:
        """The gradient of the mean loss over all samples of the batches, float32 (n_prunable,)."""
        space, client = self.space, preparation.client
        space.load(preparation.values)
        normalise_by_batch(client.model)
        forget_thresholds(client.model.modules())
        space.begin_backward()
        samples = 0
        for batch in batches:
            (client.loss(batch) * len(batch[1])).backward()
            samples += len(batch[1])
        space.end_backward()
        return space.gradient[: space.n_prunable] / samples
