"""Patch grid of an image, as in NaFlex preprocessing."""

from __future__ import annotations

import math
from functools import lru_cache

from masc_metrics.arguments import check_positive

DEFAULT_MAX_NUM_PATCHES = 1024

Grid = tuple[int, int]
"""Patch rows and columns of one image."""

# The bounds and the tolerance of the bisection are part of the definition: SigLIP2 was trained on the grids that they
# produce, and a tighter tolerance gives different grids for some sizes.
_SMALLEST_SCALE = 1e-6
_LARGEST_SCALE = 100.0
_TOLERANCE = 1e-5


def _grid_at(scale: float, height: int, width: int, patch_size: int) -> Grid:
    return (
        max(1, math.ceil(height * scale / patch_size)),
        max(1, math.ceil(width * scale / patch_size)),
    )


@lru_cache(maxsize=4096)
def naflex_grid(height: int, width: int, *, max_num_patches: int = DEFAULT_MAX_NUM_PATCHES, patch_size: int) -> Grid:
    """Largest patch grid within a patch budget that preserves the aspect ratio of an image.

    A common scale for both sides is found by bisection. Each side then has ``ceil(side * scale / patch_size)``
    patches, at least one. Small images are enlarged, at most by a factor of 100.

    Args:
        height: image height in pixels, at least 1.
        width: image width in pixels, at least 1.
        max_num_patches: upper bound of ``rows * columns``, at least 1.
        patch_size: side of a square patch in pixels, at least 1.

    Returns:
        ``(rows, columns)`` with ``rows * columns <= max_num_patches``. With 1024 patches of 16 pixels, 512 x 512 gives
        (32, 32) and 768 x 512 gives (39, 26).

    Raises:
        TypeError: if an argument is not an integer.
        ValueError: if an argument is below 1, or if the image does not fit the budget at any scale.

    Source: the image processor of ``google/siglip2-*-naflex``, arXiv 2502.14786.
    """
    check_positive("height", height)
    check_positive("width", width)
    check_positive("max_num_patches", max_num_patches)
    check_positive("patch_size", patch_size)
    low, high = _SMALLEST_SCALE, _LARGEST_SCALE
    while high - low >= _TOLERANCE:
        middle = (low + high) / 2
        rows, columns = _grid_at(middle, height, width, patch_size)
        if rows * columns <= max_num_patches:
            low = middle
        else:
            high = middle
    rows, columns = _grid_at(low, height, width, patch_size)
    if rows * columns > max_num_patches:
        raise ValueError(
            f"an image of {height} x {width} pixels does not fit {max_num_patches} patches at any scale; "
            "crop it, or raise max_num_patches"
        )
    return rows, columns
