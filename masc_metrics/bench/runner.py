"""A run: each rank scores its part of a sample list into the run's folder, and the first writes the table of scores."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from masc_metrics import __version__
from masc_metrics.bench.distributed import Ranks, rank_share
from masc_metrics.bench.gallery import COLUMNS as GALLERY_COLUMNS
from masc_metrics.bench.gallery import Gallery, gallery_summary, ranks_and_margins
from masc_metrics.bench.loading import loaded_batches
from masc_metrics.bench.run import NOT_COMPARED, Run
from masc_metrics.bench.run_folder import ResultFile, RunFolder, write_json
from masc_metrics.bench.sample import NUMBERS, SampleResult, columns, relative_to, table_row
from masc_metrics.bench.sample_list import SampleList
from masc_metrics.bench.scoring import Scorer
from masc_metrics.bench.segmenting import checkpoints_of
from masc_metrics.bench.summary import summarize
from masc_metrics.bench.tables import write_table
from masc_metrics.masks import FOREGROUND_THRESHOLD
from masc_metrics.precision import out_of_memory
from masc_metrics.reading import checkpoint_version

_PACKAGES = ("torch", "transformers", "numpy", "pillow")


def begin(samples: SampleList, scorer: Scorer, ranks: Ranks, folder: RunFolder) -> list[int]:
    """Start a run, or resume an earlier one.

    Returns:
        Positions of the samples that this rank is to score.

    Raises:
        OSError: if the folder cannot be written, or a checkpoint's files cannot be read.
        ValueError: if the run was started with other settings, which are named, or is in progress.
    """
    failure: OSError | ValueError | None = None
    done: list[int] = []
    if ranks.rank == 0:
        try:
            settings = settings_of(samples, scorer, ranks)
            done = folder.begin(settings, not_compared=(*NOT_COMPARED, "machine"), restart=scorer.run.restart)
        except (OSError, ValueError) as error:
            failure = error
    failure, done = ranks.from_first((failure, done))
    if failure is not None:
        raise failure
    left = sorted(set(range(len(samples.samples))) - set(done))
    references = [samples.samples[number].reference_image for number in left]
    return [left[position] for position in rank_share(references, ranks.rank, ranks.world_size)]


def settings_of(samples: SampleList, scorer: Scorer, ranks: Ranks) -> dict[str, Any]:
    """Everything that affects the scores, and the machine."""
    checkpoint = scorer.backbone.checkpoint
    version_of = functools.cache(checkpoint_version)  # scores may share a checkpoint
    return {
        **asdict(scorer.run),
        "checkpoint": version_of(checkpoint.folder, checkpoint.commit),
        "baselines": {
            name: {"checkpoint": baseline.checkpoint, "version": version_of(baseline.folder, baseline.commit)}
            for name, baseline in scorer.baselines.items()
        },
        "segmenter": None
        if scorer.segmenter is None
        else {
            "threshold": scorer.segmenter.settings.threshold,
            "checkpoints": checkpoints_of(scorer.segmenter),
        },
        "foreground_threshold": FOREGROUND_THRESHOLD,
        "samples": len(samples.samples),
        "samples_sha256": samples.sha256,
        "versions": {"masc_metrics": __version__} | {name: version(name).split("+")[0] for name in _PACKAGES},
        "machine": {
            "device": str(ranks.device),
            "python": platform.python_version(),
            "system": platform.platform(),
        },
    }


def score_samples(
    samples: SampleList,
    numbers: Sequence[int],
    scorer: Scorer,
    file: ResultFile,
    on_batch: Callable[[int], object],
) -> None:
    """Score the samples at some positions of the list, from :func:`begin`.

    Each batch's results are written to the file as soon as they are computed; then ``on_batch`` is called with the
    number of its samples.

    Raises:
        OSError: if the disk or the memory is full, or a worker process was killed; earlier results are kept.
    """
    processing = scorer.backbone.checkpoint.processing
    with errors_of_the_machine():
        for batch in loaded_batches(samples.samples, numbers, processing, scorer.run):
            file.write(scorer.score(batch))
            on_batch(len(batch))
            del batch  # before the next one is loaded


@contextmanager
def errors_of_the_machine() -> Iterator[None]:
    """Turn a lack of memory, and a killed worker process, into OSError with a remedy."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if out_of_memory(error):
            text = "out of memory; give a smaller --batch-size or fewer --workers"
            raise OSError(f"{text}{_last_line(error)}") from error
        if "DataLoader worker (pid" not in str(error):
            raise
        raise ChildProcessError(
            f"an image-loading worker process was killed, probably for lack of memory; give fewer --workers or a "
            f"smaller --batch-size ({error})"
        ) from error


def _last_line(error: BaseException) -> str:
    """What an exception says in the end, in brackets: that of a worker process begins with its traceback."""
    lines = str(error).split("\n\nException raised from")[0].split("\n")  # torch may go on with its own calls
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f" ({last})" if last else ""


def write_scores(
    samples: SampleList, run: Run, folder: RunFolder, gallery: Gallery | None = None
) -> tuple[list[SampleResult], dict[str, Any]]:
    """Write the table of scores in the order of the list, and its summary next to it.

    Args:
        samples: the list.
        run: the settings.
        folder: folder with all results.
        gallery: the concepts of the list; None if the run has no gallery.

    Returns:
        The results, and the summary.

    Raises:
        OSError: if a file cannot be written, or results are missing.
    """
    results = folder.results(len(samples.samples))
    pairs = zip(samples.samples, results, strict=True)
    relative = relative_to(run.out.parent)
    rows: Iterable[dict[str, str | float | None]] = (table_row(sample, result, relative) for sample, result in pairs)
    extra = dict.fromkeys(name for sample in samples.samples for name in sample.extra)
    numbers = (*run.columns, *NUMBERS)
    scores = run.columns
    summary = summarize(samples.samples, results, run.columns)
    if gallery is not None:
        identified = ranks_and_margins(samples.samples, results, gallery.concepts)
        rows = ({**row, **of_gallery} for row, of_gallery in zip(rows, identified, strict=True))
        scores, numbers = (*scores, *GALLERY_COLUMNS), (*numbers, *GALLERY_COLUMNS)
        summary["gallery"] = gallery_summary(samples.samples, identified, gallery)
    empty = dict.fromkeys(extra)  # JSON Lines may name a column in some lines only
    rows = (empty | row for row in rows)
    write_table(run.out, rows, columns(scores, extra), numbers, escape_formulas=run.escape_formulas)
    settings = {**folder.settings(), "escape_formulas": run.escape_formulas}  # may differ from those of the first start
    write_json(summary_file(run), {"settings": settings, **summary})
    return results, summary


def summary_file(run: Run) -> Path:
    """File of the summary: ``<out without suffix>.summary.json``."""
    return summary_of(run.out)


def summary_of(scores: Path) -> Path:
    """File of the summary of a table of scores."""
    return scores.with_name(f"{scores.stem}.summary.json")
