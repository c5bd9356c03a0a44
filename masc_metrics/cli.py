"""The ``masc-metrics`` command: arguments, messages and exit codes alone.

Exit codes: 0 all is well; 1 the checkpoint cannot be had; 2 the arguments or the sample list are unusable; 3 some rows
failed and the rest is scored; 130 interrupted, and what was scored is kept.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import masc_metrics
from masc_metrics.backbone import load_backbone
from masc_metrics.bench.agreement.command import add_agreement
from masc_metrics.bench.datasets.command import add_dreambench_plus, add_orida
from masc_metrics.bench.run_options import add_hub_options
from masc_metrics.bench.score_command import NO_CHECKPOINT, UNUSABLE, add_score, fail
from masc_metrics.checkpoint import BUNDLED_MODEL, DEFAULT_MODEL, CheckpointSource, prefetch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="masc-metrics",
        description="MaSC: concept preservation (CP) and prompt following (PF) of generated images.",
    )
    parser.add_argument("--version", action="version", version=masc_metrics.__version__)
    commands = parser.add_subparsers(title="commands", required=True)

    add_score(commands)
    add_dreambench_plus(commands)
    add_orida(commands)
    add_agreement(commands)

    demo = commands.add_parser(
        "demo",
        help="see both metrics at work, offline and in seconds",
        description="Renders subjects, damages them and their scenes in known ways, scores them with the bundled "
        "checkpoint, prints the means and writes every picture with its scores and match map into one PNG.",
    )
    demo.add_argument("--out", type=Path, default=Path("masc-demo.png"), help="PNG to write [%(default)s]")
    demo.add_argument("--seed", type=int, help="of the dice that choose the subjects, 0 or more")
    demo.add_argument(
        "--model", default=BUNDLED_MODEL, help="hub id or folder of another SigLIP2 checkpoint [%(default)s]"
    )
    demo.set_defaults(run=_run_demo)

    fetch = commands.add_parser(
        "prefetch",
        help="download a checkpoint ahead of time",
        description="Downloads a checkpoint for machines without internet and prints the folder to pass as --model.",
    )
    fetch.add_argument("model", nargs="?", default=DEFAULT_MODEL, help="hub id of a SigLIP2 checkpoint [%(default)s]")
    add_hub_options(fetch)
    fetch.set_defaults(run=_run_prefetch)
    return parser


def _run_prefetch(options: argparse.Namespace) -> int:
    try:
        print(prefetch(CheckpointSource.of(options.model, options.revision, options.cache_dir)))
    except (OSError, ValueError) as error:
        return fail(NO_CHECKPOINT, error)
    return 0


def _run_demo(options: argparse.Namespace) -> int:
    if options.seed is not None and options.seed < 0:
        return fail(UNUSABLE, ValueError(f"--seed is {options.seed}; give 0 or more"))
    try:
        _check_picture_file(options.out)
    except (OSError, ValueError) as error:  # OSError for a name that no file can have
        return fail(UNUSABLE, error)
    from masc_metrics.demo import DEFAULT_SEED, demonstrate

    try:
        backbone = load_backbone(options.model).load(text_tower=True)
    except (OSError, ValueError) as error:
        return fail(NO_CHECKPOINT, error)
    demonstration = demonstrate(backbone, seed=DEFAULT_SEED if options.seed is None else options.seed)
    print(demonstration.table())
    try:
        demonstration.image.save(options.out, format="PNG")
    except OSError as error:
        return fail(UNUSABLE, error)
    print(f"\nEach picture with its scores, and the patches of the reference that were found again: {options.out}")
    return 0


def _check_picture_file(out: Path) -> None:
    if out.is_dir():
        raise ValueError(f"--out is {out}, which is a folder; give a file")
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out is {out}; give a name that ends with .png")
    if not out.parent.is_dir():
        raise ValueError(f"--out is {out}, but there is no folder {out.parent}")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ValueError(f"--out is {out}, which cannot be written; give another file")
