"""A GPU without a GPU: a device in host memory, and a recorder of what a CUDA device would wait for.

The extension (``emulated_device.cpp``) is built once for each version of torch, where there is a C++ compiler. Torch
takes one such device a process and never gives it up, so tests play on it in a process of their own.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.utils import cpp_extension
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAME = "emulated"
SOURCE = Path(__file__).with_suffix(".cpp")
_COPIES = {"copy_", "_copy_from", "_to_copy"}
# Operations that return sizes or numbers to the host, or whose result's size they have to learn first.
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}
# Operations that compute nothing: other views of the same memory, or memory that is not written.
_FREE = {
    *(
        "view",
        "_unsafe_view",
        "t",
        "transpose",
        "permute",
        "expand",
        "slice",
        "select",
        "unsqueeze",
        "squeeze",
        "unfold",
    ),
    *("as_strided", "as_strided_"),
    *("detach", "alias", "split", "split_with_sizes", "unbind", "_reshape_alias", "diagonal", "chunk"),
    *(
        "empty",
        "empty_like",
        "new_empty",
        "empty_strided",
        "new_empty_strided",
        "resize_",
        "lift_fresh",
        "is_same_size",
    ),
}


def compiler() -> str | None:
    """The C++ compiler; None where the device cannot be built."""
    return shutil.which(os.environ.get("CXX", "g++"))


def build() -> Path:
    """The compiled extension, made if it is not there yet."""
    key = hashlib.sha256(f"{SOURCE.read_text()} {torch.__version__} {sys.version}".encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"fedmef-emulated-device-{os.getuid()}" / f"{key}.so"
    if not library.exists():
        library.parent.mkdir(mode=0o700, exist_ok=True)
        made = library.with_suffix(f".{os.getpid()}")
        folders = [*(f"-I{path}" for path in cpp_extension.include_paths()), f"-L{cpp_extension.library_paths()[0]}"]
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
        command = [str(compiler()), "-std=c++20", "-shared", "-fPIC", "-O0", "-w", abi, str(SOURCE), "-o", str(made)]
        subprocess.run([*command, *folders, "-ltorch", "-ltorch_cpu", "-lc10"], check=True)
        made.replace(library)
    return library


def load() -> torch.device:
    """Makes the device known to torch in this process."""
    torch.ops.load_library(str(build()))
    torch.utils.rename_privateuse1_backend(NAME)
    module = ModuleType(f"torch.{NAME}")
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module.device_count, module.current_device = lambda: 1, lambda: 0
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = module.set_device = lambda number: None
    module.synchronize = lambda device=None: None
    torch._register_device_module(NAME, module)
    _let_tensors_be_copied()
    return torch.device(NAME, 0)


def _let_tensors_be_copied() -> None:
    """``copy.deepcopy`` copies a CUDA tensor's storage; torch cannot copy that of a device which it does not know."""
    whole = Tensor.__deepcopy__

    def copied(tensor: Tensor, memo: dict[int, object]) -> Tensor:
        return memo.setdefault(id(tensor), tensor.clone()) if _here(tensor) else whole(tensor, memo)

    Tensor.__deepcopy__ = copied


def _here(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.device.type == NAME


class Recorder(TorchDispatchMode):
    """Inside, what a CUDA device would do for each operation is counted.

    Attributes:
        waits: places in the package at which the host would wait for the device, and how often it would there.
        copies: places at which something goes from the host to the device.
        launches: operations that would start a kernel, by part of a step and name. Each counts once; some of torch's
            and of cuDNN's start several.
        part: the part that goes on, outside of backward passes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits, self.copies, self.launches = Counter(), Counter(), Counter()
        self.part, self.is_on = "forward", False

    def __enter__(self):
        self.is_on = True
        return super().__enter__()

    def __exit__(self, *error):
        self.is_on = False
        return super().__exit__(*error)

    def counts(self) -> dict[str, int]:
        return {
            what: counted.total()
            for what, counted in (("waits", self.waits), ("copies", self.copies), ("launches", self.launches))
        }

    def launched(self, name: str) -> None:
        """Notes an operation or a kernel of the package's own."""
        in_backward = torch._C._current_graph_task_id() != -1
        self.launches["backward" if in_backward else self.part, name] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        out = func(*args, **kwargs)
        if name in _COPIES:
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], out)
            if _here(source) != _here(target):
                waits = _here(source) and not (kwargs.get("non_blocking") or args[2:3] == (True,))
                (self.waits if waits else self.copies)[self._place(name)] += 1
            elif _here(source):
                self.launched(name)
            return out
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(map(_here, tensors)):
            if name in _WAITS or (name == "repeat_interleave" and func._overloadname == "Tensor"):
                self.waits[self._place(name)] += 1
            if name.startswith(("index", "_index")) and any(leaf.dtype == torch.bool for leaf in _indices(args)):
                self.waits[self._place(name)] += 1
            if name.startswith("index") and any(not _here(leaf) and leaf.dim() for leaf in tensors):
                self.copies[self._place(name)] += 1
            if name not in _FREE and name != "_local_scalar_dense":
                self.launched(_with_gradients(name, args))
        elif _here(out) and name not in _FREE:
            self.launched(name)
        return out

    def _place(self, name: str) -> str:
        for frame in reversed(traceback.extract_stack(limit=40)):
            if "/fedmef_dist/" in frame.filename and "/tests/" not in frame.filename:
                return f"{frame.filename.partition('/fedmef_dist/')[2]}:{frame.lineno} {name}"
        return name


def _with_gradients(name: str, args: tuple) -> str:
    """A convolution's backward function together with the gradients that it is asked for."""
    if name != "convolution_backward":
        return name
    wanted = [what for what, is_wanted in zip(("input", "weight", "bias"), args[-1], strict=True) if is_wanted]
    return f"{name} of {', '.join(wanted)}"


def _indices(args: tuple) -> list[Tensor]:
    listed = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else []
    return [leaf for leaf in listed if isinstance(leaf, Tensor)]
