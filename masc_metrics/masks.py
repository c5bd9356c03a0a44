"""Masks: checks of all accepted forms, and coverage of the patches of a grid.

Shape suffixes: H, W mask sides in pixels; N patches.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from masc_metrics.arguments import check_sequence, check_type
from masc_metrics.grid import Grid
from masc_metrics.images import FLOAT_DTYPES, MAX_UINT8, RANGE_SLACK, check_values, pil_to_array, value_bounds

Masks: TypeAlias = "Tensor | Sequence[Tensor | Image.Image] | MaskBatch"

FOREGROUND_THRESHOLD = 0.5
"""A reference patch is foreground if its coverage is above the threshold; a generated patch is background if its
coverage is below it. Both strict inequalities are the paper's."""

# The channels of a grey JPEG differ by a few levels, those of a label colour by much more.
_COLOUR_SPREAD = 32


@dataclass(frozen=True, slots=True)
class MaskBatch:
    """Checked subject masks of any sizes.

    Attributes:
        masks: an (H, W) tensor for each mask, bool or float32 in [0, 1]; True or 1 marks the subject.
    """

    masks: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> Tensor:
        return self.masks[index]


def check_masks(masks: Masks, name: str, image_sizes: Sequence[tuple[int, int]]) -> MaskBatch:
    """Check masks and convert them to one form.

    Args:
        masks: a (B, H, W) or (B, 1, H, W) tensor, or a sequence whose items are (H, W) or (1, H, W) tensors or PIL
            images (read as "L"). Values are booleans, integers 0 and 1, integers 0..255 if the largest value of a mask
            is above 1, or floating point in [0, 1]. Intermediate values are partial coverage by the subject.
        name: name of the argument in error texts.
        image_sizes: (height, width) of the image of each mask. A mask may differ from its image in size but not in
            aspect ratio, to within a pixel.

    Returns:
        The masks as (H, W) tensors, bool if they were given so and float32 in [0, 1] otherwise, in order, each on its
        original device.

    Raises:
        TypeError: if a form or dtype is not accepted.
        ValueError: for a wrong rank, count, aspect ratio or value range, or NaN.

    Warns:
        UserWarning: if integers look like labels, which would not reach the foreground threshold.
    """
    if isinstance(masks, Tensor):
        if masks.ndim not in (3, 4):
            raise ValueError(f"{name} has shape {tuple(masks.shape)}; give (B, H, W) or (B, 1, H, W)")
    elif isinstance(masks, Image.Image):
        raise TypeError(f"{name} is a single PIL image; put it into a list")
    elif not isinstance(masks, MaskBatch):
        check_sequence(name, masks, "a (B, H, W) tensor, or a list of (H, W) tensors or PIL images")
    if len(masks) != len(image_sizes):
        raise ValueError(f"{name} holds {len(masks)} masks for {len(image_sizes)} images; give one mask for each")
    labels = [f"{name}[{index}]" for index in range(len(masks))]
    if isinstance(masks, MaskBatch):
        _check_aspects(masks.masks, labels, image_sizes)
        return masks
    return MaskBatch(_checked(list(masks), labels, image_sizes))


def check_mask(mask: Tensor | Image.Image, label: str, image_size: tuple[int, int]) -> Tensor:
    """Check one mask as :func:`check_masks` does.

    Args:
        mask: an (H, W) or (1, H, W) tensor or a PIL image, with the values that :func:`check_masks` accepts.
        label: name of the mask in error texts.
        image_size: (height, width) of its image.

    Returns:
        (H, W), bool or float32 in [0, 1], on its original device.

    Raises:
        TypeError, ValueError: as for :func:`check_masks`.

    Warns:
        UserWarning: as for :func:`check_masks`.
    """
    return _checked([mask], [label], [image_size])[0]


def _checked(
    masks: Sequence[object], labels: Sequence[str], image_sizes: Sequence[tuple[int, int]]
) -> tuple[Tensor, ...]:
    planes = [_check_form(mask, label) for mask, label in zip(masks, labels, strict=True)]
    _check_aspects(planes, labels, image_sizes)
    return tuple(_to_unit_range(planes, labels))


def _check_aspects(planes: Sequence[Tensor], labels: Sequence[str], image_sizes: Sequence[tuple[int, int]]) -> None:
    for plane, label, size in zip(planes, labels, image_sizes, strict=True):
        if not same_aspect((plane.shape[0], plane.shape[1]), size):
            raise ValueError(
                f"{label} is {tuple(plane.shape)} but its image is {tuple(size)}; give masks the shape of their image"
            )


def _check_form(mask: Any, label: str) -> Tensor:
    if isinstance(mask, Image.Image):
        mask = _from_pil(mask, label)
    hint = "; torch.from_numpy(mask) converts it" if isinstance(mask, np.ndarray) else ""
    check_type(label, mask, Tensor, f"an (H, W) tensor or a PIL image{hint}")
    shape = tuple(mask.shape)
    plane: Tensor = mask[0] if mask.ndim == 3 and shape[0] == 1 else mask
    if plane.ndim != 2:
        raise ValueError(f"{label} has shape {shape}; give (H, W) or (1, H, W)")
    if 0 in shape:
        raise ValueError(f"{label} has shape {shape}, which has no pixels; give a mask of the image's shape")
    if plane.is_complex() or (plane.is_floating_point() and plane.dtype not in FLOAT_DTYPES):
        raise TypeError(f"{label} is {plane.dtype}; give booleans, integers or floating point in [0, 1]")
    check_values(plane, label)
    # torch has few kernels for the wide unsigned types
    return plane.long() if plane.dtype in (torch.uint16, torch.uint32, torch.uint64) else plane


def _from_pil(mask: Image.Image, label: str) -> Tensor:
    if "A" in mask.getbands():
        raise ValueError(
            f"{label} has PIL mode {mask.mode!r}; select the channel that is the mask: mask.getchannel('A') or "
            "mask.convert('L')"
        )
    if mask.mode in ("P", "RGB"):  # label colours would be read as brightness, mostly below the threshold
        channels = pil_to_array(mask, "RGB", label)
        if np.ptp(channels, axis=-1).max(initial=0) > _COLOUR_SPREAD:
            raise ValueError(
                f"{label} has PIL mode {mask.mode!r} and is coloured; give a black and white mask, such as "
                "torch.from_numpy(numpy.array(mask) == subject_id)"
            )
    return torch.from_numpy(pil_to_array(mask, "L", label))


def same_aspect(mask_size: tuple[int, int], image_size: tuple[int, int]) -> bool:
    """Whether both sizes have the same aspect ratio, up to rounding a mask side by one pixel."""
    (rows, columns), (height, width) = mask_size, image_size
    return abs(rows * width - columns * height) <= max(height, width)


def _to_unit_range(planes: Sequence[Tensor], labels: Sequence[str]) -> list[Tensor]:
    unit: list[Tensor] = []
    numbers = [plane for plane in planes if plane.dtype != torch.bool]
    bounds = iter(value_bounds(numbers))
    for plane, label in zip(planes, labels, strict=True):
        if plane.dtype == torch.bool:
            unit.append(plane)
            continue
        low, high = next(bounds)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{label} contains NaN or infinite values; check how it was produced")
        if plane.is_floating_point():
            if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
                remedy = (
                    "divide by 255" if low >= 0 and 2 < high <= MAX_UINT8 else "apply a sigmoid to logits, or clamp"
                )
                raise ValueError(
                    f"{label} is {plane.dtype} with values from {low:.3g} to {high:.3g}, outside [0, 1]; {remedy}"
                )
            unit.append(plane.float().clamp(0, 1))
        elif low < 0 or high > MAX_UINT8:
            raise ValueError(
                f"{label} is {plane.dtype} with values from {low:.0f} to {high:.0f}, outside 0..255; give a boolean "
                "mask: mask == subject_id"
            )
        else:
            if 1 < high <= MAX_UINT8 / 2:
                warnings.warn(
                    f"{label} holds integers up to {high:.0f}, which mark nothing as values in 0..255; if they are "
                    "labels, give a boolean mask: mask == subject_id",
                    stacklevel=2,
                )
            unit.append(plane.float() / MAX_UINT8 if high > 1 else plane.float())
    return unit


def grid_coverage(mask: Tensor, grid: Grid) -> Tensor:
    """Coverage of each patch by the mask.

    The mask is resized to the grid by bilinear interpolation without antialiasing, as in the paper: each patch samples
    the mask around its centre. The result is clamped to [0, 1].

    Args:
        mask: (H, W), bool or float32 in [0, 1].
        grid: patch rows and columns.

    Returns:
        (N,) float32 in [0, 1], in row-major order.
    """
    resized = F.interpolate(mask[None, None].float(), size=grid, mode="bilinear", align_corners=False)
    return resized.clamp(0, 1).reshape(-1)
