"""The arguments that every command has that scores samples, and what they ask for."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch

from masc_metrics.backbone import DEFAULT_ENCODE_BATCH_SIZE
from masc_metrics.bench.baselines.registry import BASELINES
from masc_metrics.bench.runner import DEFAULT_WORKERS, SCORES, Request
from masc_metrics.bench.scoring import MASC
from masc_metrics.checkpoint import DEFAULT_MODEL
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.precision import DEFAULT_DTYPE

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_run_options(parser: argparse.ArgumentParser, scores: tuple[str, ...] = MASC) -> None:
    """Add the arguments that every command has that scores samples."""
    parser.add_argument("--out", type=Path, required=True, help="CSV or Parquet file to write the scores to")
    parser.add_argument(
        "--scores",
        type=_scores,
        default=scores,
        help=f"which, with commas between: {', '.join(SCORES)} [{','.join(scores)}]",
    )
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="hub id or folder of a SigLIP2 checkpoint, or tiny [%(default)s]"
    )
    parser.add_argument(
        "--baseline-model",
        action="append",
        default=[],
        type=_named,
        metavar="NAME=MODEL",
        help="hub id or folder of a baseline's checkpoint, such as dino-i=facebook/dino-vits8",
    )
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps... [the best there is]")
    parser.add_argument("--devices", type=positive, default=1, help="processes on this node, a device each [1]")
    parser.add_argument("--num-nodes", type=positive, default=1, help="nodes, for SLURM [1]")
    parser.add_argument("--workers", type=count, default=DEFAULT_WORKERS, help="that open pictures, a process [2]")
    default_dtype = next(name for name, dtype in _DTYPES.items() if dtype == DEFAULT_DTYPE)
    parser.add_argument("--dtype", choices=_DTYPES, default=default_dtype, help="precision [%(default)s]")
    parser.add_argument(
        "--max-num-patches",
        type=positive,
        default=DEFAULT_MAX_NUM_PATCHES,
        help="patch budget of an image [%(default)s]",
    )
    parser.add_argument(
        "--batch-size", type=positive, default=DEFAULT_ENCODE_BATCH_SIZE, help="samples at a time [%(default)s]"
    )
    add_hub_options(parser)
    parser.add_argument("--local-files-only", action="store_true", help="never use the network")
    parser.add_argument("--restart", action="store_true", help="throw away what an unfinished run has scored")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_hub_options(parser: argparse.ArgumentParser) -> None:
    """Add where checkpoints come from."""
    parser.add_argument("--revision", help="branch, tag or commit on the hub [its main branch]")
    parser.add_argument("--cache-dir", help="where downloads are kept [the hub's usual place]")


def positive(text: str) -> int:
    """An argument that is an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer of at least 1")
    return int(text)


def count(text: str) -> int:
    """An argument that is an integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no integer of at least 0")
    return int(text)


def share(text: str) -> float:
    """An argument that is a number from 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to below 1")
    return value


def _scores(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in SCORES]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no score {unknown[0]!r}; there are {', '.join(SCORES)}")
    return names


def _named(text: str) -> tuple[str, str]:
    name, _, model = text.partition("=")
    if name not in BASELINES or not model:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=MODEL with one of {', '.join(BASELINES)}")
    return name, model


def request_of(options: argparse.Namespace, **changes: Any) -> Request:
    """What the arguments ask for."""
    settings: dict[str, Any] = {
        "scores": options.scores,
        "model": options.model,
        "revision": options.revision,
        "cache_dir": options.cache_dir,
        "local_files_only": options.local_files_only,
        "baseline_models": tuple(options.baseline_model),
        "dtype": _DTYPES[options.dtype],
        "max_num_patches": options.max_num_patches,
        "batch_size": options.batch_size,
        "workers": options.workers,
    }
    return Request(**settings | changes)
