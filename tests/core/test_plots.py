"""Panels of generated images, and the colours of match maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from masc_metrics.plots import PanelRow, Shot, Tile, mask_sheet, panel

DARK, BRIGHT = (36, 12, 70), (252, 252, 160)


def row(found: torch.Tensor, *, size: tuple[int, int] = (64, 64), shots: int = 1, cp: float = 0.5) -> PanelRow:
    grey = torch.full((3, *size), 128, dtype=torch.uint8)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = True
    return PanelRow("a concept", grey, mask, [Shot(grey, cp, 0.25, found)] * shots)


def count(image: Image.Image, colour: tuple[int, int, int], tolerance: int = 24) -> int:
    """Number of pixels close to a colour; patches are drawn slightly transparent."""
    return int((np.abs(np.asarray(image).astype(int) - colour).max(axis=2) <= tolerance).sum())


def maps(*values: float) -> torch.Tensor:
    """A 4 x 4 map with the subject in the four central patches."""
    found = torch.full((4, 4), torch.nan)
    found[1:3, 1:3] = torch.tensor(values).reshape(2, 2)
    return found


def test_match_map_patches_are_bright_for_high_and_dark_for_low_cosines() -> None:
    found, lost = panel([row(maps(1, 1, 1, 1))], ["x"]), panel([row(maps(0, 0, 0, 0))], ["x"])
    half = panel([row(maps(1, 1, 0, 0))], ["x"])
    bright, dark = count(found, BRIGHT) - count(lost, BRIGHT), count(lost, DARK) - count(found, DARK)
    assert bright > 1000
    assert dark > 1000
    assert count(half, BRIGHT) - count(lost, BRIGHT) == pytest.approx(bright / 2, rel=0.05)


def test_lowest_sets_the_dark_end_of_the_colours() -> None:
    """A cosine of 0.5 is dark if the lowest cosine is 0.5."""
    middle = row(maps(0.5, 0.5, 0.5, 0.5))
    assert count(panel([middle], ["x"], lowest=0.5), DARK) > count(panel([middle], ["x"]), DARK) + 1000


def test_reference_masks_are_outlined() -> None:
    assert count(panel([row(maps(1, 1, 1, 1))], ["x"]), (255, 0, 200), tolerance=60) > 100


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 2), (2, 6)])
def test_panels_grow_with_rows_and_columns(rows: int, columns: int) -> None:
    sheet = panel([row(maps(1, 1, 1, 1), shots=columns)] * rows, ["two\nlines"] * columns)
    wider = panel([row(maps(1, 1, 1, 1), shots=columns + 1)] * rows, ["two\nlines"] * (columns + 1))
    taller = panel([row(maps(1, 1, 1, 1), shots=columns)] * (rows + 1), ["two\nlines"] * columns)
    assert sheet.mode == "RGB"
    assert wider.width > sheet.width
    assert wider.height == sheet.height
    assert taller.height > sheet.height


@pytest.mark.parametrize("size", [(16, 16), (31, 200), (700, 90), (1024, 1024)])
def test_panels_accept_any_size_and_grid(size: tuple[int, int]) -> None:
    wide, high = row(torch.rand(2, 9), size=size), row(torch.rand(7, 1), size=size)
    assert panel([wide, high], ["x"]).size == panel([row(maps(1, 1, 1, 1))] * 2, ["x"]).size


def test_panels_accept_undefined_scores_and_empty_maps() -> None:
    """A map without patches of the subject has no colours; only the legend has."""
    nothing = torch.full((4, 4), torch.nan)
    empty = panel([row(nothing, cp=float("nan"))], ["x"])
    assert count(empty, DARK) < count(panel([row(maps(0, 0, 0, 0))], ["x"]), DARK) - 1000
    assert count(empty, BRIGHT) < count(panel([row(maps(1, 1, 1, 1))], ["x"]), BRIGHT) - 1000


def test_all_forms_of_an_image_are_drawn_equally() -> None:
    """Images are uint8 or float, with or without a gradient; masks are boolean, float, or of another size."""
    plain = row(maps(1, 1, 1, 1))
    grey = (torch.full((3, 64, 64), 128 / 255)).requires_grad_()
    other = replace(
        plain, reference=grey, mask=plain.mask[::2, ::2].float(), shots=[replace(plain.shots[0], image=grey)]
    )
    assert np.array_equal(np.asarray(panel([plain], ["x"])), np.asarray(panel([other], ["x"])))


def test_generated_masks_are_outlined() -> None:
    plain = row(maps(1, 1, 1, 1))
    masked = replace(plain, shots=[replace(plain.shots[0], mask=plain.mask)])
    pink = (255, 0, 200)
    once, twice = (count(panel([concept], ["x"]), pink, tolerance=60) for concept in (plain, masked))
    assert twice == pytest.approx(2 * once, rel=0.1)


def outlined(mask: torch.Tensor) -> int:
    """Pixels of the outline of a mask in a panel, without that of the reference."""
    plain = row(maps(1, 1, 1, 1), size=(mask.shape[0], mask.shape[1]))
    masked = replace(plain, shots=[replace(plain.shots[0], mask=mask)])
    return count(panel([masked]), (255, 0, 200)) - count(panel([plain]), (255, 0, 200))


@pytest.mark.parametrize("size", [64, 168, 500])
def test_outlines_of_speckled_masks_do_not_cover_the_image(size: int) -> None:
    """The outline is drawn in pixels of the panel, whatever the image's size, around the smoothed mask."""
    box = torch.zeros(size, size, dtype=torch.bool)
    box[size // 4 : -size // 4, size // 4 : -size // 4] = True
    specks = torch.rand(size, size, generator=torch.Generator().manual_seed(0)) < 0.1
    assert outlined(box) == pytest.approx(2 * 4 * 84, rel=0.1)
    assert outlined(box ^ specks) == pytest.approx(outlined(box), rel=0.25)
    assert outlined(specks & ~box) < 0.25 * outlined(box)


def test_thin_masks_are_outlined() -> None:
    line = torch.zeros(168, 168, dtype=torch.bool)
    line[:, 80:84] = True
    assert outlined(line) > 200


def test_captions_add_lines_and_long_captions_are_truncated() -> None:
    plain = row(maps(1, 1, 1, 1))
    texts = ("", "a cat", "a cat on a beach, seen from far away by somebody", "a cat " * 99)
    heights = [panel([replace(plain, shots=[replace(plain.shots[0], caption=text)])]).height for text in texts]
    assert heights[0] < heights[1] < heights[2] == heights[3]


def test_rows_may_differ_in_length_without_column_titles() -> None:
    short, long = row(maps(1, 1, 1, 1)), row(maps(1, 1, 1, 1), shots=3)
    assert panel([short, long]).size == panel([long, long]).size


def test_pil_images_are_accepted() -> None:
    plain = row(maps(1, 1, 1, 1))
    pil = replace(plain, reference=Image.new("RGB", (64, 64), (128, 128, 128)))  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(panel([plain])), np.asarray(panel([pil])))


def test_errors_for_maps_that_are_not_tensors_name_the_shot() -> None:
    with pytest.raises(TypeError, match=r"rows\[0\]\.shots\[0\]\.found is an ndarray; give a tensor"):
        panel([row(np.ones((4, 4)))])  # type: ignore[arg-type]


def test_empty_columns_are_rejected() -> None:
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
def test_errors_for_invalid_arguments_name_the_argument(
    rows: list[PanelRow], settings: dict[str, float], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        panel(rows, ["x"], **settings)


def test_a_sheet_of_masks_holds_eight_tiles_a_row_with_outlines_and_red_lines() -> None:
    def tiles() -> Iterator[Tile]:
        for number in range(9):
            mask = torch.zeros(40, 40, dtype=torch.bool)
            mask[10:30, 10:30] = number == 8
            yield Tile(torch.full((3, 40, 40), 128, dtype=torch.uint8), mask, ["a noun " * 9, "last"], number == 0)

    drawn = mask_sheet(tiles())
    pixels = np.asarray(drawn).astype(int)
    assert drawn.width == 2 * 18 + 8 * 178 - 10
    half = drawn.height // 2
    outlined = (np.abs(pixels - [255, 0, 200]).sum(axis=2) == 0).nonzero()
    assert outlined[0].min() > half
    assert outlined[1].max() < 18 + 168
    red = (np.abs(pixels - [200, 20, 20]).sum(axis=2) < 30).nonzero()
    assert red[0].max() < half
    assert red[1].max() < 18 + 168
    with pytest.raises(ValueError, match="tiles is empty; give at least one"):
        mask_sheet([])
