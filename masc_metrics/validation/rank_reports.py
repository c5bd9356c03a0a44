"""What ranks report of a validation, the scores of all images, and the problems in one text.

Shape suffixes: S generated images, R concepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from masc_metrics.intervals import COSINES, mean, unit_means
from masc_metrics.plots import Shot
from masc_metrics.validation.concepts import GenerationTask

LEAST_CONCEPTS = 3
"""Least number of concepts with which images are also scored with the concepts that they should not show."""

_MAX_REASONS = 3  # number of distinct failures in a message


@dataclass(frozen=True, slots=True)
class Failure:
    """Failure of one batch.

    Attributes:
        stage: "generate", "segment", "mask transfer", "scoring" or "the panel".
        reason: type and text of the exception.
        example: concept and prompt of the first image of the batch.
        cp: number of images whose concept preservation is undefined because of it.
        pf: number of images whose prompt following is undefined because of it.
    """

    stage: str
    reason: str
    example: str
    cp: int = 0
    pf: int = 0

    def __str__(self) -> str:
        return f"{self.stage} raised {self.reason} (first for {self.example})"


@dataclass(frozen=True, slots=True)
class ImageMask:
    """What is known about the mask of a generated image.

    Attributes:
        source: "transferred", the name of the segmenter, or "function".
        coverage: share of the image's pixels that it marks, in [0, 1].
        confidence: confidence of a transferred mask, see :class:`masc_metrics.transfer.TransferredMasks`; NaN if
            nothing was found, and for other masks.
    """

    source: str
    coverage: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Anchors:
    """Concept preservation between references, as a scale for that of generated images.

    Attributes:
        ceiling: mean score of each reference of the concept with its other references; NaN with fewer than two.
        floor: mean score of the references of other concepts with those of this one; NaN with one concept.

    Source: :func:`masc_metrics.functional.concept_anchors`.
    """

    ceiling: float
    floor: float


@dataclass(frozen=True, slots=True)
class RankReport:
    """Results of one rank besides the scores, for exchange between ranks.

    Attributes:
        failures: failed batches.
        shots: images for the panel by the index of their task, without scores.
        masks: masks by the index of their task.
        mask_hints: possible reasons for empty masks.
        one_colour: number of images of one colour.
        inverted_masks: number of images whose mask looks inverted.
        concept_rows: concept preservation with every concept, (R,), by the index of their task; empty with fewer than
            :data:`LEAST_CONCEPTS`.
    """

    failures: tuple[Failure, ...]
    shots: Mapping[int, Shot]
    masks: Mapping[int, ImageMask]
    mask_hints: tuple[str, ...]
    one_colour: int
    inverted_masks: int
    concept_rows: Mapping[int, Tensor]

    @property
    def empty_masks(self) -> int:
        """Number of images in whose mask nothing is marked."""
        return sum(mask.coverage == 0 for mask in self.masks.values())


@dataclass(frozen=True, slots=True)
class ConceptScores:
    """Both scores of every image, the same on every rank.

    Attributes:
        cp_S: concept preservation, mean over the references of the concept; NaN where undefined.
        shown_cp_S: concept preservation with the first reference only, which is shown in the panel.
        pf_S: prompt following; NaN where undefined.
        rank_S: rank of the own concept among all, from 1; NaN where undefined, and with fewer than
            :data:`LEAST_CONCEPTS` concepts.
        margin_S: margin of the own concept, likewise; see :func:`masc_metrics.scores.double_centred`.
    """

    cp_S: Tensor
    shown_cp_S: Tensor
    pf_S: Tensor
    rank_S: Tensor
    margin_S: Tensor

    def by_name(self, tasks: Sequence[GenerationTask], names: Sequence[str]) -> dict[str, float]:
        """Means as ``cp`` and ``pf``, their intervals as ``cp_low`` and ``cp_high``, and means as ``cp/<concept>``.

        A mean is NaN if no image is defined. Intervals are those of :mod:`masc_metrics.intervals`, left out if
        undefined. With enough concepts also ``identified``, ``mean_reciprocal_rank`` and ``margin``, as of
        :class:`masc_metrics.MaSCIdentification`.

        Args:
            tasks: all images.
            names: names of the concepts.
        """
        concept_S = np.array([task.concept for task in tasks])
        values: dict[str, float] = {}
        for score, score_S in (("cp", self.cp_S.cpu()), ("pf", self.pf_S.cpu())):
            values[score] = score_S.nanmean().item()
            units_U1, _ = unit_means(score_S.double().numpy()[:, None], concept_S)
            if interval := mean(units_U1[:, 0], COSINES).interval:
                values[f"{score}_low"], values[f"{score}_high"] = interval
            for concept, name in enumerate(names):
                if (rows := np.flatnonzero(concept_S == concept)).size:
                    values[f"{score}/{name}"] = score_S[rows].nanmean().item()
        if len(names) >= LEAST_CONCEPTS:
            rank_S = self.rank_S[~self.rank_S.isnan()]
            values["identified"] = (rank_S == 1).float().mean().item()
            values["mean_reciprocal_rank"] = (1 / rank_S).mean().item()
            values["margin"] = self.margin_S.nanmean().item()
        return values


def problem_summary(scores: ConceptScores, reports: Sequence[RankReport], *, transferred: bool = False) -> str:
    """Summary of failures and undefined scores in one text; empty if there are none.

    Args:
        scores: scores of all images.
        reports: reports of all ranks.
        transferred: whether masks were transferred from the references instead of segmented.
    """
    marked = "the transferred mask marks" if transferred else "the segmenter marked"
    failures = [failure for report in reports for failure in report.failures]
    no_cp, no_pf = (int(values_S.isnan().sum()) for values_S in (scores.cp_S, scores.pf_S))
    distinct: dict[tuple[str, str], Failure] = {}
    for failure in failures:
        distinct.setdefault((failure.stage, failure.reason), failure)
    reasons = [str(failure) for failure in distinct.values()]
    if len(reasons) > _MAX_REASONS:
        reasons[_MAX_REASONS:] = [f"{len(reasons) - _MAX_REASONS} more reasons"]
    if unmarked := no_cp - sum(failure.cp for failure in failures):
        reasons.append(f"the reference masks leave no patch of the subject for {unmarked}")
    if covered := no_pf - sum(failure.pf for failure in failures):
        reasons.append(f"{marked} {covered} completely, which leaves no background")
    if empty := sum(report.empty_masks for report in reports):
        hints = [f" ({hint})" for report in reports for hint in report.mask_hints]
        reasons.append(f"{marked} nothing in {empty}, so that PF uses all patches" + "".join(hints[:1]))
    if one_colour := sum(report.one_colour for report in reports):
        reasons.append(f"{one_colour} have one colour, as a safety checker's black images do; switch it off")
    if inverted := sum(report.inverted_masks for report in reports):
        reasons.append(
            f"{marked} most of the image and almost all of its border in {inverted}, as an inverted mask does; if so, "
            "return mask < 0.5"
        )
    if not reasons:
        return ""
    count = len(scores.pf_S)
    undefined = f"CP is undefined for {no_cp} and PF for {no_pf} of {count} images, which the means exclude: "
    return (undefined if no_cp or no_pf else f"of {count} images: ") + "; ".join(reasons)
