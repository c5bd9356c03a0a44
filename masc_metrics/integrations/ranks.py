"""What ranks do together: the forwards of a model that is spread over them, and telling each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Result = TypeVar("_Result")


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether forwards gather parameters from other ranks: FSDP, FSDP2, tensor parallelism, or DeepSpeed's stage 3."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules()) or any(
        type(parameter).__name__ == "DTensor" or hasattr(parameter, "ds_id") for parameter in model.parameters()
    )


def call_unsharded(wrapper: torch.nn.Module, module: torch.nn.Module, function: Callable[[], _Result]) -> _Result:
    """Call a function that uses the module's own parameters, which only a forward of its wrapper brings together.

    Args:
        wrapper: what the strategy made of the module; or the module itself.
        module: the LightningModule.
        function: runs inside the wrapper's forward, in place of the module's.
    """
    results: list[_Result] = []
    own_forward = vars(module).get("forward")

    def restore() -> None:
        vars(module).pop("forward", None)
        if own_forward is not None:
            module.forward = own_forward

    def once(_: None) -> None:  # torch 2.4's FSDP fails in a forward without arguments
        restore()  # the function may call the module itself
        results.append(function())

    module.forward = once
    try:
        wrapper(None)
    finally:
        restore()
    return results[0]


def gathered(value: _Result) -> list[_Result]:
    """Every rank's value, in the order of ranks; a collective call."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
