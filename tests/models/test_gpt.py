from math import log

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fedmef_dist.base.errors import UserError
from fedmef_dist.clients.loss import cross_entropy
from fedmef_dist.devices.flops import FlopsLedger
from fedmef_dist.devices.layer_flops import LayerFlops, layer_flops
from fedmef_dist.layers.activation_pruning import PrunedLinear, SapSettings
from fedmef_dist.layers.filters import GAMMA_RELU
from fedmef_dist.layers.nsconv import NSLinear
from fedmef_dist.models import ModelSettings, build_model, prunable_weights
from fedmef_dist.models.gpt import BranchNorm, GPTSettings
from fedmef_dist.sparsity import ParameterSpace

TOKENS, CONTEXT = 11, 6
SIZE = {"depth": 2, "width": 8, "heads": 2}


def build(norm="layer", *, enabled=False, ratio=0.5, seed=0):
    settings, sap = ModelSettings(name="gpt", gpt=SIZE), SapSettings(enabled=enabled, prune_ratio=ratio)
    return build_model(settings, sap, norm=norm, classes=TOKENS, shape=(CONTEXT,), seed=seed)


def text(batch=3, tokens=CONTEXT):
    return torch.randint(TOKENS, (batch, tokens + 1), generator=torch.Generator().manual_seed(batch))


def gradients(model):
    windows = text()
    cross_entropy(model(windows[:, :-1]), windows[:, 1:]).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def kinds(model, kind):
    return [name for name, module in model.named_modules() if type(module) is kind]


LINEAR = [
    f"blocks.{block}.{layer}"
    for block in range(2)
    for layer in ("attention.in_proj", "attention.out_proj", "mlp.up", "mlp.down")
]


@pytest.mark.parametrize("norm", ["layer", "batch", "nsconv"])
def test_a_token_sees_only_what_is_before_it(norm):
    model = build(norm).eval()
    nn.init.normal_(model.output.weight)
    tokens = text()[:, :CONTEXT]
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % TOKENS
    same = (model(tokens) == model(changed)).all(2).all(0)
    assert same.tolist() == [True] * 4 + [False] * 2
    torch.testing.assert_close(model(tokens[:, :3]), model(tokens)[:, :3])


def test_every_token_is_as_likely_at_first():
    windows = text(50)
    loss = cross_entropy(build()(windows[:, :-1]), windows[:, 1:])
    assert loss.item() == pytest.approx(log(TOKENS), abs=0.05)


@pytest.mark.parametrize("norm", ["layer", "nsconv"])
def test_linear_layers_of_blocks_are_prunable_embeddings_and_output_are_not(norm):
    assert prunable_weights(build(norm)) == [f"{name}.weight" for name in LINEAR]


def test_normalised_weights_take_the_place_of_layer_normalisation():
    assert len(kinds(build("layer"), BranchNorm)) == 5
    for norm in ("nsconv", "none"):
        assert not kinds(build(norm), BranchNorm)
    model = build("nsconv")
    assert kinds(model, NSLinear) == LINEAR
    gammas = [model.get_submodule(name).normaliser.gamma for name in LINEAR]
    assert gammas == [1, 1, 1, GAMMA_RELU] * 2
    assert type(model.output) is nn.Linear


def test_without_normalisation_layers_the_residual_path_keeps_its_size():
    settings = ModelSettings(name="gpt", gpt={"depth": 12, "width": 64, "heads": 4})
    model = build_model(settings, SapSettings(enabled=False), norm="nsconv", classes=TOKENS, shape=(32,), seed=0)
    seen = []
    model.embedding.register_forward_hook(lambda module, inputs, output: seen.append(output.std()))
    model.blocks.register_forward_hook(lambda module, inputs, output: seen.append(output.std()))
    model(text(4, 31))
    assert seen[0] / 2 < seen[1] < 3 * seen[0]


def test_all_linear_layers_but_the_output_prune_what_they_keep():
    model = build(enabled=True)
    assert [name for name in kinds(model, PrunedLinear) if name.endswith(("out_proj", "up", "down"))] == [
        name for name in LINEAR if not name.endswith("in_proj")
    ]
    assert type(model.output) is nn.Linear


@pytest.mark.parametrize("norm", ["layer", "nsconv"])
def test_gradients_with_ratio_0_are_the_dense_ones(norm):
    dense, lean = gradients(build(norm)), gradients(build(norm, enabled=True, ratio=0.0))
    for name, gradient in dense.items():
        torch.testing.assert_close(lean[name], gradient, rtol=1e-5, atol=1e-7)


def test_weights_come_from_the_seed_alone():
    one, same, other = build(), build("nsconv"), build(seed=1)
    for name in (f"{LINEAR[0]}.weight", "embedding.weight"):
        assert torch.equal(one.get_parameter(name), same.get_parameter(name))
        assert not torch.equal(one.get_parameter(name), other.get_parameter(name))


@pytest.mark.parametrize("enabled", [False, True])
def test_flops_count_every_token_as_torchs_counter_does(enabled):
    model = build(enabled=enabled).eval()
    tokens = torch.zeros(1, CONTEXT, dtype=torch.int64)
    # The counter knows products of matrices, but not the fused attention of a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    found = layer_flops(model, tokens)
    assert sum(flops.forward for flops in found.values()) == counter.get_total_flops()
    product = 2 * CONTEXT * 8 * 32
    assert found["blocks.0.mlp.up"] == LayerFlops(product, product, product, input_elements=CONTEXT * 8)


def test_a_ledger_scales_the_blocks_linear_layers_only():
    model = build("nsconv")
    space = ParameterSpace(model, prunable_weights(model))
    ledger = FlopsLedger(model, space, torch.zeros(1, CONTEXT, dtype=torch.int64))
    # 12 width^2 weights a block, at each token; two products of tokens with tokens a block; the output layer.
    linear, attention, output = 2 * 2 * 12 * 64 * CONTEXT, 2 * 2 * 2 * CONTEXT * CONTEXT * 8, 2 * CONTEXT * 8 * TOKENS
    assert ledger.forward([layer.size for layer in space.layers]) == linear + attention + output
    assert ledger.forward([layer.size // 2 for layer in space.layers]) == linear / 2 + attention + output


@pytest.mark.parametrize("key", [{"depth": 0}, {"width": 0}, {"heads": 3, "width": 8}, {"context": 8}])
def test_settings_refuse(key):
    with pytest.raises(ValidationError):
        GPTSettings(**key)


@pytest.mark.parametrize(
    ("name", "shape", "match"), [("gpt", (3, 8, 8), "reads text"), ("cnn", (8,), "model.name=gpt")]
)
def test_a_model_for_another_kind_of_data_is_refused(name, shape, match):
    with pytest.raises(UserError, match=match) as caught:
        build_model(ModelSettings(name=name), SapSettings(enabled=False), norm="none", classes=3, shape=shape, seed=0)
    assert len(str(caught.value).splitlines()) == 3
