"""``masc-metrics masks``: masks from text for the images of a sample list that have none."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from masc_metrics.bench.commands import MasksOptions
from masc_metrics.bench.distributed import fastest_device
from masc_metrics.bench.loading import named, open_image, undecoded
from masc_metrics.bench.sample import FILES, WHICH
from masc_metrics.bench.sample_list import files_of_cell
from masc_metrics.bench.segmenting import checkpoints_of, folders_of, segmented
from masc_metrics.bench.tables import (
    Row,
    check_replaceable,
    check_table_name,
    file_in,
    is_parquet,
    printable,
    read_rows,
    replacing,
    stored_picture,
    text_of,
    write_table,
)
from masc_metrics.bench.terminal import NO_CHECKPOINT, ROWS_FAILED, UNUSABLE, fail
from masc_metrics.images import TO_STORED, check_image, exif_orientation, holds_several
from masc_metrics.masks import check_mask
from masc_metrics.plots import Tile, mask_sheet
from masc_metrics.reading import CheckpointError
from masc_metrics.segmenters import Segmenter
from masc_metrics.segmenters.segmenter import ALMOST_FULL

_TILES, _SHEETS = 48, 4
"""Masks on a contact sheet, and largest number of sheets."""


@dataclass(frozen=True, slots=True)
class _Task:
    """A mask to make.

    Attributes:
        label: column, file and line of the image, for error texts.
        short_label: line and kind of the image, for the contact sheet.
        image: file of the image.
        noun: what to mark.
        mask: file of the mask; its record is beside it, with the suffix .json.
    """

    label: str
    short_label: str
    image: Path
    noun: str
    mask: Path

    @property
    def record(self) -> Path:
        return self.mask.with_suffix(".json")


def make_masks(options: MasksOptions) -> int:
    """Run ``masc-metrics masks``; returns the exit code."""
    try:
        rows = read_rows(options.samples, texts=(*FILES, "noun", "subject"), pictures=FILES)
        columns = list(dict.fromkeys(name for row in rows for name in row.cells))
        tasks = dict(_tasks(rows, columns, options))
        out = options.out / f"samples{'.parquet' if is_parquet(options.samples) else '.csv'}"
        check_table_name("the completed list", out, options.escape_formulas)
        if options.out.exists() and not options.out.is_dir():
            raise ValueError(f"--out is {options.out}, which is not a folder; give a folder")
        if out.exists() and out.samefile(options.samples):
            raise ValueError(f"--out is {options.out}, whose {out.name} is the sample list; give another folder")
        segmenter = options.networks.load(
            options.segmenter,
            device=options.device or fastest_device(),
            dtype=options.dtype,
            batch_size=options.batch_size,
            cache_dir=options.cache_dir,
            local_files_only=options.local_files_only,
        )
        options.out.mkdir(parents=True, exist_ok=True)
        check_replaceable("--out", options.out, out)
    except (OSError, ValueError, ImportError) as error:
        return fail(UNUSABLE, error)
    distinct = {task.mask: task for task in tasks.values()}
    settings = {file: _settings(segmenter, task) for file, task in distinct.items()}
    errors: dict[Path, str] = {}
    try:
        # If all masks are there, they are not compared with the hub, which may not be reachable.
        versions = folders_of(segmenter)
        kept = {file for file, task in distinct.items() if _is_made(task, settings[file], versions)}
        if len(kept) < len(distinct):
            versions = checkpoints_of(segmenter)
            kept = {file for file in kept if _is_made(distinct[file], settings[file], versions)}
    except (OSError, ValueError, ImportError) as error:
        return fail(NO_CHECKPOINT, error)
    missing = [task for file, task in distinct.items() if file not in kept]
    try:
        _make(missing, settings, segmenter, versions, errors, options)
        _write_list(out, rows, columns, tasks, errors, options)
        made = [(task, _read_record(task)) for file, task in distinct.items() if file not in errors]
        sheets = _write_sheets(made, options.out)
    except (OSError, ValueError) as error:
        return fail(NO_CHECKPOINT if isinstance(error, CheckpointError) else UNUSABLE, error)
    for text in errors.values():
        print(printable(text), file=sys.stderr)
    records = [record for _, record in made]
    empty = sum(record["coverage"] == 0 for record in records)
    full = sum(record["coverage"] > ALMOST_FULL for record in records)
    print(f"{len(missing) - len(errors)} masks made, {len(kept)} kept from an earlier run, {len(errors)} failed")
    print(f"{empty} masks are empty, and {full} cover more than {ALMOST_FULL * 100:.0f} % of their image")
    if several := [task.image for task, _ in made if _holds_several(task)]:
        print(
            f"{len(several)} images are files of several pictures, of which the first was taken, such as {several[0]}"
        )
    if sheets:
        shown = min(len(made), _TILES * _SHEETS)
        which = f"all {shown} masks" if shown == len(made) else f"the {shown} most doubtful of {len(made)} masks"
        print(f"look at {which}: {', '.join(map(str, sheets))}")
    print(f"completed list: {out}")
    return ROWS_FAILED if errors else 0


def _tasks(
    rows: Sequence[Row], columns: Sequence[str], options: MasksOptions
) -> Iterator[tuple[tuple[int, str], _Task]]:
    """The masks that the list lacks, by row and by "reference" or "generated"."""
    source = options.samples
    if not rows:
        raise ValueError(f"{source} lists no samples; give one row per sample below the header line")
    if not {f"{which}_image" for which in WHICH} & set(columns):
        raise ValueError(
            f"{source} has neither a column reference_image nor generated_image; its columns are {columns}"
        )
    for index, row in enumerate(rows):
        for which in WHICH:
            image = text_of(row, f"{which}_image")
            if not image or text_of(row, f"{which}_mask"):
                continue
            if which == "reference" and len(files_of_cell(image, source.parent, f"{source}, line {row.line}")) > 1:
                raise ValueError(
                    f"{source}, line {row.line}: reference_image holds several files; list each in a row of its own to "
                    "make its mask, and join the masks in reference_mask"
                )
            noun = text_of(row, "noun") or text_of(row, "subject")
            if not noun:
                raise ValueError(
                    f"{source}, line {row.line}: noun and subject are empty; give what to mark in {named(image)}"
                )
            digest = hashlib.sha256(json.dumps([image, noun]).encode()).hexdigest()[:12]
            stem = re.sub(r"[^\w.-]", "_", Path(image).stem)[:80]
            label = f"{which}_image {named(image)} (line {row.line})"
            mask = options.out / which / f"{stem}-{digest}.png"
            file = Path(file_in(source.parent, image))
            yield (index, which), _Task(label, f"line {row.line}, {which}", file, noun, mask)


def _settings(segmenter: Segmenter, task: _Task) -> dict[str, Any]:
    """What determines a mask; an existing mask with equal settings is kept."""
    settings = segmenter.settings
    try:
        stored = stored_picture(str(task.image))
        content = task.image.read_bytes() if stored is None and task.image.is_file() else stored
        digest = None if content is None else hashlib.sha256(content).hexdigest()
    except OSError:  # reported when the image is opened
        digest = None
    return {
        "image_sha256": digest,
        "noun": task.noun,
        "segmenter": settings.name,
        "checkpoint": settings.source.model,
        "mask_checkpoint": None if settings.mask_source is None else settings.mask_source.model,
        "threshold": settings.threshold,
        "dtype": str(settings.dtype).removeprefix("torch."),
    }


def _read_record(task: _Task) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(task.record.read_text(encoding="utf-8"))
    return record


def _is_made(task: _Task, settings: Mapping[str, Any], versions: Mapping[str, str]) -> bool:
    """Whether the mask exists, made with these settings and these versions of checkpoints."""
    try:
        record = _read_record(task)
        same = all(record[name] == value for name, value in settings.items())
        return same and task.mask.is_file() and all(record["versions"][name] == versions[name] for name in versions)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _make(
    tasks: Sequence[_Task],
    settings: Mapping[Path, Mapping[str, Any]],
    segmenter: Segmenter,
    versions: Mapping[str, str],
    errors: dict[Path, str],
    options: MasksOptions,
) -> None:
    """Make masks; the reason of each that fails is added to ``errors``, by the mask's file, as ``settings`` are."""
    from tqdm import tqdm

    with tqdm(total=len(tasks), unit="mask", disable=options.quiet) as bar:
        for start in range(0, len(tasks), options.batch_size):
            part = tasks[start : start + options.batch_size]
            images, opened = [], []
            for task in part:
                try:
                    images.append(check_image(open_image(task.image, task.label), task.label))
                    opened.append(task)
                except (OSError, ValueError) as error:
                    errors[task.mask] = str(error)
            found = segmented(segmenter, images, [task.noun for task in opened])
            for task, result in zip(opened, found, strict=True):
                if isinstance(result, ValueError):
                    errors[task.mask] = f"{task.label}: {result}"
                    continue
                record = {
                    **settings[task.mask],
                    "image": os.path.relpath(task.image, task.mask.parent),
                    "versions": dict(versions),
                    "score": result.score,
                    "instances": result.instances,
                    "coverage": result.coverage,
                }
                task.mask.parent.mkdir(exist_ok=True)
                _save_mask(task, Image.fromarray(result.mask.cpu().numpy()).convert("L"))
                with replacing(task.record) as stream:  # last: a mask without its record is made again
                    stream.write(json.dumps(record, indent=2).encode())
            bar.update(len(part))


def _save_mask(task: _Task, mask: Image.Image) -> None:
    """Write the mask of an upright image as its image is stored, with the same EXIF orientation.

    Of an upright mask nobody could tell to which of the two it belongs, if both have its shape.
    """
    with undecoded(task.image) as image:
        orientation = exif_orientation(image)
    exif = Image.Exif()
    if orientation > 1:
        exif[ExifTags.Base.Orientation] = orientation
        mask = mask.transpose(TO_STORED[orientation])
    with replacing(task.mask) as stream:
        mask.save(stream, format="PNG", exif=exif)


def _holds_several(task: _Task) -> bool:
    with undecoded(task.image) as image:
        return holds_several(image)


def _write_sheets(made: Sequence[tuple[_Task, Mapping[str, Any]]], folder: Path) -> list[Path]:
    """Draw the masks on contact sheets: empty ones, then those over almost all of their images, then by score."""

    def doubt(item: tuple[_Task, Mapping[str, Any]]) -> tuple[int, float]:
        coverage = item[1]["coverage"]
        return (0 if coverage == 0 else 1 if coverage > ALMOST_FULL else 2), item[1]["score"]

    def tile(task: _Task, record: Mapping[str, Any]) -> Tile:
        image = check_image(open_image(task.image, task.label), task.label)
        mask = check_mask(open_image(task.mask, "mask"), str(task.mask), (image.shape[1], image.shape[2]))
        coverage = record["coverage"]
        marked = "empty" if coverage == 0 else f"{coverage * 100:.1f} %"
        lines = (task.noun, task.short_label, f"score {record['score']:.2f}, {marked}")
        return Tile(image, mask, lines, suspect=coverage == 0 or coverage > ALMOST_FULL)

    for file in folder.glob("contact_sheet*.png"):
        file.unlink()
    worst = sorted(made, key=doubt)[: _TILES * _SHEETS]
    sheets = []
    for number, start in enumerate(range(0, len(worst), _TILES), start=1):
        file = folder / ("contact_sheet.png" if number == 1 else f"contact_sheet_{number}.png")
        sheet = mask_sheet(itertools.starmap(tile, worst[start : start + _TILES]))
        with replacing(file) as stream:
            sheet.save(stream, format="PNG")
        sheets.append(file)
    return sheets


def _write_list(
    out: Path,
    rows: Sequence[Row],
    columns: Sequence[str],
    tasks: Mapping[tuple[int, str], _Task],
    errors: Mapping[Path, str],
    options: MasksOptions,
) -> None:
    """Write the list with the masks' columns filled; paths are relative to it. A failed mask's cell stays empty."""
    files = [f"{which}_{kind}" for which in WHICH for kind in ("image", "mask")]
    completed = []
    for index, row in enumerate(rows):
        cells = {name: row.cells.get(name) for name in [*columns, *files]}
        for name in files:
            path = text_of(row, name)
            cells[name] = os.path.relpath(file_in(options.samples.parent, path), out.parent) if path else None
        for which in WHICH:
            task = tasks.get((index, which))
            if task is not None and task.mask not in errors:
                cells[f"{which}_mask"] = os.path.relpath(task.mask, out.parent)
        completed.append(cells)
    written = [
        name for name in dict.fromkeys([*columns, *files]) if name in columns or any(row[name] for row in completed)
    ]
    write_table(out, completed, written, (), escape_formulas=options.escape_formulas)
