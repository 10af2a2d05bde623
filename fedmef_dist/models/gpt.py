"""A small GPT: a decoder-only transformer with pre-norm blocks (Radford et al. 2019, "GPT-2")."""

from collections import OrderedDict

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fedmef_dist.base.settings import Settings
from fedmef_dist.layers.attention import SelfAttention

_EMBEDDING, _OUTPUT = 0.5, 0.02  # standard deviations at the start


class GPTSettings(Settings):
    """Section ``model.gpt``; the context is that of the data set, ``data.text.context``."""

    depth: int = Field(default=2, ge=1, le=1000, description="blocks")
    width: int = Field(default=128, ge=1, le=2**16, description="features of a token")
    heads: int = Field(default=4, ge=1, le=2**10, description="attention heads of a block; divide the width")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "GPTSettings":
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        return self


class BranchNorm(nn.LayerNorm):
    """Layer normalisation that can be left out where linear layers are normalised: blocks scale their branches."""


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each behind a normalisation and beside a residual path.

    Args:
        width: features of a token.
        heads: attention heads.
        scale: factor on both branches.
    """

    def __init__(self, width: int, heads: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.attention = SelfAttention(width, heads, BranchNorm(width), causal=True)
        self.norm = BranchNorm(width)
        # ReLU: half of what the second layer keeps for the backward pass is 0 already.
        self.mlp = nn.Sequential(
            OrderedDict(up=nn.Linear(width, 4 * width), relu=nn.ReLU(), down=nn.Linear(4 * width, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to (B, T, width)."""
        x = torch.add(x, self.attention(x), alpha=self.scale)
        return torch.add(x, self.mlp(self.norm(x)), alpha=self.scale)


class GPT(nn.Module):
    """Predicts each next token.

    Embeddings and the output layer, which are not shared, are never pruned. Branches are scaled by 1 / sqrt(2 depth),
    so that without normalisation layers the variance of the residual path grows by a factor e at most.

    Args:
        tokens: size of the vocabulary.
        context: tokens that it sees at most.
        depth: blocks.
        width: features of a token.
        heads: attention heads of a block; divides the width.
    """

    def __init__(self, tokens: int, context: int, depth: int, width: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, (2 * depth) ** -0.5) for _ in range(depth)))
        self.norm = BranchNorm(width)
        self.output = nn.Linear(width, tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, vocabulary) of tokens, int64 (B, T)."""
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        return self.output(self.norm(self.blocks(x)))


def build_gpt(settings: GPTSettings, tokens: int, context: int) -> GPT:
    """A GPT for a vocabulary of so many tokens, with weights from torch's current generator.

    Linear layers keep the variance of their input and biases are 0. The output layer starts near 0, so that at first
    every token is as likely as any other.
    """
    model = GPT(tokens, context, settings.depth, settings.width, settings.heads)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=_EMBEDDING)
    nn.init.normal_(model.output.weight, std=_OUTPUT)
    return model
