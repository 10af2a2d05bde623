"""Floating-point operations of a round's training, modelled from the layers and the mask."""

from dataclasses import dataclass, fields
from math import log2, prod

from torch import Tensor, nn

from fedmef_dist.devices.layer_flops import LayerFlops, layer_flops
from fedmef_dist.layers.activation_pruning import DENSE
from fedmef_dist.layers.nsconv import NSConv2d, NSLinear
from fedmef_dist.sparsity import ParameterSpace

# For an active weight, as `layers/filters.py` computes it in operations; what is computed once a filter is left out.
# Forward: the sum 1, minus the mean 1, the sum of squares 2, times the scale 1.
_NORMALISE = 5
# Backward: all of that again, 5; the sum over gradient times deviation 2, the sum of gradients 1, minus their mean 1,
# minus the part along the deviation 2, times the scale 1.
_NORMALISE_BACKWARD = 12
# The penalty's factor 1, added to the gradient 1, the square in the norm 1 and its sum 1.
_EXTRUDE = 4


@dataclass(frozen=True)
class RoundFlops:
    """FLOPs of all clients of a round.

    Attributes:
        training: forward and backward passes with the mask's share of each layer.
        normalisation: of weights (NSConv, NSLinear).
        extrusion: the penalty and its norm.
        selection: of the activations that are kept.
        recomputation: in lean attention and recomputed blocks.
        gradients: of inactive weights.
    """

    training: float
    normalisation: float
    extrusion: float
    selection: float
    recomputation: float
    gradients: float

    def __add__(self, other: "RoundFlops") -> "RoundFlops":
        return RoundFlops(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    @property
    def overhead(self) -> float:
        """All but the training itself."""
        return self.normalisation + self.extrusion + self.selection + self.recomputation + self.gradients

    @property
    def total(self) -> float:
        """All of it."""
        return self.training + self.overhead


class FlopsLedger:
    """Modelled FLOPs of a cohort's training in one round (FedMef, section 4).

    Products are those of torch's counter (:func:`layer_flops`); a layer of which a share s of the weights is active
    takes s of its dense FLOPs, for its output and for both gradients. The paper takes three forward passes for a
    training step, which has the first layer compute the gradient of the images.

    FedMef's overhead in the paper is 4 FLOPs an active weight and step for NSConv and penalty together. Counted here
    is what the layers do: 17 for NSConv in every step, and 4 for the penalty in steps that have one, taken for all
    active weights although it acts on the marked ones alone. Choosing among n cached activations takes n log2 n, as in
    the paper, with n the numbers in the layer's input for one sample, in the layers that do prune their input. For
    gradients of inactive weights the paper takes one dense backward pass, 2 F_d; here it is the dense backward pass as
    counted, without the gradient of the images, and the sparse forward pass before it.

    Args:
        model: any network; what its layers prune and normalise is read from them.
        space: its parameters.
        example: a batch of one sample.
    """

    def __init__(self, model: nn.Module, space: ParameterSpace, example: Tensor) -> None:
        found = layer_flops(model, example)
        names = [layer.name.removesuffix(".weight") for layer in space.layers]
        self._sizes = [prod(layer.shape) for layer in space.layers]
        self._prunable = [found.get(name, LayerFlops()) for name in names]
        self._rest = sum((flops for name, flops in found.items() if name not in names), LayerFlops())
        self._normalised = [isinstance(model.get_submodule(name), NSConv2d | NSLinear) for name in names]
        pruning = {name: getattr(model.get_submodule(name), "pruning", DENSE) for name in found}
        pruned = [found[name] for name, how in pruning.items() if how.ratio or how.follows_weights]
        self._selection = sum(flops.input_elements * log2(flops.input_elements) for flops in pruned)

    @property
    def layer_forward(self) -> list[float]:
        """Forward FLOPs of one sample in each prunable layer, all its weights active."""
        return [flops.forward for flops in self._prunable]

    @property
    def other_forward(self) -> float:
        """Forward FLOPs of one sample in everything that is never pruned."""
        return self._rest.forward

    def sample(self, counts: list[int]) -> LayerFlops:
        """All layers together for one sample, with so many active weights in each prunable layer."""
        layers = zip(self._prunable, counts, self._sizes, strict=True)
        return sum((flops.with_share(count / size) for flops, count, size in layers), self._rest)

    def forward(self, counts: list[int]) -> float:
        """Forward FLOPs of one sample, with so many active weights in each prunable layer."""
        return self.sample(counts).forward

    def round(
        self,
        counts: list[int],
        *,
        samples: int,
        steps: int,
        extrusion_steps: int = 0,
        gradient_samples: int = 0,
        dense_gradient_samples: int = 0,
    ) -> RoundFlops:
        """FLOPs of a cohort; all numbers are sums over its clients.

        Args:
            counts: active weights of the layers.
            samples: how many were trained on, over all epochs.
            steps: batches that went forward and backward, those for gradients of inactive weights too.
            extrusion_steps: SGD steps with budget-aware extrusion.
            gradient_samples: samples of batches from which nothing but gradients of inactive weights was taken.
            dense_gradient_samples: those of the ``samples`` of which gradients of inactive weights were taken as well.
        """
        sparse, dense = self.sample(counts), self.sample(self._sizes)
        passes = samples + gradient_samples
        return RoundFlops(
            training=samples * (sparse.forward + sparse.backward),
            normalisation=steps * self._normalisation(counts),
            extrusion=extrusion_steps * _EXTRUDE * sum(counts),
            selection=passes * self._selection,
            recomputation=passes * sparse.recomputation,
            gradients=gradient_samples * (sparse.forward + dense.backward)
            + dense_gradient_samples * (dense.weight_gradient - sparse.weight_gradient),
        )

    def _normalisation(self, counts: list[int]) -> int:
        """FLOPs of a step; a layer that is computed again normalises its weights again, one that never runs never."""
        layers = zip(self._prunable, self._normalised, counts, strict=True)
        return sum(
            (_NORMALISE * round(1 + flops.recomputation / flops.forward) + _NORMALISE_BACKWARD) * count
            for flops, normalised, count in layers
            if normalised and flops.forward
        )
