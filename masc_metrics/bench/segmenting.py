"""Masks from text, with an error for each picture that fails."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from masc_metrics.bench.tables import printable
from masc_metrics.reading import CheckpointError, checkpoint_version
from masc_metrics.segmenters import Segmentation, Segmenter


def checkpoints_of(segmenter: Segmenter) -> dict[str, str]:
    """Versions of a segmenter's checkpoints by hub id or folder, see :func:`checkpoint_version`; reads its networks.

    Raises:
        OSError, ValueError, ImportError: as :meth:`masc_metrics.segmenters.Segmenter.load`.
    """
    return {model: checkpoint_version(Path(model), commit) for model, commit in segmenter.load().items()}


def folders_of(segmenter: Segmenter) -> dict[str, str]:
    """Those of :func:`checkpoints_of` that are folders on this machine; reads no network.

    Raises:
        OSError: if a file cannot be read.
    """
    sources = [source for source in (segmenter.settings.source, segmenter.settings.mask_source) if source is not None]
    return {source.model: checkpoint_version(*source.locate()) for source in sources if Path(source.model).is_dir()}


def segmented(segmenter: Segmenter, images: Sequence[Tensor], nouns: Sequence[str]) -> list[Segmentation | ValueError]:
    """What the segmenter marks in each picture, or its error, such as a noun that is too long.

    The segmenter's warning of masks over almost all of a picture is hidden: the commands count such masks.

    Raises:
        OSError, ImportError: as :meth:`masc_metrics.segmenters.Segmenter.details`.
        CheckpointError: if a checkpoint cannot be used.
    """
    if not images:
        return []
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* cover more than ", UserWarning)
            return list(segmenter.details(images, nouns))
    except CheckpointError:
        raise
    except ValueError as error:
        if len(images) == 1:
            return [ValueError(printable(str(error)))]  # it quotes the noun
    pairs = zip(images, nouns, strict=True)  # find out which
    return [result for image, noun in pairs for result in segmented(segmenter, [image], [noun])]
