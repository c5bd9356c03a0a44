"""How samples are scored: the one carrier of settings, from the command line to the last baseline."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, get_args

from masc_metrics.bench.options import (
    any_of,
    device_name,
    did_you_mean,
    dtype_name,
    fraction,
    non_negative_integer,
    option,
    options_of,
    positive_integer,
)
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.settings import (
    DEFAULT_AGGREGATION,
    DEFAULT_ENCODE_BATCH_SIZE,
    DEFAULT_MODEL,
    DEFAULT_POOLING,
    DEFAULT_REFERENCE_REDUCTION,
    DEFAULT_SEGMENTER_BATCH_SIZE,
    DTYPE_NAMES,
    SEGMENTERS,
    Aggregation,
    Pooling,
    ReferenceReduction,
)

if TYPE_CHECKING:
    import torch

    from masc_metrics.backbone import SigLIP2Backbone
    from masc_metrics.precision import Dtype
    from masc_metrics.segmenters import Segmenter

MASC_SCORES = ("cp", "pf")

BASELINES = ("clip-i", "clip-t", "dino-i", "dinov3-i", "radio-i", "siglip2-i", "siglip2-t")
"""Names of all baselines; those ending in "-i" compare two images, those ending in "-t" an image and a text."""

SCORE_NAMES = (*MASC_SCORES, *BASELINES)

PROMPTS = ("stripped", "full")
"""Prompts of prompt following: without the subject (as in the paper), or as they are."""

CP_COLUMNS: Mapping[str, Aggregation] = MappingProxyType(
    {
        "cp" if aggregation == DEFAULT_AGGREGATION else f"cp_{aggregation.replace('-', '_')}": aggregation
        for aggregation in get_args(Aggregation)
    }
)
"""Aggregation of each column of concept preservation: cp, cp_weighted, cp_global, cp_mutual_recall."""

PF_COLUMNS: Mapping[str, tuple[Pooling, str]] = MappingProxyType(
    {
        "pf" if (pooling, prompt) == (DEFAULT_POOLING, PROMPTS[0]) else f"pf_{pooling}_{prompt}": (pooling, prompt)
        for pooling in get_args(Pooling)
        for prompt in PROMPTS
    }
)
"""Pooling and prompt of each column of prompt following: pf, pf_background_full, pf_full_stripped, ..."""


MASKS = ("reference_mask", "generated_mask")

MADE_MASKS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"given": (), "transfer": ("generated_mask",)} | dict.fromkeys(SEGMENTERS, MASKS)
)
"""Masks that samples may lack, because the run makes them, by the source of masks."""

MASK_SOURCES = tuple(MADE_MASKS)


def inputs_of(column: str, mask_source: str = MASK_SOURCES[0]) -> tuple[str, ...]:
    """Columns of a sample list that a column of the table of scores needs."""
    if mask_source == "transfer":
        names = inputs_of(column)
        transferred = ("reference_image", "reference_mask") if "generated_mask" in names else ()
        return tuple(dict.fromkeys([*(name for name in names if name != "generated_mask"), *transferred]))
    if mask_source in SEGMENTERS:
        return tuple(name for name in inputs_of(column) if name not in MASKS)
    if column in PF_COLUMNS:
        pooling, prompt = PF_COLUMNS[column]
        mask = () if pooling == "full" else ("generated_mask",)
        return ("generated_image", *mask, "prompt", *(("subject",) if prompt == "stripped" else ()))
    if column in BASELINES and column.endswith("-t"):
        return ("generated_image", "prompt")
    aggregation = CP_COLUMNS.get(column, "global")  # baselines and functions need what the global aggregation needs
    masks = {"global": (), "mutual-recall": MASKS}.get(aggregation, ("reference_mask",))
    return ("generated_image", "reference_image", *masks)


DEFAULT_WORKERS = 2


_FUNCTION = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")


def _score_names(text: str) -> tuple[str, ...]:
    given_scores = (score.strip() for score in text.split(","))
    scores = tuple(dict.fromkeys(score.lower() if score.lower() in SCORE_NAMES else score for score in given_scores))
    given: dict[str, str] = {}
    for score in scores:
        name, equals, function = score.partition("=")
        if not equals and name not in SCORE_NAMES:
            raise argparse.ArgumentTypeError(
                f"unknown score {name!r}{did_you_mean(name, SCORE_NAMES)}; give any of {', '.join(SCORE_NAMES)}, or "
                "NAME=MODULE:FUNCTION"
            )
        if equals and not (name.isprintable() and name.strip() == name != "" and _FUNCTION.fullmatch(function)):
            raise argparse.ArgumentTypeError(
                f"{score!r} is not NAME=MODULE:FUNCTION, such as mine=package.module:score"
            )
        if equals and name.lower() in (*SCORE_NAMES, *CP_COLUMNS, *PF_COLUMNS):
            raise argparse.ArgumentTypeError(f"{score!r} has the name of the score {name.lower()}; give another name")
        if given.setdefault(name.lower(), score) != score:
            raise argparse.ArgumentTypeError(
                f"{given[name.lower()]!r} and {score!r} have one name; give one of them another"
            )
    return scores


def _name_and_model(text: str) -> tuple[str, str]:
    name, _, model = text.partition("=")
    if name not in BASELINES or not model:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=MODEL with NAME one of {', '.join(BASELINES)}")
    return name, model


@dataclass(frozen=True, slots=True)
class SegmenterOptions:
    """Options of every command that makes masks from text.

    Attributes:
        checkpoint: hub id or folder of the segmenter's network that takes the noun (default: the paper's).
        mask_checkpoint: hub id or folder of the segmenter's SAM 2 (default: the paper's).
        threshold: score above which an instance, or for clipseg a pixel, is marked (default: the paper's).
    """

    checkpoint: str | None = option(None)
    mask_checkpoint: str | None = option(None)
    threshold: float | None = option(None, type=fraction, metavar="SCORE")

    def load(
        self,
        name: str,
        *,
        device: str | torch.device,
        dtype: Dtype,
        batch_size: int,
        cache_dir: str | None,
        local_files_only: bool,
    ) -> Segmenter:
        """The segmenter of this name; arguments and errors as of :func:`masc_metrics.segmenters.load_segmenter`."""
        from masc_metrics.segmenters import load_segmenter

        return load_segmenter(
            name,
            checkpoint=self.checkpoint,
            mask_checkpoint=self.mask_checkpoint,
            threshold=self.threshold,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )


@dataclass(frozen=True, slots=True)
class Run:
    """How samples are scored. The fields are the options of every command that scores.

    A run is stored with its scores by ``asdict``. An interrupted run can be resumed with other values of fields that
    do not affect the scores, which are those with ``compare=False``.

    Attributes:
        out: file to write the scores to, .csv, .tsv, .jsonl or .parquet.
        scores: comma-separated scores: cp, pf, clip-i, clip-t, dino-i, dinov3-i, radio-i, siglip2-i,
            siglip2-t, or NAME=MODULE:FUNCTION for a function of yours.
        pooling: comma-separated poolings of pf: background, full, foreground. Every combination with --prompts is a
            column: pf for background and stripped, pf_full_stripped and so on for the others.
        prompts: comma-separated prompts of pf: stripped, full.
        aggregation: comma-separated aggregations of cp, each a column: masked (cp), weighted (cp_weighted), global
            (cp_global), mutual-recall (cp_mutual_recall).
        reference_reduction: score of a sample with several references: mean or max of those with each, or pool (mean
            over the subject patches of all). Baselines and functions take the mean.
        gallery: also score every generated image with the references of every concept of the list: columns concept_rank
            and concept_margin, the share identified, and each concept's ceiling and floor.
        model: hub id or folder of a SigLIP2 checkpoint, or "tiny" for the bundled one.
        revision: branch, tag or commit of the checkpoint on the hub (default: the main branch).
        baseline_model: checkpoint of a baseline, such as dino-i=facebook/dino-vitb8; repeatable.
        dtype: precision of all networks; also fp32, bf16 or fp16.
        max_num_patches: patch budget per image.
        mask_source: masks that samples lack: given (none may be missing), transfer (those of generated images come from
            the reference), or the segmenter sam3, clipseg, grounded_sam2 or owlv2_sam2 (both come from text). Given
            masks are always used.
        segmenter: options of the segmenter.
        min_coverage: skip samples with a mask that marks at most this share of its pixels, such as 0.05.
        device: cpu, cuda, cuda:1, mps, ... (default: the fastest available).
        devices: processes on this node, one per device.
        num_nodes: number of nodes, for SLURM.
        workers: image-loading worker processes per device.
        batch_size: samples loaded, encoded and scored at a time.
        cache_mib: memory for features of images that recur, in MiB per process (default: 512; orida: enough for all).
        cache_dir: folder for downloaded checkpoints (default: the hub's cache).
        local_files_only: never use the network.
        restart: discard the scores of an unfinished run.
        quiet: hide the progress bar.
        escape_formulas: write an apostrophe before texts that a spreadsheet may run as a formula, and name their
            columns in the column escaped_formulas; only for .csv and .tsv.
    """

    out: Path = option(type=Path, compare=False, metavar="FILE")
    scores: tuple[str, ...] = option(MASC_SCORES, type=_score_names)
    pooling: tuple[Pooling, ...] = option((DEFAULT_POOLING,), type=any_of(*get_args(Pooling)))
    prompts: tuple[str, ...] = option((PROMPTS[0],), type=any_of(*PROMPTS))
    aggregation: tuple[Aggregation, ...] = option((DEFAULT_AGGREGATION,), type=any_of(*get_args(Aggregation)))
    reference_reduction: ReferenceReduction = option(DEFAULT_REFERENCE_REDUCTION, choices=get_args(ReferenceReduction))
    gallery: bool = option(False)
    model: str = option(DEFAULT_MODEL)
    revision: str | None = option(None)
    baseline_model: tuple[tuple[str, str], ...] = option(
        (), type=_name_and_model, action="append", metavar="NAME=MODEL"
    )
    dtype: str = option("float32", type=dtype_name, choices=tuple(DTYPE_NAMES.values()))
    max_num_patches: int = option(DEFAULT_MAX_NUM_PATCHES, type=positive_integer, metavar="N")
    mask_source: str = option(MASK_SOURCES[0], choices=MASK_SOURCES)
    segmenter: SegmenterOptions = options_of(SegmenterOptions)
    min_coverage: float | None = option(None, type=fraction, metavar="SHARE")
    device: str | None = option(None, type=device_name, compare=False)
    devices: int = option(1, type=positive_integer, compare=False, metavar="N")
    num_nodes: int = option(1, type=positive_integer, compare=False, metavar="N")
    workers: int = option(DEFAULT_WORKERS, type=non_negative_integer, compare=False, metavar="N")
    batch_size: int = option(DEFAULT_ENCODE_BATCH_SIZE, type=positive_integer, compare=False, metavar="N")
    cache_mib: int | None = option(None, type=non_negative_integer, compare=False, metavar="N")
    cache_dir: str | None = option(None, compare=False, metavar="FOLDER")
    local_files_only: bool = option(False, compare=False)
    restart: bool = option(False, compare=False)
    quiet: bool = option(False, compare=False)
    escape_formulas: bool = option(False, compare=False)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of all networks."""
        from masc_metrics.precision import DTYPES

        return DTYPES[self.dtype]

    @property
    def made_masks(self) -> tuple[str, ...]:
        """Masks that are made for samples without them: those that a score needs, and those that a filter looks at."""
        needed = {name for column in self.columns for name in inputs_of(column)}
        if self.mask_source in SEGMENTERS and self.min_coverage is not None:
            needed |= set(MASKS)
        return tuple(name for name in MADE_MASKS[self.mask_source] if name in needed)

    def load_backbone(self, device: torch.device) -> SigLIP2Backbone:
        """The backbone of the run; arguments and errors as of :func:`masc_metrics.load_backbone`."""
        from masc_metrics.backbone import load_backbone

        return load_backbone(
            self.model,
            device=device,
            dtype=self.torch_dtype,
            revision=self.revision,
            cache_dir=self.cache_dir,
            local_files_only=self.local_files_only,
        )

    def load_segmenter(self, device: torch.device) -> Segmenter | None:
        """The segmenter of the run, before its networks are read; None if the run makes no masks from text.

        Raises:
            ValueError: if the options name a network that it does not have, or are given without a segmenter.
            ImportError: if the installed transformers is too old.
        """
        if self.mask_source not in SEGMENTERS:
            for item in fields(self.segmenter):
                if (value := getattr(self.segmenter, item.name)) is not None:
                    name = item.name.replace("_", "-")
                    raise ValueError(
                        f"--{name} is {value}, but --mask-source is {self.mask_source}; leave --{name} out, or give "
                        f"--mask-source {', '.join(SEGMENTERS[:-1])} or {SEGMENTERS[-1]}"
                    )
            return None
        return self.segmenter.load(
            self.mask_source,
            device=device,
            dtype=self.torch_dtype,
            batch_size=min(DEFAULT_SEGMENTER_BATCH_SIZE, self.batch_size),
            cache_dir=self.cache_dir,
            local_files_only=self.local_files_only,
        )

    @property
    def functions(self) -> dict[str, str]:
        """``module:function`` of each score that is a function of the user's, by the score's name."""
        parts = (score.partition("=") for score in self.scores)
        return {name: function for name, _, function in parts if function}

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table of scores that hold scores."""
        return tuple(column for score in self.scores for column in self._columns_of(score.partition("=")[0]))

    def _columns_of(self, score: str) -> list[str]:
        if score == "cp":
            of_aggregation = {aggregation: column for column, aggregation in CP_COLUMNS.items()}
            return [of_aggregation[aggregation] for aggregation in self.aggregation]
        if score == "pf":
            of_setting = {setting: column for column, setting in PF_COLUMNS.items()}
            return [of_setting[pooling, prompt] for pooling in self.pooling for prompt in self.prompts]
        return [score]

    def model_of(self, baseline: str) -> str | None:
        """Checkpoint given for a baseline; None for its default."""
        return dict(self.baseline_model).get(baseline)


NOT_COMPARED = tuple(item.name for item in fields(Run) if not item.compare)
"""Fields that may differ when a run is resumed."""
