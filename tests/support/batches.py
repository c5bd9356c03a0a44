"""Small random batches in the forms that the metrics accept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from masc_metrics.towers import TextTower, VisionTower

PATCHES = 64
"""A small patch budget for fast tests: 8 x 8 patches for a square image."""


def images(count: int, height: int = 96, width: int = 128, seed: int = 0) -> Tensor:
    """(B, 3, H, W) uint8 noise on a coarse lattice, equal in every process."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 9, 12), dtype=torch.uint8, generator=generator)
    return coarse[:, :, torch.arange(height) * 9 // height][..., torch.arange(width) * 12 // width]


def masks(count: int, height: int = 96, width: int = 128, seed: int = 0) -> Tensor:
    """(B, H, W) bool boxes, neither empty nor full."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.zeros(count, height, width, dtype=torch.bool)
    for box in boxes:
        top, left = (torch.rand(2, generator=generator) * 0.4).tolist()
        box[int(top * height) : int((top + 0.5) * height), int(left * width) : int((left + 0.5) * width)] = True
    return boxes


def batch(count: int, seed: int = 0, **size: int) -> dict[str, Any]:
    """All arguments of both metrics."""
    return {
        "generated_images": images(count, seed=seed, **size),
        "generated_masks": masks(count, seed=seed, **size),
        "reference_images": images(count, seed=seed + 1000, **size),
        "reference_masks": masks(count, seed=seed + 1000, **size),
        "prompts": [f"a photo of a cat on a beach number {seed + index}" for index in range(count)],
        "subjects": ["cat"] * count,
    }


CP_ARGUMENTS = ("generated_images", "reference_images", "reference_masks")
PF_ARGUMENTS = ("generated_images", "generated_masks", "prompts", "subjects")


def only(arguments: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: arguments[name] for name in names}


def rows(arguments: dict[str, Any], *indices: int) -> dict[str, Any]:
    """Select samples of a batch."""
    return {
        name: values[list(indices)] if isinstance(values, Tensor) else [values[index] for index in indices]
        for name, values in arguments.items()
    }


@contextmanager
def counted_encodings() -> Iterator[dict[str, int]]:
    """Count the images and texts that pass through the towers within the block."""
    counts = {"images": 0, "image_passes": 0, "texts": 0}
    encode_images, encode_texts = VisionTower.encode, TextTower.encode

    def vision(self: VisionTower, pixels_B3HW: Tensor) -> Tensor:
        counts["images"] += len(pixels_B3HW)
        counts["image_passes"] += 1
        return encode_images(self, pixels_B3HW)

    def text(self: TextTower, texts: list[str]) -> Tensor:
        counts["texts"] += len(texts)
        return encode_texts(self, texts)

    VisionTower.encode, TextTower.encode = vision, text  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        VisionTower.encode, TextTower.encode = encode_images, encode_texts  # type: ignore[method-assign]
