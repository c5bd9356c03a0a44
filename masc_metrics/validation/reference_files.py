"""Reference images and masks from files and folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image
from torchmetrics.utilities import rank_zero_warn

from masc_metrics.images import PICTURE_SUFFIXES, Images, decode_picture, holds_several, open_picture
from masc_metrics.masks import Masks

Files: TypeAlias = "str | os.PathLike[str] | Sequence[str] | Sequence[os.PathLike[str]]"

_SUFFIXES = tuple(suffix for suffixes in PICTURE_SUFFIXES.values() for suffix in suffixes)
_MASK = "_mask"


def read_references(images: Images | Files, masks: Masks | Files | None) -> tuple[Images, Masks | None]:
    """Open references that are given as files or folders; others are returned as they are.

    Args:
        images: images; a file or a list of files; or a folder, whose images in order of their names are taken. ``~`` is
            the home folder.
        masks: masks; a file or a list of files, in the order of the images; or a folder that holds a file with the name
            of each image, with or without ``_mask`` at its end. None takes ``<name>_mask.png`` beside each image of a
            folder, if there are such files.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if a folder holds no image or lacks a mask, or only one of an image and its mask has an EXIF
            orientation.
    """
    image_files = _files(images)
    if image_files is None:
        if _files(masks) is not None:
            raise ValueError("reference_masks are files but reference_images are not; give both as files")
        return images, masks  # type: ignore[return-value]  # _files found no files in them
    if not image_files:
        raise ValueError(f"reference_images is the folder {str(images)!r} without {', '.join(_SUFFIXES)}; add images")
    in_folder = isinstance(images, (str, os.PathLike)) and _path(images).is_dir()
    mask_files = _masks_of(image_files, masks, in_folder=in_folder)
    opened = [_open(file) for file in image_files]
    if mask_files is None:
        return [image for image, _ in opened], None
    opened_masks = [_open(file) for file in mask_files]
    for file, (_, turned), (_, mask_turned) in zip(image_files, opened, opened_masks, strict=False):
        if turned != mask_turned:
            raise ValueError(
                f"{file} or its mask has an EXIF orientation, but not both, so it is not known whether they are "
                "aligned; save both upright"
            )
    return [image for image, _ in opened], [mask for mask, _ in opened_masks]


def _files(value: Any) -> list[Path] | None:
    """Files that a value names, in order; None if it is neither a path nor a list of paths."""
    if isinstance(value, (str, os.PathLike)):
        path = _path(value)
        if not path.is_dir():
            return [path]
        return sorted(file for file in _images_in(path) if not file.stem.endswith(_MASK))
    if isinstance(value, Sequence) and value and all(isinstance(each, (str, os.PathLike)) for each in value):
        return [_path(each) for each in value]
    return None


def _path(value: str | os.PathLike[str]) -> Path:
    return Path(os.path.expanduser(value))


def _images_in(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES]


def _masks_of(images: Sequence[Path], masks: Any, *, in_folder: bool) -> list[Path] | None:
    if masks is not None and not (isinstance(masks, (str, os.PathLike)) and _path(masks).is_dir()):
        files = _files(masks)
        if files is None:
            raise ValueError("reference_images are files but reference_masks are not; give both as files")
        return files
    if masks is None and not in_folder:
        return None
    folder = images[0].parent if masks is None else _path(masks)
    names = {file.stem: file for file in _images_in(folder) if masks is not None or file.stem.endswith(_MASK)}
    if masks is None and not names:
        return None
    found = [names.get(image.stem + _MASK) or names.get(image.stem) for image in images]
    missing = [image.name for image, mask in zip(images, found, strict=True) if mask is None]
    if missing:
        raise ValueError(f"{folder} has no mask of {missing[0]}; add {Path(missing[0]).stem}{_MASK}.png")
    return [mask for mask in found if mask is not None]


def _open(file: Path) -> tuple[Image.Image, bool]:
    """Image turned as its EXIF orientation says, and whether it has one."""
    try:
        with open_picture(file) as image:
            if holds_several(image):
                rank_zero_warn(f"{file} holds several pictures; the first is taken", UserWarning)
            stored, upright = decode_picture(image)
            return upright, upright is not stored
    except (OSError, SyntaxError, ValueError) as error:
        raise OSError(f"{file} cannot be read: {error}; give an image file") from error
