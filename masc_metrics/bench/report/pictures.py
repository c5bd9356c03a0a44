"""Pictures of samples for a report: images with the outlines of their masks, match maps and background maps."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.bench.loading import LoadedReference, LoadedSample, Loader, named
from masc_metrics.bench.report.rows import ScoredTable
from masc_metrics.bench.run import Run
from masc_metrics.bench.sample import FILES
from masc_metrics.functional import background_maps, match_maps, transfer_masks
from masc_metrics.images import ImageProcessing
from masc_metrics.plots.drawing import background_map, heat_map, outlined, picture_and_mask

SIDE, SMALL_SIDE = 320, 144
"""Longest side of a picture of a chosen sample, and of another sample, in pixels."""

_QUALITY = 82
_LOOSE = 1e-3  # above the difference of devices, and of an image read by another version of Pillow
_NO_PROCESSING = ImageProcessing(patch_size=16, mean=(0.5,) * 3, std=(0.5,) * 3, resample="bilinear", fixed_size=None)
"""Only the number of patches depends on it, which is not shown."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures of one sample.

    Attributes:
        number: position of the sample in its table.
        images: data URIs by kind: "reference", "generated", "match" and "background".
        notes: why a picture is missing, or what is wrong with it.
    """

    number: int
    images: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Illustrator:
    """Draws the pictures of a table's samples.

    Attributes:
        table: the table of scores.
        max_num_patches: patch budget of the run.
        backbone: backbone of the run; None draws no maps.
        references: the last reference, by image and mask file: samples of one reference often follow each other.
    """

    table: ScoredTable
    max_num_patches: int = 1
    backbone: SigLIP2Backbone | None = None
    references: dict[tuple[str, str | None], LoadedReference] = field(default_factory=dict)

    def small(self, number: int) -> Pictures:
        """The images of a sample, small, with the outlines of the masks that are files."""
        loaded = self._load(number)
        if isinstance(loaded, str):
            return Pictures(number, {}, (loaded,))
        return Pictures(number, self._images(loaded, loaded.generated.mask, SMALL_SIDE), ())

    def full(self, number: int, *, maps: bool) -> Pictures:
        """The images of a sample, and with ``maps`` its maps, by the masks and settings of the run."""
        loaded = self._load(number)
        if isinstance(loaded, str):
            return Pictures(number, {}, (loaded,))
        if not maps or self.backbone is None:
            return Pictures(number, self._images(loaded, loaded.generated.mask, SIDE), ())
        settings: dict[str, Any] = {"backbone": self.backbone, "max_num_patches": self.max_num_patches}
        generated = [loaded.generated.pixels]
        reference = [] if loaded.reference is None else [loaded.reference.pixels]
        generated_mask, reference_mask = (loaded.mask_of(which) for which in ("generated", "reference"))
        if generated_mask is None and reference_mask is not None and self._cell(number, "mask_source") == "transferred":
            generated_mask = transfer_masks(generated, reference, [reference_mask], **settings).masks[0].cpu()
        images = self._images(loaded, generated_mask, SIDE)
        notes = list(loaded.lacks.values())
        if reference_mask is not None:
            (found,) = match_maps(generated, reference, [reference_mask], **settings)
            images["match"] = _data_uri(heat_map(_pixels(reference[0]), found, 0.0), SIDE)
            notes += self._check(number, float(found.nanmean()))
        elif not loaded.lacks.keys() & {"reference_image", "reference_mask"}:
            notes.append(self._no_mask(number, "reference"))
        if generated_mask is not None:
            (weights,) = background_maps(generated, [generated_mask], **settings)
            images["background"] = _data_uri(background_map(_pixels(loaded.generated.pixels), weights), SIDE)
        elif "generated_mask" not in loaded.lacks:
            notes.append(self._no_mask(number, "generated"))
        return Pictures(number, images, tuple(self._relative(number, note) for note in notes))

    def _cell(self, number: int, column: str) -> str:
        return self.table.text(number, column)

    def _no_mask(self, number: int, which: str) -> str:
        kind = "match map" if which == "reference" else "background map"
        source = self._cell(number, "mask_source" if which == "generated" else "reference_mask_source")
        made = f"its {which} mask, made by {source}, is not in a file" if source else f"it has no {which} mask"
        return f"No {kind}: {made}."

    def _check(self, number: int, cp: float) -> list[str]:
        """What is wrong if the score of the maps is not the table's."""
        if "cp" not in self.table.scores or math.isnan(cp):
            return []
        stored = float(self.table.values_NS[number, self.table.scores.index("cp")])
        if math.isnan(stored) or abs(stored - cp) <= _LOOSE:
            return []
        return [f"CP is {cp:.4f} now and {stored:.4f} in the table: its files or the network have changed since."]

    def _load(self, number: int) -> LoadedSample | str:
        sample = self.table.sample(number)
        key = (sample.reference_image, sample.reference_mask)
        if key not in self.references:
            self.references.clear()
        processing = _NO_PROCESSING if self.backbone is None else self.backbone.checkpoint.processing
        run = Run(self.table.file, max_num_patches=self.max_num_patches)
        loaded = Loader([sample], processing, run, [[0]]).load(0, self.references)
        if isinstance(loaded, LoadedSample):
            return loaded
        return f"No pictures: {self._relative(number, loaded.error)}"

    def _relative(self, number: int, text: str) -> str:
        """A text with files relative to the table."""
        sample = self.table.sample(number)
        for name in FILES:
            if file := getattr(sample, name):
                text = text.replace(named(file), named(self._cell(number, name)))
        return text

    def _images(self, loaded: LoadedSample, generated_mask: Tensor | None, side: int) -> dict[str, str]:
        masks = {"reference": loaded.mask_of("reference"), "generated": generated_mask}
        images = {"reference": loaded.reference, "generated": loaded.generated}
        return {
            which: _data_uri(outlined(*picture_and_mask(image.pixels, masks[which], which, f"{which}_mask")), side)
            for which, image in images.items()
            if image is not None
        }


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    return picture_and_mask(image, None, "image", "mask")[0]


def _data_uri(pixels: NDArray[np.uint8], side: int) -> str:
    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    if scale < 1 or max(image.size) < SMALL_SIDE:
        resample = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
        image = image.resize([max(1, round(length * scale)) for length in image.size], resample)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
