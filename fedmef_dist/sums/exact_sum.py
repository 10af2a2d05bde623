"""Weighted sums whose bits do not depend on order, placement or the number of ranks.

A client's ``n_k * theta_k`` is rounded once to 64-bit fixed point; integers add exactly in any order. The product of a
float32 and a sample count is exact in float64, so the only error is that rounding: at most half a unit of the fixed
point for each client, before the division by the samples of the whole cohort.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Averages are taken over weights, running statistics and gradients; none of them is sane beyond this.
LIMIT = 2.0**16


@dataclass(frozen=True)
class FixedPoint:
    """A 64-bit fixed-point format: a number x is stored as round(x * 2**bits)."""

    bits: int

    @classmethod
    def for_weight(cls, total_weight: int) -> "FixedPoint":
        """The finest format in which values up to ``LIMIT``, of this weight in all, cannot overflow."""
        return cls(62 - (max(total_weight, 1) * int(LIMIT)).bit_length())

    def encode(self, values: Tensor, weight: int) -> Tensor:
        """``weight * values`` in fixed point, int64 of the same shape.

        Args:
            values: float32; what :func:`is_summable` accepts.
            weight: how often a client counts, as its samples.
        """
        return values.double().mul_(float(weight) * 2.0**self.bits).round_().long()

    def average(self, total: Tensor, weight: int) -> Tensor:
        """The sum divided by its weight, float32; ``total`` is int64."""
        return (total.double() / (float(weight) * 2.0**self.bits)).float()


def summable(values: Tensor) -> Tensor:
    """Whether every value is finite and within the limit of the fixed-point format: bool, 0-dim, on its device."""
    return values.abs().amax() < LIMIT if values.numel() else torch.ones((), dtype=torch.bool, device=values.device)


def is_summable(values: Tensor) -> bool:
    """The same as an answer for the host, which waits for it."""
    return bool(summable(values))
