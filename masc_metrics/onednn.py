"""Linear layers on x86 CPUs by oneDNN, fused with their activation.

torch uses MKL for float32, which is slower than oneDNN on AMD processors, and computes the activation in a second pass
over the widest tensor of the network. docs/performance.md has measurements.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATIONS = {"gelu_pytorch_tanh": ("gelu", "tanh")}  # name in transformers: name and algorithm in oneDNN


class _Linear(nn.Linear):
    """x W^T + b."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.backends.mkldnn.enabled:  # respect the user's setting, as torch does
            return super().forward(x)
        return _product(x, self.weight, self.bias, "none", "")


class _GELULinear(nn.Linear):
    """GELU(x W^T + b) with the tanh approximation."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.backends.mkldnn.enabled:
            return F.gelu(super().forward(x), approximate="tanh")
        return _product(x, self.weight, self.bias, *_ACTIVATIONS["gelu_pytorch_tanh"])


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, algorithm: str) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
    return product


@cache
def is_available(dtype: torch.dtype) -> bool:
    """Whether torch.compile's oneDNN operator works in this dtype with this processor and torch version.

    The operator is not public and raises if the processor lacks the instructions, so a small product is tried.
    """
    if dtype not in (torch.float32, torch.bfloat16) or platform.machine() not in ("x86_64", "AMD64"):
        return False
    ones = torch.ones(16, 16, dtype=dtype, device="cpu")
    try:
        return bool((_product(ones, ones, ones[0], "none", "") == 17).all())
    except (AttributeError, RuntimeError):
        return False


def use_onednn(network: nn.Module, hidden_act: str) -> None:
    """Switch the linear layers of a network to oneDNN, in place; the weights do not change.

    Args:
        network: frozen network on a CPU, in a dtype for which :func:`is_available` is True.
        hidden_act: name in transformers of the activation between ``fc1`` and ``fc2`` of the MLPs.
    """
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Linear
    if hidden_act in _ACTIVATIONS:
        for module in list(network.modules()):
            if hasattr(module, "fc1") and hasattr(module, "activation_fn"):
                first: Any = module.fc1
                first.__class__ = _GELULinear
                module.activation_fn = nn.Identity()
