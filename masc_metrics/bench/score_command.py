"""``masc-metrics score``, and what the benchmark commands share with it."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from masc_metrics.bench.baselines.functions import FunctionResultError
from masc_metrics.bench.commands import ScoreInput
from masc_metrics.bench.distributed import Ranks, start_ranks
from masc_metrics.bench.gallery import COLUMNS as GALLERY_COLUMNS
from masc_metrics.bench.gallery import gallery_lines, load_gallery
from masc_metrics.bench.loading import lacks_mask
from masc_metrics.bench.parent import wait_for_other_ranks
from masc_metrics.bench.run import SCORE_NAMES, Run
from masc_metrics.bench.run_folder import RunFolder
from masc_metrics.bench.runner import begin, score_samples, summary_file, write_scores
from masc_metrics.bench.sample import WHICH
from masc_metrics.bench.sample_list import SampleList, read_samples
from masc_metrics.bench.scoring import Scorer, load_functions, load_scorer
from masc_metrics.bench.summary import row_warnings, summary_lines
from masc_metrics.bench.tables import check_replaceable, check_table_name, printable
from masc_metrics.bench.terminal import INTERRUPTED, INTERRUPTED_LINE, NO_CHECKPOINT, ROWS_FAILED, UNUSABLE, fail
from masc_metrics.reading import CheckpointError


def score(source: ScoreInput, run: Run) -> int:
    """Run ``masc-metrics score``; returns the exit code."""
    try:
        written = (*run.columns, *GALLERY_COLUMNS) if run.gallery else run.columns
        samples = read_samples(source.samples, written, run.mask_source)
        check_out(run, source.samples)
    except (OSError, ValueError, ImportError) as error:
        return fail(UNUSABLE, error)
    for note in samples.notes:
        print(printable(note), file=sys.stderr)
    return score_list(samples, run).exit_code


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a run on one rank.

    Attributes:
        exit_code: exit code of the process. Once scoring has begun, ranks other than the first end with 0: launchers
            take any other code for a crash and kill the other ranks, while the first rank finds missing results at its
            end.
        table_written: whether this rank has written the table of scores.
    """

    exit_code: int
    table_written: bool = False


def score_list(samples: SampleList, run: Run) -> Finished:
    """Score a list on all ranks, write the table of scores and print its summary."""
    if run.out.exists() and os.path.realpath(run.out) in _files(samples):
        return Finished(
            fail(UNUSABLE, ValueError(f"--out is {run.out}, which is a file of a sample; give another file"))
        )
    unused = [name for name, _ in run.baseline_model if name not in run.scores]
    if unused:
        return Finished(
            fail(UNUSABLE, ValueError(f"--baseline-model names {unused[0]}, which --scores does not; add it there"))
        )
    for score, options in (("cp", ("aggregation",)), ("pf", ("pooling", "prompts"))):
        for name in options:
            if score not in run.scores and getattr(run, name) != Run.__dataclass_fields__[name].default:
                error = ValueError(
                    f"--{name} is {','.join(getattr(run, name))}, but --scores lacks {score}; add it there"
                )
                return Finished(fail(UNUSABLE, error))
    try:
        ranks = start_ranks(run)
    except (OSError, ValueError) as error:
        return Finished(fail(UNUSABLE, error))
    try:
        functions = load_functions(run, ranks.device)
        segmenter = run.load_segmenter(ranks.device)
    except (ValueError, TypeError, ImportError) as error:
        return Finished(fail(UNUSABLE, error, ranks.rank))
    try:
        lacking = any(lacks_mask(sample, which, run) for sample in samples.samples for which in WHICH)
        scorer = load_scorer(run, ranks.device, functions, segmenter if lacking else None)
    except (OSError, ValueError, ImportError) as error:
        return Finished(fail(NO_CHECKPOINT, error, ranks.rank))
    except torch.cuda.OutOfMemoryError as error:
        return Finished(
            fail(NO_CHECKPOINT, MemoryError(f"the networks do not fit on device {ranks.device} ({error})"), ranks.rank)
        )
    folder = RunFolder(run.out.with_name(f"{run.out.name}.run"))
    try:
        finished = _score_in(folder, samples, scorer, ranks)
    finally:
        folder.release()
    if finished.table_written:
        wait_for_other_ranks()
    return finished


def _score_in(folder: RunFolder, samples: SampleList, scorer: Scorer, ranks: Ranks) -> Finished:
    from tqdm import tqdm

    run = scorer.run
    try:
        if run.gallery:
            gallery = load_gallery(samples.samples, scorer.backbone, run, anchors=ranks.rank == 0)
            scorer = replace(scorer, gallery=gallery)
        numbers = begin(samples, scorer, ranks, folder)
    except (OSError, ValueError) as error:
        return Finished(fail(UNUSABLE, error, ranks.rank))
    if ranks.world_size == 1 and len(numbers) < len(samples.samples):
        print(
            f"resuming: {len(samples.samples) - len(numbers)} samples have scores in {folder.folder}", file=sys.stderr
        )
    label = f"rank 0 of {ranks.world_size}" if ranks.world_size > 1 else None
    try:
        with (
            folder.result_file(ranks.rank) as file,
            tqdm(total=len(numbers), unit="sample", desc=label, disable=run.quiet or ranks.rank > 0) as bar,
        ):
            score_samples(samples, numbers, scorer, file, bar.update)
        ranks.wait()
        if ranks.rank > 0:
            return Finished(0)
        results, summary = write_scores(samples, run, folder, scorer.gallery)
    except KeyboardInterrupt:
        print(f"{INTERRUPTED_LINE}; start again to continue from {folder.folder}", file=sys.stderr)
        return Finished(INTERRUPTED if ranks.rank == 0 else 0)
    except CheckpointError as error:
        kept = f"; earlier results are kept in {folder.folder}: another checkpoint or dtype needs --restart"
        if ranks.world_size == 1 and not folder.has_results():
            folder.remove()
            kept = ""
        print(printable(f"masc-metrics: {error}{kept}"), file=sys.stderr)
        return Finished(NO_CHECKPOINT if ranks.rank == 0 else 0)
    except (OSError, FunctionResultError) as error:
        kept = f"; results are kept in {folder.folder}: start again to continue" if folder.has_results() else ""
        print(printable(f"masc-metrics: {error}{kept}"), file=sys.stderr)
        return Finished(UNUSABLE if ranks.rank == 0 else 0)
    try:
        folder.remove()
    except OSError as error:
        print(f"masc-metrics: {error}; the scores are complete: remove {folder.folder}", file=sys.stderr)
    for line in row_warnings(samples, results):
        print(printable(line), file=sys.stderr)
    for line in summary_lines(summary, run.columns):
        print(printable(line))
    if "gallery" in summary:
        for line in gallery_lines(summary["gallery"]):
            print(printable(line))
    print(f"by group, with intervals: {summary_file(run)}")
    if len(summary["by"].get("method", {})) > 1:
        chosen = "" if any(name in SCORE_NAMES for name in run.columns) else f" --score {','.join(run.columns)}"
        print(f"differences between methods: masc-metrics compare {run.out}{chosen}")
    if summary["failed"]:
        others = f"; the others are in {run.out}" if summary["failed"] < len(results) else ""
        part = f", {summary['failed_in_part']} of them only in some scores" if summary["failed_in_part"] else ""
        print(f"{summary['failed']} of {len(results)} rows failed{part}{others}", file=sys.stderr)
    return Finished(ROWS_FAILED if summary["failed"] else 0, table_written=True)


def _files(samples: SampleList) -> set[str]:
    """Files that the samples are read from."""
    found = set()
    for file in {file for sample in samples.samples for file in sample.files}:
        with suppress(ValueError):  # no name of a file, which is an error of its rows
            found.add(os.path.realpath(file))
    return found


def check_out(run: Run, source: Path) -> None:
    """Raise OSError, ValueError or ImportError unless scores can be written to ``--out``.

    Args:
        run: the settings.
        source: file or folder that the samples are read from.
    """
    out = run.out
    if not out.parent.is_dir():
        raise ValueError(f"--out is {out}, but the folder {out.parent} does not exist; create it first")
    is_device = out.absolute().parts[1:2] in (("dev",), ("proc",))  # /dev/stdout is a file if it is redirected to one
    if out.exists() and (is_device or not out.is_file()):
        raise ValueError(f"--out is {out}, which is not a regular file; give the name of a file")
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"--out is {out}, which is the sample list; give another file")
    check_table_name("--out", out, run.escape_formulas)
    check_replaceable("--out", out)
    summary = summary_file(run)
    check_replaceable("--out", out, summary)
    if (other := _table_of(summary)) not in (None, out) and other.exists():
        raise ValueError(
            f"--out is {out}, whose summary would replace {summary}, that of {other}; give a name that differs before "
            "its ending, or remove that table"
        )


def _table_of(summary: Path) -> Path | None:
    """The table beside a summary that it belongs to, if it says so."""
    try:
        return summary.with_name(Path(json.loads(summary.read_text())["settings"]["out"]).name)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
