"""All that decides a run's scores, as stored beside them."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from masc_metrics import __version__
from masc_metrics.bench.baselines.registry import Baseline
from masc_metrics.checkpoint import Checkpoint
from masc_metrics.masks import FOREGROUND_THRESHOLD

_PACKAGES = ("torch", "transformers", "numpy", "pillow")
_SAMPLED = 2**20


def run_settings(
    checkpoint: Checkpoint,
    baselines: dict[str, Baseline],
    *,
    model: str,
    scores: tuple[str, ...],
    dtype: str,
    max_num_patches: int,
    min_coverage: float | None,
    samples: int,
    samples_sha256: str,
    device: str,
) -> dict[str, Any]:
    """What is stored with a run, and compared when it is resumed; "machine" is stored alone."""
    return {
        "scores": list(scores),
        "model": model,
        "checkpoint": checkpoint.commit or fingerprint(checkpoint.folder),
        "baselines": {
            name: {"checkpoint": baseline.checkpoint, "commit": baseline.commit} for name, baseline in baselines.items()
        },
        "dtype": dtype,
        "max_num_patches": max_num_patches,
        "foreground_threshold": FOREGROUND_THRESHOLD,
        "min_coverage": min_coverage,
        "samples": samples,
        "samples_sha256": samples_sha256,
        "versions": {"masc_metrics": __version__} | {name: version(name).split("+")[0] for name in _PACKAGES},
        "machine": {"device": device, "python": platform.python_version(), "system": platform.platform()},
    }


def fingerprint(folder: Path) -> str:
    """Digest of a checkpoint folder's files: names, sizes, and the first and last MiB of each.

    Weights of gigabytes are not read in full; of two that differ, these parts do.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        if file.suffix in (".json", ".safetensors", ".model"):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(_SAMPLED))
                stream.seek(max(0, size - _SAMPLED))
                digest.update(stream.read(_SAMPLED))
    return f"sha256:{digest.hexdigest()}"
