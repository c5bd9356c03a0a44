"""Where and in which precision things are computed, whatever the surrounding program has set.

These rules are in one place because each is a trap by itself: autocast, default dtypes, devices without float64.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

DEFAULT_DTYPE = torch.float32


def check_dtype(dtype: torch.dtype) -> None:
    """Raise TypeError unless the network can run in this dtype."""
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"dtype is {dtype!r}; give torch.float32, torch.bfloat16 or torch.float16")


def check_device(device: str | torch.device) -> torch.device:
    """The device, its index spelt out; ValueError unless it is there and computes."""
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device is a {type(device).__name__}; give a string such as 'cuda' or a torch.device")
    try:
        found = torch.empty(0, dtype=torch.float32, device=device).device
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # torch raises any of them for a device
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} is not to be had here: {reason}; 'cpu' always is") from error
    if found.type == "meta":
        raise ValueError("device 'meta' computes nothing; give 'cpu' or an accelerator")
    return found


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device without blocking on queued GPU work.

    A plain copy to a GPU waits for all work queued before it, so the GPU would idle while the next batch is prepared.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.contiguous().pin_memory().to(device, non_blocking=True)  # an expanded one cannot be pinned
    return tensor.to(device)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which the surrounding autocast does not reach this device's products."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def sum_dtype(device: torch.device) -> torch.dtype:
    """float64, so that a mean over many samples keeps its last digits; float32 where the device has no other."""
    return torch.float32 if device.type == "mps" else torch.float64
