"""The ``masc-metrics`` command: arguments, messages and exit codes alone.

Exit codes: 0 all is well; 1 the checkpoint cannot be had; 2 the arguments or the sample list are unusable; 3 some rows
failed and the rest is scored.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

import masc_metrics
from masc_metrics.backbone import DEFAULT_DTYPE, DEFAULT_ENCODE_BATCH_SIZE, load_backbone
from masc_metrics.bench.runner import Scored, score_samples
from masc_metrics.bench.samples import COLUMNS, read_samples
from masc_metrics.checkpoint import DEFAULT_MODEL, CheckpointSource, prefetch
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES

NO_CHECKPOINT, UNUSABLE, ROWS_FAILED = 1, 2, 3

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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

    score = commands.add_parser(
        "score",
        help="score the samples listed in a CSV file",
        description=f"Scores the samples of a CSV file with the columns {', '.join(COLUMNS)} and, optionally, "
        "sample_id; paths are relative to the file. Writes one row a sample: sample_id, cp, pf, stripped_prompt and "
        "error. Exit code 3: some rows failed, the rest is scored.",
    )
    score.add_argument("samples", type=Path, help="CSV file listing the samples")
    score.add_argument("--out", type=Path, required=True, help="CSV file to write the scores to")
    score.add_argument("--model", default=DEFAULT_MODEL, help="hub id or folder of a SigLIP2 checkpoint [%(default)s]")
    score.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps... [the best there is]")
    default_dtype = next(name for name, dtype in _DTYPES.items() if dtype == DEFAULT_DTYPE)
    score.add_argument("--dtype", choices=_DTYPES, default=default_dtype, help="precision [%(default)s]")
    score.add_argument(
        "--max-num-patches",
        type=_positive,
        default=DEFAULT_MAX_NUM_PATCHES,
        help="patch budget of an image [%(default)s]",
    )
    score.add_argument(
        "--batch-size", type=_positive, default=DEFAULT_ENCODE_BATCH_SIZE, help="samples at a time [%(default)s]"
    )
    _add_hub_options(score)
    score.add_argument("--local-files-only", action="store_true", help="never use the network")
    score.add_argument("--quiet", action="store_true", help="no progress bar")
    score.set_defaults(run=_run_score)

    fetch = commands.add_parser(
        "prefetch",
        help="download a checkpoint ahead of time",
        description="Downloads a checkpoint for machines without internet and prints the folder to pass as --model.",
    )
    fetch.add_argument("model", nargs="?", default=DEFAULT_MODEL, help="hub id of a SigLIP2 checkpoint [%(default)s]")
    _add_hub_options(fetch)
    fetch.set_defaults(run=_run_prefetch)
    return parser


def _add_hub_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", help="branch, tag or commit on the hub [its main branch]")
    parser.add_argument("--cache-dir", help="where downloads are kept [the hub's usual place]")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _run_prefetch(options: argparse.Namespace) -> int:
    try:
        print(prefetch(CheckpointSource.of(options.model, options.revision, options.cache_dir)))
    except (OSError, ValueError) as error:
        return _fail(NO_CHECKPOINT, error)
    return 0


def _run_score(options: argparse.Namespace) -> int:
    try:
        samples = read_samples(options.samples)
        _check_out(options.out, options.samples)
        device = torch.device(options.device or _best_device())
        torch.empty(0, device=device)
    except (AssertionError, OSError, RuntimeError, ValueError) as error:  # torch raises any of them for a device
        return _fail(UNUSABLE, error)
    try:
        backbone = load_backbone(
            options.model,
            device=device,
            dtype=_DTYPES[options.dtype],
            revision=options.revision,
            cache_dir=options.cache_dir,
            local_files_only=options.local_files_only,
        )
    except (OSError, ValueError) as error:
        return _fail(NO_CHECKPOINT, error)

    from tqdm import tqdm

    scores = score_samples(samples, backbone, max_num_patches=options.max_num_patches, batch_size=options.batch_size)
    progress = tqdm(scores, total=len(samples), unit="sample", disable=options.quiet)
    outcomes = list(_written(progress, options.out))
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        sample = outcome.sample
        print(f"{options.samples}, line {sample.line} (sample {sample.sample_id}): {outcome.error}", file=sys.stderr)
    print(_mean("CP", [outcome.cp for outcome in outcomes]))
    print(_mean("PF", [outcome.pf for outcome in outcomes]))
    if failed:
        print(f"{len(failed)} of {len(outcomes)} rows failed; the others are in {options.out}", file=sys.stderr)
        return ROWS_FAILED
    return 0


def _check_out(out: Path, samples: Path) -> None:
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; give a file in it")
    if out.exists() and out.samefile(samples):
        raise ValueError(f"--out {out} is the sample list itself; give another file")


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _written(outcomes: Iterable[Scored], out: Path) -> Iterator[Scored]:
    """Write each outcome as soon as it is there, and pass it on."""
    with out.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["sample_id", "cp", "pf", "stripped_prompt", "error"])
        for outcome in outcomes:
            cp, pf = ("" if score is None else f"{score:.9g}" for score in (outcome.cp, outcome.pf))
            writer.writerow([outcome.sample.sample_id, cp, pf, outcome.stripped_prompt, outcome.error])
            stream.flush()
            yield outcome


def _mean(name: str, scores: Sequence[float | None]) -> str:
    there = [score for score in scores if score is not None]
    defined = [score for score in there if not math.isnan(score)]
    undefined = f", {len(there) - len(defined)} undefined" if len(defined) < len(there) else ""
    if not defined:
        return f"{name}  no sample scored{undefined}"
    return f"{name}  {math.fsum(defined) / len(defined):.4f}  mean of {len(defined)} samples{undefined}"


def _fail(code: int, error: Exception) -> int:
    print(f"masc-metrics: {error}", file=sys.stderr)
    return code
