"""Communication between ranks: forwards of sharded models, and gathering of objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Result = TypeVar("_Result")


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether a forward gathers parameters from other ranks: FSDP, FSDP2, tensor parallelism or DeepSpeed stage 3."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules()) or any(
        type(parameter).__name__ == "DTensor" or hasattr(parameter, "ds_id") for parameter in model.parameters()
    )


def call_unsharded(wrapper: torch.nn.Module, module: torch.nn.Module, function: Callable[[], _Result]) -> _Result:
    """Call a function inside a forward of the wrapper, in which the parameters of the module are gathered.

    Args:
        wrapper: module wrapped by the strategy, or the module itself.
        module: the LightningModule.
        function: function to call in place of the module's forward.
    """
    results: list[_Result] = []
    own_forward = vars(module).get("forward")

    def restore() -> None:
        vars(module).pop("forward", None)
        if own_forward is not None:
            module.forward = own_forward

    def run_function(_: None) -> None:  # FSDP in torch 2.4 does not support a forward without arguments
        restore()  # the function may call the module
        results.append(function())

    module.forward = run_function
    try:
        wrapper(None)
    finally:
        restore()
    return results[0]


def all_gather(value: _Result) -> list[_Result]:
    """Values of all ranks, in the order of ranks; a collective call."""
    _, world = rank_and_world()
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    torch.distributed.all_gather_object(values, value)
    return values


def rank_and_world() -> tuple[int, int]:
    """Rank of this process, and the number of ranks; 0 and 1 without torch.distributed."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
