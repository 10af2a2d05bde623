import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fedmef_dist.base import compiled as base
from fedmef_dist.layers.kernels import cpu, kernels_for, packing_loops, pattern, patterns, portable, threshold_loops

IMPLEMENTATIONS = [pytest.param(cpu, id="cpu"), pytest.param(portable, id="portable")]
NAN, INF = float("nan"), float("inf")
ROOT = str(Path(__file__).parents[3])
TYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
VALUES = st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, 6.0, -6.0, 7.0, INF, -INF, NAN]), min_size=1, max_size=70)


def bitmap(row):
    return torch.zeros((row.numel() + 7) // 8, dtype=torch.uint8)


def test_patterns_are_in_the_order_of_magnitude():
    row = patterns(torch.tensor([0.0, 1e-40, 1.0, 2.0, INF, NAN]))
    assert row.tolist() == sorted(row.tolist())
    assert pattern(1.0, torch.float32) == 0x3F800000
    assert pattern(1.0, torch.bfloat16) == 0x3F80
    assert pattern(1.0, torch.float16) == 0x3C00


def test_the_device_decides():
    assert kernels_for(torch.empty(0)) is cpu
    assert kernels_for(torch.empty(0, device="meta")) is portable
    with FakeTensorMode():
        for device in ("cpu", "cuda"):
            assert kernels_for(torch.empty(0, device=device)) is portable


def test_by_hand():
    row = patterns(torch.tensor([3.0, -1.0, 0.0, -4.0, 1.0, 1.0, 0.5, 2.0, -1.0]))
    assert cpu.count_from(row, pattern(1.0, torch.float32)) == 7
    assert cpu.find_threshold(row, 3) == (pattern(2.0, torch.float32), 9)
    assert cpu.find_threshold(row, 5) == (pattern(1.0, torch.float32), 5)  # before position 5: -1 at 1, 1 at 4
    flags, values, back = bitmap(row), torch.empty(5, dtype=row.dtype), torch.empty_like(row)
    cpu.pack(row, *cpu.find_threshold(row, 5), flags, values)
    assert flags.tolist() == [0b10011011, 0]
    assert values.view(torch.float32).tolist() == [3, -1, -4, 1, 2]
    cpu.unpack(flags, values, back)
    assert back.view(torch.float32).tolist() == [3, -1, 0, -4, 1, 0, 0, 2, 0]


def test_by_hand_on_a_device():
    rows = patterns(torch.tensor([[3.0, -1.0, 0.0, -4.0, 1.0, 1.0, 0.5, 2.0, -1.0], [0.0, 5, 0, 0, 0, 0, 0, 0, -7]]))
    assert portable.count_from(rows, torch.full((2,), pattern(1.0, torch.float32))).tolist() == [7, 2]
    threshold, ties = portable.find_threshold(rows, 5)  # -1 at 1 and 1 at 4 are the first two of four
    assert threshold.tolist() == [pattern(1.0, torch.float32), 0]
    assert ties.tolist() == [2, 0]
    assert portable.find_threshold(rows, torch.tensor([3, 1]))[0].tolist() == [
        pattern(2.0, torch.float32),
        pattern(7.0, torch.float32),
    ]
    flags, values = portable.pack(rows, threshold, ties, 6)
    assert flags.tolist() == [[0b10011011, 0], [0b10, 1]]
    assert values.view(torch.float32).tolist() == [[3, -1, -4, 1, 2, 0], [5, -7, 0, 0, 0, 0]]
    back = portable.unpack(flags, values, 9).view(torch.float32)
    assert back.tolist() == [[3, -1, 0, -4, 1, 0, 0, 2, 0], [0, 5, 0, 0, 0, 0, 0, 0, -7]]


@given(
    shape=st.sampled_from(["normal", "relu", "relu6", "wide", "few", "equal", "background", "not numbers"]),
    dtype=TYPES,
    size=st.integers(1000, 20000),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_thresholds_of_many_elements_are_those_that_sorting_finds(shape, dtype, size, seed, data):
    normal = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    values = {
        "normal": normal,
        "relu": normal.relu(),
        "relu6": (8 * normal).clamp(0, 6),
        "wide": normal**3 * (5 * normal.flip(0)).exp(),
        "few": normal.round(),
        "equal": torch.ones(size),
        "background": torch.where(normal > 1, 0.25, normal.flip(0).relu()),
        "not numbers": torch.where(normal > 1, torch.tensor(-1, dtype=torch.int32).view(torch.float32), normal),
    }[shape]
    row = patterns(values.to(dtype))
    magnitude = row & torch.iinfo(row.dtype).max
    count = data.draw(st.integers(1, size))
    order = magnitude.sort(descending=True, stable=True)  # equal ones in order of position
    threshold, end = cpu.find_threshold(row, count)
    assert threshold == order.values[count - 1]
    kept = (magnitude > threshold) | ((magnitude == threshold) & (torch.arange(size) < end))
    assert torch.equal(kept.nonzero().flatten(), order.indices[:count].sort().values)
    flags, packed, back = bitmap(row), torch.empty(count, dtype=row.dtype), torch.empty_like(row)
    cpu.pack(row, threshold, end, flags, packed)
    assert torch.equal(packed, row[kept])
    cpu.unpack(flags, packed, back)
    assert torch.equal(back, row * kept)
    assert torch.equal(cpu.select(flags, row), back)


@pytest.mark.parametrize("kernels", IMPLEMENTATIONS)
def test_gate_by_hand(kernels):
    x = torch.tensor([-1.0, 0.0, 5.0, 6.0, NAN, INF, -NAN, -INF, 3.0])
    flags = kernels.pack_between(patterns(x), pattern(6.0, torch.float32))
    assert flags.tolist() == [0b00000100, 1]
    assert kernels.pack_between(patterns(x), 2**31 - 1).tolist() == [0b00111100, 1]
    selected = kernels.select(flags, patterns(torch.arange(9.0))).view(torch.float32)
    assert selected.tolist() == [0, 0, 2, 0, 0, 0, 0, 0, 8]


@given(values=VALUES, dtype=TYPES, data=st.data())
def test_a_device_finds_and_packs_what_a_cpu_does(values, dtype, data):
    row = patterns(torch.tensor(values, dtype=dtype))
    count = data.draw(st.integers(1, len(values)))
    threshold, end = cpu.find_threshold(row, count)
    theirs, ties = portable.find_threshold(row.unsqueeze(0), count)
    magnitude = row & torch.iinfo(row.dtype).max
    assert theirs.item() == threshold
    assert ties.item() == (int((magnitude[:end] == threshold).sum()) if threshold else 0)
    assert portable.count_from(row.unsqueeze(0), theirs).item() == cpu.count_from(row, threshold)
    if threshold:  # else zeros would be packed
        flags, taken, back = bitmap(row), row.new_empty(count), torch.empty_like(row)
        cpu.pack(row, threshold, end, flags, taken)
        cpu.unpack(flags, taken, back)
        packed = portable.pack(row.unsqueeze(0), theirs, ties, count)
        assert torch.equal(packed[0][0], flags)
        assert torch.equal(packed[1][0], taken)
        assert torch.equal(portable.unpack(*packed, row.numel())[0], back)
        assert torch.equal(back[back != 0], row[back != 0])
    gates = [kernels.pack_between(row, pattern(6.0, dtype)) for kernels in (cpu, portable)]
    assert torch.equal(*gates)
    assert torch.equal(cpu.select(gates[0], row), portable.select(gates[0], row))


def everything(row, count):
    """What all kernels make of a row."""
    threshold, end = cpu.find_threshold(row, count)
    flags, packed, back = bitmap(row), torch.empty(count, dtype=row.dtype), torch.empty_like(row)
    cpu.pack(row, threshold, end, flags, packed)
    cpu.unpack(flags, packed, back)
    gate = cpu.pack_between(row, pattern(6.0, torch.float32))
    return [torch.tensor(cpu.count_from(row, threshold)), flags, packed, back, gate, cpu.select(gate, row)]


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 1.0])
def test_the_number_of_threads_changes_no_bit(share, monkeypatch):
    row = patterns(torch.randn(1003, generator=torch.Generator().manual_seed(0)).round())  # ties in all pieces
    count = max(round(share * 1003), 1)
    alone = everything(row, count)
    monkeypatch.setattr(cpu, "_WORTH_A_THREAD", 100)
    for threads in (2, 3, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert len(cpu._pieces(1003)) == threads
        assert all(torch.equal(*pair) for pair in zip(everything(row, count), alone, strict=True))


@pytest.mark.parametrize("kind", ["int16", "int32", "int64"])
def test_the_preparation_compiles_every_loop(kind):
    for loops in (threshold_loops, packing_loops):
        loops.prepare(np.dtype(kind))
    packing = (packing_loops.pack_row, packing_loops.unpack_row, packing_loops.pack_between, packing_loops.select)
    for loop in (threshold_loops.count_from, threshold_loops.find_threshold, *packing):
        assert any(kind in str(signature) for signature in loop.signatures)


@pytest.mark.skipif(not packing_loops.has_permutation(), reason="the processor has no AVX2: only the table moves")
def test_a_table_moves_eight_elements_as_the_permutation_does():
    """What is compiled for a processor without it. Every byte of flags comes, and values that end early."""
    flags = np.arange(256, dtype=np.uint8).repeat(2)
    chosen = np.unpackbits(flags, bitorder="little").astype(bool)
    row = np.where(chosen, 100, 1).astype(np.int32) * np.where(np.arange(chosen.size) % 3, 1, -1).astype(np.int32)
    row = np.where(row < 0, -row ^ np.int32(-(2**31)), row)  # the sign alone, as floats have it
    for room in (chosen.sum(), chosen.sum() - 20):
        packed, back = [], []
        for pack, unpack in (
            (packing_loops._pack_bytes, packing_loops._unpack_bytes),
            (packing_loops._pack_bytes_permuting, packing_loops._unpack_bytes_permuting),
        ):
            found, values, out = np.zeros_like(flags), np.zeros(room, np.int32), np.zeros_like(row)
            byte, position = numba.njit(pack)(row, 50, 0, flags.size, 0, found, values)
            packed.append((byte, position, found.tolist(), values[:position].tolist()))
            byte, position = numba.njit(unpack)(flags, values, out)
            back.append((byte, position, out[: 8 * byte].tolist()))
        assert packed[0] == packed[1]
        assert back[0] == back[1]
        byte, position, found, values = packed[0]
        assert found[:byte] == flags[:byte].tolist()
        assert values == row[chosen][:position].tolist()


def test_numba_may_compile_for_a_processor_that_cannot_permute(tmp_path):
    """As for a cache that different processors share."""
    code = (
        "import numpy as np; from fedmef_dist.layers.kernels import packing_loops as loops\n"
        "row, flags, values = np.arange(24, dtype=np.int32), np.zeros(3, np.uint8), np.zeros(20, np.int32)\n"
        "loops.pack_row(row, 4, 24, flags, values); print(loops.has_permutation(), values.tolist() == [*range(4, 24)])"
    )
    settings = {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": ROOT}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True)
    assert done.stdout == "False True\n", done.stderr


@pytest.mark.parametrize("size", [200, 1024, 4096, 16384, 32768, 100000])
@pytest.mark.parametrize("shape", ["normal", "relu", "background"])
def test_a_threshold_is_found_in_few_passes(size, shape, monkeypatch):
    """Each pass reads the whole row, so passes are what a search costs."""
    passes, generator = [], torch.Generator().manual_seed(size)
    normal = torch.randn(size, generator=generator)
    plain = torch.rand(size, generator=generator) < 0.3
    values = {"normal": normal, "relu": normal.relu(), "background": torch.where(plain, 0.25, normal.relu())}[shape]

    def counted(row, low, high):
        passes.append((low, high))
        return count_both(row, low, high)

    count_both = threshold_loops._count_both
    monkeypatch.setattr(threshold_loops, "_count_both", counted)
    for share in (0.02, 0.1, 0.5):
        threshold_loops.find_threshold.py_func(patterns(values).numpy(), round(share * size))
        assert len(passes) <= 8, (share, passes)
        passes.clear()


PROGRAM = """
import numpy as np
from fedmef_dist.layers.kernels import threshold_loops as loops
loops.prepare(np.dtype("int32"))
print(int(loops.count_from(np.arange(9, dtype=np.int32), 3)), sum(loops.find_threshold.stats.cache_hits.values()))
"""


def start(folder):
    environment = {"NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": ROOT}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, text=True)


def double(number):
    return 2 * number


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1023, 1025, 5003])
def test_rows_of_several_parts_are_packed_like_those_of_one(size, dtype):
    generator = torch.Generator().manual_seed(size)
    row = patterns(torch.randint(-4, 5, (size,), generator=generator).to(dtype))  # many ties
    for count in (1, size // 3, size // 2):
        threshold, end = cpu.find_threshold(row, count)
        flags, values, back = bitmap(row), torch.empty(count, dtype=row.dtype), torch.empty_like(row)
        cpu.pack(row, threshold, end, flags, values)
        chosen = np.unpackbits(flags.numpy(), count=size, bitorder="little").astype(bool)
        magnitude = row.numpy() & torch.iinfo(row.dtype).max
        assert np.array_equal(chosen, (magnitude > threshold) | ((magnitude == threshold) & (np.arange(size) < end)))
        assert np.array_equal(values.numpy(), row.numpy()[chosen])
        cpu.unpack(flags, values, back)
        assert np.array_equal(back.numpy(), np.where(chosen, row.numpy(), 0))
    high = pattern(2.5, dtype)
    assert torch.equal(cpu.pack_between(row, high), portable.pack_between(row, high))


def test_without_a_place_for_the_cache_every_process_compiles(monkeypatch):
    monkeypatch.setattr("numba.core.caching.CompileResultCacheImpl._locator_classes", [])
    compiled = base.compiled(double)
    assert compiled(4) == 8
    assert compiled.stats.cache_path is None
    called = []
    monkeypatch.setattr(threshold_loops, "count_from", compiled)
    monkeypatch.setattr(threshold_loops, "_call_all", called.append)
    threshold_loops.prepare.__wrapped__(np.dtype("int32"))
    assert called == [np.dtype("int32")]


def test_two_processes_that_start_on_an_empty_cache_compile_once(tmp_path):
    outputs = sorted(process.communicate()[0].split() for process in [start(tmp_path), start(tmp_path)])
    assert [counted for counted, _ in outputs] == ["6", "6"]
    assert sum(int(hits) for _, hits in outputs) == 1
