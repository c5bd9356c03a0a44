"""Modes and random states of the surrounding training, restored after validation."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

_LIGHTNINGS_SEEDS = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")


@contextmanager
def isolated(modules: Sequence[torch.nn.Module], device: torch.device) -> Iterator[None]:
    """Run a block with modules in eval mode and without gradients, and restore the previous state afterwards.

    Restored are the train or eval mode of every submodule, ``requires_grad`` of every parameter, torch's default dtype,
    all random states, and the seeds that Lightning keeps in environment variables, also if the block raises.

    Args:
        modules: modules with submodules in train or eval mode.
        device: device of the modules; random states of the CPU and of all GPUs are restored in any case.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    trained = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
    default_dtype = torch.get_default_dtype()
    # They seed Lightning's samplers; seed_everything in a generator would make the ranks shuffle differently.
    seeds = {name: os.environ.get(name) for name in _LIGHTNINGS_SEEDS}
    restore_random_states = _random_states(device)
    try:
        # In inference mode, tensors that the model caches, such as position embeddings, would break its training.
        with torch.inference_mode(False), torch.no_grad():
            for module in modules:
                module.eval()
            yield
    finally:
        restore_random_states()
        for parameter, requires_grad in trained:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
        torch.set_default_dtype(default_dtype)
        for name, value in seeds.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        # Last, since it may run code of a module, in the same gradient mode as eval() above.
        with torch.inference_mode(False), torch.no_grad():
            _restore_modes(modes)


def _random_states(device: torch.device) -> Callable[[], None]:
    """Function that restores the current random states of Python, numpy, and torch on the CPU and on accelerators."""
    python, array, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    other = None if device.type in ("cpu", "cuda") else getattr(torch, device.type, None)
    others = other.get_rng_state() if other is not None else None

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(array)
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        if other is not None:
            other.set_rng_state(others)

    return restore


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
