"""The training step of a checkpoint."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

# diffusers: checkpoint-500; Lightning: epoch=1-step=500.ckpt; kohya's scripts: name-step00000500.safetensors
_STEP_IN_NAME = re.compile(r"(?:checkpoint|step)[-_=]?(\d+)", re.IGNORECASE)


def checkpoint_step(path: str | os.PathLike[str], *, trusted: bool = False) -> int:
    """Training step of a checkpoint.

    Sources, in this order: ``global_step`` in a Lightning checkpoint; ``ss_steps`` in the header of a safetensors file,
    as kohya's scripts write it; the last name of the path that holds one, such as ``checkpoint-500/unet`` or
    ``epoch=1-step=500.ckpt``.

    Args:
        path: a file, or a folder such as those of LoRA weights.
        trusted: whether Python objects in a Lightning checkpoint may be unpickled. Otherwise the step of a checkpoint
            with such objects is that of its name.

    Raises:
        OSError: if a local file cannot be read.
        ValueError: if no source holds a step.
    """
    local = Path(os.path.expanduser(path))
    stored = _stored(local / "meta.pt" if (local / "meta.pt").is_file() else local, trusted)
    if stored is not None:
        return stored
    for name in reversed(local.parts):
        if found := _STEP_IN_NAME.findall(name):
            return int(found[-1])
    raise ValueError(f"{os.fspath(path)} holds no training step, and neither does its name; give step=")


def _stored(file: Path, trusted: bool) -> int | None:
    if not file.is_file():
        return None
    if file.suffix == ".safetensors":
        step = _safetensors_metadata(file).get("ss_steps")
        return int(step) if step is not None and str(step).isdigit() else None
    if file.suffix not in (".ckpt", ".pt"):
        return None
    try:
        contents = _contents(file, weights_only=True)
    except pickle.UnpicklingError:
        if not trusted:
            return None
        contents = _contents(file, weights_only=False)
    if not isinstance(contents, dict):
        return None
    step = contents.get("global_step")
    return step if isinstance(step, int) else None


def _contents(file: Path, *, weights_only: bool) -> Any:
    return torch.load(file, map_location="meta", mmap=True, weights_only=weights_only)  # tensors are not read


def _safetensors_metadata(file: Path) -> dict[str, str]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length)) if length <= file.stat().st_size else {}
    metadata: dict[str, str] = header.get("__metadata__", {})
    return metadata
