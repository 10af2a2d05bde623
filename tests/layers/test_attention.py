import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedmef_dist.base.errors import UserError
from fedmef_dist.devices.memory import measure_step
from fedmef_dist.layers.attention import MultiheadAttention, SelfAttention, calling_its_layers

WIDTH, HEADS, TOKENS = 8, 2, 5


def tokens(batch=3):
    return torch.randn(batch, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))


def run(layer, x):
    layer.zero_grad()
    x = x.clone().requires_grad_()
    output = layer(x)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)))
    return [output.detach(), x.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


def attention(causal=True):
    torch.manual_seed(0)
    return SelfAttention(WIDTH, HEADS, nn.LayerNorm(WIDTH), causal)


@pytest.mark.parametrize("causal", [True, False])
def test_one_head_at_a_time_by_hand(causal):
    layer, x = attention(causal), tokens()
    queries, keys, values = layer.in_proj(layer.norm(x)).chunk(3, dim=-1)
    heads = []
    for head in range(HEADS):
        part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        scores = queries[..., part] @ keys[..., part].transpose(1, 2) / (WIDTH / HEADS) ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ values[..., part])
    torch.testing.assert_close(layer(x), layer.out_proj(torch.cat(heads, -1)))


def test_recomputing_changes_no_bit():
    plain, lean = attention(), attention()
    lean.lean = True
    for mine, theirs in zip(run(lean, tokens()), run(plain, tokens()), strict=True):
        assert torch.equal(mine, theirs)


def test_lean_attention_keeps_its_input_and_that_of_the_output_projection():
    layer, x = attention(), tokens(2).requires_grad_()
    size = x.numel() * 4
    dense = measure_step(layer, lambda: layer(x).sum()).activation_bytes
    layer.lean = True
    assert measure_step(layer, lambda: layer(x).sum()).activation_bytes == 2 * size
    assert dense >= 6 * size
    with torch.no_grad():
        assert layer(x).grad_fn is None


def stock():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    nn.init.normal_(layer.in_proj_bias)
    return layer


def test_the_stand_in_computes_what_torchs_layer_does():
    layer, x = stock(), tokens()
    ours = MultiheadAttention(layer)
    output, weights = ours(x, x, x, need_weights=False)
    assert weights is None
    torch.testing.assert_close(output, layer(x, x, x, need_weights=False)[0])


def test_the_stand_in_has_the_stock_names_both_ways():
    layer, x = stock(), tokens()
    ours = nn.Sequential()
    ours.add_module("attention", MultiheadAttention(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)))
    state = {f"attention.{name}": value for name, value in layer.state_dict().items()}
    ours.load_state_dict(state)
    assert ours.state_dict().keys() == state.keys()
    torch.testing.assert_close(ours.attention(x, x, x)[0], layer(x, x, x, need_weights=False)[0])
    layer.load_state_dict(MultiheadAttention(layer).state_dict())


@pytest.mark.parametrize(
    "options",
    [
        *({"batch_first": False}, {"dropout": 0.1}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 4}),
        {"bias": False},
    ],
)
def test_other_forms_are_refused(options):
    with pytest.raises(UserError, match="only batch-first"):
        MultiheadAttention(nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **options}))


def test_attention_to_others_is_refused():
    layer, x = MultiheadAttention(stock()), tokens()
    masks = (
        {"attn_mask": torch.zeros(TOKENS, TOKENS)},
        {"key_padding_mask": torch.zeros(3, TOKENS)},
        {"is_causal": True},
    )
    for others, options in (
        ((x.clone(), x), {}),
        ((x, x), {"need_weights": True}),
        *(((x, x), mask) for mask in masks),
    ):
        with pytest.raises(UserError, match="its own input"):
            layer(x, *others, **options)


class Functional(nn.Module):
    """Takes its layers' weights, one with a bias of its own making, as torchvision's windows do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        bias = self.one.bias.clone()
        bias[:4].zero_()
        return F.linear(F.linear(x, self.one.weight, bias).relu(), self.two.weight)


def test_functional_maps_become_calls_of_the_layers():
    plain, ours = Functional(), calling_its_layers(Functional())
    called = []
    for name, layer in ours.named_children():
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
    for mine, theirs in zip(run(ours, tokens()), run(plain, tokens()), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert called == ["one", "two"]
    assert isinstance(ours, Functional)
    twin = copy.deepcopy(ours)
    twin.one.weight.data.zero_()
    assert not torch.equal(twin(tokens()), ours(tokens()))
