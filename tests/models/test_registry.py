import subprocess
import sys
import weakref

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from fedmef_dist.base.errors import UserError
from fedmef_dist.layers.activation_pruning import SapSettings
from fedmef_dist.layers.nsconv import NSConv2d
from fedmef_dist.layers.random import StochasticDepth
from fedmef_dist.models import ModelSettings, build_model, prunable_weights, stock_model
from fedmef_dist.models.torchvision_import import import_torchvision


def build(name="resnet8", *, norm="nsconv", sap=True, ratio=0.5, seed=0, channels=3, size=32, classes=10, **settings):
    return build_model(
        ModelSettings(name=name, **settings),
        SapSettings(enabled=sap, prune_ratio=ratio),
        norm=norm,
        classes=classes,
        shape=(channels, size, size),
        seed=seed,
    )


@pytest.mark.parametrize(
    "values", [{"width": 0.0}, {"hidden": -1}, {"norm": "instance"}, {"stem": "small"}, {"depth": 3}]
)
def test_settings_refuse(values):
    with pytest.raises(ValidationError):
        ModelSettings(**values)


@pytest.mark.parametrize("norm", ["nsconv", "batch", "group", "none"])
@pytest.mark.parametrize("sap", [True, False])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cnn", {"width": 0.25, "hidden": 16}),
        ("resnet8", {"width": 0.25}),
        ("resnet18", {}),
        ("mobilenet_v2", {"width": 0.25}),
    ],
)
def test_every_model_trains_with_every_normalisation(name, settings, norm, sap):
    model = build(name, norm=norm, sap=sap, channels=1, size=16, classes=7, **settings)
    output = model(torch.randn(3, 1, 16, 16))
    F.cross_entropy(output, torch.tensor([0, 1, 6])).backward()
    assert output.shape == (3, 7)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert len(prunable_weights(model)) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) - 1


@pytest.mark.parametrize("name", ["cnn", "resnet8", "mobilenet_v2"])
def test_weights_come_from_the_seed_alone(name):
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one = build(name, width=0.25)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    same, other = build(name, width=0.25), build(name, width=0.25, seed=1)
    weights = prunable_weights(one)
    for weight in weights:
        assert torch.equal(one.get_parameter(weight), same.get_parameter(weight))
    assert not torch.equal(one.get_parameter(weights[0]), other.get_parameter(weights[0]))


def test_normalisation_does_not_change_the_weights():
    plain, normalised = build(norm="batch", sap=False), build(norm="nsconv")
    for weight in prunable_weights(plain):
        assert torch.equal(plain.get_parameter(weight), normalised.get_parameter(weight))


def test_the_cifar_stem_of_a_resnet():
    model = build("resnet18", norm="batch", sap=False)
    assert (model.conv1.kernel_size, model.conv1.stride) == ((3, 3), (1, 1))
    assert isinstance(model.maxpool, nn.Identity)
    imagenet = build("resnet18", norm="batch", sap=False, stem="imagenet", channels=1)
    assert (imagenet.conv1.kernel_size, imagenet.conv1.stride, imagenet.conv1.in_channels) == ((7, 7), (2, 2), 1)


def test_the_cifar_stem_of_a_mobilenet():
    assert build("mobilenet_v2", stem="cifar").features[0][0].stride == (1, 1)
    assert build("mobilenet_v2", stem="imagenet").features[0][0].stride == (2, 2)


def test_stochastic_depth_draws_from_a_generator_of_its_own():
    model = build("efficientnet_b0", norm="batch", sap=False)
    assert any(isinstance(module, StochasticDepth) for module in model.modules())
    state = torch.random.get_rng_state()
    model(torch.ones(2, 3, 32, 32))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_uncentred_on_request():
    model = build(nsconv={"centre": False})
    assert {module.centre for module in model.modules() if isinstance(module, NSConv2d)} == {False}


def test_an_unknown_name_gets_the_nearest_known_one():
    with pytest.raises(UserError, match=r"'resnet19'(.|\n)*resnet1[08]"):
        build("resnet19")
    with pytest.raises(UserError, match="mobilenet_v2"):
        build("mobilenetv2")


def test_width_is_refused_where_there_is_none():
    with pytest.raises(UserError, match="resnet18 has no width"):
        build("resnet18", width=0.5)


@pytest.mark.parametrize("name", ["cnn", "resnet8"])
@pytest.mark.parametrize("size", [(12, 20), (20, 12)])
def test_own_models_take_oblong_images(name, size):
    settings = {"norm": "nsconv", "classes": 3, "shape": (1, *size), "seed": 0}
    model = build_model(ModelSettings(name=name, width=0.25), SapSettings(enabled=False), **settings)
    assert model(torch.zeros(2, 1, *size)).shape == (2, 3)
    settings["shape"] = (1, 20, 3)
    with pytest.raises(UserError, match="images of 3 pixels are too small"):
        build_model(ModelSettings(name=name), SapSettings(enabled=False), **settings)


def test_images_that_a_vits_patches_do_not_divide_are_refused():
    with pytest.raises(UserError, match=r"vit_b_16 cannot be had for images of 28 pixels[\s\S]*data\.resize"):
        stock_model(ModelSettings(name="vit_b_16"), classes=3, shape=(1, 28, 28), seed=0)


def test_tiny_images_are_refused():
    with pytest.raises(UserError, match="3 pixels"):
        build("cnn", size=3)


def test_pruned_weight_gradients_of_a_whole_network_point_the_right_way():
    # One after ReLU: the pruned half is mostly zeros, so the direction hardly changes.
    x, y = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    gradients = []
    for ratio in (0.0, 0.5, 0.9):
        model = build(ratio=ratio, size=16)
        F.cross_entropy(model(x), y).backward()
        gradients.append(torch.cat([model.get_parameter(name).grad.flatten() for name in prunable_weights(model)]))
    dense, half, tenth = gradients
    assert F.cosine_similarity(dense, half, dim=0) > 0.99
    assert 0.6 < F.cosine_similarity(dense, tenth, dim=0) < 0.99


def test_own_models_do_not_import_torchvision():
    program = """
import sys
from fedmef_dist.layers.activation_pruning import SapSettings
from fedmef_dist.models import ModelSettings, build_model
settings = ModelSettings(name="resnet8")
build_model(settings, SapSettings(enabled=True), norm="nsconv", classes=2, shape=(1, 8, 8), seed=0)
sys.exit("torchvision" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


def test_torchvision_imports_and_is_imported_once():
    torchvision = import_torchvision()
    assert import_torchvision() is torchvision
    assert "resnet18" in torchvision.models.list_models(module=torchvision.models)


def test_a_model_larger_than_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr("fedmef_dist.models.registry.cnn", lambda *sizes: torch.empty(2**50))
    with pytest.raises(UserError, match=r"does not fit into this machine's memory\nwhere: model.name=cnn\nmend: lower"):
        build("cnn")


def test_a_residual_network_gives_up_what_its_blocks_have_read():
    model = build("resnet18", ratio=0.9, size=8)
    stock = import_torchvision().models.resnet18(num_classes=10)
    assert isinstance(model, type(stock))
    sources, alive = [], []
    model.layer2[0].register_forward_pre_hook(lambda module, inputs: sources.append(weakref.ref(inputs[0])))
    model.layer2[1].register_forward_hook(lambda *_: alive.append(sources[0]() is not None))
    model(torch.randn(2, 3, 8, 8))
    assert alive == [False]
