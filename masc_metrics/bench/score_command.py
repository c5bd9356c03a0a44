"""``masc-metrics score``, and what the benchmarks' commands share with it: arguments, messages, exit codes."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from masc_metrics.bench.outcome import Outcome
from masc_metrics.bench.ranks import Ranks, best_device, start_ranks
from masc_metrics.bench.remarks import Remarks
from masc_metrics.bench.report import mean_lines, method_lines
from masc_metrics.bench.run_folder import RunFolder
from masc_metrics.bench.run_options import add_run_options, request_of, share
from masc_metrics.bench.runner import (
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
from masc_metrics.bench.tables import pyarrow_parquet
from masc_metrics.precision import check_device

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

NO_CHECKPOINT, UNUSABLE, ROWS_FAILED, INTERRUPTED = 1, 2, 3, 130


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
        type=share,
        help="leave out samples of which a mask marks at most this share of its pixels, such as 0.05 [none]",
    )
    parser.set_defaults(run=_run_score)


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
        The exit code. Ranks other than the first end with 0 once they have begun: launchers take anything else for a
        crash and kill the others, while the first one learns at its end that somebody's part is missing.
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
    except torch.cuda.OutOfMemoryError as error:
        return fail(NO_CHECKPOINT, MemoryError(f"device {ranks.device} has no room for the networks ({error})"), ranks)
    beside = options.out.parent
    passing = tempfile.mkdtemp() if is_device(options.out) and ranks.rank == 0 else None
    if is_device(options.out):  # nothing to go on with: its work lies where it is in nobody's way
        beside = Path(ranks.from_first(passing))
    folder = RunFolder(beside / f"{options.out.name}.run")
    try:
        return _run_in(folder, samples, request, options, name, look_at, ranks, networks)
    finally:
        folder.release()
        if passing is not None:  # by the first rank, which reads what all have written
            shutil.rmtree(passing, ignore_errors=True)


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
        rest = "" if is_device(options.out) else f"; start again to go on with {folder.folder}"
        print(f"masc-metrics: interrupted{rest}", file=sys.stderr)
        return INTERRUPTED if ranks.rank == 0 else 0
    except OSError as error:
        kept = "" if is_device(options.out) else f"; what was scored is kept in {folder.folder}: start again"
        print(f"masc-metrics: {error}{kept}", file=sys.stderr)
        return UNUSABLE if ranks.rank == 0 else 0
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
