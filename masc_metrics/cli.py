"""The ``masc-metrics`` command: arguments, messages and exit codes alone.

Exit codes: 0 all is well; 1 the checkpoint cannot be had; 2 the arguments or the sample list are unusable; 3 some rows
failed and the rest is scored.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import masc_metrics
from masc_metrics.backbone import DEFAULT_ENCODE_BATCH_SIZE, load_backbone
from masc_metrics.bench.runner import Scored, score_samples
from masc_metrics.bench.samples import COLUMNS, read_samples
from masc_metrics.bench.score_file import ScoreFile
from masc_metrics.checkpoint import BUNDLED_MODEL, DEFAULT_MODEL, CheckpointSource, prefetch
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.precision import DEFAULT_DTYPE, check_device
from masc_metrics.prompts import holds_subject

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
    score.add_argument(
        "--model", default=DEFAULT_MODEL, help="hub id or folder of a SigLIP2 checkpoint, or tiny [%(default)s]"
    )
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
    _add_hub_options(fetch)
    fetch.set_defaults(run=_run_prefetch)
    return parser


def _add_hub_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", help="branch, tag or commit on the hub [its main branch]")
    parser.add_argument("--cache-dir", help="where downloads are kept [the hub's usual place]")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer of at least 1")
    return int(text)


def _run_prefetch(options: argparse.Namespace) -> int:
    try:
        print(prefetch(CheckpointSource.of(options.model, options.revision, options.cache_dir)))
    except (OSError, ValueError) as error:
        return _fail(NO_CHECKPOINT, error)
    return 0


def _run_demo(options: argparse.Namespace) -> int:
    if options.seed is not None and options.seed < 0:
        return _fail(UNUSABLE, ValueError(f"--seed is {options.seed}; give 0 or more"))
    try:
        _check_picture_file(options.out)
    except (OSError, ValueError) as error:  # OSError for a name that no file can have
        return _fail(UNUSABLE, error)
    from masc_metrics.demo import DEFAULT_SEED, demonstrate

    try:
        backbone = load_backbone(options.model).load(text_tower=True)
    except (OSError, ValueError) as error:
        return _fail(NO_CHECKPOINT, error)
    demonstration = demonstrate(backbone, seed=DEFAULT_SEED if options.seed is None else options.seed)
    print(demonstration.table())
    try:
        demonstration.image.save(options.out, format="PNG")
    except OSError as error:
        return _fail(UNUSABLE, error)
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


def _run_score(options: argparse.Namespace) -> int:
    try:
        samples = read_samples(options.samples)
        device = check_device(options.device or _best_device())
        writer = ScoreFile(options.out, options.samples)
    except (OSError, ValueError) as error:
        return _fail(UNUSABLE, error)
    with writer:
        try:
            backbone = load_backbone(
                options.model,
                device=device,
                dtype=_DTYPES[options.dtype],
                revision=options.revision,
                cache_dir=options.cache_dir,
                local_files_only=options.local_files_only,
            ).load(text_tower=True)
        except (OSError, ValueError) as error:
            return _fail(NO_CHECKPOINT, error)

        from tqdm import tqdm

        scores = score_samples(
            samples, backbone, max_num_patches=options.max_num_patches, batch_size=options.batch_size
        )
        outcomes = []
        try:
            for outcome in tqdm(scores, total=len(samples), unit="sample", disable=options.quiet):
                writer.write(outcome)
                outcomes.append(outcome)
            writer.finish()
        except OSError as error:  # a full disk; what was written stands in the partial file
            return _fail(UNUSABLE, error)
    _report(outcomes, options.samples)
    failed = sum(bool(outcome.error) for outcome in outcomes)
    if failed:
        print(f"{failed} of {len(outcomes)} rows failed; the others are in {options.out}", file=sys.stderr)
        return ROWS_FAILED
    return 0


def _report(outcomes: Sequence[Scored], samples: Path) -> None:
    """The rows that failed, those to look at, and the means."""
    for outcome in outcomes:
        sample = outcome.sample
        where = f"{samples}, line {sample.line} (sample {sample.sample_id})"
        if outcome.error:
            print(f"{where}: {outcome.error}", file=sys.stderr)
            continue
        for name, score, reason in (
            ("CP", outcome.cp, "no reference patch is more than half covered by reference_mask"),
            ("PF", outcome.pf, "generated_mask leaves no background patch"),
        ):
            if score is not None and math.isnan(score):
                print(f"{where}: {name} is undefined, because {reason}", file=sys.stderr)
    unstripped = [o.sample for o in outcomes if not o.error and not holds_subject(o.sample.prompt, o.sample.subject)]
    if unstripped:
        first = unstripped[0]
        print(
            f"{samples}: nothing was stripped from {len(unstripped)} of {len(outcomes)} prompts, which do not hold "
            f"their subject as whole words; the first is line {first.line}, {first.subject!r} in {first.prompt!r}",
            file=sys.stderr,
        )
    print(_mean("CP", [outcome.cp for outcome in outcomes]))
    print(_mean("PF", [outcome.pf for outcome in outcomes]))


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


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
