"""Pictures as the segmenters' networks take them, without transformers' processors, some of which need torchvision.

Shape suffixes: B pictures; H, W sides in pixels; S side of a square.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from masc_metrics.images import MAX_UINT8, ImageProcessing, normalise, resize_all
from masc_metrics.precision import to_device
from masc_metrics.reading import PROCESSOR_FILES, check_normalisation, load_json, readable

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Means and standard deviations that transformers' processors use if a checkpoint's file has none."""

_TRUNCATE = 4.0
"""Radius of the Gaussian kernel in standard deviations, scipy's default."""


def read_size(folder: Path, default: Any) -> Any:
    """The ``size`` of a checkpoint's image-processor file; the default, its class's, if the file has none."""
    return _processor_values(folder)[1].get("size", default)


def read_processing(folder: Path, mean_std: tuple[Sequence[float], Sequence[float]]) -> ImageProcessing:
    """Normalisation of a checkpoint's image-processor file.

    Args:
        folder: folder of the checkpoint.
        mean_std: mean and standard deviation if the file has none.

    Raises:
        ValueError: if a value is malformed.
    """
    file, values = _processor_values(folder)
    with readable(file, "image processor"):
        mean, std = (
            tuple(map(float, values.get(name, default)))
            for name, default in zip(("image_mean", "image_std"), mean_std, strict=True)
        )
    check_normalisation(file, mean, std)
    (r, g, b), (dr, dg, db) = mean, std
    # Patches of one pixel, so that grids are sizes in pixels.
    return ImageProcessing(patch_size=1, mean=(r, g, b), std=(dr, dg, db), resample="bilinear", fixed_size=None)


def _processor_values(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    for name in PROCESSOR_FILES:
        if (folder / name).is_file():
            values = load_json(folder / name)
            return folder / name, values.get("image_processor", values)
    return folder, {}


def shortest_edge_size(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Size of a picture whose shorter side becomes ``shortest``, or less if the longer one would exceed ``longest``.

    As in transformers' DETR processors: the limited shorter side is rounded, the longer one floored.
    """
    short, long = min(height, width), max(height, width)
    exact: float = shortest
    if long / short * shortest > longest:
        exact = longest * short / long
        shortest = max(1, round(exact))
    if short == shortest:
        return height, width
    other = int(exact * long / short)
    return (other, shortest) if width < height else (shortest, other)


def resized_pixels(
    images: Sequence[Tensor], sizes: Sequence[tuple[int, int]], processing: ImageProcessing, device: torch.device
) -> Tensor:
    """Resize pictures to equal sizes, bilinear and antialiased, and normalise them.

    Args:
        images: (3, H, W) each, uint8 in 0..255 or float32 in [0, 1].
        sizes: (height, width) of each after resizing; a batch has one size.
        processing: mean and standard deviation.
        device: device of the result.

    Returns:
        (B, 3, H, W) float32.
    """
    resized = resize_all(images, sizes, processing)
    return torch.cat([normalise(to_device(image, device)[None], processing) for image in resized])


def padded_pixels(images: Sequence[Tensor], side: int, processing: ImageProcessing, device: torch.device) -> Tensor:
    """Pad pictures with 0 on the right and at the bottom to a square, resize them, and normalise them, as for OWLv2.

    A picture that shrinks by a factor f is first smoothed by a Gaussian with standard deviation (f - 1) / 2.

    Args:
        images: (3, H, W) each, uint8 in 0..255 or float32 in [0, 1].
        side: side of the result in pixels.
        processing: mean and standard deviation.
        device: device of the result.

    Returns:
        (B, 3, S, S) float32.
    """
    squares = []
    for image in images:
        pixels_3HW = to_device(image, device)
        if not pixels_3HW.is_floating_point():
            pixels_3HW = pixels_3HW.float() / MAX_UINT8
        _, height, width = pixels_3HW.shape
        longer = max(height, width)
        square_3SS = F.pad(pixels_3HW, (0, longer - width, 0, longer - height))
        square_3SS = _smoothed(square_3SS, (longer / side - 1) / 2)
        squares.append(F.interpolate(square_3SS[None], (side, side), mode="bilinear", align_corners=False))
    return normalise(torch.cat(squares), processing)


def _smoothed(pixels_3SS: Tensor, sigma: float) -> Tensor:
    radius = int(_TRUNCATE * sigma + 0.5) if sigma > 0 else 0
    if radius == 0:
        return pixels_3SS
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32, device="cpu")
    weights = torch.exp(-((offsets / sigma) ** 2) / 2)
    kernel = to_device(weights / weights.sum(), pixels_3SS.device)
    planes = F.pad(pixels_3SS[:, None], (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(planes, kernel[None, None, :, None]), kernel[None, None, None, :])[:, 0]
