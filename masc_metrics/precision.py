"""Device and precision of computations, independent of the surrounding program's settings.

They cover autocast, torch.compile, default dtypes and devices without float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor

from masc_metrics.arguments import check_type
from masc_metrics.settings import DTYPE_NAMES

_P = ParamSpec("_P")
_R = TypeVar("_R")

Dtype: TypeAlias = "torch.dtype | str"

DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES.values()}
"""The dtypes that networks support, by torch's names."""

DEFAULT_DTYPE = torch.float32


def check_dtype(dtype: Dtype) -> torch.dtype:
    """Return the dtype, which may be given by its name: "bfloat16", "bf16" or, as torch prints it, "torch.bfloat16".

    Raises:
        TypeError: if it is neither a dtype nor a string.
        ValueError: if networks do not support it.
    """
    give = f"a torch.dtype or its name: {', '.join(f'{name} ({short})' for short, name in DTYPE_NAMES.items())}"
    check_type("dtype", dtype, (torch.dtype, str), give)
    name = str(dtype).removeprefix("torch.")
    found = DTYPES.get(DTYPE_NAMES.get(name, name))
    if found is None:
        raise ValueError(f"dtype is {dtype!r}; give {give}")
    return found


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception tells of a lack of memory; torch's for the memory of a CPU is a RuntimeError."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(part in str(error) for part in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = ("allocate memory", "DefaultCPUAllocator", "out of memory", "Unable to allocate", "bad_alloc")
"""In messages of torch and of oneDNN, of the system, and of NumPy's MemoryError, which a worker process reports as a
RuntimeError."""


def check_device(device: str | int | torch.device) -> torch.device:
    """Return the device with its index, such as "cuda:0"; raise ValueError if it is not available."""
    kinds = (str, torch.device) if isinstance(device, bool) else (str, int, torch.device)
    check_type("device", device, kinds, "a string such as 'cuda', or a torch.device")
    try:
        resolved = torch.empty(0, dtype=torch.float32, device=device).device
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # depends on the device
        reason = str(error).splitlines()[0].partition(". ")[0]  # torch goes on with a list of its backends
        raise ValueError(f"device {str(device)!r} is not available: {reason}; 'cpu' always is") from error
    if resolved.type == "meta":
        raise ValueError("device 'meta' cannot compute values; give 'cpu' or an accelerator")
    return resolved


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device without blocking on queued GPU work.

    A plain copy to a GPU waits for all work queued before it, so the GPU would idle while the next batch is prepared.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.contiguous().pin_memory().to(device, non_blocking=True)  # an expanded one cannot be pinned
    return tensor.to(device)


def stack_on_device(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Stack tensors of equal shape and dtype on the device; like :func:`to_device`, without blocking."""
    if device.type == "cuda" and all(tensor.device.type == "cpu" for tensor in tensors):
        staged = torch.empty((len(tensors), *tensors[0].shape), dtype=tensors[0].dtype, device="cpu", pin_memory=True)
        return torch.stack(list(tensors), out=staged).to(device, non_blocking=True)
    return torch.stack([to_device(tensor, device) for tensor in tensors])


class HostCopy:
    """A copy of a tensor on the host, which waits for the device only when its values are read.

    Unlike a plain copy from a GPU, it does not wait for work that was queued after the tensor's own.
    """

    def __init__(self, tensor: Tensor) -> None:
        on_gpu = tensor.device.type == "cuda"
        self._values = tensor.to("cpu", non_blocking=on_gpu)
        self._copied = torch.cuda.current_stream(tensor.device).record_event() if on_gpu else None

    def tolist(self) -> list[Any]:
        """The values as nested lists."""
        if self._copied is not None:
            self._copied.synchronize()
        values: list[Any] = self._values.tolist()
        return values


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Context manager that disables autocast on this device."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def eager(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorator: run the function outside ``torch.compile``, in code that is compiled too.

    Compiled, reading a network would fail, and the network would compute scores that differ in their last bits.
    ``torch.compiler.disable`` does the same, but imports the compiler, which takes as long as importing torch. So it is
    applied at the first call; transformers imports the compiler anyway.
    """
    uncompiled: list[Callable[_P, _R]] = []

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not uncompiled:
            uncompiled.append(torch.compiler.disable(function))  # type: ignore[no-untyped-call]  # torch's
        return uncompiled[0](*args, **kwargs)

    return run


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default dtype, for code of others that creates tensors without a dtype."""
    surrounding = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(surrounding)


def sum_dtype(device: torch.device) -> torch.dtype:
    """Dtype of sums over samples: float64 for accuracy, or float32 if the device does not support float64."""
    return torch.float32 if device.type == "mps" else torch.float64
