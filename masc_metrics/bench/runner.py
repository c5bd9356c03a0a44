"""A run: each rank scores its part of a sample list into the run's folder, and the first writes the table of scores."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from masc_metrics import __version__
from masc_metrics.backbone import SigLIP2Backbone, load_backbone
from masc_metrics.bench.baselines.registry import Baseline, load_baseline
from masc_metrics.bench.distributed import Ranks, rank_share
from masc_metrics.bench.loading import Loader, loaded_batches
from masc_metrics.bench.run import BASELINES, NOT_COMPARED, Run
from masc_metrics.bench.run_folder import ResultFile, RunFolder, write_json
from masc_metrics.bench.sample_list import SampleList
from masc_metrics.bench.sample_result import MEASURES, SampleResult, columns, table_row
from masc_metrics.bench.scoring import Scorer
from masc_metrics.bench.summary import summarize
from masc_metrics.bench.tables import write_table
from masc_metrics.masks import FOREGROUND_THRESHOLD

_PACKAGES = ("torch", "transformers", "numpy", "pillow")
_FINGERPRINTED = 2**20


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks of a run.

    Attributes:
        backbone: MaSC's network.
        baselines: baselines by name.
    """

    backbone: SigLIP2Backbone
    baselines: dict[str, Baseline]


def load_networks(run: Run, device: torch.device) -> Networks:
    """Load all networks that a run needs.

    Raises:
        OSError: if a checkpoint is not available; the text says how to get it.
        ValueError: if a checkpoint is of the wrong kind or damaged.
        ImportError: if a baseline needs a newer transformers.
    """
    backbone = load_backbone(
        run.model,
        device=device,
        dtype=run.torch_dtype,
        revision=run.revision,
        cache_dir=run.cache_dir,
        local_files_only=run.local_files_only,
    )
    backbone.load(text_tower="pf" in run.scores)
    if run.cache_mib is not None:
        backbone.cache.max_bytes = run.cache_mib * 2**20
    baselines = {
        name: load_baseline(name, run, device=device, backbone=backbone) for name in run.scores if name in BASELINES
    }
    return Networks(backbone, baselines)


def begin(samples: SampleList, run: Run, networks: Networks, ranks: Ranks, folder: RunFolder) -> list[int]:
    """Start a run, or resume an earlier one.

    Returns:
        Positions of the samples that this rank is to score.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if the run was started with other settings, which are named, or is in progress.
    """
    failure: OSError | ValueError | None = None
    done: list[int] = []
    if ranks.rank == 0:
        settings = _settings(samples, run, networks, ranks)
        try:
            done = folder.begin(settings, not_compared=(*NOT_COMPARED, "machine"), restart=run.restart)
        except (OSError, ValueError) as error:
            failure = error
    failure, done = ranks.from_first((failure, done))
    if failure is not None:
        raise failure
    left = sorted(set(range(len(samples.samples))) - set(done))
    references = [samples.samples[number].reference_image for number in left]
    return [left[position] for position in rank_share(references, ranks.rank, ranks.world_size)]


def _settings(samples: SampleList, run: Run, networks: Networks, ranks: Ranks) -> dict[str, Any]:
    """Everything that affects the scores, and the machine."""
    checkpoint = networks.backbone.checkpoint
    return {
        **asdict(run),
        "checkpoint": checkpoint.commit or fingerprint(checkpoint.folder),
        "baselines": {
            name: {"checkpoint": baseline.checkpoint, "commit": baseline.commit}
            for name, baseline in networks.baselines.items()
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


def fingerprint(folder: Path) -> str:
    """Digest of a checkpoint folder's files: names, sizes, and the first and last MiB of each.

    Weights of gigabytes are not read in full; two sets of weights differ in these parts.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        if file.suffix in (".json", ".safetensors", ".model"):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}\n".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(_FINGERPRINTED))
                stream.seek(max(0, size - _FINGERPRINTED))
                digest.update(stream.read(_FINGERPRINTED))
    return f"sha256:{digest.hexdigest()}"


def score_samples(
    samples: SampleList,
    numbers: Sequence[int],
    run: Run,
    networks: Networks,
    file: ResultFile,
    on_batch: Callable[[int], object],
) -> None:
    """Score some samples and write each batch's results as soon as they are computed.

    Args:
        samples: the sample list.
        numbers: positions in it, from :func:`begin`.
        run: the settings.
        networks: from :func:`load_networks`.
        file: receives the results.
        on_batch: called with the number of samples of each batch.

    Raises:
        OSError: if the disk or the memory is full, or a worker process was killed; earlier results are kept.
    """
    scorer = Scorer(run, networks.backbone, networks.baselines)
    loader = Loader(samples.samples, networks.backbone.checkpoint.processing, run)
    try:
        for batch in loaded_batches(loader, numbers):
            file.write(scorer.score(samples.samples, batch))
            on_batch(len(batch))
    except (MemoryError, torch.cuda.OutOfMemoryError) as error:
        raise OSError(f"out of memory; give a smaller --batch-size or fewer --workers ({error})") from error
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise ChildProcessError(
            f"an image-loading worker process was killed, probably for lack of memory; give fewer --workers or a "
            f"smaller --batch-size ({error})"
        ) from error


def write_scores(samples: SampleList, run: Run, folder: RunFolder) -> tuple[list[SampleResult], dict[str, Any]]:
    """Write the table of scores in the order of the list, and its summary next to it.

    Returns:
        The results, and the summary.

    Raises:
        OSError: if a file cannot be written, or results are missing.
    """
    results = folder.results(len(samples.samples))
    rows = [table_row(sample, result) for sample, result in zip(samples.samples, results, strict=True)]
    write_table(run.out, rows, columns(run.scores), (*run.scores, *MEASURES))
    summary = summarize(samples.samples, results, run.scores)
    write_json(summary_file(run), {"settings": folder.settings(), **summary})
    return results, summary


def summary_file(run: Run) -> Path:
    """File of the summary: ``<out without suffix>.summary.json``."""
    return run.out.with_name(f"{run.out.stem}.summary.json")
