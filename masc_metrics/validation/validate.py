"""Generates images of concepts, scores them, and reports scores, a table and a panel, on any number of ranks."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from PIL import Image

from masc_metrics.arguments import check_choice, check_function, check_integer, check_positive
from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.images import Images
from masc_metrics.precision import DEFAULT_DTYPE, Dtype, check_device
from masc_metrics.settings import DEFAULT_ENCODE_BATCH_SIZE, DEFAULT_MODEL
from masc_metrics.validation.concept_scores import ConceptScorer, Segment
from masc_metrics.validation.concepts import Concept, GenerationBatch, GenerationTask, generation_batches, rank_share
from masc_metrics.validation.isolation import isolated, seed_all
from masc_metrics.validation.panels import PanelChoice, ShownConcept, draw_panel, panel_rows, shown_concepts
from masc_metrics.validation.rank_reports import Anchors, ConceptScores, ImageMask, problem_summary
from masc_metrics.validation.ranks import all_gather, is_sharded, rank_and_world

Generate = Callable[[list[str], int], Images]
OnError = Literal["warn", "raise"]

DEFAULT_BATCH_SIZE = 4
DEFAULT_PANEL_SIZE = (4, 6)


@dataclass(frozen=True, slots=True)
class ValidationSettings:
    """How images are generated and shown, see :func:`validate_concepts`.

    Raises:
        TypeError, ValueError: if a value is not accepted.
    """

    batch_size: int = DEFAULT_BATCH_SIZE
    seed: int = 0
    seeds_per_prompt: int = 1
    on_error: OnError = "warn"
    panel: PanelChoice = "first"
    panel_size: tuple[int, int] | None = DEFAULT_PANEL_SIZE

    def __post_init__(self) -> None:
        check_positive("batch_size", self.batch_size)
        check_positive("seeds_per_prompt", self.seeds_per_prompt)
        if self.panel_size is not None:
            if not isinstance(self.panel_size, Sequence) or len(self.panel_size) != 2:
                raise TypeError(f"panel_size is {self.panel_size!r}; give concepts and images, such as (4, 6), or None")
            for value in self.panel_size:
                check_positive("panel_size", value)
        check_integer("seed", self.seed, least=0)
        if self.seed >= 2**32:
            raise ValueError(f"seed is {self.seed}; give an integer in [0, 2**32), the range of numpy's seeds")
        check_choice("on_error", self.on_error, get_args(OnError))
        check_choice("panel", self.panel, get_args(PanelChoice))


@dataclass(frozen=True, slots=True)
class ValidatedImage:
    """A generated image with its scores: a row of the table.

    Attributes:
        index: position among all images, from 0.
        concept: name of its concept.
        prompt: prompt that it was generated from.
        seed: seed of the call that generated it.
        cp: concept preservation, mean over the references of its concept; NaN if undefined.
        pf: prompt following; NaN if undefined.
        mask_source: "transferred", the name of the segmenter, or "function"; empty without a mask.
        mask_coverage: share of the image's pixels that its mask marks, in [0, 1]; NaN without a mask.
        mask_confidence: confidence of a transferred mask, see :class:`masc_metrics.transfer.TransferredMasks`; NaN
            if nothing was found, and for other masks.
        rank: place of its concept among all concepts by concept preservation, from 1, see
            :func:`masc_metrics.scores.concept_ranks`; NaN if undefined, and with fewer than three concepts.
        margin: how much better it matches its concept than images of other concepts do, see
            :func:`masc_metrics.scores.concept_margins`; NaN likewise.
        cp_ceiling: ceiling of its concept, see :attr:`ConceptValidation.anchors`.
        cp_floor: floor of its concept.
    """

    index: int
    concept: str
    prompt: str
    seed: int
    cp: float
    pf: float
    mask_source: str
    mask_coverage: float
    mask_confidence: float
    rank: float
    margin: float
    cp_ceiling: float
    cp_floor: float


@dataclass(frozen=True, slots=True)
class ConceptValidation:
    """Result of a validation, the same on every rank.

    Attributes:
        scores: "cp" and "pf", means over all images; "cp_low", "cp_high", "pf_low" and "pf_high", the 95 % intervals of
            the means over concepts; "cp/<concept>" and "pf/<concept>", means of each concept; without a segmenter
            "mask_iou/<concept>", how well masks can be transferred; with three or more concepts "identified",
            "mean_reciprocal_rank" and "margin", as :class:`masc_metrics.MaSCIdentification` computes them. A mean is
            NaN if no image is defined; an interval that is not defined is left out.
        table: all images, in order.
        panel: references, images, masks, scores and match maps; None if none was asked for or it could not be drawn.
        problems: number of undefined images with the reasons; empty if there are none.
        anchors: by the name of each concept, the concept preservation of its references with each other (ceiling) and
            of the references of other concepts (floor), between which that of generated images is read.
        shown: what the panel shows; none if no panel was asked for.
        settings: what the scores depend on: checkpoint, patch budget, dtype, source of masks, batch size and seeds.
    """

    scores: Mapping[str, float]
    table: tuple[ValidatedImage, ...]
    panel: Image.Image | None
    problems: str
    anchors: Mapping[str, Anchors]
    shown: tuple[ShownConcept, ...]
    settings: Mapping[str, str | int]


class ValidationError(RuntimeError):
    """A batch failed; ``stage`` is that of :class:`masc_metrics.validation.concept_scores.Failure`."""

    def __init__(self, message: str, stage: str) -> None:
        super().__init__(message)
        self.stage = stage


def validate_concepts(
    concepts: Sequence[Concept],
    generate: Generate,
    segment: Segment | str | None = None,
    *,
    modules: torch.nn.Module | Sequence[torch.nn.Module] = (),
    device: str | int | torch.device | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    seed: int = 0,
    seeds_per_prompt: int = 1,
    on_error: OnError = "warn",
    panel: PanelChoice = "first",
    panel_size: tuple[int, int] | None = DEFAULT_PANEL_SIZE,
    model_name_or_path: str | os.PathLike[str] | SigLIP2Backbone = DEFAULT_MODEL,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    dtype: Dtype = DEFAULT_DTYPE,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
) -> ConceptValidation:
    """Generate images of concepts, and score them with both metrics.

    If torch.distributed is initialised, as under torchrun and accelerate, this is a collective call: the batches are
    shared among the ranks, and the result is the same on every rank. The images of a batch, and its seed, do not depend
    on the number of ranks.

    Args:
        concepts: concepts to validate; see :class:`Concept`.
        generate: ``generate(prompts, seed)`` returns one image for each prompt, in any form that the metrics accept. It
            runs without gradients and with ``modules`` in eval mode. Torch, numpy and Python are seeded with ``seed``
            before the call.
        segment: name of a segmenter ("sam3", "clipseg", "grounded_sam2", "owlv2_sam2"); a segmenter of
            :func:`masc_metrics.segmenters.load_segmenter`; or any function ``segment(images, nouns)`` that returns a
            mask of the subject for each image that ``generate`` returned. A segmenter also makes the reference masks
            that concepts lack. With None, masks are transferred from the references, see
            :func:`masc_metrics.functional.transfer_masks`.
        modules: the modules that ``generate`` uses, such as a UNet and a text encoder. Their train or eval modes and
            ``requires_grad`` are restored afterwards, as are all random states. If they are sharded (FSDP, DeepSpeed
            stage 3), ``generate`` is called equally often on every rank.
        device: where SigLIP2 and a segmenter given by its name compute. None is the device of the first parameter of
            the modules, else the current GPU, else the CPU.
        batch_size: prompts in one call of ``generate``.
        seed: seed of the first batch, in [0, 2**32); the seeds of the next batches count up, modulo 2**32.
        seeds_per_prompt: number of images of every prompt, each with another seed.
        on_error: "warn" treats the images of a batch whose generator or segmenter raises as undefined, with one
            warning; "raise" raises on all ranks.
        panel: "first" shows the first images of each concept; "worst" alternately that of lowest CP and that of lowest
            PF of those left, undefined ones first.
        panel_size: maximum numbers of concepts and of images per concept in the panel; None draws no panel.
        model_name_or_path: SigLIP2 checkpoint; this and the following settings are those of
            :class:`masc_metrics.MaSCConceptPreservation`.
        revision: branch, tag or commit on the hub.
        cache_dir: folder for downloads.
        local_files_only: never use the network.
        max_num_patches: patch budget of one image.
        dtype: precision of the backbone, such as ``torch.bfloat16`` or "bfloat16".
        encode_batch_size: samples encoded together.

    Returns:
        Scores, a table of all images, and a panel.

    Raises:
        TypeError, ValueError: if an argument is not accepted, a concept lacks reference masks without a segmenter, or
            the segmenter finds nothing in a reference.
        OSError: if a checkpoint is not available.
        RuntimeError: with ``on_error="raise"``, if a batch fails; or if the network gives features of a reference that
            are not finite.

    Source: MaSC, arXiv 2605.22469.
    """
    settings = ValidationSettings(batch_size, seed, seeds_per_prompt, on_error, panel, panel_size)
    check_function("generate", generate, ("prompts", "seed"))
    parts = _check_modules(modules)
    encoder = {
        "model_name_or_path": model_name_or_path,
        "revision": revision,
        "cache_dir": cache_dir,
        "local_files_only": local_files_only,
        "max_num_patches": max_num_patches,
        "dtype": dtype,
        "encode_batch_size": encode_batch_size,
    }
    scorer = ConceptScorer(concepts, segment, encoder, title="validate_concepts")
    rank, world = rank_and_world()
    result = run_validation(
        scorer,
        settings,
        generate,
        modules=parts,
        device=_device_of(parts) if device is None else check_device(device),
        share=(world, rank),
        sharded=any(is_sharded(module) for module in parts),
    )
    if rank == 0 and result.problems:
        warnings.warn(f"validate_concepts: {result.problems}", UserWarning, stacklevel=2)
    return result


def run_validation(
    scorer: ConceptScorer,
    settings: ValidationSettings,
    generate: Generate,
    *,
    modules: Sequence[torch.nn.Module],
    device: torch.device,
    share: tuple[int, int],
    sharded: bool,
    most_batches: int | None = None,
    panel_errors: bool = False,
) -> ConceptValidation:
    """Validate the concepts of a scorer; a collective call.

    Args:
        scorer: concepts, segmenter and metrics.
        settings: how images are generated and shown.
        generate: as in :func:`validate_concepts`.
        modules: modules that ``generate`` uses.
        device: where the metrics compute.
        share: number of shares of the batches, and that of this rank.
        sharded: whether ``generate`` must be called equally often on every rank.
        most_batches: number of batches after which generation ends, over all ranks; None generates all.
        panel_errors: with ``on_error="raise"``, raise also if the panel cannot be drawn.

    Raises:
        OSError, ValueError, ImportError: as :meth:`ConceptScorer.prepare`.
        ValidationError: with ``on_error="raise"``, if a batch fails.
    """
    batches = generation_batches(scorer.concepts, settings.batch_size, settings.seed, settings.seeds_per_prompt)
    batches = batches[:most_batches]
    tasks = [task for batch in batches for task in batch.tasks]
    scorer.prepare(device)
    worst = settings.panel == "worst" and settings.panel_size is not None
    most_concepts, columns = settings.panel_size or (0, 0)
    kept = {task for task in tasks if task.concept < most_concepts}
    if not worst:
        kept = set(sum(panel_rows(tasks, settings.panel_size), ()))
    with isolated(modules, device):
        error = _score_share(
            functools.partial(scorer.score_batch, shown=kept, most_worst=columns if worst else None),
            functools.partial(_call, generate, modules),
            rank_share(batches, *share, equal_counts=sharded),
            on_error=settings.on_error,
            sharded=sharded,
        )
    reports = all_gather(scorer.report())
    failures = [(rank, failure) for rank, report in enumerate(reports) for failure in report.failures]
    fatal = [(rank, failure) for rank, failure in failures if failure.cp or failure.pf or panel_errors]
    if fatal and settings.on_error == "raise":
        rank, failure = fatal[0]
        raise ValidationError(f"{scorer.title}, rank {rank}: {failure}", failure.stage) from error
    found = scorer.scores(tasks, reports)
    names = [concept.name for concept in scorer.concepts]
    scores = found.by_name(tasks, names)
    if scorer.transfer_iou_C is not None:
        ious = zip(names, scorer.transfer_iou_C.tolist(), strict=True)
        scores |= {f"mask_iou/{name}": iou for name, iou in ious}
    problems = [problem_summary(found, reports, transferred=scorer.segment is None)]
    panel = None
    shots = {index: shot for report in reports for index, shot in report.shots.items()}
    cp, shown_cp, pf = (values_S.tolist() for values_S in (found.cp_S, found.shown_cp_S, found.pf_S))
    rows = panel_rows(tasks, settings.panel_size, (cp, pf) if worst else None, shots)
    with_seeds = settings.seeds_per_prompt > 1
    shown = shown_concepts(scorer.concepts, rows, shown_cp, pf, shots, with_seeds=with_seeds)
    try:
        panel = draw_panel(shown) if shown else None
    except Exception as reason:  # the scores are not affected
        if panel_errors:
            raise
        problems.append(f"the panel could not be drawn, {type(reason).__name__}: {reason}")
    masks = {index: mask for report in reports for index, mask in report.masks.items()}
    table = _table(tasks, names, found, masks, scorer.anchors)
    return ConceptValidation(
        scores,
        table,
        panel,
        "; ".join(filter(None, problems)),
        scorer.anchors,
        shown,
        _score_settings(scorer, settings),
    )


def _score_settings(scorer: ConceptScorer, settings: ValidationSettings) -> dict[str, str | int]:
    backbone = scorer.cp.backbone
    return {
        "model": backbone.source.model,
        "commit": backbone.checkpoint.commit or "",
        "max_num_patches": scorer.cp.max_num_patches,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "masks": scorer.mask_source,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "seeds_per_prompt": settings.seeds_per_prompt,
    }


def _score_share(
    score_batch: Callable[[Sequence[GenerationTask], Callable[[], Images]], Exception | None],
    generate: Callable[[GenerationBatch], Images],
    batches: Sequence[GenerationBatch],
    *,
    on_error: OnError,
    sharded: bool,
) -> Exception | None:
    """Score the batches of this rank until one fails that must not; return its exception."""
    error: Exception | None = None
    for batch in batches:
        call = functools.partial(generate, batch)
        if batch.tasks and error is None:
            error = score_batch(batch.tasks, call)
            if on_error == "warn":
                error = None  # its traceback would keep the tensors of the batch in memory
        elif sharded:  # the forward of a sharded model needs all ranks
            with contextlib.suppress(Exception):
                call()
    return error


def _call(generate: Generate, modules: Sequence[torch.nn.Module], batch: GenerationBatch) -> Images:
    seed_all(batch.seed)
    for module in modules:
        module.eval()  # the previous call may have changed it
    return generate(list(batch.prompts), batch.seed)


def _table(
    tasks: Sequence[GenerationTask],
    names: Sequence[str],
    scores: ConceptScores,
    masks: Mapping[int, ImageMask],
    anchors: Mapping[str, Anchors],
) -> tuple[ValidatedImage, ...]:
    no_mask = ImageMask("", math.nan, math.nan)
    columns = [values_S.tolist() for values_S in (scores.cp_S, scores.pf_S, scores.rank_S, scores.margin_S)]
    rows = []
    for task, cp, pf, rank, margin in zip(tasks, *columns, strict=True):
        mask, name = masks.get(task.index, no_mask), names[task.concept]
        rows.append(
            ValidatedImage(
                task.index,
                name,
                task.prompt,
                task.seed,
                cp,
                pf,
                mask.source,
                mask.coverage,
                mask.confidence,
                rank,
                margin,
                anchors[name].ceiling,
                anchors[name].floor,
            )
        )
    return tuple(rows)


def _check_modules(modules: Any) -> tuple[torch.nn.Module, ...]:
    if modules is None:
        raise TypeError("modules is None; give torch modules, such as pipeline.unet, or () for none")
    parts = (modules,) if isinstance(modules, torch.nn.Module) else tuple(modules)
    for index, part in enumerate(parts):
        if not isinstance(part, torch.nn.Module):
            raise TypeError(f"modules[{index}] is a {type(part).__name__}; give torch modules, such as pipeline.unet")
    return parts


def _device_of(modules: Sequence[torch.nn.Module]) -> torch.device:
    for module in modules:
        for parameter in module.parameters():
            return parameter.device
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
