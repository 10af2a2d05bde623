"""What a run asks of a CUDA device: the same bits every time, which one it is, and the versions of what drives it."""

import os
import re
import time
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple, SupportsFloat

import torch
import torch.distributed as dist

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.notices import tell
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.transport import peers_lost

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_DRIVER = Path("/proc/driver/nvidia/version")
_COME, _SHOWN = "devices/come", 8


@contextmanager
def same_bits(
    device: torch.device, *, tf32: bool = False, environ: MutableMapping[str, str] = os.environ
) -> Iterator[None]:
    """Inside, equal computations on a CUDA device give equal bits; the caller's device and settings are back behind it.

    cuDNN and torch take deterministic algorithms where they have any (torch warns where it has none), cuBLAS sums in
    workspaces of fixed size, and products of float32 are those of float32 unless ``tf32`` asks for the 10 bits of
    mantissa that tensor cores give. On another device nothing is set. Call it before CUDA's first use: cuBLAS looks
    for its setting only once.
    """
    if device.type != "cuda":
        if tf32:
            tell(f"runtime.precision: tf32 is CUDA's: on this {device.type} the arithmetic is fp32")
        yield
        return
    late = torch.cuda.is_initialized() and _WORKSPACE not in environ
    if late:
        tell(f"CUDA was in use before this run: set {_WORKSPACE}=:4096:8 at the start for the same bits every time")
    before = _Settings.current()
    had_workspace = environ.get(_WORKSPACE)
    environ.setdefault(_WORKSPACE, ":4096:8")
    caller = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    torch.cuda.set_device(device)
    _Settings(True, False, True, "high" if tf32 else "highest", tf32, True, False).apply()
    try:
        yield
    finally:
        before.apply()
        torch.cuda.set_device(caller)
        if had_workspace is None:
            environ.pop(_WORKSPACE, None)


class _Settings:
    """Torch's global settings that decide about bits."""

    def __init__(
        self,
        deterministic: bool,
        benchmark: bool,
        cudnn_deterministic: bool,
        matmul: str,
        cudnn_tf32: bool,
        warn_only: bool,
        fills: bool,
    ) -> None:
        self.deterministic, self.benchmark, self.warn_only, self.fills = deterministic, benchmark, warn_only, fills
        self.cudnn_deterministic, self.matmul, self.cudnn_tf32 = cudnn_deterministic, matmul, cudnn_tf32

    @classmethod
    def current(cls) -> "_Settings":
        """Those of this process now."""
        cudnn = torch.backends.cudnn
        return cls(
            torch.are_deterministic_algorithms_enabled(),
            cudnn.benchmark,
            cudnn.deterministic,
            torch.get_float32_matmul_precision(),
            cudnn.allow_tf32,
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        )

    def apply(self) -> None:
        """Makes them those of this process."""
        cudnn = torch.backends.cudnn
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)
        cudnn.benchmark, cudnn.deterministic = self.benchmark, self.cudnn_deterministic
        torch.set_float32_matmul_precision(self.matmul)
        cudnn.allow_tf32 = self.cudnn_tf32
        torch.utils.deterministic.fill_uninitialized_memory = self.fills  # type: ignore[attr-defined]


def identity(device: torch.device) -> str:
    """What names a CUDA device wherever and under whatever number it is seen; empty for another device."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def every_rank_has_its_own(store: dist.Store, environment: Environment, name: str) -> bool:
    """Whether no two ranks compute on the same device and none on the CPU; every rank gets the same answer.

    Ranks tell each other by the devices' identities, since under ``srun --gpus-per-task=1`` each sees one device and
    calls it the first. The last to arrive answers for all, so that a rank asks the store five questions and no more.

    Args:
        store: of the ranks, which meet in it.
        environment: this rank.
        name: the identity of its device, see :func:`identity`.

    Raises:
        UserError: ranks do not come within the store's timeout.
        PeerLostError: the store is gone.
    """
    with peers_lost("start-up"):
        return _answer(store, environment, name)


def _answer(store: dist.Store, environment: Environment, name: str) -> bool:
    store.append(_COME, f"{environment.rank} ")  # type: ignore[attr-defined]
    if not name or store.add(f"devices/{name}", 1) > 1:
        store.add("devices/shared", 1)
    if store.add("devices/arrived", 1) == environment.world_size:
        store.set("devices/answer", "shared" if store.add("devices/shared", 0) else "own")
    try:
        return bool(store.get("devices/answer") == b"own")
    except dist.DistStoreError:  # the store lives, and nobody has answered
        come = set(store.get(_COME).decode(errors="replace").split())
        missing = [rank for rank in range(environment.world_size) if str(rank) not in come]
        if missing:
            raise _not_come(missing, environment, store.timeout.total_seconds()) from None  # type: ignore[attr-defined]
        raise


def _not_come(missing: Sequence[int], environment: Environment, seconds: float) -> UserError:
    named = ", ".join(map(str, missing[:_SHOWN])) + (f" and {len(missing) - _SHOWN} more" if missing[_SHOWN:] else "")
    ranks = f"rank{'s' if missing[1:] else ''} {named}"
    return UserError(
        f"{len(missing)} of {environment.world_size} ranks did not come within {seconds:g} s: {ranks}",
        where=f"the meeting of the ranks that {environment.launcher} has started",
        mend="see whether they have started, on which hosts, and what they wait for",
    )


def versions(device: torch.device) -> dict[str, str]:
    """The device's name and the versions of driver, CUDA, cuDNN and NCCL; empty for another device than CUDA's."""
    if device.type != "cuda":
        return {}
    nccl = torch.cuda.nccl.version() if dist.is_nccl_available() else ()
    return {
        "gpu": torch.cuda.get_device_name(device),
        "driver": _driver(),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "nccl": ".".join(map(str, nccl)),
    }


def _driver() -> str:
    """Of the kernel's module; where a container hides it, the CUDA version that the driver speaks."""
    try:
        found = re.search(r"Kernel Module[^\n]*?\s(\d+\.\d+(?:\.\d+)?)\s", _DRIVER.read_text(errors="replace"))
    except OSError:
        found = None
    return found.group(1) if found else f"for CUDA {torch._C._cuda_getDriverVersion()}"  # type: ignore[attr-defined]


class Stopwatch:
    """Seconds from where it was made to where it was stopped in the order of the device's work; waits for nothing.

    Args:
        device: whose work is timed; away from CUDA the host's clock does it.
    """

    def __init__(self, device: torch.device) -> None:
        self._begun, self._start = time.perf_counter(), _event() if device.type == "cuda" else None

    def stop(self) -> SupportsFloat:
        """The seconds up to here: on CUDA something that waits for the device when it is made a number."""
        return time.perf_counter() - self._begun if self._start is None else _Span(self._start, _event())


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class _Span(NamedTuple):
    """Two places in the order of a device's work."""

    start: torch.cuda.Event
    stop: torch.cuda.Event

    def __float__(self) -> float:
        self.stop.synchronize()
        return float(self.start.elapsed_time(self.stop)) / 1000


class SideStream:
    """Work that a CUDA device does beside that of its current stream; elsewhere all work comes in its order anyway.

    What is made in it may be used outside, and let go of there, between :meth:`join` and the next :meth:`fork`.

    Args:
        device: that works; None: no stream of its own, the work is the current stream's.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._own = torch.cuda.Stream(device) if device is not None and device.type == "cuda" else None

    def within(self) -> AbstractContextManager[object]:
        """Inside, work is given to this stream."""
        return nullcontext() if self._own is None else torch.cuda.stream(self._own)

    def fork(self) -> None:
        """What it is given from now on comes behind all that the current stream has been given so far."""
        if self._own is not None:
            self._own.wait_stream(torch.cuda.current_stream(self._own.device))

    def join(self) -> None:
        """What the current stream is given from now on comes behind all that this one has been given so far."""
        if self._own is not None:
            torch.cuda.current_stream(self._own.device).wait_stream(self._own)
