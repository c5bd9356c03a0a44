"""A run: every rank scores its part of a sample list into the run's folder, and the first makes one file of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from masc_metrics.backbone import DEFAULT_ENCODE_BATCH_SIZE, SigLIP2Backbone, load_backbone
from masc_metrics.bench.baselines.registry import BASELINES, Baseline, load_baseline
from masc_metrics.bench.outcome import Outcome, header, row
from masc_metrics.bench.pictures import Opening, opened_batches
from masc_metrics.bench.ranks import Ranks, share
from masc_metrics.bench.report import Summary
from masc_metrics.bench.run_folder import RunFolder, Shard, write_whole
from masc_metrics.bench.sample import Sample
from masc_metrics.bench.samples import SampleList
from masc_metrics.bench.score_file import ScoreFile, is_device
from masc_metrics.bench.scoring import MASC, Scoring
from masc_metrics.bench.settings import run_settings
from masc_metrics.checkpoint import DEFAULT_MODEL, Checkpoint
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.precision import DEFAULT_DTYPE

SCORES = (*MASC, *BASELINES)
DEFAULT_WORKERS = 2


@dataclass(frozen=True, slots=True)
class Request:
    """What a run is asked for.

    Attributes:
        scores: names, of ``SCORES``.
        model: hub id or folder of MaSC's checkpoint, or "tiny".
        revision: branch, tag or commit of it.
        cache_dir: where downloads are kept.
        local_files_only: never use the network.
        baseline_models: other checkpoints for baselines, by name.
        dtype: of all networks.
        max_num_patches: patch budget of one image.
        batch_size: samples opened, encoded and scored at a time.
        min_coverage: see :class:`masc_metrics.bench.scoring.Scoring`.
        workers: processes that open pictures, on each rank.
        cache_bytes: of features kept; None is the backbone's own bound.
    """

    scores: tuple[str, ...] = MASC
    model: str = DEFAULT_MODEL
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False
    baseline_models: tuple[tuple[str, str], ...] = ()
    dtype: torch.dtype = DEFAULT_DTYPE
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES
    batch_size: int = DEFAULT_ENCODE_BATCH_SIZE
    min_coverage: float | None = None
    workers: int = DEFAULT_WORKERS
    cache_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Networks:
    """What scores.

    Attributes:
        checkpoint: MaSC's, on this machine.
        backbone: read from it.
        baselines: by name.
    """

    checkpoint: Checkpoint
    backbone: SigLIP2Backbone
    baselines: dict[str, Baseline]


def load_networks(request: Request, device: torch.device) -> Networks:
    """Read all that a run needs.

    Raises:
        OSError: if a checkpoint cannot be had; the text says how to get it.
        ValueError: if it is none that serves.
        ImportError: if a baseline needs a newer transformers.
    """
    where: dict[str, Any] = {"cache_dir": request.cache_dir, "local_files_only": request.local_files_only}
    backbone = load_backbone(request.model, device=device, dtype=request.dtype, revision=request.revision, **where)
    backbone.load(text_tower="pf" in request.scores)
    if request.cache_bytes is not None:
        backbone.cache.max_bytes = request.cache_bytes
    models = dict(request.baseline_models)
    baselines = {
        name: load_baseline(
            name,
            model=models.get(name),
            device=device,
            dtype=request.dtype,
            backbone=backbone,
            max_num_patches=request.max_num_patches,
            batch_size=request.batch_size,
            **where,
        )
        for name in request.scores
        if name in BASELINES
    }
    return Networks(backbone.checkpoint, backbone, baselines)


def begin(
    samples: SampleList,
    request: Request,
    networks: Networks,
    ranks: Ranks,
    folder: RunFolder,
    *,
    restart: bool = False,
) -> list[int]:
    """Start a run, or go on with what an earlier start has left.

    Returns:
        Places in the list of the samples that this rank is to score.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if the earlier start had other settings, which are named, or goes on still.
    """
    failure: OSError | ValueError | None = None
    done: list[int] = []
    if ranks.rank == 0:
        settings = run_settings(
            networks.checkpoint,
            networks.baselines,
            model=request.model,
            scores=request.scores,
            dtype=str(request.dtype).removeprefix("torch."),
            max_num_patches=request.max_num_patches,
            min_coverage=request.min_coverage,
            samples=len(samples.samples),
            samples_sha256=samples.sha256,
            device=str(ranks.device),
        )
        try:
            done = folder.begin(settings, restart=restart)
        except (OSError, ValueError) as error:
            failure = error
    failure, done = ranks.from_first((failure, done))
    if failure is not None:
        raise failure
    left = sorted(set(range(len(samples.samples))) - set(done))
    references = [samples.samples[number].reference_image for number in left]
    return [left[place] for place in share(references, ranks.rank, ranks.world)]


def score(
    samples: SampleList,
    numbers: Sequence[int],
    request: Request,
    networks: Networks,
    shard: Shard,
    scored: Callable[[int], object],
) -> None:
    """Score some samples and keep each batch's outcomes as soon as they are there.

    Args:
        samples: the list.
        numbers: places in it, from :func:`begin`.
        request: how.
        networks: with what.
        shard: where outcomes are kept.
        scored: is told how many samples a batch had.

    Raises:
        OSError: if the disk or memory is full, or a process that opens pictures was killed; what was
            scored before is kept.
    """
    scoring = Scoring(
        scores=request.scores,
        backbone=networks.backbone,
        baselines=networks.baselines,
        max_num_patches=request.max_num_patches,
        batch_size=request.batch_size,
        min_coverage=request.min_coverage,
    )
    opening = Opening(networks.checkpoint.processing, request.max_num_patches)
    try:
        for batch in opened_batches(
            samples.samples, numbers, opening, batch_size=request.batch_size, workers=request.workers
        ):
            shard.write(scoring.score(samples.samples, batch))
            scored(len(batch))
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        raise OSError(f"memory is full; give a smaller --batch-size or fewer --workers ({error})") from error
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise ChildProcessError(
            f"a process that opens pictures was ended from outside, as for want of memory; give fewer --workers or a "
            f"smaller --batch-size ({error})"
        ) from error


def merge(
    samples: SampleList,
    scores: Sequence[str],
    folder: RunFolder,
    out: Path,
    look_at: Callable[[Sample, Outcome], object],
) -> tuple[Summary, dict[str, Any]]:
    """One file of all outcomes, in the order of the list, and beside it their summary.

    Args:
        samples: the list.
        scores: names, in the order of the columns.
        folder: of the whole run.
        out: CSV or Parquet; the summary goes to ``<name>.summary.json``, except beside a device.
        look_at: is shown every sample with its outcome.

    Returns:
        The summary, and its figures.

    Raises:
        OSError: if a file cannot be written, or samples are missing; the folder stays.
    """
    summary = Summary(scores)
    with ScoreFile(out, header(scores), scores) as file:
        for sample, outcome in zip(samples.samples, folder.outcomes(len(samples.samples)), strict=True):
            file.write(row(sample, outcome))
            summary.add(sample, outcome)
            look_at(sample, outcome)
    figures = summary.as_dict()
    if not is_device(out):
        said = {"settings": folder.settings(), **figures}
        write_whole(summary_file(out), (json.dumps(said, indent=2) + "\n").encode())
    return summary, figures


def summary_file(out: Path) -> Path:
    """Where the summary of a score file goes."""
    return out.with_name(f"{out.stem}.summary.json")
