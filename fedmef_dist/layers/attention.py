"""Self-attention that keeps its input alone for the backward pass and computes the rest again."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fedmef_dist.base.errors import UserError
from fedmef_dist.layers.recompute import recompute


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2) behind a normalisation.

    With ``lean``, in training mode, it keeps its input, 4 bytes an element in float32, and computes normalisation,
    queries, keys, values and heads again in the backward pass: one more forward pass of ``in_proj``, and exact
    gradients. Else torch keeps 24 bytes: the inputs of both, queries, keys, values and heads.

    Args:
        width: features of a token.
        heads: divides the width.
        norm: the normalisation.
        causal: a token sees only those before it and itself.
    """

    def __init__(self, width: int, heads: int, norm: nn.Module, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal, self.lean = heads, causal, False
        self.norm = norm
        self.in_proj: nn.Module = nn.Linear(width, 3 * width)
        self.out_proj: nn.Module = nn.Linear(width, width)

    def attend(self, x: Tensor) -> Tensor:
        """The heads' outputs side by side, (B, T, width), for tokens (B, T, width)."""
        batch, tokens, width = x.shape
        shape = (batch, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = self.in_proj(self.norm(x)).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        heads = F.scaled_dot_product_attention(queries, keys, values, is_causal=self.causal)
        return heads.transpose(1, 2).reshape(batch, tokens, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to (B, T, width)."""
        if not (self.lean and self.training and torch.is_grad_enabled()):
            return self.out_proj(self.attend(x))
        return self.out_proj(recompute(self.attend, [self.norm, self.in_proj], x))


def recomputed_modules(model: nn.Module) -> set[nn.Module]:
    """The modules inside of lean attention whose inputs are not kept."""
    lean = [module for module in model.modules() if isinstance(module, SelfAttention) and module.lean]
    return {inner for module in lean for inner in (module.norm, module.in_proj)}


class MultiheadAttention(SelfAttention):
    """Stands in for ``nn.MultiheadAttention`` where a network attends to itself, with the names of its ``state_dict``.

    Its projections are linear layers, so that masks, pruning of activations and the count of FLOPs find them.

    Args:
        stock: batch first, with biases, without dropout; its weights are carried over.

    Raises:
        UserError: the stock layer is of another form.
    """

    # Torch's encoder layer asks for it, and with True it may hand the packed weights to a function of its own.
    batch_first = False

    def __init__(self, stock: nn.MultiheadAttention) -> None:
        adds = stock.bias_k is not None or stock.add_zero_attn
        plain = stock.batch_first and stock.in_proj_bias is not None and stock._qkv_same_embed_dim
        if stock.dropout or adds or not plain:
            raise UserError(
                "only batch-first nn.MultiheadAttention with biases and without dropout can be taken over",
                where="model.name",
                mend="make it with batch_first=True, dropout=0 and torch's defaults for the rest",
            )
        super().__init__(stock.embed_dim, stock.num_heads, nn.Identity(), causal=False)
        self.register_state_dict_post_hook(_to_stock_names)
        self.register_load_state_dict_pre_hook(_from_stock_names)
        self.load_state_dict(stock.state_dict())

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attention of the tokens (B, T, width) to themselves; no weights are returned.

        Raises:
            UserError: the three inputs are not one, weights are asked for, or a token is not to see all others.
        """
        masked = key_padding_mask is not None or attn_mask is not None or is_causal
        if query is not key or key is not value or need_weights or masked:
            raise UserError(
                "nn.MultiheadAttention is taken over where it attends to all of its own input and returns no weights",
                where="model.name",
                mend="call it with one tensor three times and need_weights=False, without a mask",
            )
        return super().forward(query), None


def _to_stock_names(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for part in ("weight", "bias"):
        state[f"{prefix}in_proj_{part}"] = state.pop(f"{prefix}in_proj.{part}")


def _from_stock_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for part in ("weight", "bias"):
        state[f"{prefix}in_proj.{part}"] = state.pop(f"{prefix}in_proj_{part}")


class _Called(TorchFunctionMode):
    """Inside, a functional linear map with a layer's weight becomes a call of the layer."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.layers = layers

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.linear:
            x, weight, bias = (*args, *kwargs.values(), None)[:3]
            for layer in self.layers:
                if layer.weight is weight:
                    # Swin V2 hands over a bias whose part for the keys is 0.
                    return layer(x) if bias is layer.bias else layer(x) + (bias - layer.bias)
        return function(*args, **kwargs)


class _CallsItsLayers(nn.Module):
    """For attention that takes the weights of its linear layers and never calls them, as torchvision's windows do."""

    def forward(self, x: Tensor) -> Tensor:
        """As the class behind it in the order of resolution."""
        layers = [module for module in self.children() if isinstance(module, nn.Linear)]
        with _Called(layers):
            return super().forward(x)


def calling_its_layers(stock: nn.Module) -> nn.Module:
    """The module, its functional linear maps turned into calls of its linear layers; it shares all submodules.

    Args:
        stock: takes one tensor, and has linear layers as children.
    """
    kind = type(type(stock).__name__, (_CallsItsLayers, type(stock)), {})
    new: nn.Module = nn.Module.__new__(kind)
    new.__dict__.update(stock.__dict__)
    return new
