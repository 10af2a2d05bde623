"""Compiles Triton's kernels for a Hopper GPU, on a machine that need not have one, as they are launched.

Run as a program: the interpreter, which other tests switch on for their process, must be off.
"""

import os

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from fedmef_dist.layers.kernels import gpu, gpu_filters, patterns

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.bool: "*i1", torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
    torch.float32: "*fp32",
}  # fmt: skip


def kind(value):
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


class Compiled(dict):
    """Stands for launching: compiles each kernel once for each kind of arguments."""

    def run(self, kernel, *args, grid, warmup, num_warps=4):
        constants = {
            parameter.name: value
            for parameter, value in zip(kernel.params, args, strict=True)
            # Triton takes a 1 for a constant unless it is told not to.
            if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize)
        }
        signature = {
            name: "constexpr" if name in constants else kind(value)
            for name, value in zip(kernel.arg_names, args, strict=True)
        }
        key = kernel.__name__, *signature.values(), *constants.values()
        if key not in self:
            self[key] = triton.compile(
                ASTSource(kernel, signature, constants), target=HOPPER, options={"num_warps": num_warps}
            )


def launch_all(dtype, columns):
    rows = patterns(torch.randn(2, columns).to(dtype))
    for wanted in (7, torch.tensor([7, 8])):
        threshold, ties = gpu.find_threshold(rows, wanted)
    gpu.count_from(rows, threshold)
    gpu.pack_largest(rows, min(columns, 7))
    gpu.unpack(*gpu.pack(rows, threshold, ties, min(columns, 7)), columns)
    gpu.select(gpu.pack_between(rows[0], 1000), rows[0])
    gpu.clip(rows[0], torch.iinfo(rows.dtype).max, 1000, rows[1])


def main():
    compiled = Compiled()
    JITFunction.run = lambda kernel, *args, **kwargs: compiled.run(kernel, *args, **kwargs)
    for dtype, columns in ((torch.bfloat16, 5000), (torch.float32, 1), (torch.float32, 5000), (torch.float64, 5000)):
        launch_all(dtype, columns)
    gain = torch.ones(3)
    for theta in (torch.randn(3, 20), torch.randn(3, 1)):
        for mask in (None, theta > 0):
            rows = gpu_filters.FilterRows(theta, mask, gain, 1.0, 1e-4, True)
            rows.weight()
            rows.gradients(torch.randn_like(theta))
    values, block = torch.randn(25), gpu_filters.Block(0, 2, 10, 20, 1.0, True)
    for mask in (None, values[:20] > 0):
        flat = gpu_filters.FlatFilters([block], 1e-4, values.device)
        flat.weights(values, mask, torch.empty(20))
        flat.gradients(torch.randn(25), values, mask)
    assert all("sm_90" in kernel.asm["ptx"] for kernel in compiled.values())
    print(*sorted({key[0] for key in compiled}))


if __name__ == "__main__":
    main()
