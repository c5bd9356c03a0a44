"""The concepts of a list as a gallery: with which of them a generated image fits best, and what their scores mean.

Letters in names: ``N`` samples, ``R`` concepts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.bench.loading import LoadedImage, LoadedSample, Loader
from masc_metrics.bench.run import Run
from masc_metrics.bench.sample import Sample, SampleResult
from masc_metrics.bench.summary import mean_cell, mean_figure
from masc_metrics.functional.gallery import SubjectBank
from masc_metrics.images import ImageBatch
from masc_metrics.masks import MaskBatch
from masc_metrics.references import References
from masc_metrics.scores import concept_margins, concept_ranks

COLUMNS = ("concept_rank", "concept_margin")
"""Columns of the table of scores of a run with a gallery."""

_LIMITS = {"identified": (0.0, 1.0), "mean_reciprocal_rank": (0.0, 1.0), "margin": (-4.0, 4.0)}
"""Range of each figure of the summary."""


@dataclass(frozen=True, slots=True)
class Gallery:
    """The encoded references of the concepts of a list.

    Attributes:
        concepts: names of R concepts.
        bank: features of the subject in their references.
        anchors: ceiling and floor of each concept, see :class:`masc_metrics.functional.ConceptAnchors`.
    """

    concepts: tuple[str, ...]
    bank: SubjectBank
    anchors: Mapping[str, Mapping[str, float | None]]

    def rows(self, pairs: Sequence[LoadedSample], backbone: SigLIP2Backbone, run: Run) -> list[list[float]]:
        """Concept preservation of each generated image with every concept."""
        if not pairs:
            return []
        generated = ImageBatch(tuple(pair.generated.pixels for pair in pairs))
        matrix_NR = self.bank.matrix(generated, backbone, run.max_num_patches, run.batch_size, run.reference_reduction)
        rows: list[list[float]] = matrix_NR.tolist()
        return rows


def concept_of(sample: Sample) -> str:
    """The concept of a sample; without a name, its reference image stands for it."""
    return sample.concept or sample.reference_image


def load_gallery(samples: Sequence[Sample], backbone: SigLIP2Backbone, run: Run, *, anchors: bool) -> Gallery:
    """Read and encode all references of a list; a concept without one that can be read is left out.

    Args:
        samples: the list.
        backbone: MaSC's backbone.
        run: the settings.
        anchors: whether to compute the anchors, which encode nothing further but compare all references.

    Raises:
        ValueError: if there are fewer than two concepts with a mask of a reference.
    """
    files: dict[str, dict[tuple[str, str | None], None]] = {}
    for sample in samples:
        files.setdefault(concept_of(sample), {}).update(dict.fromkeys(sample.references))
    loader = Loader(samples, backbone.checkpoint.processing, run)
    found = {concept: references for concept, keys in files.items() if (references := _read(loader, list(keys)))}
    if len(found) < 2:
        raise ValueError(
            f"--gallery needs two concepts with a reference image and its mask, but {len(found)} of {len(files)} have "
            "them; name them in the column concept, or leave --gallery out"
        )
    gallery = list(found.values())
    bank = SubjectBank.of(gallery, backbone, run.max_num_patches, run.batch_size)
    values: dict[str, dict[str, float | None]] = {}
    if anchors:
        of_concepts = bank.anchors(gallery, backbone, run.max_num_patches, run.batch_size, run.reference_reduction)
        limits = zip(of_concepts.ceiling_R.tolist(), of_concepts.floor_R.tolist(), strict=True)
        for concept, (ceiling, floor) in zip(found, limits, strict=True):
            values[concept] = {"ceiling": _or_none(ceiling), "floor": _or_none(floor)}
    return Gallery(tuple(found), bank, values)


def _read(loader: Loader, files: Sequence[tuple[str, str | None]]) -> References | None:
    """The references with a mask that can be read; the others are errors of their samples."""
    images: list[LoadedImage] = []
    for image, mask in files:
        loaded, _ = loader.reference(image, mask)
        if loaded is not None:
            images.append(loaded)
    marked = [(image.pixels, image.mask) for image in images if image.mask is not None]
    if not marked:
        return None
    return References(ImageBatch(tuple(pixels for pixels, _ in marked)), MaskBatch(tuple(mask for _, mask in marked)))


def ranks_and_margins(
    samples: Sequence[Sample], results: Sequence[SampleResult], concepts: Sequence[str]
) -> list[dict[str, float | None]]:
    """``COLUMNS`` of each sample; None without scores. A margin is among the images of the sample's method."""
    column_of = {concept: column for column, concept in enumerate(concepts)}
    found: list[dict[str, float | None]] = [dict.fromkeys(COLUMNS) for _ in samples]
    of_method: dict[str, list[int]] = {}
    for number, (sample, result) in enumerate(zip(samples, results, strict=True)):
        if result.concept_scores and concept_of(sample) in column_of:
            of_method.setdefault(sample.method, []).append(number)
    for numbers in of_method.values():
        matrix_NR = torch.tensor([list(results[number].concept_scores) for number in numbers], dtype=torch.float64)
        own_N = torch.tensor([column_of[concept_of(samples[number])] for number in numbers])
        for number, *values in zip(
            numbers, concept_ranks(matrix_NR, own_N).tolist(), concept_margins(matrix_NR, own_N).tolist(), strict=True
        ):
            found[number] = dict(zip(COLUMNS, values, strict=True))
    return found


def gallery_summary(
    samples: Sequence[Sample], columns: Sequence[Mapping[str, float | None]], gallery: Gallery
) -> dict[str, Any]:
    """The number of concepts, their anchors, and figures of all samples and of each method, as of a score.

    ``identified`` is the share of samples whose own concept ranks first, ``mean_reciprocal_rank`` the mean of 1 / rank,
    and ``margin`` the mean margin.
    """
    labels = np.array([concept_of(sample) for sample in samples], dtype=object)
    ranks, margins = (np.array([row[name] for row in columns], dtype=np.float64) for name in COLUMNS)
    values = {
        "identified": np.where(np.isnan(ranks), np.nan, ranks == 1),
        "mean_reciprocal_rank": 1 / ranks,
        "margin": margins,
    }

    def figures(chosen: Sequence[int]) -> dict[str, Any]:
        return {name: mean_figure(value[chosen], labels[chosen], _LIMITS[name]) for name, value in values.items()}

    methods = sorted({sample.method for sample in samples if sample.method})
    return {
        "concepts": len(gallery.concepts),
        "all": figures(range(len(samples))),
        "by_method": {
            method: figures([number for number, sample in enumerate(samples) if sample.method == method])
            for method in methods
        },
        "anchors": dict(gallery.anchors),
    }


def gallery_lines(summary: Mapping[str, Any]) -> list[str]:
    """A line for all samples, one for each of several methods, and the means of the anchors."""
    methods = summary["by_method"] if len(summary["by_method"]) > 1 else {}
    lines = [
        f"{label}identified among {summary['concepts']} concepts: {mean_cell(figures['identified'])}, margin "
        f"{mean_cell(figures['margin'])}"
        for label, figures in [("", summary["all"]), *((f"{name}: ", each) for name, each in methods.items())]
    ]
    for name, what in (("ceiling", "the other references of their concept"), ("floor", "references of other concepts")):
        values = [each[name] for each in summary["anchors"].values() if each[name] is not None]
        if values:
            mean = f"mean of {len(values)} concepts"
            lines.append(f"{name}: references have CP {np.mean(values):.4f} with {what} ({mean})")
    return lines


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
