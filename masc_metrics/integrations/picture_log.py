"""Pictures into whichever experiment loggers take them, and as PNG files beside those that do not."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from masc_metrics.integrations.concept_scores import ConceptScores
from masc_metrics.integrations.concepts import Concept, Order
from masc_metrics.plots import PanelRow, Shot, panel

_FOLDER = "masc_panels"
_NOTHING = Shot(
    torch.full((3, 64, 64), 200, dtype=torch.uint8), torch.nan, torch.nan, torch.full((1, 1), torch.nan), caption=""
)


def draw_panel(
    concepts: Sequence[Concept], shown: Sequence[Sequence[Order]], scores: ConceptScores, shots: Mapping[int, Shot]
) -> Image.Image:
    """A row for each concept: its first reference, and what was generated of it.

    Args:
        concepts: all of them.
        shown: for each row its pictures.
        scores: of all pictures.
        shots: of those shown, by their index; one that is missing, because it could not be made, is a grey square.
    """
    rows = []
    for orders in shown:
        concept = concepts[orders[0].concept]
        several = f" (against the first of {len(concept.references)} references)" if len(concept.references) > 1 else ""
        row_shots = [
            replace(
                shots.get(order.index, _NOTHING),
                cp=float(scores.shown_cp_S[order.index]),
                pf=float(scores.pf_S[order.index]),
                caption=order.prompt,
            )
            for order in orders
        ]
        rows.append(PanelRow(concept.name + several, concept.references.images[0], concept.masks.masks[0], row_shots))
    return panel(rows)


def log_picture(
    picture: Image.Image,
    loggers: Sequence[Any],
    *,
    tag: str,
    step: int,
    stem: str,
    folder: Path | None,
    fallback: str | Path,
) -> None:
    """Send a picture to every logger; call it in one process alone.

    Args:
        picture: an RGB image.
        loggers: Lightning's, of either package name. TensorBoard's and W&B's take the picture; for any other a PNG
            is written.
        tag: its name in the logger.
        step: its place on the loggers' axis.
        stem: of the PNG's name; a number is added to one that is there already.
        folder: for PNGs; if given, one is written whatever the loggers are. None is ``masc_panels`` in the logger's
            own folder, or in ``fallback`` if it has none.
        fallback: where PNGs go without a logger's folder.

    Raises:
        OSError: if a PNG cannot be written.
    """
    folders: set[str | Path] = {folder} if folder is not None else set()
    for logger in loggers:
        # By name, because lightning and pytorch_lightning each have a class of their own, and neither need be here.
        kinds = {kind.__name__ for kind in type(logger).__mro__}
        if "TensorBoardLogger" in kinds:
            logger.experiment.add_image(tag, np.asarray(picture), step, dataformats="HWC")
        elif "WandbLogger" in kinds:
            logger.log_image(key=tag, images=[picture], step=step)
        elif folder is None:
            own = getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None) or fallback
            folders.add(f"{own}/{_FOLDER}")
    if not loggers and folder is None:
        folders.add(f"{fallback}/{_FOLDER}")
    for named in sorted(folders, key=is_remote):  # those of this machine first
        if is_remote(named):
            raise OSError(f"{named} is no folder of this machine; give panel_dir")
        place = Path(named)
        place.mkdir(parents=True, exist_ok=True)
        file, version = place / f"{stem}.png", 0
        while file.exists():
            version += 1
            file = place / f"{stem}-v{version}.png"
        picture.save(file)


def is_remote(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is a URL, such as s3://bucket, which a Path would make a folder of this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(folder)) is not None  # a drive has one letter
