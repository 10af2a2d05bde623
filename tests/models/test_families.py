"""Every family of torchvision's classifiers, as thin and shallow as its classes allow."""

import copy
from functools import cache, partial

import numpy as np
import pytest
import torch
from step_flops import step_counter
from torch import nn
from torch.nn import functional as F

from fedmef_dist.clients.optimizer import MaskedSGD, OptimizerSettings
from fedmef_dist.devices.device_memory import model_activations
from fedmef_dist.devices.layer_flops import layer_flops
from fedmef_dist.devices.memory import measure_step
from fedmef_dist.layers.activation_pruning import PrunedLinear, SapSettings
from fedmef_dist.layers.attention import MultiheadAttention
from fedmef_dist.layers.layernorm import LeanLayerNorm
from fedmef_dist.layers.nsconv import NSConv2d, NSLinear
from fedmef_dist.layers.random import set_generator
from fedmef_dist.layers.recompute import recomputed_blocks
from fedmef_dist.models import ModelSettings, prunable_weights, stock_model
from fedmef_dist.models.blocks import recompute_blocks
from fedmef_dist.models.convert import convert
from fedmef_dist.models.torchvision_import import import_torchvision
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.allocation import random_mask

models = import_torchvision().models
CLASSES = 5


def named(name, **options):
    return models.get_model(name, weights=None, num_classes=CLASSES, **options)


def vgg():
    from torchvision.models.vgg import VGG, make_layers

    with torch.device("meta"):  # its hidden layers have a hundred million weights
        model = VGG(nn.Sequential(), CLASSES, init_weights=False)
    model.features = make_layers([8, "M", 16, "M"], batch_norm=True)
    hidden = nn.Linear(16 * 7 * 7, 12)
    model.classifier = nn.Sequential(hidden, nn.ReLU(True), nn.Dropout(), nn.Linear(12, CLASSES))
    return model


def convnext():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=CLASSES)


def vit():
    model = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight)  # from 0 no gradient would come back
    return model


def swin(version):
    from torchvision.models import swin_transformer as file

    v2 = {"block": file.SwinTransformerBlockV2, "downsample_layer": file.PatchMergingV2} if version == 2 else {}
    return models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [2, 2], num_classes=CLASSES, **v2)


def maxvit():
    sizes = {"block_channels": [8, 16], "block_layers": [1, 1], "head_dim": 4, "stochastic_depth_prob": 0.1}
    return models.MaxVit((32, 32), 8, 2, num_classes=CLASSES, **sizes)


def densenet():
    return models.DenseNet(8, (2, 2), 16, num_classes=CLASSES)


FAMILIES = {
    "resnet": (partial(named, "resnet18"), 16),
    "mobilenet_v2": (partial(named, "mobilenet_v2", width_mult=0.25), 16),
    "mobilenet_v3": (partial(named, "mobilenet_v3_small"), 16),
    "vgg": (vgg, 28),
    "shufflenet": (partial(named, "shufflenet_v2_x0_5"), 32),
    "squeezenet": (partial(named, "squeezenet1_1"), 32),
    "densenet": (densenet, 32),
    "efficientnet": (partial(named, "efficientnet_b0"), 32),
    "mnasnet": (partial(named, "mnasnet0_5"), 32),
    "convnext": (convnext, 32),
    "vit": (vit, 32),
    "swin": (partial(swin, 1), 32),
    "swin_v2": (partial(swin, 2), 32),
    "googlenet": (partial(named, "googlenet", aux_logits=False, init_weights=False), 32),
    "regnet": (partial(named, "regnet_x_400mf"), 16),
    "maxvit": (maxvit, 32),
}
each = pytest.mark.parametrize("family", FAMILIES)


@cache
def made(family):
    torch.manual_seed(0)
    return FAMILIES[family][0]()


def stock(family):
    return copy.deepcopy(made(family))


def images(family, count=2):
    side = FAMILIES[family][1]
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def weighted(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def step_of(model, x):
    """Loss, gradients, and running statistics of a step in which every layer that draws draws the same."""
    set_generator(model, torch.Generator().manual_seed(1))
    loss = F.cross_entropy(model.train()(x), torch.tensor([0, 1]))
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters()), *model.buffers()]


@each
@pytest.mark.parametrize("norm", ["batch", "nsconv"])
def test_packing_without_loss_and_recomputing_change_no_bit(family, norm):
    exact = SapSettings(enabled=True, prune_ratio=0.0)
    expected = step_of(convert(stock(family), SapSettings(enabled=False), norm), images(family))
    for sap, recomputes in ((exact, False), (exact, True), (SapSettings(enabled=False), True)):
        model = convert(stock(family), sap, norm)
        if recomputes:
            model = recompute_blocks(model, packs=sap.enabled)
            assert recomputed_blocks(model)
        found = step_of(model, images(family))
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@each
def test_a_training_step_reaches_every_prunable_weight_and_no_inactive_one(family):
    model = convert(stock(family), SapSettings(enabled=True), "nsconv")
    assert prunable_weights(model) == [f"{name}.weight" for name in weighted(model)[:-1]]
    space = ParameterSpace(model, prunable_weights(model))
    counts = [max(layer.size // 2, layer.rows * layer.filter_floor) for layer in space.layers]
    space.set_mask(Mask(random_mask(space, counts, np.random.default_rng(0))))
    before = space.values.clone()
    output = model(images(family))
    assert output.shape == (2, CLASSES)
    F.cross_entropy(output, torch.tensor([0, 1])).backward()
    assert space.gradient.isfinite().all()
    still = [layer.name for layer in space.layers if not space.gradient[layer.start : layer.stop].any()]
    assert not still
    MaskedSGD(space, OptimizerSettings(lr=1.0)).step(1.0)
    assert not space.values[: space.n_prunable][~space.mask.active].any()
    changed = space.values != before
    assert all(changed[layer.start : layer.stop].any() for layer in space.layers)


@each
def test_with_ratio_0_and_batch_norm_it_is_the_stock_network(family):
    ours, theirs = (
        convert(stock(family), SapSettings(enabled=True, prune_ratio=0.0), "batch").eval(),
        stock(family).eval(),
    )
    x = images(family)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    gradients = []
    for model in (ours, theirs):
        F.cross_entropy(model(x), torch.tensor([0, 1])).backward()
        # Attention's packed projection goes by another name among the parameters.
        gradients.append(torch.cat([p.grad.flatten() for _, p in sorted(by_stock_name(model).items())]))
    # Smooth activations keep their derivative in a byte.
    assert F.cosine_similarity(*gradients, dim=0) > 0.999


@each
def test_flops_of_a_training_step_are_those_that_torch_counts_for_the_stock_network(family):
    plain, x = stock(family).train(), images(family)
    for module in plain.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
    with step_counter() as counter:
        F.cross_entropy(plain(x), torch.tensor([0, 1])).backward()
    found = layer_flops(convert(stock(family), SapSettings(enabled=True), "nsconv"), x)
    assert sum(flops.forward + flops.backward for flops in found.values()) == counter.get_total_flops()
    assert all(found[name].weight_gradient > 0 for name in weighted(plain))


@pytest.mark.parametrize("enabled", [False, True])
def test_what_a_vit_keeps_is_foretold(enabled):
    model = convert(stock("vit"), SapSettings(enabled=enabled, prune_ratio=0.95), "nsconv")
    x = images("vit")
    labels = torch.tensor([0, 1])
    held = measure_step(model, lambda: F.cross_entropy(model(x), labels)).activation_bytes
    foretold = model_activations(model.to("meta"), x.to("meta")).bytes
    assert foretold == pytest.approx(held, rel=0.1)


def by_stock_name(model):
    return {name.replace("in_proj.", "in_proj_"): parameter for name, parameter in model.named_parameters()}


def test_attention_projections_are_linear_layers_that_prune():
    model = convert(stock("vit"), SapSettings(enabled=True), "nsconv")
    attention = model.encoder.layers[0].self_attention
    assert isinstance(attention, MultiheadAttention)
    assert attention.lean
    assert type(attention.in_proj) is nn.Linear  # its input is computed again
    assert type(attention.out_proj) is type(model.encoder.layers[0].mlp[0]) is PrunedLinear
    assert type(model.encoder.layers[0].ln_1) is LeanLayerNorm
    assert isinstance(model.conv_proj, NSConv2d)
    assert not any(isinstance(module, NSLinear) for module in model.modules())


@pytest.mark.parametrize("family", ["swin", "swin_v2"])
def test_windows_call_their_projections(family):
    model = convert(stock(family), SapSettings(enabled=True), "batch")
    called = []
    for name, module in model.named_modules():
        if type(module) is PrunedLinear:
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    model(images(family))
    attention = [name for name in weighted(model) if name.endswith(("attn.qkv", "attn.proj"))]
    assert len(attention) == 8
    assert set(attention) <= set(called)


def test_a_vit_is_built_for_the_size_of_the_images():
    settings = ModelSettings(name="vit_b_16")
    with torch.device("meta"):
        model = stock_model(settings, classes=CLASSES, shape=(1, 48, 48), seed=0)
    assert model.image_size == 48
    assert model.conv_proj.in_channels == 1
