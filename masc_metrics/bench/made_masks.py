"""Masks that samples lack, made while they are scored: from text, or transferred from their references."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.bench.loading import LoadedImage, LoadedSample, lacks_mask, mask_measures, named, noticed_in
from masc_metrics.bench.run import Run
from masc_metrics.bench.sample import MEASURES, WHICH, SampleResult
from masc_metrics.bench.segmenting import segmented
from masc_metrics.functional import check_transfer, transfer_masks
from masc_metrics.images import ImageBatch
from masc_metrics.masks import MaskBatch
from masc_metrics.references import ReferenceImages, ReferenceMasks
from masc_metrics.segmenters import Segmenter


@dataclass(frozen=True, slots=True)
class MaskedSample:
    """A sample with the masks that the run has made for it.

    Attributes:
        sample: the sample.
        made: source and confidence of each mask that was made, by "reference" or "generated".
        check: how well masks can be transferred with its reference; None without a transferred mask.
    """

    sample: LoadedSample
    made: Mapping[str, tuple[str, float | None]] = field(default_factory=dict)
    check: float | None = None

    def result(self, scores: Mapping[str, float | None], **fields: Any) -> SampleResult:
        """Its result; further fields are those of :class:`masc_metrics.bench.sample.SampleResult`."""
        (reference_source, reference_confidence), (source, confidence) = (
            self.made.get(which, ("" if self.sample.mask_of(which) is None else "given", None)) for which in WHICH
        )
        return SampleResult(
            self.sample.number,
            scores,
            _measures(self.sample),
            mask_source=source,
            mask_confidence=confidence,
            mask_check=self.check,
            reference_mask_source=reference_source,
            reference_mask_confidence=reference_confidence,
            **fields,
        )


@dataclass(frozen=True, slots=True)
class MaskMaker:
    """What a run makes masks with.

    Attributes:
        run: the settings.
        backbone: MaSC's backbone.
        segmenter: makes the masks that samples lack; None if there are none, or they are transferred.
        checks: how well masks can be transferred, by reference image and mask; found as needed.
    """

    run: Run
    backbone: SigLIP2Backbone
    segmenter: Segmenter | None = None
    checks: dict[tuple[tuple[str, str | None], ...], float] = field(default_factory=dict)

    def masked(self, pairs: Sequence[LoadedSample]) -> dict[int, MaskedSample]:
        """All pairs, with the masks that they lack and the run makes; a pair still lacks one that cannot be made."""
        masked = {pair.number: MaskedSample(pair) for pair in pairs}
        if self.segmenter is not None:
            return masked | self._segmented(pairs, self.segmenter)
        return masked | self._transferred(pairs) if "generated_mask" in self.run.made_masks else masked

    def _segmented(self, pairs: Sequence[LoadedSample], segmenter: Segmenter) -> dict[int, MaskedSample]:
        """The pairs without a mask that the run makes, with those from their nouns, by the sample's number."""
        tasks = [
            (pair, which)
            for pair in pairs
            for which in WHICH
            if lacks_mask(pair.sample, which, self.run)
            and f"{which}_mask" not in pair.lacks
            and getattr(pair, which) is not None
        ]
        images = [getattr(pair, which).pixels for pair, which in tasks]
        found = segmented(segmenter, images, [getattr(pair.sample, f"{which}_noun") for pair, which in tasks])
        made: dict[int, MaskedSample] = {}
        for (pair, which), result in zip(tasks, found, strict=True):
            known = made.get(pair.number, MaskedSample(pair))
            if isinstance(result, ValueError):
                reason = f"{which}_image {named(getattr(pair.sample, f'{which}_image'))}: {result}"
                lacking = replace(known.sample, lacks={**known.sample.lacks, f"{which}_mask": reason})
                made[pair.number] = replace(known, sample=lacking)
                continue
            confidence = result.score if result.coverage > 0 else None
            made[pair.number] = MaskedSample(
                self._with_mask(known.sample, which, result.mask),
                {**known.made, which: (segmenter.settings.name, confidence)},
            )
        return made

    def _transferred(self, pairs: Sequence[LoadedSample]) -> dict[int, MaskedSample]:
        """The pairs without a mask of the generated image, with one from their reference, by the sample's number."""
        chosen = [
            pair
            for pair in pairs
            if pair.generated.mask is None
            and "generated_mask" not in pair.lacks
            and pair.mask_of("reference") is not None
        ]
        if not chosen:
            return {}
        generated = ImageBatch(tuple(pair.generated.pixels for pair in chosen))
        settings = encoder_settings(self.backbone, self.run)
        found = transfer_masks(generated, reference_images(chosen), reference_masks(chosen), **settings)
        return {
            pair.number: MaskedSample(
                self._with_mask(pair, "generated", mask),
                {"generated": ("transferred", None if math.isnan(confidence) else confidence)},
                self._check(pair),
            )
            for pair, mask, confidence in zip(chosen, found.masks, found.confidence_B.tolist(), strict=True)
        }

    def _with_mask(self, pair: LoadedSample, which: str, mask: Tensor) -> LoadedSample:
        """The pair with a mask, (H, W) bool, of one of its images."""
        image: LoadedImage = getattr(pair, which)
        grid = self.backbone.checkpoint.processing.grid(mask.shape[0], mask.shape[1], self.run.max_num_patches)
        marked = mask.cpu()  # once: each copy waits for the device
        measures = mask_measures(marked, grid, which)
        completed = LoadedImage(image.pixels, marked, *measures, (*image.noticed, *noticed_in(marked)))
        return replace(pair, reference=completed) if which == "reference" else replace(pair, generated=completed)

    def _check(self, pair: LoadedSample) -> float:
        key = pair.sample.references
        if key not in self.checks:
            settings = encoder_settings(self.backbone, self.run)
            found = check_transfer(reference_images([pair]), reference_masks([pair]), **settings)
            self.checks[key] = float(found)
        return self.checks[key]


def encoder_settings(backbone: SigLIP2Backbone, run: Run) -> dict[str, Any]:
    """What functions that encode images take."""
    return {
        "backbone": backbone,
        "max_num_patches": run.max_num_patches,
        "encode_batch_size": run.batch_size,
    }


def reference_images(pairs: Sequence[LoadedSample]) -> ReferenceImages:
    """The references of loaded samples as the functions take them: nested if a sample has several."""
    images = [ImageBatch(tuple(image.pixels for image in pair.references)) for pair in pairs]
    return images if _nested(pairs) else ImageBatch(tuple(each.images[0] for each in images))


def reference_masks(pairs: Sequence[LoadedSample]) -> ReferenceMasks:
    """Their masks, which all of them have, in the same arrangement."""
    masks = [MaskBatch(tuple(image.mask for image in pair.references)) for pair in pairs]  # type: ignore[misc]  # none lacks one
    return masks if _nested(pairs) else MaskBatch(tuple(each.masks[0] for each in masks))


def _nested(pairs: Sequence[LoadedSample]) -> bool:
    return any(pair.more_references for pair in pairs)


def _measures(pair: LoadedSample) -> dict[str, float | None]:
    measures: dict[str, float | None] = {}
    for name in MEASURES:
        which, measure = name.split("_", 1)
        values = [getattr(image, measure) for image in (pair.references if which == "reference" else (pair.generated,))]
        known = bool(values) and None not in values
        mean = measure == "coverage"
        measures[name] = None if not known else sum(values) / len(values) if mean else sum(values)
    return measures
