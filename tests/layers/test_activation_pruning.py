import weakref

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from fedmef_dist.layers.activation_pruning import (
    LOSSLESS,
    PrunedConv2d,
    PrunedLinear,
    Pruning,
    SapSettings,
    _Pruned,
    keep,
    restore,
)
from fedmef_dist.layers.operations import Affine, Convolution

GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 1), "dilation": 2, "padding": (2, 0)},
    {"kernel_size": 3, "groups": 2},
    {"kernel_size": 3, "groups": 4, "padding": 1},
    {"kernel_size": 2, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": 1, "bias": False},
]


def twins(pruning, **geometry):
    torch.manual_seed(0)
    stock = nn.Conv2d(4, 8, **geometry)
    ours = PrunedConv2d(4, 8, pruning=pruning, **geometry)
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def run(layer, x):
    x = x.clone().requires_grad_()
    output = layer(x)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)))
    return [output, x.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize(("key", "value"), [("prune_ratio", 1.0), ("prune_ratio", -0.1), ("scope", "layer"), ("p", 1)])
def test_settings_refuse(key, value):
    with pytest.raises(ValidationError):
        SapSettings(**{key: value})


@pytest.mark.parametrize("count", [1, 2, 7, 64, 1001])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9, 0.999])
def test_keeps_exactly_the_wanted_share(ratio, count):
    x = torch.randn(count)
    (bitmap, values), _ = keep(x, Pruning(ratio))
    assert values.numel() == round((1 - ratio) * count)
    assert bitmap.nbytes == (count + 7) // 8


def test_a_kept_input_by_hand():
    x = torch.tensor([[3.0, -1.0], [0.5, -4.0]])
    assert restore(*keep(x, Pruning(0.5))).tolist() == [[3, 0], [0, -4]]
    assert restore(*keep(x, Pruning(0.5, per_sample=True))).tolist() == [[3, 0], [0, -4]]
    y = torch.tensor([[3.0, -2.0], [0.5, -1.0]])
    assert restore(*keep(y, Pruning(0.5))).tolist() == [[3, -2], [0, 0]]
    assert restore(*keep(y, Pruning(0.5, per_sample=True))).tolist() == [[3, 0], [0, -1]]


@pytest.mark.parametrize("shape", [(3, 4, 6, 6), (3, 4, 1, 1), (3, 1, 6, 6), (5, 7)])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 0.99, 1.0])
def test_packing_without_loss(share, form, shape):
    torch.manual_seed(0)
    x = torch.randn(shape) * (torch.rand(shape) < share)
    if len(shape) == 4:
        x = x.contiguous(memory_format=form)
    saved, kept = keep(x, LOSSLESS)
    back = restore(saved, kept)
    assert torch.equal(back, x)
    assert back.stride() == x.stride()
    dense, packed = x.nbytes, (x.numel() + 7) // 8 + 4 * int(x.count_nonzero())
    assert sum(tensor.nbytes for tensor in saved) == min(dense, packed)
    assert (saved[0] is x) == (dense <= packed)


@pytest.mark.parametrize("channels_last", [False, True])
def test_what_lies_in_memory_with_gaps_comes_back_without_them(channels_last):
    whole = torch.randn(2, 8, 4, 4).relu()
    if channels_last:
        whole = whole.contiguous(memory_format=torch.channels_last)
    x = whole.chunk(2, dim=1)[1]
    back = restore(*keep(x, LOSSLESS))
    assert torch.equal(back, x)
    order = torch.channels_last if channels_last else torch.contiguous_format
    assert back.is_contiguous(memory_format=order)


def test_layers_share_what_is_kept_of_one_tensor():
    x, other = torch.randn(40).relu(), torch.randn(40).relu()
    first, others, second = keep(x, LOSSLESS), keep(other, LOSSLESS), keep(x, LOSSLESS)
    assert first[0][1] is second[0][1]
    assert others[0][1] is keep(other, LOSSLESS)[0][1]
    assert keep(x, Pruning(0.5))[0][1] is not keep(x, LOSSLESS)[0][1]
    assert keep(other, LOSSLESS)[0][1] is not first[0][1]
    assert keep(x, LOSSLESS)[0][1] is keep(x, LOSSLESS)[0][1]
    again = keep(x, LOSSLESS)
    x.mul_(2)
    assert torch.equal(restore(*keep(x, LOSSLESS)), 2 * restore(*again))


def test_nothing_is_remembered_of_a_tensor_that_is_gone():
    x = torch.randn(40).relu()
    saved = weakref.ref(keep(x, LOSSLESS)[0][1])
    assert saved() is not None
    del x
    assert saved() is None


def test_zeros_are_not_kept():
    x = torch.tensor([0.0, 2.0, -0.0, 0.0, -1.0, 0.0])
    (bitmap, values), kept = keep(x, Pruning(0.5))
    assert (bitmap.tolist(), values.tolist()) == ([[2 + 16]], [2, -1])
    assert torch.equal(restore((bitmap, values), kept), x)


@pytest.mark.parametrize(("dtype", "storage"), [(torch.float32, torch.bfloat16), (torch.float64, torch.float16)])
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_kept_values_are_rounded_to_the_storage_type(ratio, dtype, storage):
    x = torch.randn(40, dtype=dtype)
    saved, kept = keep(x, Pruning(ratio, storage=storage))
    exact, back = restore(*keep(x, Pruning(ratio))), restore(saved, kept)
    assert saved[-1].dtype == storage
    assert back.dtype == dtype
    assert torch.equal(back, exact.to(storage).to(dtype))
    assert not torch.equal(back, exact)


def test_what_does_not_fit_fp16_becomes_its_largest_number():
    x = torch.tensor([1e5, -1e9, float("inf"), 3.0, float("nan")])
    kept = restore(*keep(x, Pruning(0.0, storage=torch.float16)))
    assert kept[:4].tolist() == [65504, -65504, 65504, 3]
    assert kept[4].isnan()


def test_storage_never_widens():
    x = torch.randn(10, dtype=torch.bfloat16)
    (_, values), _ = keep(x, Pruning(0.5, storage=torch.float16))
    assert values.dtype == torch.bfloat16


def test_the_memory_order_survives():
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    back = restore(*keep(x, Pruning(0.5)))
    assert back.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(back[back != 0], x[back != 0])


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("pruning", [Pruning(), LOSSLESS])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_ratio_0_is_the_stock_layer_bit_for_bit(geometry, pruning):
    stock, ours = twins(pruning, **geometry)
    x = torch.randn(3, 4, 6, 6).relu()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(run(ours, x), run(stock, x), strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_only_the_weight_gradient_sees_the_pruned_input(geometry, channels_last):
    stock, ours = twins(Pruning(0.6), **geometry)
    x = torch.randn(3, 4, 6, 6)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    output, grad_x, grad_weight, *grad_bias = run(ours, x)
    dense_output, dense_grad_x, dense_grad_weight, *dense_grad_bias = run(stock, x)
    assert torch.equal(output, dense_output)
    torch.testing.assert_close(grad_x, dense_grad_x)
    assert not torch.allclose(grad_weight, dense_grad_weight)
    for mine, theirs in zip(grad_bias, dense_grad_bias, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_weight_gradient_is_that_of_the_pruned_input():
    stock, ours = twins(Pruning(0.6), kernel_size=3, stride=2, padding=1)
    x = torch.randn(3, 4, 6, 6)
    pruned = restore(*keep(x, Pruning(0.6)))
    torch.testing.assert_close(run(ours, x)[2], run(stock, pruned)[2])


@pytest.mark.parametrize("geometry", [g for g in GEOMETRIES if "padding_mode" not in g and g.get("padding") != "same"])
def test_gradcheck_of_the_unpruned_function(geometry):
    module = nn.Conv2d(4, 4, **geometry).double()
    operation = Convolution(module.stride, module.padding, module.dilation, module.groups)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    inputs = (x, module.weight, module.bias)
    assert gradcheck(lambda *tensors: _Pruned.apply(*tensors, operation, Pruning()), inputs)


def test_gradcheck_of_the_unpruned_linear_function():
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in [(2, 3, 4), (5, 4), (5,)]]
    assert gradcheck(lambda *inputs: _Pruned.apply(*inputs, Affine(), Pruning()), tensors)


def test_linear_gradients_by_hand():
    layer = PrunedLinear(2, 1, pruning=Pruning(0.5))
    nn.init.constant_(layer.weight, 3.0)
    x = torch.tensor([[1.0, -5.0], [2.0, 0.5]], requires_grad=True)
    (layer(x) * torch.tensor([[10.0], [100.0]])).sum().backward()
    assert layer.weight.grad.tolist() == [[200, -50]]  # kept: -5 and 2
    assert layer.bias.grad.tolist() == [110]
    assert x.grad.tolist() == [[30, 30], [300, 300]]


def test_two_runs_agree_bit_for_bit():
    _, ours = twins(Pruning(0.5), kernel_size=3)
    x = torch.randn(3, 4, 6, 6).relu()
    first = [tensor.clone() for tensor in run(ours, x)]
    ours.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(first, run(ours, x), strict=True))


def test_nothing_is_kept_without_gradients(monkeypatch):
    monkeypatch.setattr("fedmef_dist.layers.activation_pruning.keep", lambda *_: pytest.fail("kept its input"))
    with torch.no_grad():
        PrunedConv2d(4, 8, 3, pruning=Pruning(0.5))(torch.randn(1, 4, 5, 5))
        PrunedLinear(4, 8, pruning=Pruning(0.5))(torch.randn(1, 4))


def test_what_is_kept_is_saved_where_a_ledger_sees_it():
    _, ours = twins(Pruning(0.75), kernel_size=3)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        output = ours(torch.randn(2, 4, 8, 8))
    beside_parameters = [tensor.nbytes for tensor in saved if not isinstance(tensor, nn.Parameter)]
    assert sum(beside_parameters) == 512 // 8 + 128 * 4
    assert output.grad_fn.__dict__.keys().isdisjoint({"x", "input"})


def test_autocast_keeps_its_own_type():
    _, ours = twins(Pruning(0.5), kernel_size=3)
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    saved = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        output = ours(x)
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in saved if not isinstance(tensor, nn.Parameter)} == {torch.uint8, torch.bfloat16}
    assert ours.weight.grad.dtype == x.grad.dtype == torch.float32


def test_pruned_gradient_points_where_the_dense_one_does():
    stock, ours = twins(Pruning(0.5), kernel_size=3, padding=1)
    x = torch.randn(16, 4, 16, 16)

    def cosine(activation):
        stock.zero_grad()
        ours.zero_grad()
        return F.cosine_similarity(run(ours, activation)[2].flatten(), run(stock, activation)[2].flatten(), dim=0)

    # Half of a ReLU's output is 0 anyway.
    assert cosine(x.relu()) > 0.9999
    # The larger half of a normal variable carries erf(c / sqrt 2) - 2 c phi(c) less than all of its square, c = 0.6745:
    # 1 - 0.0713; where gradient and input are independent the cosine is the root of that.
    assert cosine(x) == pytest.approx(0.9287**0.5, abs=0.02)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_keeps_what_a_cpu_keeps(dtype):
    x = torch.randn(4, 8, 16, 16).relu().to(dtype, memory_format=torch.channels_last)
    for pruning in (Pruning(0.5), Pruning(0.9, per_sample=True), Pruning(0.3, storage=torch.float16)):
        on_cpu, on_gpu = keep(x, pruning), keep(x.cuda(), pruning)
        bitmap = on_cpu[0][0]  # a GPU's goes on to the end of a block
        assert torch.equal(on_gpu[0][0].cpu()[:, : bitmap.shape[1]], bitmap)
        assert torch.equal(restore(*on_gpu).cpu(), restore(*on_cpu))
