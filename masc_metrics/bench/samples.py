"""Samples listed in a CSV file: its rows, and the images and masks that they name."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

COLUMNS = ("generated_image", "generated_mask", "reference_image", "reference_mask", "prompt", "subject")


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a sample list.

    Attributes:
        line: where the row begins in its file, counted from 1.
        sample_id: the row's own id, else its number, counted from 1.
        generated_image: file of the generated image; the other files likewise.
        prompt: the text that it was generated from.
        subject: the subject's name in the prompt; None keeps the prompt.
        error: why the row cannot be scored; empty if nothing is known against it.
    """

    line: int
    sample_id: str
    generated_image: Path
    generated_mask: Path
    reference_image: Path
    reference_mask: Path
    prompt: str
    subject: str | None
    error: str = ""


def read_samples(file: Path) -> list[Sample]:
    """Read a sample list. Rows that cannot be scored are in it too, each with its reason.

    Args:
        file: CSV in UTF-8 with the columns of ``COLUMNS`` and, optionally, ``sample_id``; further columns are ignored,
            paths are relative to the file.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no such CSV or has no rows.
    """
    with file.open(encoding="utf-8-sig", newline="") as stream:
        # Strict, because an unclosed quote would swallow the rest of the file as one cell.
        reader = csv.DictReader(stream, skipinitialspace=True, strict=True)
        try:
            names = list(reader.fieldnames or ())
            missing = [name for name in COLUMNS if name not in names]
            if missing:
                raise ValueError(
                    f"{file} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; its first line must name "
                    f"{', '.join(COLUMNS)} and may name sample_id, with commas between; it names {names}"
                )
            if len(set(names)) < len(names):
                raise ValueError(f"{file} names a column twice: {names}")
            samples = list(_samples(reader, file.parent))
        except (csv.Error, UnicodeDecodeError) as error:
            hint = "; is a quote left open?" if "unexpected end" in str(error) else ""
            raise ValueError(
                f"{file} cannot be read as CSV in UTF-8, in the row after line {reader.line_num}: {error}{hint}"
            ) from error
    if not samples:
        raise ValueError(f"{file} lists no samples; give one row a sample below the column names")
    return samples


def _samples(reader: csv.DictReader[str], folder: Path) -> Iterator[Sample]:
    first_line_of: dict[str, int] = {}
    for number, row in enumerate(reader, start=1):
        cells = {name: (row[name] or "") for name in COLUMNS}
        cells |= {name: cells[name].strip() for name in COLUMNS[:4]}
        line = reader.line_num - sum(cell.count("\n") for cell in row.values() if isinstance(cell, str))
        error = next((f"{name} is empty" for name in COLUMNS[:4] if not cells[name]), "")
        if None in row.values():
            error = "it has fewer cells than there are columns; leave a cell empty to give no subject"
        if None in row:
            error = "it has more cells than there are columns; quote a prompt that holds a comma"
        sample_id = str(number)
        if "sample_id" in (reader.fieldnames or ()):
            sample_id = (row["sample_id"] or "").strip()
            if not sample_id:
                error = "sample_id is empty; give each row its own, or leave the column out"
            elif sample_id in first_line_of:
                error = f"sample_id {sample_id!r} stands in line {first_line_of[sample_id]} already"
        first_line_of.setdefault(sample_id, line)
        yield Sample(
            line=line,
            sample_id=sample_id,
            generated_image=folder / cells["generated_image"],
            generated_mask=folder / cells["generated_mask"],
            reference_image=folder / cells["reference_image"],
            reference_mask=folder / cells["reference_mask"],
            prompt=cells["prompt"],
            subject=cells["subject"] or None,
            error=error,
        )


def open_picture(file: Path, column: str) -> Image.Image:
    """Read and decode an image or mask file, turned the way its EXIF orientation says, as viewers show it.

    Raises:
        OSError: if it cannot be read or is no image; the text names column and file.
    """
    try:
        with Image.open(file) as picture:
            return ImageOps.exif_transpose(picture) or picture
    except FileNotFoundError:
        raise FileNotFoundError(f"{column} {file}: no such file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"{column} {file}: cannot be read as an image ({error})") from error
