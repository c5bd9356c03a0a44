"""A network's products on x86 CPUs, by oneDNN and with the activation inside.

torch sends float32 products to MKL, which is slower than oneDNN on AMD processors, and computes the activation in a
second walk over the widest tensor of the network. docs/performance.md has the figures.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn

_ACTIVATIONS = {"gelu_pytorch_tanh": ("gelu", "tanh")}  # transformers' name; oneDNN's, and its algorithm


class _Linear(nn.Linear):
    """x W^T + b."""

    def forward(self, x: Tensor) -> Tensor:
        return _product(self, x, "none", "")


class _ActivatedLinear(nn.Linear):
    """act(x W^T + b)."""

    activation: tuple[str, str]

    def forward(self, x: Tensor) -> Tensor:
        return _product(self, x, *self.activation)


def _product(layer: nn.Linear, x: Tensor, activation: str, algorithm: str) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, activation, [], algorithm)
    return product


def is_available(dtype: torch.dtype) -> bool:
    """Whether this processor and this torch have the kernels; they are torch.compile's, and no public promise."""
    return (
        dtype in (torch.float32, torch.bfloat16)
        and platform.machine() in ("x86_64", "AMD64")
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


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
                first.__class__ = _ActivatedLinear
                first.activation = _ACTIVATIONS[hidden_act]
                module.activation_fn = nn.Identity()
