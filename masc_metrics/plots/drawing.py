"""Pixels of images, outlines of masks and match maps, as arrays; needs only Pillow's requirements.

Shapes: h, w sides of a picture in pixels; pictures are (h, w, 3) uint8.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from masc_metrics.images import check_images
from masc_metrics.masks import check_masks

CELL = 168
"""Side of a picture in a panel, in pixels."""

_MAX_SIDE = 2 * CELL  # in pixels, before an image is scaled into its cell
# Sides, in pixels of the panel, of the squares over which a mask is averaged before it is outlined. The second is for
# masks of which the first leaves nothing, such as thin lines.
_SMOOTHING = (7, 3)
_OUTLINE = (255, 0, 200)

# From a low to a high cosine; distinguishable with colour blindness and in greyscale.
HEAT = np.array([(36, 12, 70), (98, 24, 116), (168, 46, 96), (228, 92, 48), (250, 178, 40), (252, 252, 160)], float)


def thumbnail(image: Tensor) -> Tensor:
    """Convert a checked image to (3, h, w) uint8 on the CPU, reduced to the resolution of a panel if it is larger."""
    pixels = image.detach().float() * (255 if image.is_floating_point() else 1)
    scale = _MAX_SIDE / max(image.shape[1:])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in image.shape[1:]]
        pixels = F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]
    return pixels.round().clamp(0, 255).to(torch.uint8).cpu()


def picture_and_mask(
    image: Tensor, mask: Tensor | None, image_name: str, mask_name: str
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Convert an image to (h, w, 3) uint8 and its mask to (h, w) bool; without a mask, all values are False."""
    (checked,) = check_images([image.detach() if isinstance(image, Tensor) else image], image_name).images
    pixels: NDArray[np.uint8] = thumbnail(checked).permute(1, 2, 0).numpy()
    size = pixels.shape[:2]
    if mask is None:
        return pixels, np.zeros(size, dtype=np.bool_)
    (coverage,) = check_masks([mask], mask_name, [(checked.shape[1], checked.shape[2])]).masks
    resized = F.interpolate(coverage[None, None].float().cpu(), size=size, mode="nearest")[0, 0]
    inside: NDArray[np.bool_] = (resized > 0.5).numpy()
    return pixels, inside


def dim(image: NDArray[np.uint8], where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Mix the pixels of a region with white, in a copy of the picture."""
    pixels: NDArray[np.uint8] = image.copy()
    pixels[where] = (image[where] * 0.45 + 255 * 0.55).round().astype(np.uint8)
    return pixels


def outlined(image: NDArray[np.uint8], inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Draw the outline of a mask, two pixels wide, on a copy of the image.

    The mask is averaged over small squares first: single pixels of a speckled mask would otherwise cover the image.
    """
    height, width = image.shape[:2]
    coverage_11HW = torch.from_numpy(inside)[None, None].float()
    coverage_11HW = F.interpolate(coverage_11HW, size=(height, width), mode="bilinear", antialias=True)
    for side in _SMOOTHING:
        smooth_11HW = coverage_11HW
        for _ in range(2):  # close to a Gaussian
            smooth_11HW = F.avg_pool2d(F.pad(smooth_11HW, [side // 2] * 4, mode="replicate"), side, stride=1)
        if bool((smooth_11HW > 0.5).any()):
            break
    padded = np.pad((smooth_11HW[0, 0] > 0.5).numpy(), 1, mode="edge")
    shifted = [padded[y : y + height, x : x + width] for y in (0, 2) for x in (0, 2)]
    pixels: NDArray[np.uint8] = image.copy()
    pixels[np.any(shifted, axis=0) & ~np.all(shifted, axis=0)] = _OUTLINE
    return pixels


def colours(unit: NDArray[np.floating]) -> NDArray[np.floating]:
    """Colours of values in [0, 1], (..., 3) in 0..255; values outside have the colour of the nearer end."""
    position = np.clip(unit, 0, 1) * (len(HEAT) - 1)
    return np.stack([np.interp(position, np.arange(len(HEAT)), HEAT[:, channel]) for channel in range(3)], axis=-1)


def heat_map(reference: NDArray[np.uint8], found: Tensor, lowest: float) -> NDArray[np.uint8]:
    """Draw the patches of the subject in colour on the reference in light grey, cropped to the subject."""
    height, width = reference.shape[:2]
    rows, columns = found.shape
    cosines = in_pixels(found, (height, width))
    subject = ~np.isnan(cosines)
    drawn = _coloured(_light_grey(reference), subject, (cosines[subject] - lowest) / (1 - lowest))
    return drawn[_crop_window(subject, margin=max(height // rows, width // columns))]


ATTENTION_RANGE = 4.0
"""Weights from 1/4 to 4 times the mean have colours of their own in a background map."""


def background_map(picture: NDArray[np.uint8], weights: Tensor) -> NDArray[np.uint8]:
    """Draw how much each patch of a generated image is attended to in colour, and the hidden patches in light grey.

    Args:
        picture: the generated image.
        weights: its map from :func:`masc_metrics.functional.background_maps`.
    """
    relative = in_pixels(relative_attention(weights), (picture.shape[0], picture.shape[1]))
    seen = ~np.isnan(relative)
    return _coloured(_light_grey(picture), seen, (relative[seen] + 1) / 2)


def relative_attention(weights: Tensor) -> Tensor:
    """Weights against their mean, on a log scale: 0 is the mean, ±1 is ``ATTENTION_RANGE`` times more or less."""
    seen = weights[~weights.isnan()]
    relative = weights / seen.mean() if len(seen) else weights
    return relative.clamp(1 / ATTENTION_RANGE, ATTENTION_RANGE).log() / float(np.log(ATTENTION_RANGE))


def in_pixels(values: Tensor, size: tuple[int, int]) -> NDArray[np.floating]:
    """Values of a patch grid, (rows, columns), at each pixel of a picture of this (height, width)."""
    (height, width), (rows, columns) = size, values.shape
    patch_row, patch_column = np.arange(height) * rows // height, np.arange(width) * columns // width
    per_pixel: NDArray[np.floating] = values.detach().float().cpu().numpy()[patch_row][:, patch_column]
    return per_pixel


def _light_grey(picture: NDArray[np.uint8]) -> NDArray[np.floating]:
    grey: NDArray[np.floating] = picture.astype(float).mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.3 + 255 * 0.7
    return grey


def _coloured(grey: NDArray[np.floating], where: NDArray[np.bool_], unit: NDArray[np.floating]) -> NDArray[np.uint8]:
    grey[where] = colours(unit) * 0.9 + grey[where] * 0.1
    drawn: NDArray[np.uint8] = grey.round().astype(np.uint8)
    return drawn


def _crop_window(inside: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """Square window around a mask, limited by the image; the complete image if the mask is empty."""
    if not inside.any():
        return slice(None), slice(None)
    indices = [np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0)]
    side = max(int(axis[-1] - axis[0]) for axis in indices) + 1 + 2 * margin
    window = []
    for axis, limit in zip(indices, inside.shape, strict=True):
        start = min(max(0, (int(axis[0] + axis[-1]) + 1 - side) // 2), max(0, limit - side))
        window.append(slice(start, start + side))
    return window[0], window[1]
