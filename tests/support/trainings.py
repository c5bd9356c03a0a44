"""Validations of a training with chosen scores, for tests of its report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from masc_metrics.plots import PanelRow, Shot
from masc_metrics.validation import Anchors, ConceptValidation, ValidatedImage
from masc_metrics.validation.panels import ShownConcept

SETTINGS: Mapping[str, str | int] = {"model": "tiny", "max_num_patches": 64, "dtype": "float32", "seed": 0}


def validation(
    cp: Mapping[str, Sequence[float]],
    *,
    prompts: Sequence[str] = ("on a beach", "in the snow"),
    settings: Mapping[str, str | int] = SETTINGS,
    shade: int = 0,
    side: int = 32,
) -> ConceptValidation:
    """A validation with these CP values of the prompts of each concept; PF is half of CP.

    Args:
        cp: values by concept.
        prompts: ends of the prompts.
        settings: what the scores depend on.
        shade: shade of the generated images.
        side: side of the images in pixels.
    """
    table, shown = [], []
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[side // 4 : -side // 4, side // 4 : -side // 4] = True
    for concept, values in cp.items():
        indices = range(len(table), len(table) + len(values))
        captions = [f"{concept} {prompt}" for prompt, _ in zip(prompts, values, strict=True)]
        for index, prompt, value in zip(indices, captions, values, strict=True):
            scores = (value, value / 2)
            rest = ("function", 0.25, math.nan, 1.0, 0.5, 0.9, 0.1)
            table.append(ValidatedImage(index, concept, prompt, 0, *scores, *rest))
        image = torch.full((3, side, side), shade, dtype=torch.uint8)
        found = torch.full((2, 2), 0.5)
        shots = [
            Shot(image, value, value / 2, found, mask, prompt) for value, prompt in zip(values, captions, strict=True)
        ]
        reference = torch.full((3, side, side), 200, dtype=torch.uint8)
        shown.append(ShownConcept(concept, PanelRow(concept, reference, mask, shots), tuple(indices)))
    anchors = {concept: Anchors(0.9, math.nan) for concept in cp}
    return ConceptValidation({}, tuple(table), None, "", anchors, tuple(shown), settings)
