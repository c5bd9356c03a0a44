"""Panels and tables of a validation into experiment loggers, or as files beside their logs."""

from __future__ import annotations

import csv
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from masc_metrics.arguments import check_integer
from masc_metrics.validation.ranks import rank_and_world
from masc_metrics.validation.validate import ConceptValidation, ValidatedImage


@dataclass(frozen=True, slots=True)
class LogTarget:
    """Where the results of one validation are logged.

    Attributes:
        loggers: loggers of ``lightning`` or ``pytorch_lightning``.
        step: step of the results in the loggers.
        prefix: prefix of all logged names.
        stem: file names without suffix; if a file exists, a version number is appended.
        folder: folder for all files. None is a folder in the loggers' folders, or in ``fallback`` if they have none.
        fallback: folder for loggers without a folder.
    """

    loggers: Sequence[Any]
    step: int
    prefix: str
    stem: str
    folder: Path | None
    fallback: str | Path

    def folder_of(self, logger: Any, name: str) -> str | Path:
        """Folder for files of a logger; with None, of none."""
        if self.folder is not None:
            return self.folder
        log_dir = getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None) or self.fallback
        return f"{log_dir}/{name}"


def log_validation(
    result: ConceptValidation,
    loggers: Any,
    step: int,
    *,
    prefix: str = "val/",
    folder: str | os.PathLike[str] | None = None,
) -> None:
    """Log scores, panel and table of a validation without a Trainer; on ranks other than the first, do nothing.

    Names are those of :class:`masc_metrics.integrations.lightning.MaSCValidation`: ``val/masc_cp``, ``val/masc_panel``.

    Args:
        result: result of :func:`masc_metrics.validation.validate_concepts`.
        loggers: a logger of ``lightning`` or ``pytorch_lightning``, or a list of them.
        step: training step of the model, see :func:`masc_metrics.validation.checkpoint_step`.
        prefix: prefix of all logged names.
        folder: folder for panels and tables as files; None is a folder in the logger's.

    Raises:
        TypeError, ValueError: if the step is not an integer of at least 0.
        OSError: if a file cannot be written.
    """
    check_integer("step", step, least=0)
    if rank_and_world()[0] != 0:
        return
    all_loggers = list(loggers) if isinstance(loggers, (list, tuple)) else [loggers]
    for logger in all_loggers:
        logger.log_metrics({f"{prefix}masc_{name}": value for name, value in result.scores.items()}, step=step)
    stem = f"{prefix.replace('/', '-')}step={step:06d}"
    target = LogTarget(all_loggers, step, prefix, stem, None if folder is None else Path(folder).expanduser(), ".")
    if result.panel is not None:
        log_panel(result.panel, target)
    log_table(result.table, target)
    for logger in all_loggers:
        logger.save()  # some write only now and then


def log_panel(picture: Image.Image, target: LogTarget) -> None:
    """Send a panel to every logger; to be called by one process only.

    TensorBoard and W&B receive the image. For any other logger, or none, a PNG file is written into ``masc_panels``; if
    the target has a folder, in any case.

    Raises:
        OSError: if a PNG cannot be written.
    """
    tag = f"{target.prefix}masc_panel"
    folders: set[str | Path] = set() if target.folder is None else {target.folder}
    for logger in target.loggers:
        if _is(logger, "TensorBoardLogger"):
            logger.experiment.add_image(tag, np.asarray(picture), target.step, dataformats="HWC")
        elif _is(logger, "WandbLogger"):
            logger.log_image(key=tag, images=[picture], step=target.step)
        else:
            folders.add(target.folder_of(logger, "masc_panels"))
    if not target.loggers:
        folders.add(target.folder_of(None, "masc_panels"))
    for file in _new_files(folders, f"{target.stem}.png"):
        picture.save(file)


def log_table(table: Sequence[ValidatedImage], target: LogTarget) -> None:
    """Write a table of images as CSV, and send it to W&B loggers; to be called by one process only.

    The file is in ``masc_tables`` in the folder of the first logger, or in the target's folder.

    Raises:
        OSError: if the file cannot be written.
    """
    columns = ["step", *(field.name for field in fields(ValidatedImage))]
    rows = [[target.step, *asdict(row).values()] for row in table]
    for logger in target.loggers:
        if _is(logger, "WandbLogger"):
            logger.log_table(key=f"{target.prefix}masc_table", columns=columns, data=rows, step=target.step)
    folder = target.folder_of(next(iter(target.loggers), None), "masc_tables")
    for file in _new_files({folder}, f"{target.stem}.csv"):
        with file.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([columns, *rows])


def _is(logger: Any, name: str) -> bool:
    # By name, because lightning and pytorch_lightning define separate classes, and W&B may not be installed.
    return any(kind.__name__ == name for kind in type(logger).__mro__)


def _new_files(folders: set[str | Path], name: str) -> Iterator[Path]:
    """A file of this name, or with a version number, in each folder."""
    for folder in sorted(folders, key=is_remote):  # local folders first
        if is_remote(folder):
            raise OSError(f"{folder} is not a local folder; give panel_dir")
        Path(folder).mkdir(parents=True, exist_ok=True)
        yield next(file for file in versions(Path(folder) / name) if not file.exists())


def versions(file: Path) -> Iterator[Path]:
    """A file, and its names with version numbers: ``report.html``, ``report-v1.html``, ``report-v2.html``."""
    yield file
    for version in itertools.count(1):
        yield file.with_name(f"{file.stem}-v{version}{file.suffix}")


def is_remote(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is a URL, such as s3://bucket, which Path would treat as a local folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(folder)) is not None  # a Windows drive is one letter
