"""Panels for experiment loggers, or as PNG files for loggers that do not accept images."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_FOLDER = "masc_panels"


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
    """Send an image to every logger; to be called by one process only.

    Args:
        picture: an RGB image.
        loggers: loggers of ``lightning`` or ``pytorch_lightning``. TensorBoard and W&B receive the image; for any other
            logger a PNG file is written.
        tag: name of the image in the logger.
        step: step of the image in the logger.
        stem: file name of the PNG without suffix; if the file exists, a version number is appended.
        folder: folder for a PNG, which is then written for any loggers. None is ``masc_panels`` in the logger's folder,
            or in ``fallback`` if it has none.
        fallback: folder for loggers without a folder.

    Raises:
        OSError: if a PNG cannot be written.
    """
    folders: set[str | Path] = {folder} if folder is not None else set()
    for logger in loggers:
        # By name, because lightning and pytorch_lightning define separate classes, and W&B may not be installed.
        kinds = {kind.__name__ for kind in type(logger).__mro__}
        if "TensorBoardLogger" in kinds:
            logger.experiment.add_image(tag, np.asarray(picture), step, dataformats="HWC")
        elif "WandbLogger" in kinds:
            logger.log_image(key=tag, images=[picture], step=step)
        elif folder is None:
            log_dir = getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None) or fallback
            folders.add(f"{log_dir}/{_FOLDER}")
    if not loggers and folder is None:
        folders.add(f"{fallback}/{_FOLDER}")
    for path in sorted(folders, key=is_remote):  # local folders first
        if is_remote(path):
            raise OSError(f"{path} is not a local folder; give panel_dir")
        local = Path(path)
        local.mkdir(parents=True, exist_ok=True)
        file, version = local / f"{stem}.png", 0
        while file.exists():
            version += 1
            file = local / f"{stem}-v{version}.png"
        picture.save(file)


def is_remote(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is a URL, such as s3://bucket, which Path would treat as a local folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(folder)) is not None  # a Windows drive is one letter
