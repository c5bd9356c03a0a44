"""Patch grid of an image."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from masc_metrics.grid import naflex_grid

sides = st.integers(1, 6000)


@pytest.mark.parametrize(
    ("size", "grid"), [((512, 512), (32, 32)), ((768, 512), (39, 26)), ((640, 480), (36, 27)), ((16, 16), (32, 32))]
)
def test_grids_equal_those_of_the_specification(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert naflex_grid(*size, max_num_patches=1024, patch_size=16) == grid


@given(height=sides, width=sides, budget=st.sampled_from([1, 16, 64, 256, 729, 1024, 4096]))
@example(height=1, width=6000, budget=1)
@example(height=1, width=1, budget=1024)
def test_grids_equal_those_of_the_checkpoints_processor(height: int, width: int, budget: int) -> None:
    folder = "transformers.models.siglip2"
    version_5, version_4 = f"{folder}.image_processing_pil_siglip2", f"{folder}.image_processing_siglip2"
    processing = importlib.import_module(version_5 if find_spec(version_5) else version_4)
    pixels = processing.get_image_size_for_max_num_patches(
        image_height=height, image_width=width, patch_size=16, max_num_patches=budget
    )
    assert naflex_grid(height, width, max_num_patches=budget, patch_size=16) == (pixels[0] // 16, pixels[1] // 16)


@given(height=sides, width=sides, budget=st.integers(1, 2048))
def test_grids_are_within_the_budget_and_transpose_with_the_image(height: int, width: int, budget: int) -> None:
    rows, columns = naflex_grid(height, width, max_num_patches=budget, patch_size=16)
    assert 1 <= rows * columns <= budget
    assert naflex_grid(width, height, max_num_patches=budget, patch_size=16) == (columns, rows)


@pytest.mark.parametrize("argument", ["height", "width", "max_num_patches", "patch_size"])
def test_errors_for_arguments_below_1_name_the_argument(argument: str) -> None:
    arguments = {"height": 32, "width": 32, "max_num_patches": 16, "patch_size": 16} | {argument: 0}
    with pytest.raises(ValueError, match=f"^{argument} is 0; give at least 1"):
        naflex_grid(**arguments)


def test_sizes_that_do_not_fit_at_any_scale_are_rejected() -> None:
    with pytest.raises(ValueError, match="does not fit 1 patches at any scale"):
        naflex_grid(1, 10**9, max_num_patches=1, patch_size=16)
