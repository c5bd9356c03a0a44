"""Pictures of samples for a report: images with the outlines of their masks, match maps and background maps."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from masc_metrics.bench.loading import LoadedReference, LoadedSample, Loader, named
from masc_metrics.bench.made_masks import MaskMaker
from masc_metrics.bench.report.rows import ScoredTable
from masc_metrics.bench.run import Run
from masc_metrics.functional import background_maps, match_maps
from masc_metrics.images import ImageProcessing
from masc_metrics.plots.drawing import background_map, heat_map, outlined, picture_and_mask

SIDE, SMALL_SIDE = 256, 144
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
        images: data URIs by kind: "reference", "generated", "match" and "background"; "reference 2" and "match 2" are
            of the second of several references.
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
        run: settings of the run.
        maker: makes masks as the run did; None draws no maps.
        references: the last reference, by image and mask file: samples of one reference often follow each other.
    """

    table: ScoredTable
    run: Run
    maker: MaskMaker | None = None
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
        if not maps or self.maker is None:
            return Pictures(number, self._images(loaded, loaded.generated.mask, SIDE), ())
        settings: dict[str, Any] = {"backbone": self.maker.backbone, "max_num_patches": self.run.max_num_patches}
        loaded = self.maker.masked([loaded])[loaded.number].sample
        generated, generated_mask = [loaded.generated.pixels], loaded.generated.mask
        references = [[image.pixels for image in loaded.references]]
        reference_masks = [[image.mask for image in loaded.references if image.mask is not None]]
        marked = loaded.mask_of("reference") is not None
        images = self._images(loaded, generated_mask, SIDE)
        notes = list(loaded.lacks.values())
        if marked:
            (found,) = match_maps(generated, references, reference_masks, **settings)
            for place, (pixels, each) in enumerate(zip(references[0], found, strict=True), start=1):
                images[_numbered("match", place)] = match_uri(pixels, each, SIDE)
            notes += self._check(number, found)
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

    def _check(self, number: int, maps: Sequence[Tensor]) -> list[str]:
        """What is wrong if the score of the maps is not the table's."""
        cosines = [values for each in maps if len(values := each[~each.isnan()])]
        if "cp" not in self.table.scores or not cosines:
            return []
        if self.run.reference_reduction == "pool":
            cosines = [torch.cat(cosines)]
        means = [float(values.mean()) for values in cosines]
        cp = max(means) if self.run.reference_reduction == "max" else sum(means) / len(means)
        stored = float(self.table.values_NS[number, self.table.scores.index("cp")])
        _, _, decimals = (self.table.rows[number].cells["cp"] or "").partition(".")
        if math.isnan(stored) or abs(stored - cp) <= _LOOSE + 0.5 * 10 ** -len(decimals):  # a spreadsheet may round
            return []
        return [f"CP is {cp:.4f} now and {stored:.4f} in the table: its files or the network have changed since."]

    def _load(self, number: int) -> LoadedSample | str:
        try:
            sample = self.table.sample(number)
        except ValueError as error:
            return f"No pictures: {error}"
        if sample.references[0] not in self.references:
            self.references.clear()
        processing = _NO_PROCESSING if self.maker is None else self.maker.backbone.checkpoint.processing
        loaded = Loader([sample], processing, self.run).load(0, self.references)
        return loaded if isinstance(loaded, LoadedSample) else f"No pictures: {self._relative(number, loaded.error)}"

    def _relative(self, number: int, text: str) -> str:
        """A text with files relative to the table."""
        for file in self.table.sample(number).files:
            text = text.replace(named(file), named(os.path.relpath(file, self.table.file.parent)))
        return text

    def _images(self, loaded: LoadedSample, generated_mask: Tensor | None, side: int) -> dict[str, str]:
        shown = {
            _numbered("reference", place): (each, each.mask) for place, each in enumerate(loaded.references, start=1)
        }
        first = dict(list(shown.items())[:1])
        return {
            kind: outlined_uri(image.pixels, mask, side)
            for kind, (image, mask) in (first | {"generated": (loaded.generated, generated_mask)} | shown).items()
        }


def _numbered(kind: str, place: int) -> str:
    """Kind of a picture of one of several references, counted from 1."""
    return kind if place == 1 else f"{kind} {place}"


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    return picture_and_mask(image, None, "image", "mask")[0]


def match_uri(reference: Tensor, found: Tensor, side: int) -> str:
    """A match map as a data URI.

    Args:
        reference: (3, H, W), the reference image.
        found: its map from :func:`masc_metrics.functional.match_maps`.
        side: longest side of the picture.
    """
    return _data_uri(heat_map(_pixels(reference), found, 0.0), side)


def outlined_uri(image: Tensor, mask: Tensor | None, side: int) -> str:
    """An image with the outline of its mask, if it has one, as a data URI.

    Args:
        image: (3, H, W).
        mask: (H, W).
        side: longest side of the picture.
    """
    pixels, inside = picture_and_mask(image, mask, "image", "mask")
    return _data_uri(outlined(_sized(pixels, side), inside), side)


def _sized(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A picture with this longest side; patches and small images keep sharp pixels."""
    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    resample = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return np.asarray(image.resize([max(1, round(length * scale)) for length in image.size], resample))


def _data_uri(pixels: NDArray[np.uint8], side: int) -> str:
    stream = io.BytesIO()
    Image.fromarray(_sized(pixels, side)).save(stream, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
