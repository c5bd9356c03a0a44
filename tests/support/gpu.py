"""What the tests marked ``gpu`` need: the device, its memory counters, and guards against hidden synchronization.

``pytest -m gpu --gpu-device cpu`` rehearses these tests on a machine without CUDA. Counters and guards that only CUDA
has then do nothing, so a rehearsal shows that the tests run, not that a GPU passes them.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

KERNEL_TOLERANCE = 1e-4
"""Between devices in float32 without TF32: only the order of sums differs."""

RESIZE_TOLERANCE = 5e-3
"""Between devices for uint8 images given on each: the resize may differ by one gray level, see docs/numerics.md."""


@contextmanager
def no_synchronization(device: torch.device) -> Iterator[None]:
    """Fail at any operation inside that blocks the host until the GPU has finished."""
    with _sync_debug_mode(device, "error"):
        yield


@contextmanager
def counted_synchronizations(device: torch.device) -> Iterator[list[str]]:
    """Collect one message for each operation inside that blocks the host until the GPU has finished."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with _sync_debug_mode(device, "warn"):
            yield messages
    messages += [str(each.message) for each in caught if "called a synchronizing" in str(each.message)]


@contextmanager
def _sync_debug_mode(device: torch.device, mode: str) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    _set_sync_debug_mode(mode)
    try:
        yield
    finally:
        _set_sync_debug_mode("default")


def _set_sync_debug_mode(mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode(mode)


def allocated_bytes(device: torch.device) -> int:
    """Bytes that live tensors take on the GPU, by torch's own count; 0 without CUDA."""
    gc.collect()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
