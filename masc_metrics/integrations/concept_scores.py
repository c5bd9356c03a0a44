"""Batches of orders through a generator, a segmenter and both metrics; what fails leaves undefined samples.

Shape suffixes: P pairs of a generated and a reference picture, S generated pictures.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from masc_metrics.functional import match_maps
from masc_metrics.images import ImageBatch, Images, check_images
from masc_metrics.integrations.concepts import Concept, Order
from masc_metrics.masks import FOREGROUND_THRESHOLD, Masks, check_masks
from masc_metrics.metrics import MaSCConceptPreservation, MaSCPromptFollowing
from masc_metrics.plots import Shot, shrunk
from masc_metrics.prompts import strip_subject

Segment = Callable[[Any, list[str]], Masks]

# Those of both metrics. How they reduce and synchronise is decided here.
_METRIC_SETTINGS = [
    name for name in inspect.signature(MaSCConceptPreservation).parameters if name not in ("reduction", "metric_kwargs")
]

_TOLD = 3  # different failures that a message tells of


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong with one batch.

    Attributes:
        stage: "generate", "segment", "scoring" or "the panel".
        reason: the exception, in words.
        example: the first picture of the batch, in words.
        cp: how many pictures have no concept preservation for it.
        pf: how many have no prompt following for it.
    """

    stage: str
    reason: str
    example: str
    cp: int = 0
    pf: int = 0

    def __str__(self) -> str:
        return f"{self.stage} raised {self.reason} (first for {self.example})"


@dataclass(frozen=True, slots=True)
class Report:
    """What one rank tells the others after its batches.

    Attributes:
        failures: what went wrong.
        shots: pictures for the panel, by their order's index, yet without scores.
        empty_masks: pictures in which the segmenter marked nothing.
        mask_hints: why that may be, if its masks show it.
    """

    failures: tuple[Failure, ...]
    shots: dict[int, Shot]
    empty_masks: int
    mask_hints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConceptScores:
    """Both scores of every picture, the same on every rank.

    Attributes:
        cp_S: mean over the concept's references; NaN where undefined.
        shown_cp_S: against the concept's first reference alone, which is the one that a panel shows.
        pf_S: NaN where undefined.
    """

    cp_S: Tensor
    shown_cp_S: Tensor
    pf_S: Tensor

    def means(self, chosen: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Mean CP and PF of all pictures, or of those chosen; NaN where none is defined."""
        rows = slice(None) if chosen is None else list(chosen)
        return self.cp_S[rows].nanmean(), self.pf_S[rows].nanmean()


class ConceptScorer:
    """Scores the orders of some concepts with both metrics, over any number of ranks."""

    def __init__(self, concepts: Sequence[Concept], segment: Segment, settings: dict[str, Any]) -> None:
        for name in settings:
            if name not in _METRIC_SETTINGS:
                known = ", ".join(_METRIC_SETTINGS)
                raise TypeError(f"{name} is no setting of MaSCValidation; beside its own it takes {known}")
        self.concepts = concepts
        self.segment = segment
        # One score a sample, by id: ranks may deal as they like, and every rank reads all scores in one order.
        self.cp = MaSCConceptPreservation(reduction="none", **settings)
        self.pf = MaSCPromptFollowing(reduction="none", **settings)
        self._failures: list[Failure] = []
        self._shots: dict[int, Shot] = {}
        self._empty_masks = 0
        self._mask_hints: list[str] = []

    def start(self, device: torch.device) -> None:
        """Forget all scores, follow the model to its device, and have the network and the prompts' embeddings there.

        Raises:
            OSError, ValueError: if the checkpoint cannot be had.
        """
        self._failures, self._shots, self._empty_masks, self._mask_hints = [], {}, 0, []
        for metric in (self.cp, self.pf):
            metric.reset()
            metric.to(device)
        self.cp.backbone.load()
        # All prompts at once: kept from the first time on, so that the text tower may be released between validations.
        texts = [strip_subject(prompt, concept.subject) for concept in self.concepts for prompt in concept.prompts]
        self.pf.backbone.encode_texts(texts, batch_size=self.pf.encode_batch_size)

    def add(self, batch: Sequence[Order], generate: Callable[[], Images], shown: Sequence[Order]) -> Exception | None:
        """Generate and score a batch. What raises is reported and returned, and its samples become undefined.

        Args:
            batch: what is generated.
            generate: returns one picture for each.
            shown: orders, of this batch or another, of which a picture is kept for the panel.
        """
        pairs, ids = [pair for order in batch for pair in order.pairs], [order.index for order in batch]
        stage, unscored = "generate", [(self.cp, pairs), (self.pf, ids)]
        pictures: ImageBatch | None = None
        masks: Sequence[Tensor] | None = None
        try:
            images = generate()
            checked = check_images(images, "what generate returned")
            checked = ImageBatch(tuple(image.clone() for image in checked.images))  # segment may paint in its pictures
            if len(checked) != len(batch):
                raise ValueError(
                    f"what generate returned holds {len(checked)} images for {len(batch)} prompts; return one for each"
                )
            stage, pictures = "scoring", checked
            self._add_pairs(batch, checked, pairs)
            unscored.pop(0)
            stage = "segment"
            found = self.segment(images, [self.concepts[order.concept].noun for order in batch])
            with warnings.catch_warnings(record=True) as caught:  # told once, with what came of it
                warnings.simplefilter("always")
                masks = check_masks(found, "what segment returned", checked.sizes).masks
            self._mask_hints += [str(hint.message) for hint in caught]
            self._empty_masks += sum(bool(mask.max() < FOREGROUND_THRESHOLD) for mask in masks)
            stage = "scoring"
            self.pf.update(
                checked,
                masks,
                [order.prompt for order in batch],
                [self.concepts[order.concept].subject for order in batch],
                sample_ids=ids,
            )
            unscored.pop(0)
        except Exception as error:
            lost = {id(metric) for metric, _ in unscored}  # metrics compare to a new metric, which is always true
            self._report(stage, error, batch, cp=id(self.cp) in lost, pf=id(self.pf) in lost)
            for metric, missing in unscored:
                metric.accumulate(torch.full((len(missing),), torch.nan), torch.tensor(missing, dtype=torch.int64))
            if pictures is not None and not isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
                self._show(batch, pictures, masks, shown)  # not for want of memory: it encodes them once more
            return error
        self._show(batch, checked, masks, shown)
        return None

    def report(self) -> Report:
        """What this rank has to tell."""
        return Report(tuple(self._failures), self._shots, self._empty_masks, tuple(self._mask_hints[:1]))

    def _report(
        self, stage: str, error: Exception, batch: Sequence[Order], *, cp: bool = False, pf: bool = False
    ) -> None:
        example = f"{self.concepts[batch[0].concept].name!r}, {batch[0].prompt!r}"
        reason = f"{type(error).__name__}: {error}"
        self._failures.append(Failure(stage, reason, example, cp * len(batch), pf * len(batch)))

    def _add_pairs(self, batch: Sequence[Order], images: ImageBatch, pairs: list[int]) -> None:
        generated = ImageBatch(tuple(images.images[row] for row, order in enumerate(batch) for _ in order.pairs))
        concepts = [self.concepts[order.concept] for order in batch]
        references = ImageBatch(tuple(image for concept in concepts for image in concept.references.images))
        masks = [mask for concept in concepts for mask in concept.masks.masks]
        self.cp.update(generated, references, masks, sample_ids=pairs)

    def _show(
        self, batch: Sequence[Order], images: ImageBatch, masks: Sequence[Tensor] | None, shown: Sequence[Order]
    ) -> None:
        rows = [row for row, order in enumerate(batch) if order in shown]
        if not rows:
            return
        try:
            concepts = [self.concepts[batch[row].concept] for row in rows]
            found = match_maps(
                ImageBatch(tuple(images.images[row] for row in rows)),
                ImageBatch(tuple(concept.references.images[0] for concept in concepts)),
                [concept.masks.masks[0] for concept in concepts],
                backbone=self.cp.backbone,
                max_num_patches=self.cp.max_num_patches,
                encode_batch_size=self.cp.encode_batch_size,
            )
            for row, found_map in zip(rows, found, strict=True):
                # Small, since it travels to rank 0; its scores are filled in when all ranks' are together.
                image, mask = shrunk(images.images[row]), None
                if masks is not None:
                    size = (image.shape[1], image.shape[2])
                    mask = (F.interpolate(masks[row][None, None], size=size, mode="bilinear")[0, 0] > 0.5).cpu()
                self._shots[batch[row].index] = Shot(image, torch.nan, torch.nan, found_map.cpu(), mask)
        except Exception as error:  # the scores are there all the same
            self._report("the panel", error, batch)

    def scores(self, orders: Sequence[Order]) -> ConceptScores:
        """The scores of all ranks; a collective call."""
        with warnings.catch_warnings():
            # Undefined samples, and ranks that had nothing to do, are for the caller to tell of.
            warnings.simplefilter("ignore", UserWarning)
            cp_P, pf_S = self.cp.compute(), self.pf.compute()
        return ConceptScores(
            torch.stack([cp_P[order.pairs.start : order.pairs.stop].nanmean() for order in orders]),
            torch.stack([cp_P[order.pairs.start] for order in orders]),
            pf_S,
        )


def problem_summary(scores: ConceptScores, reports: Sequence[Report]) -> str:
    """What failed and what its scores are worth less for, in one text; empty if nothing is wrong.

    Args:
        scores: of all pictures.
        reports: of all ranks.
    """
    failures = [failure for report in reports for failure in report.failures]
    no_cp, no_pf = (int(values_S.isnan().sum()) for values_S in (scores.cp_S, scores.pf_S))
    alike: dict[tuple[str, str], Failure] = {}
    for failure in failures:
        alike.setdefault((failure.stage, failure.reason), failure)
    reasons = [str(failure) for failure in alike.values()]
    if len(reasons) > _TOLD:
        reasons[_TOLD:] = [f"{len(reasons) - _TOLD} more reasons"]
    if unmarked := no_cp - sum(failure.cp for failure in failures):
        reasons.append(f"the reference masks leave no patch of the subject for {unmarked}")
    if covered := no_pf - sum(failure.pf for failure in failures):
        reasons.append(f"the segmenter marked {covered} from edge to edge, which leaves no background")
    if empty := sum(report.empty_masks for report in reports):
        hints = [f" ({hint})" for report in reports for hint in report.mask_hints]
        told = f"the segmenter marked nothing in {empty}, whose PF is therefore the whole picture's"
        reasons.append(told + "".join(hints[:1]))
    if not reasons:
        return ""
    count = len(scores.pf_S)
    undefined = f"CP is undefined for {no_cp} and PF for {no_pf} of {count} pictures, which the means leave out: "
    return (undefined if no_cp or no_pf else f"of {count} pictures: ") + "; ".join(reasons)
