import pytest
import torch
from torch import nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.models import ModelSettings, stock_model
from fedmef_dist.models.fit import refuse_misfit


def deep(kernels):
    return nn.Sequential(*(layer for _ in range(kernels) for layer in (nn.Conv2d(3, 3, 1), nn.MaxPool2d(2))))


@pytest.mark.parametrize(("halvings", "side", "least"), [(1, 1, 2), (3, 7, 8), (3, 1, 8), (5, 20, 32)])
def test_the_least_size_is_named(halvings, side, least):
    with pytest.raises(
        UserError, match=f"too deep for images of 3 x {side} x {side} .* it needs {least} pixels"
    ) as caught:
        refuse_misfit(deep(halvings), "deep", (3, side, side), 10)
    assert caught.value.mend.startswith(f"set data.resize={least},")
    refuse_misfit(deep(halvings), "deep", (3, least, least), 10)


def test_where_no_size_will_do_it_says_so():
    with pytest.raises(UserError, match="no side up to 1024 pixels"):
        refuse_misfit(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), "flat", (1, 4, 4), 2)


def test_nothing_of_the_model_changes():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refuse_misfit(model, "small", (3, 8, 8), 2)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_alexnet_at_32_pixels_is_refused_when_it_is_built():
    with pytest.raises(UserError, match=r"alexnet is too deep for images of 3 x 32 x 32 .* needs 63 pixels"):
        stock_model(ModelSettings(name="alexnet"), classes=10, shape=(3, 32, 32), seed=0)
