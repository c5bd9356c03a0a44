"""Panels of generated images with their scores and match maps, and sheets of masks, drawn with Pillow only."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from masc_metrics.arguments import check_type
from masc_metrics.plots.drawing import CELL, colours, dim, heat_map, outlined, picture_and_mask

_GAP, _MARGIN = 10, 18
_LINE = 20
_CAPTION_WIDTH, _CAPTION_LINES = 23, 3
_INK, _QUIET, _PAPER = (30, 30, 34), (110, 110, 118), (255, 255, 255)
_ALERT = (200, 20, 20)
_TILE_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Shot:
    """A generated image with its scores.

    Attributes:
        image: (3, H, W), uint8 or float in [0, 1].
        cp: concept preservation; NaN is shown as n/a.
        pf: prompt following; NaN is shown as n/a.
        found: (rows, columns), match map of the reference from :func:`masc_metrics.functional.match_maps`.
        mask: (H, W), mask of the subject in the generated image, in any form that the metrics accept; its outline is
            drawn. None draws no outline.
        caption: text above the image, such as its prompt; a long text is truncated.
    """

    image: Tensor
    cp: float
    pf: float
    found: Tensor
    mask: Tensor | None = None
    caption: str = ""


@dataclass(frozen=True, slots=True)
class PanelRow:
    """One concept: its reference image and the generated images.

    Attributes:
        title: text above the row.
        reference: (3, H, W), uint8 or float in [0, 1].
        mask: (H, W), mask of the subject in the reference, in any form that the metrics accept.
        shots: generated images, one for each column.
    """

    title: str
    reference: Tensor
    mask: Tensor
    shots: Sequence[Shot]


@dataclass(frozen=True, slots=True)
class Tile:
    """An image and a mask of it, in a sheet of masks.

    Attributes:
        image: (3, H, W), uint8 or float in [0, 1].
        mask: (H, W), in any form that the metrics accept; its outline is drawn.
        lines: texts below the image; long ones are cut.
        suspect: whether the last line is red.
    """

    image: Tensor
    mask: Tensor
    lines: Sequence[str]
    suspect: bool = False


def mask_sheet(tiles: Iterable[Tile]) -> Image.Image:
    """Draw images with the outlines of their masks, in rows of eight.

    Each tile is drawn when it is read, so an iterator needs the memory of one image at a time.

    Raises:
        TypeError, ValueError: if an image or mask is not accepted, or there are no tiles.
    """
    drawn = []
    for index, tile in enumerate(tiles):
        pixels, inside = picture_and_mask(tile.image, tile.mask, f"tiles[{index}].image", f"tiles[{index}].mask")
        drawn.append((_fit_to_cell(pixels, inside), tile.lines, tile.suspect))
    if not drawn:
        raise ValueError("tiles is empty; give at least one")
    row_height = CELL + _LINE * max(len(lines) for _, lines, _ in drawn) + 2 * _GAP
    columns, rows = min(_TILE_COLUMNS, len(drawn)), math.ceil(len(drawn) / _TILE_COLUMNS)
    sheet = Image.new("RGB", (_left(columns) - _GAP + _MARGIN, 2 * _MARGIN - _GAP + rows * row_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (cell, lines, suspect) in enumerate(drawn):
        row, column = divmod(number, _TILE_COLUMNS)
        left, top = _left(column), _MARGIN + row * row_height
        sheet.paste(cell, (left, top))
        for position, line in enumerate(lines):
            text = line if len(line) <= _CAPTION_WIDTH else f"{line[: _CAPTION_WIDTH - 3]}..."
            colour = _ALERT if suspect and position == len(lines) - 1 else _INK
            _write(draw, (left, top + CELL + position * _LINE), text, colour=colour)
    return sheet


def panel(rows: Sequence[PanelRow], columns: Sequence[str] | None = None, *, lowest: float = 0.0) -> Image.Image:
    """Draw a row for each concept: the reference with the outline of its mask, then generated images and match maps.

    A match map shows the reference around its subject, with each patch coloured by its best cosine.

    Args:
        rows: concepts, each with one shot for each column.
        columns: titles of the columns of shots; line breaks are kept. None draws no titles, and rows may then differ
            in their number of shots.
        lowest: cosine at the dark end of the colour scale of the match maps; 1 is at the bright end.

    Returns:
        An RGB image.

    Raises:
        TypeError: if the form of an image, mask or map is not accepted.
        ValueError: if the values or shape of an image, mask or map are not accepted, ``rows`` or ``columns`` is empty,
            a row has a wrong number of shots, or ``lowest`` is not in [-1, 1).
    """
    for name, values in (("rows", rows), ("columns", columns)):
        if values is not None and not values:
            raise ValueError(f"{name} is empty; give at least one")
    for index, row in enumerate(rows):
        if not row.shots:
            raise ValueError(f"rows[{index}] has no shots; give at least one")
        if columns is not None and len(row.shots) != len(columns):
            raise ValueError(f"rows[{index}] has {len(row.shots)} shots for {len(columns)} columns; give one for each")
    if not -1 <= lowest < 1:
        raise ValueError(f"lowest is {lowest}; give a cosine in [-1, 1)")
    titles = ["reference", *columns] if columns else ["reference"]
    captions = [[textwrap.wrap(shot.caption, _CAPTION_WIDTH) for shot in row.shots] for row in rows]
    caption_lines = min(_CAPTION_LINES, max(len(lines) for row_captions in captions for lines in row_captions))
    head = _MARGIN + _LINE * max(title.count("\n") + 1 for title in titles) + _GAP
    row_height = (2 + caption_lines) * _LINE + 2 * CELL + 2 * _GAP
    width = 2 * _MARGIN + (max(len(row.shots) for row in rows) + 1) * (CELL + _GAP) - _GAP
    sheet = Image.new("RGB", (width, head + len(rows) * row_height + _LINE + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        lines = title.split("\n")
        _write_lines(draw, (_left(column), head - _GAP - _LINE * len(lines)), lines)
    for number, row in enumerate(rows):
        top = head + number * row_height
        _write(draw, (_MARGIN, top), row.title, colour=_QUIET)
        top += _LINE * (1 + caption_lines)
        reference, inside = picture_and_mask(
            row.reference, row.mask, f"rows[{number}].reference", f"rows[{number}].mask"
        )
        sheet.paste(_fit_to_cell(dim(reference, ~inside), inside), (_MARGIN, top))
        _write(draw, (_MARGIN, top + CELL), "match map:", colour=_QUIET)
        for column, shot in enumerate(row.shots, start=1):
            name = f"rows[{number}].shots[{column - 1}]"
            left = _left(column)
            lines = textwrap.wrap(shot.caption, _CAPTION_WIDTH, max_lines=_CAPTION_LINES, placeholder=" ...")
            _write_lines(draw, (left, top - _LINE * len(lines)), lines)
            pixels, subject = picture_and_mask(shot.image, shot.mask, f"{name}.image", f"{name}.mask")
            sheet.paste(_fit_to_cell(pixels, subject), (left, top))
            _write(draw, (left, top + CELL), f"CP {_score(shot.cp)}")
            _write(draw, (left + CELL // 2, top + CELL), f"PF {_score(shot.pf)}")
            check_type(f"{name}.found", shot.found, Tensor, "a tensor")
            if shot.found.ndim != 2 or not shot.found.numel():
                raise ValueError(f"{name}.found has shape {tuple(shot.found.shape)}; give (rows, columns)")
            sheet.paste(_fit_to_cell(heat_map(reference, shot.found, lowest)), (left, top + CELL + _LINE))
    _draw_legend(sheet, draw, sheet.height - _MARGIN - _LINE, lowest)
    return sheet


def _score(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{round(float(value), 2) + 0.0:.2f}"  # no "-0.00"


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    *,
    colour: tuple[int, int, int] = _INK,
) -> None:
    draw.text(corner, text, fill=colour, font=ImageFont.load_default(14))


def _write_lines(draw: ImageDraw.ImageDraw, corner: tuple[int, int], lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        _write(draw, (corner[0], corner[1] + number * _LINE), line)


def _left(column: int) -> int:
    return _MARGIN + column * (CELL + _GAP)


def _fit_to_cell(pixels: NDArray[np.uint8], inside: NDArray[np.bool_] | None = None) -> Image.Image:
    """Scale an image to fit into a cell, centre it, and draw the outline of its mask."""
    image = Image.fromarray(pixels)
    scale = CELL / max(image.size)
    # Match maps and small images keep sharp pixels; only larger images are smoothed.
    resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resample)
    if inside is not None:
        image = Image.fromarray(outlined(np.asarray(image), inside))
    cell = Image.new("RGB", (CELL, CELL), _PAPER)
    cell.paste(image, ((CELL - image.width) // 2, (CELL - image.height) // 2))
    return cell


def _draw_legend(sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int, lowest: float) -> None:
    _write(draw, (_MARGIN, top), f"best cosine  {lowest:.2f}", colour=_QUIET)
    bar = colours(np.linspace(0, 1, CELL))[None].repeat(_LINE - 6, axis=0).round().astype(np.uint8)
    start = _MARGIN + CELL * 3 // 4
    sheet.paste(Image.fromarray(bar), (start, top + 2))
    _write(draw, (start + CELL + _GAP, top), "1", colour=_QUIET)
