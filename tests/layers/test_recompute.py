import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedmef_dist.base.errors import UserError
from fedmef_dist.devices.memory import measure_step
from fedmef_dist.layers.activation_pruning import Pruning
from fedmef_dist.layers.batchnorm import BatchNorm2d
from fedmef_dist.layers.lean import LeanReLU
from fedmef_dist.layers.nsconv import NSConv2d
from fedmef_dist.layers.random import Dropout, set_generator
from fedmef_dist.layers.recompute import (
    nothing_recomputed,
    recompute,
    recomputed_block,
    recomputed_blocks,
    recomputed_stages,
)

IMAGE = 4 * 2 * 8 * 16 * 16  # bytes of a float32 (2, 8, 16, 16)


def block():
    layers = [nn.Conv2d(8, 8, 3, padding=1), BatchNorm2d(8), nn.ReLU(inplace=True), Dropout(0.3)]
    return nn.Sequential(*layers, NSConv2d(8, 8, 3, padding=1, pruning=Pruning(0.5)), LeanReLU())


def twins(packs=False):
    found = []
    for recomputes in (False, True):
        torch.manual_seed(0)
        blocks = [block(), block()]
        if recomputes:
            blocks = [recomputed_block(one, packs) for one in blocks]
        found.append(nn.Sequential(*blocks, nn.Flatten(), nn.Linear(8 * 256, 3)))
    return found


def images(count=2):
    return torch.randn(count, 8, 16, 16, generator=torch.Generator().manual_seed(1))


def run(model, x, steps=2):
    """Everything that steps leave behind: outputs, gradients, running statistics, the next random number."""
    generator = torch.Generator().manual_seed(2)
    set_generator(model, generator)
    outputs = []
    for _ in range(steps):
        output = model(x)
        output.float().square().sum().backward()
        outputs.append(output.detach())
    gradients = [parameter.grad for parameter in model.parameters()]
    return [*outputs, *gradients, *model.buffers(), torch.rand(1, generator=generator)]


def same(ones, others):
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_nothing_changes_by_a_bit(packs, channels_last):
    x = images().relu()
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    plain, ours = twins(packs)
    assert same(run(ours, x), run(plain, x))


def test_nor_under_autocast():
    plain, ours = twins()
    with torch.autocast("cpu", torch.bfloat16):
        first, second = run(ours, images()), run(plain, images())
    assert same(first, second)


def test_the_gradient_of_the_input_comes_back():
    plain, ours = twins()
    found = []
    for model in (plain, ours):
        x = images().requires_grad_()
        run(model, x, steps=1)
        found.append(x.grad)
    assert torch.equal(*found)


def test_what_is_kept_is_the_blocks_input_and_packed_if_that_takes_less():
    def held(packs, x):
        _, model = twins(packs)
        model.eval().train()
        x = x.clone().requires_grad_()
        memory = measure_step(model, lambda: model(x).square().sum())
        return {module.name: module.bytes for module in memory.modules}

    state = torch.Generator().get_state().nbytes
    # Two blocks keep their inputs, and where their dropout begins to draw.
    dense = held(False, images())
    assert (dense["0"], dense["1"]) == (IMAGE + state, IMAGE + state)
    packed = held(True, images().relu())
    assert packed["0"] - state < 0.6 * IMAGE
    whole = held(True, images())
    assert whole["0"] == IMAGE + state  # it has no zeros


class Optional(nn.Linear):
    """A block of more than one argument, as torch's encoder layer is one."""

    def forward(self, x, mask=None, *, twice=False, pair=False):
        y = super().forward(x) if mask is None else super().forward(x) * mask
        y = 2 * y if twice else y
        return (y, y) if pair else y


def test_a_block_may_take_more_than_a_tensor_but_not_more_tensors():
    stock = Optional(3, 3)
    ours, x = recomputed_block(stock, packs=False), torch.randn(2, 3)
    stock(x, None, twice=True).square().sum().backward()
    expected = stock.weight.grad.clone()
    stock.weight.grad = None
    ours(x, None, twice=True).square().sum().backward()
    assert torch.equal(stock.weight.grad, expected)
    for others, options in (((x,), {}), ((), {"mask": x})):
        with pytest.raises(UserError, match=r"Optional\) takes more than one tensor"):
            ours(x, *others, **options)
    with pytest.raises(UserError, match=r"Optional\) gives more than one tensor"):
        ours(x, pair=True)
    assert torch.equal(ours.eval()(x, x), stock(x, x))


def test_evaluation_and_passes_without_gradients_are_those_of_the_block():
    plain, ours = twins()
    for model in (plain, ours):
        model.eval()
    x = images()
    torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=0)
    weights = [model[0][0].weight for model in (plain, ours)]
    gradients = [
        torch.autograd.grad(model(x).sum(), weight) for model, weight in zip((plain, ours), weights, strict=True)
    ]
    assert torch.equal(gradients[0][0], gradients[1][0])
    with torch.no_grad():
        assert ours.train()(x).grad_fn is None


def test_names_and_class_stay():
    plain, ours = twins()
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert type(ours[0]).__name__ == "Sequential"
    assert list(recomputed_blocks(ours)) == ["0", "1"]
    with nothing_recomputed(ours):
        assert not any(one.recomputes for one in recomputed_blocks(ours).values())
    assert all(one.recomputes for one in recomputed_blocks(ours).values())


def test_stages_of_a_plain_chain():
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 49, 3)]
    plain = nn.Sequential(*layers)
    expected = run(plain, images())
    plain.zero_grad()
    ours = recomputed_stages(nn.Sequential(*layers), [(0, 3)], packs=False)
    assert same(run(ours, images()), expected)
    with torch.no_grad():
        assert torch.equal(ours(images()), expected[0])


def test_a_block_that_overwrites_its_input_is_refused():
    x = images().requires_grad_() * 1.0
    with pytest.raises(UserError, match="overwrites its input"):
        recompute(F.relu_, [nn.ReLU()], x)


def test_gradients_that_would_be_lost_are_refused():
    _, ours = twins()
    x = images().requires_grad_()
    with pytest.raises(RuntimeError, match=r"backward\(\) alone"):
        torch.autograd.grad(ours(x).sum(), x)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(ours(x).sum(), ours[0][0].weight)
