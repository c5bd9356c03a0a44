"""``masc-metrics score``, and what the benchmarks' commands share with it: arguments, messages, exit codes."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from masc_metrics.backbone import DEFAULT_ENCODE_BATCH_SIZE
from masc_metrics.bench.baselines import BASELINES
from masc_metrics.bench.outcome import Outcome
from masc_metrics.bench.ranks import Ranks, best_device, start_ranks
from masc_metrics.bench.remarks import Remarks
from masc_metrics.bench.report import mean_lines, method_lines
from masc_metrics.bench.run_folder import RunFolder
from masc_metrics.bench.runner import (
    DEFAULT_WORKERS,
    SCORES,
    Networks,
    Request,
    begin,
    load_networks,
    merge,
    score,
    summary_file,
)
from masc_metrics.bench.sample import COLUMNS, GROUPS, Sample
from masc_metrics.bench.samples import SampleList, read_samples
from masc_metrics.bench.score_file import is_device, is_parquet
from masc_metrics.bench.scoring import MASC
from masc_metrics.bench.tables import pyarrow_parquet
from masc_metrics.checkpoint import DEFAULT_MODEL
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.precision import DEFAULT_DTYPE, check_device

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

NO_CHECKPOINT, UNUSABLE, ROWS_FAILED, INTERRUPTED = 1, 2, 3, 130

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_score(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "score",
        help="score the samples of a list",
        description=f"Scores the samples of a CSV, JSON Lines or Parquet file with the columns {', '.join(COLUMNS)} "
        f"and, optionally, sample_id, {', '.join(GROUPS)}; paths are relative to the file. Or those of a folder laid "
        "out as concept/reference.png, concept/method/name.png. Writes one row a sample, and a summary beside it. "
        "Killed at any moment, it goes on when started again. Exit code 3: some rows failed, the rest is scored.",
    )
    parser.add_argument("samples", type=Path, help="file listing the samples, or folder")
    add_run_options(parser)
    parser.add_argument(
        "--min-coverage",
        type=_share,
        help="leave out samples of which a mask marks at most this share of its pixels, such as 0.05 [none]",
    )
    parser.set_defaults(run=_run_score)


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
    parser.add_argument("--workers", type=_count, default=DEFAULT_WORKERS, help="that open pictures, a process [2]")
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


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no integer of at least 0")
    return int(text)


def _share(text: str) -> float:
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


def _run_score(options: argparse.Namespace) -> int:
    try:
        samples = read_samples(options.samples, options.scores)
        check_out(options.out, options.samples)
    except (OSError, ValueError, ImportError) as error:
        return fail(UNUSABLE, error)
    return run(samples, request_of(options, min_coverage=options.min_coverage), options, str(options.samples))


def run(
    samples: SampleList,
    request: Request,
    options: argparse.Namespace,
    name: str,
    look_at: Callable[[Sample, Outcome], object] = lambda *_: None,
) -> int:
    """Score a list, on as many ranks as there are, and say what came of it.

    Args:
        samples: the list.
        request: how.
        options: of :func:`add_run_options`.
        name: the list's, for messages.
        look_at: is shown every sample with its outcome, on rank 0.

    Returns:
        The exit code. Ranks other than the first end with 0 if they have done their part: launchers take anything else
        for a crash.
    """
    unasked = [name for name, _ in request.baseline_models if name not in request.scores]
    if unasked:
        return fail(UNUSABLE, ValueError(f"--baseline-model names {unasked[0]}, but --scores does not; add it there"))
    try:
        ranks = start_ranks(check_device(options.device or best_device()), options.devices, options.num_nodes)
    except (OSError, ValueError) as error:
        return fail(UNUSABLE, error)
    try:
        networks = load_networks(request, ranks.device)
    except (OSError, ValueError, ImportError) as error:
        return fail(NO_CHECKPOINT, error, ranks)
    beside = Path() if is_device(options.out) else options.out.parent
    passing = is_device(options.out)  # nothing to go on with: its work lies where it is in nobody's way
    beside = ranks.from_first(tempfile.mkdtemp() if passing else str(options.out.parent))
    folder = RunFolder(Path(beside) / f"{options.out.name}.run")
    try:
        return _run_in(folder, samples, request, options, name, look_at, ranks, networks)
    finally:
        folder.release()
        if passing:
            shutil.rmtree(beside, ignore_errors=True)


def _run_in(
    folder: RunFolder,
    samples: SampleList,
    request: Request,
    options: argparse.Namespace,
    name: str,
    look_at: Callable[[Sample, Outcome], object],
    ranks: Ranks,
    networks: Networks,
) -> int:
    from tqdm import tqdm

    try:
        numbers = begin(samples, request, networks, ranks, folder, restart=options.restart)
    except (OSError, ValueError) as error:
        return fail(UNUSABLE, error, ranks)
    if ranks.world == 1 and len(numbers) < len(samples.samples):
        print(f"{len(samples.samples) - len(numbers)} samples are scored already: {folder.folder}", file=sys.stderr)
    part = f"rank 0 of {ranks.world}" if ranks.world > 1 else None
    remarks = Remarks(name, request.scores)

    def seen(sample: Sample, outcome: Outcome) -> None:
        remarks.add(sample, outcome)
        look_at(sample, outcome)

    try:
        with (
            folder.shard(ranks.rank) as shard,
            tqdm(total=len(numbers), unit="sample", desc=part, disable=options.quiet or ranks.rank > 0) as bar,
        ):
            score(samples, numbers, request, networks, shard, bar.update)
        ranks.wait()
        if ranks.rank > 0:
            return 0
        summary, figures = merge(samples, request.scores, folder, options.out, seen)
    except KeyboardInterrupt:
        print(f"masc-metrics: interrupted; start again to go on with {folder.folder}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        kept = "" if is_device(options.out) else f"; what was scored is kept in {folder.folder}: start again"
        print(f"masc-metrics: {error}{kept}", file=sys.stderr)
        return UNUSABLE
    folder.remove()
    remarks.say()
    for line in (*mean_lines(summary, request.scores), *method_lines(figures, request.scores)):
        print(line, file=sys.stderr if is_device(options.out) else sys.stdout)  # rows stand alone on stdout
    if not is_device(options.out):
        print(f"by group, with intervals: {summary_file(options.out)}")
    if summary.failed:
        print(f"{summary.failed} of {summary.samples} rows failed; the others are in {options.out}", file=sys.stderr)
        return ROWS_FAILED
    return 0


def check_out(out: Path, samples: Path) -> None:
    """Raise OSError, ValueError or ImportError unless scores can go there."""
    if not out.parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise ValueError(f"{out} is a folder; give a file in it")
    if out.exists() and samples.exists() and out.samefile(samples):
        raise ValueError(f"{out} is the sample list itself; give another file for the scores")
    if is_parquet(out):
        pyarrow_parquet()
    if not is_device(out):
        try:
            tempfile.TemporaryFile(dir=out.parent).close()
        except OSError as error:
            raise OSError(f"{out} cannot be written: {error.strerror}") from error


def fail(code: int, error: Exception, ranks: Ranks | None = None) -> int:
    """Say an error, once in a run of many ranks, and give its exit code."""
    if ranks is None or ranks.rank == 0:
        print(f"masc-metrics: {error}", file=sys.stderr)
    return code
