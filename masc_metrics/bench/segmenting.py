"""Masks from text, with an error for each picture that fails."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from masc_metrics.bench.tables import printable
from masc_metrics.segmenters import Segmentation, Segmenter


def segmented(segmenter: Segmenter, images: Sequence[Tensor], nouns: Sequence[str]) -> list[Segmentation | ValueError]:
    """What the segmenter marks in each picture, or its error, such as a noun that is too long.

    The segmenter's warning of masks over almost all of a picture is hidden: the commands count such masks.

    Raises:
        OSError, ImportError: as :meth:`masc_metrics.segmenters.Segmenter.details`.
    """
    if not images:
        return []
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* cover more than ", UserWarning)
            return list(segmenter.details(images, nouns))
    except ValueError as error:
        if len(images) == 1:
            return [ValueError(printable(str(error)))]  # it quotes the noun
    pairs = zip(images, nouns, strict=True)  # find out which
    return [result for image, noun in pairs for result in segmented(segmenter, [image], [noun])]
