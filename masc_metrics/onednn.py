"""A network's products on x86 CPUs, by oneDNN and with the activation inside.

torch sends float32 products to MKL, which is slower than oneDNN on AMD processors, and computes the activation in a
second walk over the widest tensor of the network. docs/performance.md has the figures.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATIONS = {"gelu_pytorch_tanh": ("gelu", "tanh")}  # transformers' name; oneDNN's, and its algorithm


class _Linear(nn.Linear):
    """x W^T + b."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.backends.mkldnn.enabled:  # the user's switch, which torch's own products obey
            return super().forward(x)
        return _product(x, self.weight, self.bias, "none", "")


class _GELULinear(nn.Linear):
    """GELU(x W^T + b), in its tanh form."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.backends.mkldnn.enabled:
            return F.gelu(super().forward(x), approximate="tanh")
        return _product(x, self.weight, self.bias, *_ACTIVATIONS["gelu_pytorch_tanh"])


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, algorithm: str) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
    return product


@cache
def is_available(dtype: torch.dtype) -> bool:
    """Whether this processor and this torch multiply in this dtype through the operator of torch.compile's.

    It is no public promise, and raises where the processor lacks the instructions, so one product is tried.
    """
    if dtype not in (torch.float32, torch.bfloat16) or platform.machine() not in ("x86_64", "AMD64"):
        return False
    ones = torch.ones(16, 16, dtype=dtype, device="cpu")
    try:
        return bool((_product(ones, ones, ones[0], "none", "") == 17).all())
    except (AttributeError, RuntimeError):
        return False


def use_onednn(network: nn.Module, hidden_act: str) -> None:
    """Let a network's linear layers compute through oneDNN, in place; the weights stay as and where they are.

    Args:
        network: a frozen network on a CPU, of a dtype that :func:`is_available`.
        hidden_act: transformers' name of the activation between ``fc1`` and ``fc2`` of its MLPs.
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
