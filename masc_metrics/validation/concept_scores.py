"""Scores concepts: segments generated images in batches and computes both metrics; a failed batch is undefined.

Shape suffixes: P pairs of a generated and a reference image, S generated images, R concepts.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from masc_metrics.arguments import check_choice, check_function, type_name
from masc_metrics.functional import check_transfer, match_maps, transfer_masks
from masc_metrics.functional.gallery import SubjectBank
from masc_metrics.images import ImageBatch, Images, check_images, is_one_colour
from masc_metrics.masks import FOREGROUND_THRESHOLD, Masks, check_masks, looks_inverted
from masc_metrics.metrics import MaSCConceptPreservation, MaSCPromptFollowing
from masc_metrics.plots import Shot, thumbnail
from masc_metrics.precision import to_device
from masc_metrics.prompts import strip_subject
from masc_metrics.references import References
from masc_metrics.scores import concept_margins, concept_ranks
from masc_metrics.segmenters import Segmenter, load_segmenter
from masc_metrics.settings import DEFAULT_REFERENCE_REDUCTION, SEGMENTERS
from masc_metrics.transfer import TRUSTED_IOU, TransferredMasks
from masc_metrics.validation.concepts import Concept, GenerationTask, check_concepts
from masc_metrics.validation.outputs import check_generated, check_segmented
from masc_metrics.validation.panels import ascending
from masc_metrics.validation.rank_reports import (
    LEAST_CONCEPTS,
    Anchors,
    ConceptScores,
    Failure,
    ImageMask,
    RankReport,
)

Segment = Callable[[Any, list[str]], Masks]


class ConceptScorer:
    """Scores the images of concepts with both metrics, on any number of ranks.

    Args:
        concepts: the concepts.
        segment: function, segmenter or name of one; None transfers masks.
        settings: settings of both metrics. A segmenter given by its name has their ``cache_dir`` and
            ``local_files_only``.
        title: name of the caller in warnings.

    Raises:
        TypeError, ValueError: if an argument is not accepted, or a concept lacks reference masks without a segmenter.
        ImportError: if the installed transformers is too old for the segmenter.
    """

    def __init__(
        self, concepts: Sequence[Concept], segment: Segment | str | None, settings: Mapping[str, Any], title: str
    ) -> None:
        if not callable(segment) and not isinstance(segment, str | None):
            raise TypeError(f"segment is {type_name(segment)}; give a function, the name of a segmenter, or None")
        if segment is not None and not isinstance(segment, str):
            check_function("segment", segment, ("images", "nouns"))
        self.title = title
        self.concepts = check_concepts(concepts)
        # Per-sample scores by id are in the same order on all ranks, however batches are distributed.
        self.cp = MaSCConceptPreservation(reduction="none", **settings)
        self.pf = MaSCPromptFollowing(reduction="none", **settings)
        self._segmenter_settings: dict[str, Any] | None = None
        if isinstance(segment, str):
            check_choice("segment", segment, SEGMENTERS)
            self._segmenter_settings = {
                "name": segment,
                **{name: settings[name] for name in ("cache_dir", "local_files_only") if name in settings},
            }
            segment = load_segmenter(**self._segmenter_settings)
        self.segment: Segment | None = segment
        for concept in self.concepts:
            if not concept.masks.masks and not isinstance(segment, Segmenter):
                raise ValueError(
                    f"concept {concept.name!r} has no reference_masks, which need a segmenter; give them, or "
                    f"segment={SEGMENTERS[0]!r} or another of masc_metrics.segmenters.load_segmenter"
                )
        self._segmenter_loaded = False
        self._failures: list[Failure] = []
        self._shots: dict[int, Shot] = {}
        self._shown_scores: dict[int, dict[int, tuple[float, float]]] = {}  # by concept and task
        self._masks: dict[int, ImageMask] = {}
        self._mask_hints: list[str] = []
        self._one_colour = self._inverted_masks = 0
        self._concept_rows: dict[int, Tensor] = {}
        self._bank: tuple[torch.device, SubjectBank] | None = None
        self.transfer_iou_C: Tensor | None = None
        """How well masks can be transferred, by concept; None with a segmenter, and before :meth:`prepare`."""
        self.anchors: dict[str, Anchors] = {}
        """Anchors by the name of the concept; none before :meth:`prepare`."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_bank": None}  # a copy encodes the references itself

    def prepare(self, device: torch.device) -> None:
        """Reset, move to the device of the model, and load the network and the embeddings of all prompts.

        Without a segmenter, the transfer of masks is checked once. With one, its networks are loaded and the missing
        masks of references are made, once. The references of all concepts are compared once.

        Raises:
            OSError, ValueError, ImportError: if a checkpoint is not available.
            ValueError: if the segmenter finds nothing in a reference.
            RuntimeError: if the network gives features of a reference that are not finite.
        """
        self._failures, self._shots, self._shown_scores, self._masks, self._mask_hints = [], {}, {}, {}, []
        self._one_colour = self._inverted_masks = 0
        self._concept_rows = {}
        for metric in (self.cp, self.pf):
            metric.reset()
            metric.to(device)
        self.cp.backbone.load()
        # Embeddings stay cached, so that the text tower can be released between validations.
        texts = [strip_subject(prompt, concept.subject) for concept in self.concepts for prompt in concept.prompts]
        self.pf.backbone.encode_texts(texts, batch_size=self.pf.encode_batch_size)
        if self.segment is None and self.transfer_iou_C is None:
            self._check_transfer()
        if self._segmenter_settings is not None:  # on the model's device, also if the generated images are PIL images
            self.segment = load_segmenter(**self._segmenter_settings, device=device)
        if isinstance(self.segment, Segmenter) and not self._segmenter_loaded:
            self._load_segmenter(self.segment, device)
        self._encode_references()

    def _load_segmenter(self, segmenter: Segmenter, device: torch.device) -> None:
        if segmenter.settings.device is not None:
            segmenter.load()
        with torch.inference_mode(False):  # the masks are used in later calls
            self.concepts = tuple(_with_masks(concept, segmenter, device) for concept in self.concepts)
        self._segmenter_loaded = True

    def _encode_references(self) -> None:
        """Encode the references of all concepts, and compare them with each other, once."""
        device = self.cp.backbone.device
        if self.anchors and (len(self.concepts) < LEAST_CONCEPTS or (self._bank and self._bank[0] == device)):
            return
        gallery = [References(concept.references, concept.masks) for concept in self.concepts]
        with torch.inference_mode(False):  # the bank is used in later calls
            bank = SubjectBank.of(gallery, **self._encoder)
            self._bank = (device, bank) if len(self.concepts) >= LEAST_CONCEPTS else None
            if not self.anchors:
                found = bank.anchors(gallery, reduction=DEFAULT_REFERENCE_REDUCTION, **self._encoder)
                values = zip(self.concepts, found.ceiling_R.tolist(), found.floor_R.tolist(), strict=True)
                self.anchors = {concept.name: Anchors(ceiling, floor) for concept, ceiling, floor in values}

    def _check_transfer(self) -> None:
        self.transfer_iou_C = check_transfer(
            [concept.references.images for concept in self.concepts],
            [concept.masks for concept in self.concepts],
            **self._encoder,
        )
        found = zip(self.concepts, self.transfer_iou_C.tolist(), strict=True)
        low = [f"{concept.name!r} ({iou:.2f})" for concept, iou in found if iou < TRUSTED_IOU]
        if low:
            rank_zero_warn(
                f"{self.title}: masks transferred between the references agree with the given ones by an IoU below "
                f"{TRUSTED_IOU} for {', '.join(low)}, so transferred masks of generated images, and PF with them, are "
                "unreliable; give a segmenter, or more references with masks",
                UserWarning,
            )

    @property
    def _encoder(self) -> dict[str, Any]:
        """What functions that encode images take."""
        return {
            "backbone": self.cp.backbone,
            "max_num_patches": self.cp.max_num_patches,
            "encode_batch_size": self.cp.encode_batch_size,
        }

    @property
    def mask_source(self) -> str:
        """Where masks of generated images come from, as in :attr:`ImageMask.source`."""
        if self.segment is None:
            return "transferred"
        return self.segment.settings.name if isinstance(self.segment, Segmenter) else "function"

    def score_batch(
        self,
        batch: Sequence[GenerationTask],
        generate: Callable[[], Images],
        shown: Collection[GenerationTask],
        most_worst: int | None = None,
    ) -> Exception | None:
        """Generate and score a batch. An exception is recorded and returned; unscored samples become undefined.

        Args:
            batch: tasks of the batch.
            generate: returns one image for each task.
            shown: tasks, of this batch or others, whose images are kept for the panel.
            most_worst: keep only so many images of each concept that are worst by CP, and so many by PF.
        """
        pairs, ids = [pair for task in batch for pair in task.pairs], [task.index for task in batch]
        stage, unscored = "generate", [(self.cp, pairs), (self.pf, ids)]
        generated: ImageBatch | None = None
        masks: Sequence[Tensor] | None = None
        try:
            images = generate()
            check_generated(images)
            checked = check_images(images, "generate output")
            checked = ImageBatch(tuple(image.clone() for image in checked.images))  # segment may modify its images
            if len(checked) != len(batch):
                raise ValueError(
                    f"generate output holds {len(checked)} images for {len(batch)} prompts; return one for each"
                )
            stage, generated = "scoring", checked
            self._one_colour += sum(bool(is_one_colour(image)) for image in checked.images)
            self._add_pairs(batch, checked, pairs)
            unscored.pop(0)
            self._add_concept_rows(batch, checked)
            stage = "mask transfer" if self.segment is None else "segment"
            masks = self._find_masks(batch, images, checked)
            stage = "scoring"
            self.pf.update(
                checked,
                masks,
                [task.prompt for task in batch],
                [self.concepts[task.concept].subject for task in batch],
                sample_ids=ids,
            )
            unscored.pop(0)
        except Exception as error:
            lost = {id(metric) for metric, _ in unscored}  # by id, because == of metrics builds a new metric
            self._add_failure(stage, error, batch, cp=id(self.cp) in lost, pf=id(self.pf) in lost)
            for metric, missing in unscored:
                metric.accumulate(torch.full((len(missing),), torch.nan), torch.tensor(missing, dtype=torch.int64))
            if generated is not None and not isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
                self._add_shots(batch, generated, masks, shown)  # encodes the images again, which needs memory
                if most_worst is not None:
                    self._keep_worst(batch, most_worst)
            return error
        self._add_shots(batch, checked, masks, shown)
        if most_worst is not None:
            self._keep_worst(batch, most_worst)
        return None

    def _find_masks(self, batch: Sequence[GenerationTask], images: Images, checked: ImageBatch) -> Sequence[Tensor]:
        masks: Sequence[Tensor]
        if self.segment is None:
            found = self._transfer_masks(batch, checked)
            masks, confidences = found.masks, found.confidence_B.tolist()
        else:
            masks = self._segment_masks(self.segment, batch, images, checked)
            confidences = [math.nan] * len(batch)
        for task, mask, confidence in zip(batch, masks, confidences, strict=True):
            coverage = (mask >= FOREGROUND_THRESHOLD).float().mean().item()
            self._masks[task.index] = ImageMask(self.mask_source, coverage, confidence)
            self._inverted_masks += bool(looks_inverted(mask))
        return masks

    def _transfer_masks(self, batch: Sequence[GenerationTask], checked: ImageBatch) -> TransferredMasks:
        concepts = [self.concepts[task.concept] for task in batch]
        references = [concept.references.images for concept in concepts]
        return transfer_masks(checked, references, [concept.masks for concept in concepts], **self._encoder)

    def _segment_masks(
        self, segment: Segment, batch: Sequence[GenerationTask], images: Images, checked: ImageBatch
    ) -> Sequence[Tensor]:
        segmented = segment(images, [self.concepts[task.concept].noun for task in batch])
        check_segmented(segmented, len(checked))
        with warnings.catch_warnings(record=True) as caught:  # reported once per validation
            warnings.simplefilter("always")
            masks = check_masks(segmented, "segment output", checked.sizes).masks
        self._mask_hints += [str(hint.message) for hint in caught]
        return masks

    def report(self) -> RankReport:
        """Report of this rank."""
        hints = tuple(self._mask_hints[:1])
        return RankReport(
            tuple(self._failures),
            self._shots,
            self._masks,
            hints,
            self._one_colour,
            self._inverted_masks,
            self._concept_rows,
        )

    def _add_failure(
        self, stage: str, error: Exception, batch: Sequence[GenerationTask], *, cp: bool = False, pf: bool = False
    ) -> None:
        example = f"{self.concepts[batch[0].concept].name!r}, {batch[0].prompt!r}"
        reason = f"{type(error).__name__}: {error}"
        self._failures.append(Failure(stage, reason, example, cp * len(batch), pf * len(batch)))

    def _add_pairs(self, batch: Sequence[GenerationTask], images: ImageBatch, pairs: list[int]) -> None:
        generated = ImageBatch(tuple(images.images[row] for row, task in enumerate(batch) for _ in task.pairs))
        concepts = [self.concepts[task.concept] for task in batch]
        references = ImageBatch(tuple(image for concept in concepts for image in concept.references.images))
        masks = [mask for concept in concepts for mask in concept.masks.masks]
        self.cp.update(generated, references, masks, sample_ids=pairs)

    def _add_concept_rows(self, batch: Sequence[GenerationTask], images: ImageBatch) -> None:
        if self._bank is not None:
            rows_SR = self._bank[1].matrix(images, reduction=DEFAULT_REFERENCE_REDUCTION, **self._encoder).cpu()
            self._concept_rows |= zip([task.index for task in batch], rows_SR, strict=True)

    def _add_shots(
        self,
        batch: Sequence[GenerationTask],
        images: ImageBatch,
        masks: Sequence[Tensor] | None,
        shown: Collection[GenerationTask],
    ) -> None:
        rows = [row for row, task in enumerate(batch) if task in shown]
        if not rows:
            return
        try:
            concepts = [self.concepts[batch[row].concept] for row in rows]
            maps = match_maps(
                ImageBatch(tuple(images.images[row] for row in rows)),
                ImageBatch(tuple(concept.references.images[0] for concept in concepts)),
                [concept.masks.masks[0] for concept in concepts],
                **self._encoder,
            )
            for row, match_map in zip(rows, maps, strict=True):
                # Reduced in size before it is sent to rank 0, which adds the scores after synchronisation.
                image, mask = thumbnail(images.images[row]), None
                if masks is not None:
                    size = (image.shape[1], image.shape[2])
                    mask_11HW = masks[row][None, None].float()
                    mask_11HW = F.interpolate(mask_11HW, size=size, mode="bilinear", antialias=True)
                    mask = (mask_11HW[0, 0] > 0.5).cpu()
                self._shots[batch[row].index] = Shot(image, torch.nan, torch.nan, match_map.cpu(), mask)
        except Exception as error:  # the scores are not affected
            self._add_failure("the panel", error, batch)

    def _keep_worst(self, batch: Sequence[GenerationTask], most: int) -> None:
        """Forget images that are not among the worst of their concept on this rank, so not among all."""
        cp_P, pf_B = self.cp.keyed_scores[-1].tolist(), self.pf.keyed_scores[-1].tolist()  # of this batch
        start = batch[0].pairs.start
        for task, pf in zip(batch, pf_B, strict=True):
            if task.index in self._shots:
                cp_R = torch.tensor(cp_P[task.pairs.start - start : task.pairs.stop - start])
                self._shown_scores.setdefault(task.concept, {})[task.index] = (cp_R.nanmean().item(), pf)
        for concept in {task.concept for task in batch} & self._shown_scores.keys():
            known = self._shown_scores[concept]
            by_score = [{index: scores[column] for index, scores in known.items()} for column in range(2)]
            kept = {index for values in by_score for index in ascending(values, values)[:most]}
            for index in known.keys() - kept:
                del self._shots[index], known[index]

    def scores(self, tasks: Sequence[GenerationTask], reports: Sequence[RankReport]) -> ConceptScores:
        """Scores of all ranks; a collective call.

        Args:
            tasks: all images.
            reports: reports of all ranks.
        """
        with warnings.catch_warnings():
            # The caller reports undefined samples; a rank without batches is not a problem.
            warnings.simplefilter("ignore", UserWarning)
            cp_P, pf_S = self.cp.compute(), self.pf.compute()
        row_of = {index: row for report in reports for index, row in report.concept_rows.items()}
        known = [number for number, task in enumerate(tasks) if task.index in row_of]
        rank_S, margin_S = torch.full((2, len(tasks)), torch.nan, dtype=torch.float32, device="cpu")
        if known:
            matrix_KR = torch.stack([row_of[tasks[number].index] for number in known])
            own_K = torch.tensor([tasks[number].concept for number in known], device="cpu")
            rank_S[known], margin_S[known] = concept_ranks(matrix_KR, own_K), concept_margins(matrix_KR, own_K)
        return ConceptScores(
            torch.stack([cp_P[task.pairs.start : task.pairs.stop].nanmean() for task in tasks]),
            torch.stack([cp_P[task.pairs.start] for task in tasks]),
            pf_S,
            rank_S,
            margin_S,
        )


def _with_masks(concept: Concept, segmenter: Segmenter, device: torch.device) -> Concept:
    """The concept with masks of its references: its own, or the segmenter's."""
    if concept.masks.masks:
        return concept
    on_device = ImageBatch(tuple(to_device(image, device) for image in concept.references.images))
    found = segmenter.details(on_device, [concept.noun] * len(on_device))
    for index, segmentation in enumerate(found):
        if not segmentation.instances or not segmentation.mask.any():
            raise ValueError(
                f"reference_images[{index}] of concept {concept.name!r}: segmenter {segmenter.settings.name!r} finds "
                f"no {concept.noun!r} (best score {segmentation.score:.2f}, threshold "
                f"{segmenter.settings.threshold:g}); give another noun, a segmenter with a lower threshold, or "
                "reference_masks"
            )
    images = concept.references.images
    return concept.with_masks([to_device(each.mask, image.device) for each, image in zip(found, images, strict=True)])
