"""Isolation of validation from the surrounding training."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng

_LIGHTNINGS_SEEDS = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")


@contextmanager
def isolated(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Run a block with the module in eval mode and without gradients, and restore the previous state afterwards.

    Restored are the train or eval mode of every submodule, ``requires_grad`` of every parameter, torch's default dtype,
    all random states, and the seeds that Lightning keeps in environment variables, also if the block raises.

    Args:
        module: module with submodules in train or eval mode.
        device: device of the module; random states of the CPU and of all GPUs are restored in any case.
    """
    modes = [(part, part.training) for part in module.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    default_dtype = torch.get_default_dtype()
    other = None if device.type in ("cpu", "cuda") else getattr(torch, device.type, None)
    state = other.get_rng_state() if other is not None else None
    # They seed Lightning's samplers; seed_everything in a generator would make the ranks shuffle differently.
    seeds = {name: os.environ.get(name) for name in _LIGHTNINGS_SEEDS}
    raised: BaseException | None = None
    try:
        # In inference mode, tensors that the model caches, such as position embeddings, would break its training.
        with isolate_rng(), torch.inference_mode(False), torch.no_grad():
            module.eval()
            try:
                yield
            except BaseException as error:  # isolate_rng does not restore random states after an exception
                raised = error
    finally:
        for parameter, requires_grad in trained:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
        torch.set_default_dtype(default_dtype)
        if other is not None:
            other.set_rng_state(state)
        for name, value in seeds.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        # Last, since it may run code of the module, in the same gradient mode as eval() above.
        with torch.inference_mode(False), torch.no_grad():
            _restore_modes(modes)
    if raised is not None:
        raise raised


def _restore_modes(modes: list[tuple[torch.nn.Module, bool]]) -> None:
    for part, training in modes:  # parents first
        if part.training != training and type(part).train is not torch.nn.Module.train:
            part.train(training)  # an override may do more than set a flag, such as unmerge adapter weights
        part.training = training


def seed_all(seed: int) -> None:
    """Seed torch on all devices, numpy and Python."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
