"""The Triton kernels: on a GPU where there is one, else in Triton's interpreter."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="needs triton, which torch's CUDA wheels bring: pip install triton")

from fedmef_dist.layers.kernels import gpu, pattern, patterns, portable

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("length", [1, 1000, 1024, 5003])
def test_the_kernels_are_those_in_torchs_operations_bit_for_bit(length, dtype):
    x = torch.randn(length, generator=torch.Generator().manual_seed(length)).to(DEVICE, dtype)
    x[::3] = 1
    x[length // 2] = float("nan")
    row = patterns(x)
    for count in {1, (length + 1) // 2, length}:
        threshold, end = portable.find_threshold(row, count)
        results = []
        for kernels in (gpu, portable):
            bitmap = torch.zeros((length + 7) // 8, dtype=torch.uint8, device=DEVICE)
            values, back = row.new_empty(count), torch.empty_like(row)
            kernels.pack(row, threshold, end, bitmap, values)
            kernels.unpack(bitmap, values, back)
            gate = kernels.pack_between(row, pattern(1.5, dtype))
            results.append((bitmap, values, back, gate, kernels.select(gate, row)))
        assert all(torch.equal(mine, other) for mine, other in zip(*results, strict=True))


@pytest.mark.parametrize("kernel", ["unpack", "pack"])
def test_nothing_was_kept(kernel):
    row = torch.ones(20, dtype=torch.int32, device=DEVICE)
    bitmap = torch.zeros(3, dtype=torch.uint8, device=DEVICE)
    if kernel == "pack":
        gpu.pack(row, 2, 20, bitmap, row.new_empty(0))
        assert not bitmap.any()
    else:
        gpu.unpack(bitmap, row.new_empty(0), row)
        assert not row.any()
