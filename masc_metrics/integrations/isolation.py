"""A validation in the middle of a training, of which the training notices nothing."""

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
    """Eval mode and no gradients inside; afterwards everything is as before, however it ends.

    That is every part's train or eval mode, every parameter's ``requires_grad``, torch's default dtype, all random
    states, and the seeds that Lightning keeps in the environment.

    Args:
        module: whose parts may each be in train or eval mode.
        device: where the module is; the CPU's and all GPUs' random states are kept in any case.
    """
    modes = [(part, part.training) for part in module.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    default_dtype = torch.get_default_dtype()
    other = None if device.type in ("cpu", "cuda") else getattr(torch, device.type, None)
    state = other.get_rng_state() if other is not None else None
    # Lightning shuffles every rank's data by these; seed_everything in a generator would part the ranks' orders.
    seeds = {name: os.environ.get(name) for name in _LIGHTNINGS_SEEDS}
    stopped: BaseException | None = None
    try:
        # Inference tensors that a model keeps for itself, such as position tables, would break its training.
        with isolate_rng(), torch.inference_mode(False), torch.no_grad():
            module.eval()
            try:
                yield
            except BaseException as error:  # left by an exception, isolate_rng restores nothing
                stopped = error
    finally:
        for parameter, wanted in trained:
            if parameter.requires_grad != wanted:
                parameter.requires_grad_(wanted)
        torch.set_default_dtype(default_dtype)
        if other is not None:
            other.set_rng_state(state)
        for name, value in seeds.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        # Last, since it may run code of the module's; and under the same modes as its eval() ran.
        with torch.inference_mode(False), torch.no_grad():
            _restore_modes(modes)
    if stopped is not None:
        raise stopped


def _restore_modes(modes: list[tuple[torch.nn.Module, bool]]) -> None:
    for part, training in modes:  # parents first
        if part.training != training and type(part).train is not torch.nn.Module.train:
            part.train(training)  # its own does more than set a flag, such as take merged weights apart
        part.training = training


def seed_all(seed: int) -> None:
    """Seed torch on every device, numpy and Python."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
