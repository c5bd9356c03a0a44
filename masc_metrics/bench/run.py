"""How samples are scored: the one carrier of settings, from the command line to the last baseline."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from masc_metrics.backbone import DEFAULT_ENCODE_BATCH_SIZE
from masc_metrics.bench.options import fraction, non_negative_integer, option, positive_integer
from masc_metrics.checkpoint import DEFAULT_MODEL
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES

MASC_SCORES = ("cp", "pf")

BASELINES = ("clip-i", "clip-t", "dino-i", "dinov3-i", "siglip2-i", "siglip2-t")
"""Names of all baselines; those ending in "-i" compare two images, those ending in "-t" an image and a text."""

SCORE_NAMES = (*MASC_SCORES, *BASELINES)

DTYPES = ("float32", "bfloat16", "float16")


def _score_names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in SCORE_NAMES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown score {unknown[0]!r}; give any of {', '.join(SCORE_NAMES)}")
    return names


def _name_and_model(text: str) -> tuple[str, str]:
    name, _, model = text.partition("=")
    if name not in BASELINES or not model:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=MODEL with NAME one of {', '.join(BASELINES)}")
    return name, model


@dataclass(frozen=True, slots=True)
class Run:
    """How samples are scored. The fields are the options of every command that scores.

    A run is stored with its scores by ``asdict``. An interrupted run can be resumed with other values of fields that
    do not affect the scores, which are those with ``compare=False``.

    Attributes:
        out: CSV or Parquet file to write the scores to.
        scores: comma-separated scores: cp, pf, clip-i, clip-t, dino-i, dinov3-i, siglip2-i, siglip2-t.
        model: hub id or folder of a SigLIP2 checkpoint, or "tiny" for the bundled one.
        revision: branch, tag or commit of the checkpoint on the hub (default: the main branch).
        baseline_model: checkpoint of a baseline, such as dino-i=facebook/dino-vits8; repeatable.
        dtype: precision of all networks.
        max_num_patches: patch budget per image.
        min_coverage: skip samples with a mask that marks at most this share of its pixels, such as 0.05.
        device: cpu, cuda, cuda:1, mps, ... (default: the fastest available).
        devices: processes on this node, one per device.
        num_nodes: number of nodes, for SLURM.
        workers: image-loading worker processes per device.
        batch_size: samples loaded, encoded and scored at a time.
        cache_mib: memory for features of images that recur, in MiB per process (default: 512; orida: enough for all).
        cache_dir: folder for downloaded checkpoints (default: the hub's cache).
        local_files_only: never use the network.
        restart: discard the scores of an unfinished run.
        quiet: hide the progress bar.
    """

    out: Path = option(type=Path, compare=False, metavar="FILE")
    scores: tuple[str, ...] = option(MASC_SCORES, type=_score_names)
    model: str = option(DEFAULT_MODEL)
    revision: str | None = option(None)
    baseline_model: tuple[tuple[str, str], ...] = option(
        (), type=_name_and_model, action="append", metavar="NAME=MODEL"
    )
    dtype: str = option("float32", choices=DTYPES)
    max_num_patches: int = option(DEFAULT_MAX_NUM_PATCHES, type=positive_integer, metavar="N")
    min_coverage: float | None = option(None, type=fraction, metavar="SHARE")
    device: str | None = option(None, compare=False)
    devices: int = option(1, type=positive_integer, compare=False, metavar="N")
    num_nodes: int = option(1, type=positive_integer, compare=False, metavar="N")
    workers: int = option(2, type=non_negative_integer, compare=False, metavar="N")
    batch_size: int = option(DEFAULT_ENCODE_BATCH_SIZE, type=positive_integer, compare=False, metavar="N")
    cache_mib: int | None = option(None, type=non_negative_integer, compare=False, metavar="N")
    cache_dir: str | None = option(None, compare=False, metavar="FOLDER")
    local_files_only: bool = option(False, compare=False)
    restart: bool = option(False, compare=False)
    quiet: bool = option(False, compare=False)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of all networks."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def model_of(self, baseline: str) -> str | None:
        """Checkpoint given for a baseline; None for its default."""
        return dict(self.baseline_model).get(baseline)


NOT_COMPARED = tuple(item.name for item in fields(Run) if not item.compare)
"""Fields that may differ when a run is resumed."""
