"""Panels of generated images with their scores and match maps, and sheets of masks, drawn with Pillow only."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from masc_metrics.arguments import check_type
from masc_metrics.images import check_images
from masc_metrics.masks import check_masks

_CELL, _GAP, _MARGIN = 168, 10, 18
_LINE = 20
_CAPTION_WIDTH, _CAPTION_LINES = 23, 3
_MAX_SIDE = 2 * _CELL  # in pixels, before an image is scaled into its cell
# Sides, in pixels of the panel, of the squares over which a mask is averaged before it is outlined. The second is for
# masks of which the first leaves nothing, such as thin lines.
_SMOOTHING = (7, 3)
_INK, _QUIET, _PAPER = (30, 30, 34), (110, 110, 118), (255, 255, 255)
_OUTLINE = (255, 0, 200)
_ALERT = (200, 20, 20)
_TILE_COLUMNS = 8

# From a low to a high cosine; distinguishable with colour blindness and in greyscale.
_HEAT = np.array([(36, 12, 70), (98, 24, 116), (168, 46, 96), (228, 92, 48), (250, 178, 40), (252, 252, 160)], float)


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
        pixels, inside = _picture_and_mask(tile.image, tile.mask, f"tiles[{index}].image", f"tiles[{index}].mask")
        drawn.append((_fit_to_cell(pixels, inside), tile.lines, tile.suspect))
    if not drawn:
        raise ValueError("tiles is empty; give at least one")
    row_height = _CELL + _LINE * max(len(lines) for _, lines, _ in drawn) + 2 * _GAP
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
            _write(draw, (left, top + _CELL + position * _LINE), text, colour=colour)
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
    row_height = (2 + caption_lines) * _LINE + 2 * _CELL + 2 * _GAP
    width = 2 * _MARGIN + (max(len(row.shots) for row in rows) + 1) * (_CELL + _GAP) - _GAP
    sheet = Image.new("RGB", (width, head + len(rows) * row_height + _LINE + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        lines = title.split("\n")
        _write_lines(draw, (_left(column), head - _GAP - _LINE * len(lines)), lines)
    for number, row in enumerate(rows):
        top = head + number * row_height
        _write(draw, (_MARGIN, top), row.title, colour=_QUIET)
        top += _LINE * (1 + caption_lines)
        reference, inside = _picture_and_mask(
            row.reference, row.mask, f"rows[{number}].reference", f"rows[{number}].mask"
        )
        sheet.paste(_fit_to_cell(_dim(reference, ~inside), inside), (_MARGIN, top))
        _write(draw, (_MARGIN, top + _CELL), "match map:", colour=_QUIET)
        for column, shot in enumerate(row.shots, start=1):
            name = f"rows[{number}].shots[{column - 1}]"
            left = _left(column)
            lines = textwrap.wrap(shot.caption, _CAPTION_WIDTH, max_lines=_CAPTION_LINES, placeholder=" ...")
            _write_lines(draw, (left, top - _LINE * len(lines)), lines)
            pixels, subject = _picture_and_mask(shot.image, shot.mask, f"{name}.image", f"{name}.mask")
            sheet.paste(_fit_to_cell(pixels, subject), (left, top))
            _write(draw, (left, top + _CELL), f"CP {_score(shot.cp)}")
            _write(draw, (left + _CELL // 2, top + _CELL), f"PF {_score(shot.pf)}")
            check_type(f"{name}.found", shot.found, Tensor, "a tensor")
            if shot.found.ndim != 2 or not shot.found.numel():
                raise ValueError(f"{name}.found has shape {tuple(shot.found.shape)}; give (rows, columns)")
            sheet.paste(_fit_to_cell(_heat_map(reference, shot.found, lowest)), (left, top + _CELL + _LINE))
    _draw_legend(sheet, draw, sheet.height - _MARGIN - _LINE, lowest)
    return sheet


def thumbnail(image: Tensor) -> Tensor:
    """Convert a checked image to (3, h, w) uint8 on the CPU, reduced to the resolution of a panel if it is larger."""
    pixels = image.detach().float() * (255 if image.is_floating_point() else 1)
    scale = _MAX_SIDE / max(image.shape[1:])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in image.shape[1:]]
        pixels = F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]
    return pixels.round().clamp(0, 255).to(torch.uint8).cpu()


def _picture_and_mask(
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
    return _MARGIN + column * (_CELL + _GAP)


def _fit_to_cell(pixels: NDArray[np.uint8], inside: NDArray[np.bool_] | None = None) -> Image.Image:
    """Scale an image to fit into a cell, centre it, and draw the outline of its mask."""
    image = Image.fromarray(pixels)
    scale = _CELL / max(image.size)
    # Match maps and small images keep sharp pixels; only larger images are smoothed.
    resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resample)
    if inside is not None:
        image = Image.fromarray(_draw_outline(np.asarray(image), inside))
    cell = Image.new("RGB", (_CELL, _CELL), _PAPER)
    cell.paste(image, ((_CELL - image.width) // 2, (_CELL - image.height) // 2))
    return cell


def _dim(image: NDArray[np.uint8], where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = image.copy()
    pixels[where] = (image[where] * 0.45 + 255 * 0.55).round().astype(np.uint8)
    return pixels


def _draw_outline(image: NDArray[np.uint8], inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
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


def _colours(unit: NDArray[np.floating]) -> NDArray[np.floating]:
    position = np.clip(unit, 0, 1) * (len(_HEAT) - 1)
    return np.stack([np.interp(position, np.arange(len(_HEAT)), _HEAT[:, channel]) for channel in range(3)], axis=-1)


def _heat_map(reference: NDArray[np.uint8], found: Tensor, lowest: float) -> NDArray[np.uint8]:
    """Draw the patches of the subject in colour on the reference in light grey, cropped to the subject."""
    pixels = reference.astype(float)
    grey = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.3 + 255 * 0.7
    height, width = pixels.shape[:2]
    rows, columns = found.shape
    patch_row, patch_column = np.arange(height) * rows // height, np.arange(width) * columns // width
    cosines = found.detach().float().cpu().numpy()[patch_row][:, patch_column]
    subject = ~np.isnan(cosines)
    grey[subject] = _colours((cosines[subject] - lowest) / (1 - lowest)) * 0.9 + grey[subject] * 0.1
    drawn: NDArray[np.uint8] = grey.round().astype(np.uint8)
    return drawn[_crop_window(subject, margin=max(height // rows, width // columns))]


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


def _draw_legend(sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int, lowest: float) -> None:
    _write(draw, (_MARGIN, top), f"best cosine  {lowest:.2f}", colour=_QUIET)
    bar = _colours(np.linspace(0, 1, _CELL))[None].repeat(_LINE - 6, axis=0).round().astype(np.uint8)
    start = _MARGIN + _CELL * 3 // 4
    sheet.paste(Image.fromarray(bar), (start, top + 2))
    _write(draw, (start + _CELL + _GAP, top), "1", colour=_QUIET)
