"""Panels: every picture in its place, match maps coloured by what was found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from masc_metrics.plots import PanelRow, Shot, panel

DARK, BRIGHT = (36, 12, 70), (252, 252, 160)


def row(found: torch.Tensor, *, size: tuple[int, int] = (64, 64), shots: int = 1, cp: float = 0.5) -> PanelRow:
    grey = torch.full((3, *size), 128, dtype=torch.uint8)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = True
    return PanelRow("a concept", grey, mask, [Shot(grey, cp, 0.25, found)] * shots)


def count(image: Image.Image, colour: tuple[int, int, int], tolerance: int = 24) -> int:
    """Pixels about as bright as the colour of a patch, which is laid thinly over the picture."""
    return int((np.abs(np.asarray(image).astype(int) - colour).max(axis=2) <= tolerance).sum())


def maps(*values: float) -> torch.Tensor:
    """A 4 x 4 map whose middle patches are the subject's."""
    found = torch.full((4, 4), torch.nan)
    found[1:3, 1:3] = torch.tensor(values).reshape(2, 2)
    return found


def test_patches_are_bright_where_found_and_dark_where_not() -> None:
    found, lost = panel([row(maps(1, 1, 1, 1))], ["x"]), panel([row(maps(0, 0, 0, 0))], ["x"])
    half = panel([row(maps(1, 1, 0, 0))], ["x"])
    bright, dark = count(found, BRIGHT) - count(lost, BRIGHT), count(lost, DARK) - count(found, DARK)
    assert bright > 1000
    assert dark > 1000
    assert count(half, BRIGHT) - count(lost, BRIGHT) == pytest.approx(bright / 2, rel=0.05)


def test_the_dark_end_can_be_set() -> None:
    """What is half found is dark once half is the lowest."""
    middle = row(maps(0.5, 0.5, 0.5, 0.5))
    assert count(panel([middle], ["x"], lowest=0.5), DARK) > count(panel([middle], ["x"]), DARK) + 1000


def test_the_subject_is_outlined() -> None:
    assert count(panel([row(maps(1, 1, 1, 1))], ["x"]), (255, 0, 200), tolerance=60) > 100


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 2), (2, 6)])
def test_it_grows_with_rows_and_columns(rows: int, columns: int) -> None:
    sheet = panel([row(maps(1, 1, 1, 1), shots=columns)] * rows, ["two\nlines"] * columns)
    wider = panel([row(maps(1, 1, 1, 1), shots=columns + 1)] * rows, ["two\nlines"] * (columns + 1))
    taller = panel([row(maps(1, 1, 1, 1), shots=columns)] * (rows + 1), ["two\nlines"] * columns)
    assert sheet.mode == "RGB"
    assert wider.width > sheet.width
    assert wider.height == sheet.height
    assert taller.height > sheet.height


@pytest.mark.parametrize("size", [(16, 16), (31, 200), (700, 90), (1024, 1024)])
def test_any_size_and_grid_can_be_drawn(size: tuple[int, int]) -> None:
    wide, high = row(torch.rand(2, 9), size=size), row(torch.rand(7, 1), size=size)
    assert panel([wide, high], ["x"]).size == panel([row(maps(1, 1, 1, 1))] * 2, ["x"]).size


def test_undefined_scores_and_empty_masks_can_be_drawn() -> None:
    """A map without the subject's patches shows no colour but the legend's."""
    nothing = torch.full((4, 4), torch.nan)
    empty = panel([row(nothing, cp=float("nan"))], ["x"])
    assert count(empty, DARK) < count(panel([row(maps(0, 0, 0, 0))], ["x"]), DARK) - 1000
    assert count(empty, BRIGHT) < count(panel([row(maps(1, 1, 1, 1))], ["x"]), BRIGHT) - 1000


def test_every_form_of_a_picture_is_drawn_alike() -> None:
    """uint8 or float, with or without a gradient; masks boolean, float, or of another size."""
    one = row(maps(1, 1, 1, 1))
    grey = (torch.full((3, 64, 64), 128 / 255)).requires_grad_()
    other = replace(one, reference=grey, mask=one.mask[::2, ::2].float(), shots=[replace(one.shots[0], image=grey)])
    assert np.array_equal(np.asarray(panel([one], ["x"])), np.asarray(panel([other], ["x"])))


def test_a_generated_pictures_mask_is_outlined_too() -> None:
    one = row(maps(1, 1, 1, 1))
    masked = replace(one, shots=[replace(one.shots[0], mask=one.mask)])
    pink = (255, 0, 200)
    once, twice = (count(panel([each], ["x"]), pink, tolerance=60) for each in (one, masked))
    assert twice == pytest.approx(2 * once, rel=0.1)


def test_captions_stand_above_their_pictures_and_long_ones_are_cut() -> None:
    one = row(maps(1, 1, 1, 1))
    texts = ("", "a cat", "a cat on a beach, seen from far away by somebody", "a cat " * 99)
    heights = [panel([replace(one, shots=[replace(one.shots[0], caption=text)])]).height for text in texts]
    assert heights[0] < heights[1] < heights[2] == heights[3]


def test_without_column_titles_rows_may_differ_in_length() -> None:
    short, long = row(maps(1, 1, 1, 1)), row(maps(1, 1, 1, 1), shots=3)
    assert panel([short, long]).size == panel([long, long]).size


def test_pictures_of_pil_are_taken_as_the_metrics_take_them() -> None:
    one = row(maps(1, 1, 1, 1))
    pil = replace(one, reference=Image.new("RGB", (64, 64), (128, 128, 128)))  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(panel([one])), np.asarray(panel([pil])))


def test_a_map_is_a_tensor() -> None:
    with pytest.raises(TypeError, match=r"rows\[0\]\.shots\[0\]\.found is a ndarray; give a tensor"):
        panel([row(np.ones((4, 4)))])  # type: ignore[arg-type]


def test_columns_are_needed() -> None:
    with pytest.raises(ValueError, match="columns is empty"):
        panel([row(maps(1, 1, 1, 1), shots=0)], [])


@pytest.mark.parametrize(
    ("rows", "settings", "text"),
    [
        ([], {}, "rows is empty"),
        ([row(torch.rand(16))], {}, r"rows\[0\]\.shots\[0\]\.found has shape \(16,\); give \(rows, columns\)"),
        ([replace(row(maps(1, 1, 1, 1)), reference=torch.full((3, 8, 8), 7.0))], {}, r"rows\[0\]\.reference.*outside"),
        ([replace(row(maps(1, 1, 1, 1)), mask=torch.ones(64, 32))], {}, r"rows\[0\]\.mask\[0\] is \(64, 32\) but its"),
        ([row(torch.rand(0, 4))], {}, r"rows\[0\]\.shots\[0\]\.found has shape \(0, 4\)"),
        ([row(maps(1, 1, 1, 1), shots=0)], {}, r"rows\[0\] has no shots"),
        ([row(maps(1, 1, 1, 1), shots=2)], {}, r"rows\[0\] has 2 shots for 1 columns"),
        ([row(maps(1, 1, 1, 1))], {"lowest": 1.0}, "lowest is 1.0"),
    ],
)
def test_wrong_arguments_are_named(rows: list[PanelRow], settings: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        panel(rows, ["x"], **settings)
