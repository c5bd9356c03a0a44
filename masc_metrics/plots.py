"""Pictures of scores: what was generated, what it scored, and which parts of the subject were found.

Drawn with Pillow alone, so that they are there wherever the metrics are.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from masc_metrics.images import check_images
from masc_metrics.masks import check_masks

_CELL, _GAP, _MARGIN = 168, 10, 18
_LINE = 20
_CAPTION_WIDTH, _CAPTION_LINES = 23, 3
_LARGEST = 2 * _CELL  # of a picture's sides in pixels, before it is drawn: enough for a sharp one
_INK, _QUIET, _PAPER = (30, 30, 34), (110, 110, 118), (255, 255, 255)
_OUTLINE = (255, 0, 200)

# From not found to found; readable without telling red from green, and in grey.
_HEAT = np.array([(36, 12, 70), (98, 24, 116), (168, 46, 96), (228, 92, 48), (250, 178, 40), (252, 252, 160)], float)


@dataclass(frozen=True, slots=True)
class Shot:
    """A generated picture beside its scores.

    Attributes:
        image: (3, H, W), uint8 or float in [0, 1].
        cp: concept preservation; NaN is shown as n/a.
        pf: prompt following; NaN is shown as n/a.
        found: (rows, columns), the reference's match map from :func:`masc_metrics.functional.match_maps`.
        mask: (H, W), marks the subject in the generated picture, in any form that the metrics take; its outline is
            drawn. None draws none.
        caption: stands above the picture, such as its prompt; of a long one, the beginning.
    """

    image: Tensor
    cp: float
    pf: float
    found: Tensor
    mask: Tensor | None = None
    caption: str = ""


@dataclass(frozen=True, slots=True)
class PanelRow:
    """One concept: its reference, and what was generated of it.

    Attributes:
        title: stands above the row.
        reference: (3, H, W), uint8 or float in [0, 1].
        mask: (H, W), marks the subject, in any form that the metrics take.
        shots: generated pictures, one a column.
    """

    title: str
    reference: Tensor
    mask: Tensor
    shots: Sequence[Shot]


def panel(rows: Sequence[PanelRow], columns: Sequence[str] | None = None, *, lowest: float = 0.0) -> Image.Image:
    """Draw concepts as rows: the reference with its mask's outline, then each generated picture over its match map.

    A match map shows the reference around its subject, each patch coloured by how well it was found.

    Args:
        rows: concepts, each with as many shots as there are columns.
        columns: a title for each column of shots; line breaks are kept. None draws none, and rows may differ in their
            number of shots.
        lowest: cosine at the dark end of the match maps' colours; 1 is at the bright end.

    Returns:
        An RGB image.

    Raises:
        TypeError: if a picture or mask has a form that the metrics would not take.
        ValueError: for such a picture, mask or map too, if there is no row or column, a row has another number of
            shots, or ``lowest`` is not in [-1, 1).
    """
    for name, values in (("rows", rows), ("columns", columns)):
        if values is not None and not values:
            raise ValueError(f"{name} is empty; give at least one")
    for index, row in enumerate(rows):
        if not row.shots:
            raise ValueError(f"rows[{index}] has no shots; give at least one")
        if columns is not None and len(row.shots) != len(columns):
            raise ValueError(f"rows[{index}] has {len(row.shots)} shots for {len(columns)} columns; give one each")
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
        sheet.paste(_fitted(_outlined(_dimmed(reference, ~inside), inside)), (_MARGIN, top))
        _write(draw, (_MARGIN, top + _CELL), "its patches, found again:", colour=_QUIET)
        for column, shot in enumerate(row.shots, start=1):
            name = f"rows[{number}].shots[{column - 1}]"
            left = _left(column)
            lines = textwrap.wrap(shot.caption, _CAPTION_WIDTH, max_lines=_CAPTION_LINES, placeholder=" ...")
            _write_lines(draw, (left, top - _LINE * len(lines)), lines)
            picture, painted = _picture_and_mask(shot.image, shot.mask, f"{name}.image", f"{name}.mask")
            sheet.paste(_fitted(_outlined(picture, painted)), (left, top))
            _write(draw, (left, top + _CELL), f"CP {_score(shot.cp)}")
            _write(draw, (left + _CELL // 2, top + _CELL), f"PF {_score(shot.pf)}")
            if not isinstance(shot.found, Tensor):
                raise TypeError(f"{name}.found is a {type(shot.found).__name__}; give a tensor")
            if shot.found.ndim != 2 or not shot.found.numel():
                raise ValueError(f"{name}.found has shape {tuple(shot.found.shape)}; give (rows, columns)")
            sheet.paste(_fitted(_heat_map(reference, shot.found, lowest)), (left, top + _CELL + _LINE))
    _draw_legend(sheet, draw, sheet.height - _MARGIN - _LINE, lowest)
    return sheet


def shrunk(image: Tensor) -> Tensor:
    """(3, h, w) uint8 on the CPU, of a checked image, as large as a panel can show and no larger."""
    pixels = image.detach().float() * (255 if image.is_floating_point() else 1)
    scale = _LARGEST / max(image.shape[1:])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in image.shape[1:]]
        pixels = F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]
    return pixels.round().clamp(0, 255).to(torch.uint8).cpu()


def _picture_and_mask(
    image: Tensor, mask: Tensor | None, image_name: str, mask_name: str
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(h, w, 3) uint8 and (h, w) bool, of forms that the metrics take; a mask of nothing if there is none."""
    (checked,) = check_images([image.detach() if isinstance(image, Tensor) else image], image_name).images
    pixels: NDArray[np.uint8] = shrunk(checked).permute(1, 2, 0).numpy()
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


def _fitted(pixels: NDArray[np.uint8]) -> Image.Image:
    """The picture, scaled into a cell and centred on its ground."""
    image = Image.fromarray(pixels)
    scale = _CELL / max(image.size)
    # Patches and small pictures are shown as they are; only what is too large is smoothed.
    resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resample)
    cell = Image.new("RGB", (_CELL, _CELL), _PAPER)
    cell.paste(image, ((_CELL - image.width) // 2, (_CELL - image.height) // 2))
    return cell


def _dimmed(image: NDArray[np.uint8], where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = image.copy()
    pixels[where] = (image[where] * 0.45 + 255 * 0.55).round().astype(np.uint8)
    return pixels


def _outlined(image: NDArray[np.uint8], inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture with the mask's outline in it."""
    reach = max(1, round(max(inside.shape) / _CELL))  # two pixels of the sheet
    padded = np.pad(inside, reach, mode="edge")
    height, width = inside.shape
    shifted = [padded[y : y + height, x : x + width] for y in (0, 2 * reach) for x in (0, 2 * reach)]
    pixels: NDArray[np.uint8] = image.copy()
    pixels[np.any(shifted, axis=0) & ~np.all(shifted, axis=0)] = _OUTLINE
    return pixels


def _colours(unit: NDArray[np.floating]) -> NDArray[np.floating]:
    place = np.clip(unit, 0, 1) * (len(_HEAT) - 1)
    return np.stack([np.interp(place, np.arange(len(_HEAT)), _HEAT[:, channel]) for channel in range(3)], axis=-1)


def _heat_map(reference: NDArray[np.uint8], found: Tensor, lowest: float) -> NDArray[np.uint8]:
    """The reference in faint grey around its subject, and over it a block of colour for every patch of the subject."""
    pixels = reference.astype(float)
    grey = pixels.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.3 + 255 * 0.7
    height, width = pixels.shape[:2]
    rows, columns = found.shape
    of_row, of_column = np.arange(height) * rows // height, np.arange(width) * columns // width
    cosines = found.detach().float().cpu().numpy()[of_row][:, of_column]
    subject = ~np.isnan(cosines)
    grey[subject] = _colours((cosines[subject] - lowest) / (1 - lowest)) * 0.9 + grey[subject] * 0.1
    drawn: NDArray[np.uint8] = grey.round().astype(np.uint8)
    return drawn[_around(subject, margin=max(height // rows, width // columns))]


def _around(inside: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """A window about all that is inside, as square as the plane allows; the whole plane if nothing is."""
    if not inside.any():
        return slice(None), slice(None)
    found = [np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0)]
    side = max(int(places[-1] - places[0]) for places in found) + 1 + 2 * margin
    window = []
    for places, limit in zip(found, inside.shape, strict=True):
        start = min(max(0, (int(places[0] + places[-1]) + 1 - side) // 2), max(0, limit - side))
        window.append(slice(start, start + side))
    return window[0], window[1]


def _draw_legend(sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int, lowest: float) -> None:
    _write(draw, (_MARGIN, top), f"best cosine  {lowest:.2f}", colour=_QUIET)
    bar = _colours(np.linspace(0, 1, _CELL))[None].repeat(_LINE - 6, axis=0).round().astype(np.uint8)
    start = _MARGIN + _CELL * 3 // 4
    sheet.paste(Image.fromarray(bar), (start, top + 2))
    _write(draw, (start + _CELL + _GAP, top), "1", colour=_QUIET)
