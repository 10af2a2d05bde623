"""Self-attention of a transformer, with one linear layer for queries, keys and values."""

from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2).

    Args:
        width: features of a token.
        heads: divides the width.
        causal: a token sees only those before it and itself.
    """

    def __init__(self, width: int, heads: int, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def attend(self, x: Tensor) -> Tensor:
        """The heads' outputs side by side, (B, T, width), of normalised tokens (B, T, width)."""
        batch, tokens, width = x.shape
        shape = (batch, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = self.qkv(x).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        heads = F.scaled_dot_product_attention(queries, keys, values, is_causal=self.causal)
        return heads.transpose(1, 2).reshape(batch, tokens, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to (B, T, width)."""
        return self.proj(self.attend(x))
