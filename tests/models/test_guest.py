"""Networks from outside of the package."""

import pytest
import torch
from torch import nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.guests import Kind, lent
from fedmef_dist.layers.activation_pruning import PrunedLinear, SapSettings
from fedmef_dist.layers.lean import LeanReLU
from fedmef_dist.layers.nsconv import NSConv2d
from fedmef_dist.models.registry import ModelSettings, build_model, is_foreign_model, stock_model

NAME = "mine:Net"
SIZE = {"classes": 3, "shape": (1, 8, 8)}


class Net(nn.Sequential):
    def __init__(self, *, classes, shape, width=4):
        super().__init__(
            nn.Conv2d(shape[0], width, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(width * 36, classes),
        )


def text_net(*, classes, shape):
    return nn.Sequential(nn.Embedding(classes, 4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, classes))


def build(guest=Net, size=SIZE, norm="batch", enabled=False, seed=0, **settings):
    with lent({(Kind.MODEL, NAME): guest}):
        sap = SapSettings(enabled=enabled)
        return build_model(ModelSettings(name=NAME, **settings), sap, norm=norm, **size, seed=seed)


def test_a_guest_is_called_with_classes_shape_and_its_options():
    assert build(options={"width": 5})[0].weight.shape == (5, 1, 3, 3)
    assert build()[5].weight.shape == (3, 4 * 36)
    assert build().training


def test_its_weights_come_from_the_runs_seed_and_no_global_state_is_touched():
    torch.manual_seed(3)
    one, state = build(seed=1), torch.get_rng_state()
    torch.manual_seed(4)
    assert torch.equal(build(seed=1)[0].weight, one[0].weight)
    assert not torch.equal(build(seed=2)[0].weight, one[0].weight)
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_converted_like_torchvisions():
    model = build(norm="nsconv", enabled=True)
    assert isinstance(model[0], NSConv2d)
    assert isinstance(model[1], nn.Identity)
    assert isinstance(model[2], LeanReLU)
    assert model[2].training


def test_a_model_of_text_gives_logits_for_each_token():
    size = {"classes": 7, "shape": (6,)}
    assert build(text_net, size)(torch.zeros(2, 6, dtype=torch.int64)).shape == (2, 6, 7)


@pytest.mark.parametrize(
    ("guest", "settings", "what"),
    [
        (lambda *, classes, shape: 3, {}, "gave a int, not a torch.nn.Module"),
        (lambda *, classes, shape: nn.Flatten(), {}, "has no convolution and no linear layer"),
        (
            lambda *, classes, shape: nn.Sequential(nn.Flatten(), nn.Linear(64, 9)),
            {},
            r"gives \(1, 9\) for one sample, not logits of shape \(1, 3\)",
        ),
        (lambda *, classes, shape: nn.Linear(5, 3), {}, r"given a sample of shape \(1, 8, 8\), failed: RuntimeError"),
        (Net, {"options": {"widht": 3}}, "does not take widht"),
        (Net, {"width": 0.5}, "has no width"),
    ],
)
def test_what_is_no_model_is_refused(guest, settings, what):
    with pytest.raises(UserError, match=what):
        build(guest, **settings)


class Failing(Net):
    def forward(self, images):
        return super().forward(images[:, :, 5:])


def test_a_forward_pass_that_fails_is_told_with_its_own_line():
    with pytest.raises(UserError, match="failed: RuntimeError") as caught:
        build(Failing)
    assert caught.value.where == f"{__file__}, line {Failing.forward.__code__.co_firstlineno + 1}"


def test_options_are_for_guests_alone():
    with pytest.raises(ValueError, match="options are for models of your own; resnet18 has keys of its own"):
        ModelSettings(name="resnet18", options={"depth": 3})


def test_an_entry_point_takes_no_name_from_the_package_or_torchvision():
    offered = {(Kind.MODEL, name): Net for name in ("cnn", "resnet18", "newest")}
    with lent(offered):
        assert [is_foreign_model(name) for name in ("cnn", "resnet18", "newest", "a:b", "qqqq")] == [
            False,
            False,
            True,
            True,
            False,
        ]


def test_the_stock_model_is_the_guests_own():
    with lent({(Kind.MODEL, NAME): Net}):
        assert type(stock_model(ModelSettings(name=NAME), **SIZE, seed=0)) is Net


def dense(*, classes, shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, classes))


def frozen(**size):
    net = dense(**size)
    net[1].requires_grad_(False)
    return net


class InTraining(nn.Sequential):
    """Does in training mode what it is told to, whatever it does in evaluation mode."""

    def __init__(self, change):
        super().__init__(*dense(**SIZE))
        self.change = change

    def forward(self, images):
        return self.change(super().forward(images)) if self.training else super().forward(images)


@pytest.mark.parametrize(
    ("guest", "what"),
    [
        (frozen, r"has 1\.weight frozen \(requires_grad=False\), and a run trains all parameters"),
        (lambda **size: dense(**size).double(), r"has 1\.weight in torch\.float64; parameters are torch\.float32"),
        (lambda **_: InTraining(lambda logits: (logits, logits)), "gives tuple for two samples in training mode"),
        (lambda **_: InTraining(lambda logits: logits.view(1, -1)), r"gives \(1, 6\) for two samples in training mode"),
        (lambda **_: InTraining(lambda logits: logits.detach()), "logits in training mode that lead to no gradient"),
        (
            lambda **_: InTraining(lambda logits: logits + torch.ones(7)),
            r"given two samples of shape \(1, 8, 8\) in training mode, failed: RuntimeError",
        ),
        (lambda **_: exit("I leave"), "failed: SystemExit: I leave"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_starts(guest, what):
    with pytest.raises(UserError, match=what):
        build(guest)


def test_the_trial_in_training_mode_leaves_no_statistics():
    model = build(lambda **size: nn.Sequential(*dense(**size)))
    assert model[2].running_var.tolist() == [1.0] * 16
    assert int(model[2].num_batches_tracked) == 0


class Tied(nn.Module):
    """A layer in the middle of which stands twice, as one weight or as one module, and an activation that does."""

    def __init__(self, *, classes, shape, modules):
        super().__init__()
        act = nn.ReLU(inplace=True)
        middle = nn.Linear(8, 8)
        again = middle if modules else nn.Linear(8, 8)
        again.weight = middle.weight
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), act, middle, act, again, act, nn.Linear(8, classes))

    def forward(self, images):
        return self.net(images)


def test_a_module_that_stands_twice_stays_one_and_is_converted_in_both_places():
    net = build(lambda **size: Tied(**size, modules=True), enabled=True).net
    assert net[3] is net[5]
    assert type(net[3]) is PrunedLinear
    assert net[2] is net[4] is net[6]
    assert type(net[6]) is LeanReLU
    net(torch.rand(4, 1, 8, 8)).sum().backward()
    assert net[3].weight.grad is not None


def test_a_weight_of_two_layers_stays_one_or_is_refused():
    def tied(**size):
        return Tied(**size, modules=False)

    net = build(tied).net
    assert net[3].weight is net[5].weight
    with pytest.raises(UserError, match=r"net\.3\.weight and net\.5\.weight are one parameter"):
        build(tied, enabled=True)


class Listed(nn.Module):
    """Registers its layers, and calls them out of a plain list."""

    def __init__(self, *, classes, shape):
        super().__init__()
        self.layers = [nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, classes)]
        for number, layer in enumerate(self.layers):
            self.add_module(f"layer{number}", layer)

    def forward(self, images):
        for layer in self.layers:
            images = layer(images)
        return images


def test_a_layer_that_is_called_out_of_a_list_is_refused_where_it_was_replaced():
    """The layer in the list would compute with weights that nobody trains."""
    model = build(Listed)
    assert all(layer in set(model.modules()) for layer in model.layers)  # nothing was replaced
    with pytest.raises(UserError, match=r"calls a ReLU that conversion[\s\S]*plain list") as caught:
        build(Listed, enabled=True)
    assert caught.value.where == "model.name"


def test_converted_attention_is_none_that_was_left_behind():
    def build_encoder(*, classes, shape):
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        return nn.Sequential(nn.Flatten(1, 2), nn.TransformerEncoder(layer, 1), nn.Flatten(), nn.Linear(64, classes))

    model = build(build_encoder, enabled=True)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
