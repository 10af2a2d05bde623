"""Models by name: our own small networks, a GPT, any torchvision classifier, and those of guests."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.guests import OWN_FORM, Kind, Options, entry_point_names, is_guest
from fedmef_dist.base.randomness import torch_seed
from fedmef_dist.base.settings import Settings
from fedmef_dist.layers.activation_pruning import SapSettings
from fedmef_dist.models.blocks import recompute_blocks
from fedmef_dist.models.convert import convert, refuse_left_behind, replace_module, weighted_layers
from fedmef_dist.models.fit import refuse_misfit
from fedmef_dist.models.gammas import gammas_of
from fedmef_dist.models.gpt import GPTSettings, build_gpt
from fedmef_dist.models.guest import build_guest
from fedmef_dist.models.residual import block_by_block
from fedmef_dist.models.small import SmallResNet, cnn, initialise
from fedmef_dist.models.torchvision_import import import_torchvision

OWN_MODELS = ("cnn", "resnet8", "resnet20", "gpt")


class NSConvSettings(Settings):
    """Section ``model.nsconv``: normalised sparse convolution."""

    centre: bool = Field(True, description="subtract every filter's mean from its weights")


class ModelSettings(Settings):
    """Section ``model``: the network, and what becomes of its layers."""

    name: str = Field(
        "resnet18",
        min_length=1,
        description="cnn, resnet8, resnet20, gpt, any torchvision classifier, or package.module:Name of your own",
    )
    options: Options = Field(default_factory=dict, description="keyword arguments for your own model")
    start_from: str | None = Field(
        None,
        min_length=1,
        description="weights to start from: a run directory, a .safetensors file, or torchvision[:WEIGHTS] where torch "
        "has them on this machine; the mask is the method's own",
    )
    stem: Literal["cifar", "imagenet"] = Field(
        "cifar", description="cifar: the stem of a torchvision model keeps the resolution of small images"
    )
    width: float = Field(
        1.0, gt=0, le=32, description="factor on the number of filters; not every torchvision model has it"
    )
    hidden: int = Field(512, ge=0, le=2**16, description="neurons of cnn's hidden layer; 0 leaves it out")
    gpt: GPTSettings = Field(default_factory=GPTSettings, description="size of model gpt")
    norm: Literal["auto", "nsconv", "batch", "group", "layer", "none"] = Field(
        "auto",
        description="normalisation; auto: what the method prefers (fedmef: nsconv), or else batch, or layer for gpt",
    )
    recompute: Literal["none", "blocks"] = Field(
        "none", description="blocks: what is inside a block is computed again in the backward pass, not kept"
    )
    nsconv: NSConvSettings = Field(default_factory=NSConvSettings, description="details of norm nsconv")

    @model_validator(mode="after")
    def _options_are_for_guests(self) -> "ModelSettings":
        if self.options and not self.is_guest:
            raise ValueError(f"options are for models of your own; {self.name} has keys of its own")
        return self

    @property
    def is_guest(self) -> bool:
        """Whether the model comes from outside of the package and torchvision."""
        return is_foreign_model(self.name)

    @property
    def stock_norm(self) -> str:
        """The normalisation that the network was made with: layer for gpt, batch for the others."""
        return "layer" if self.name == "gpt" else "batch"


def is_foreign_model(name: str) -> bool:
    """Whether a model of this name is a guest; an entry point takes no name from torchvision. Imports no guest."""
    if name in OWN_MODELS or not is_guest(Kind.MODEL, name):
        return False
    return ":" in name or name not in _torchvision_names()


def build_model(
    settings: ModelSettings,
    sap: SapSettings,
    *,
    norm: str,
    classes: int,
    shape: tuple[int, ...],
    seed: int,
    alpha: float = 1.0,
) -> nn.Module:
    """The network that a run trains: :func:`stock_model`, converted, its blocks recomputed where the settings ask it.

    Args:
        settings: section ``model``.
        sap: section ``sap`` with ``enabled`` settled.
        norm: nsconv, batch, group, layer or none.
        classes: outputs.
        shape: of a sample: (channels, height, width) of images, (tokens,) of text.
        seed: the run's seed.
        alpha: prunable weights act as this power of their parameters.

    Raises:
        UserError: the name is not known, or the model cannot be had with this width or for such samples.
    """
    model = stock_model(settings, classes=classes, shape=shape, seed=seed)
    stock = list(model.modules())
    sample = torch.zeros(1, *shape, dtype=torch.int64 if len(shape) == 1 else torch.float32)
    # Layers that take another's place draw weights, which those of the stock model overwrite.
    with torch.random.fork_rng(devices=[]):
        gammas = gammas_of(model, sample) if norm == "nsconv" else {}
        model = convert(model, sap, norm, gammas=gammas, centre=settings.nsconv.centre, alpha=alpha)
        if settings.is_guest:
            refuse_left_behind(model, stock, sample)
    return recompute_blocks(model, packs=bool(sap.enabled)) if settings.recompute == "blocks" else model


def stock_model(settings: ModelSettings, *, classes: int, shape: tuple[int, ...], seed: int) -> nn.Module:
    """A network of torch's own layers with weights drawn from ``seed``, the same on every rank.

    A torchvision classifier, its first convolution fitted to the images (and with stem cifar without downsampling), or
    one of our own networks, or a guest. Leaves the global generator as it was. Arguments and errors: see
    :func:`build_model`.
    """
    if not settings.is_guest:
        _check_kind(settings, shape)
    with torch.random.fork_rng(devices=[]), _room_for(settings):
        torch.manual_seed(torch_seed(seed, "model"))
        if settings.is_guest:
            return build_guest(settings.name, settings.options, settings.width, classes, shape)
        if settings.name == "gpt":
            return build_gpt(settings.gpt, classes, context=shape[0])
        channels, *size = shape
        if settings.name not in OWN_MODELS:
            model = _from_torchvision(settings, classes, channels, size[0])
            refuse_misfit(model, settings.name, shape, classes)
            return model
        model = _own(settings, classes, channels, (size[0], size[1]))
        initialise(model)
        return model


@contextmanager
def _room_for(settings: ModelSettings) -> Iterator[None]:
    """Torch has no class of its own for memory that the system refuses; the message names the amount."""
    try:
        yield
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise UserError(
            "the model does not fit into this machine's memory",
            where=f"model.name={settings.name}",
            mend="lower model.width, model.hidden or model.gpt",
        ) from error


def _check_kind(settings: ModelSettings, shape: tuple[int, ...]) -> None:
    wanted, given = ("text", "images") if settings.name == "gpt" else ("images", "text")
    if (len(shape) == 1) == (wanted == "images"):
        raise UserError(
            f"{settings.name} reads {wanted}, and the data set holds {given}",
            where="model.name, data.dataset",
            mend=(f"{'take model.name=gpt' if given == 'text' else 'choose a model for images'}, or another data set"),
        )


def _own(settings: ModelSettings, classes: int, channels: int, size: tuple[int, int]) -> nn.Module:
    if min(size) < 4:
        raise UserError(
            f"images of {min(size)} pixels are too small", where=f"model.name={settings.name}", mend="4 or more"
        )
    if settings.name == "cnn":
        return cnn(classes, channels, size, settings.width, settings.hidden)
    return SmallResNet({"resnet8": 1, "resnet20": 3}[settings.name], classes, channels, settings.width)


def _torchvision_names() -> list[str]:
    models = import_torchvision().models
    return models.list_models(module=models)


def _from_torchvision(settings: ModelSettings, classes: int, channels: int, image_size: int) -> nn.Module:
    models, known = import_torchvision().models, _torchvision_names()
    if settings.name not in known:
        names = [*OWN_MODELS, *known, *entry_point_names(Kind.MODEL)]
        near = difflib.get_close_matches(settings.name, names, n=1, cutoff=0)
        mend = f"did you mean {near[0]}? write {OWN_FORM} for your own"
        raise UserError(f"unknown model {settings.name!r}", where="model.name", mend=mend)
    extra = _extra_arguments(settings, image_size)
    try:
        model = models.get_model(settings.name, weights=None, num_classes=classes, **extra)
    except (ValueError, AssertionError) as error:  # MaxViT's windows; a ViT's patches
        raise UserError(
            f"{settings.name} cannot be had for images of {image_size} pixels: {error}",
            where="model.name",
            mend="choose another model, or with data.resize another size",
        ) from error
    _fit_stem(model, settings, channels)
    return block_by_block(model) if isinstance(model, models.ResNet) else model


def _extra_arguments(settings: ModelSettings, image_size: int) -> dict[str, object]:
    if settings.name.startswith("vit_"):
        return {"image_size": image_size}
    if settings.name.startswith("maxvit_"):
        # Behind a stem without downsampling the rest sees what it would see of an image of twice the size.
        side = image_size * (2 if settings.stem == "cifar" else 1)
        return {"input_size": (side, side)}
    if settings.name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    if settings.name == "mobilenet_v2":
        return {"width_mult": settings.width}
    if settings.width != 1.0:
        raise UserError(
            f"{settings.name} has no width",
            where=f"model.width={settings.width}",
            mend=f"set it to 1.0, or take mobilenet_v2 or one of {', '.join(OWN_MODELS)}",
        )
    return {}


def _fit_stem(model: nn.Module, settings: ModelSettings, channels: int) -> None:
    """Fits the first convolution to the images, and with stem cifar undoes its downsampling.

    A ResNet's 7x7 convolution of stride 2 and max-pooling become one 3x3 convolution, any other first convolution of
    stride 2 gets stride 1.
    """
    name, first = next(iter(weighted_layers(model).items()))
    assert isinstance(first, nn.Conv2d)
    small_images = settings.stem == "cifar" and first.stride == (2, 2)
    if not small_images and first.in_channels == channels:
        return
    kernel: Any = first.kernel_size
    stride: Any = first.stride
    padding: Any = first.padding
    if small_images:
        stride = (1, 1)
        if kernel == (7, 7) and isinstance(getattr(model, "maxpool", None), nn.MaxPool2d):
            kernel, padding = (3, 3), (1, 1)
            replace_module(model, "maxpool", nn.Identity())
    stem = nn.Conv2d(
        channels,
        first.out_channels,
        kernel,
        stride,
        padding,
        bias=first.bias is not None,
    )
    initialise(stem)
    replace_module(model, name, stem)
