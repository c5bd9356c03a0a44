"""Tables in files: rows read from CSV, JSON Lines and Parquet, and written to CSV and Parquet; tables as text."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO

LISTS = ("reference_image", "reference_mask")
"""Columns of which a JSON or Parquet cell may be a list; its text is JSON."""

Cells = Mapping[str, str | float | None]


_OTHER_FORMATS = (".json", ".ods", ".xls", ".xlsx")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        line: line of the file on which it begins, from 1; in Parquet the number of the row.
        cells: text by column; None for a missing or null cell.
    """

    line: int
    cells: Mapping[str, str | None]


def read_rows(file: Path, needed: Sequence[str] = ()) -> list[Row]:
    """Read all rows of a file: .jsonl or .ndjson, .parquet, and CSV in UTF-8 for any other suffix.

    It must have the ``needed`` columns.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is malformed or lacks a column; the text names the file, the line and the remedy.
        ImportError: for Parquet without pyarrow.
    """
    suffix = file.suffix.lower()
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file")
    if suffix in _OTHER_FORMATS:
        raise ValueError(f"{file} is not a table that can be read; save it as .csv, .jsonl or .parquet")
    if suffix in (".jsonl", ".ndjson"):
        return list(_json_rows(file, needed))
    if suffix == ".parquet":
        return list(_parquet_rows(file, needed))
    return list(_csv_rows(file, needed))


def text_of(row: Row, name: str) -> str:
    """Text of a cell without surrounding space; empty for a missing cell, and for the NaN that dataframes write."""
    text = (row.cells.get(name) or "").strip()
    return "" if text in ("nan", "NaN") else text


def pyarrow_parquet() -> ModuleType:
    """Import the module that reads and writes Parquet.

    Raises:
        ImportError: if pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet needs pyarrow: pip install 'masc-metrics[bench]', or use CSV") from error
    module: ModuleType = pyarrow.parquet
    return module


def _check_columns(file: Path, names: list[str], needed: Sequence[str], remedy: str) -> None:
    missing = [name for name in needed if name not in names]
    if missing:
        raise ValueError(
            f"{file} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; {remedy}; its columns are {names}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{file} has two columns of one name: {names}; rename one")


def _csv_rows(file: Path, needed: Sequence[str]) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        # Not strict, an unclosed quote would swallow the rest of the file as one cell.
        reader = csv.reader(stream, skipinitialspace=True, strict=True)
        try:
            names = next(reader, [])
            separator = next((each for each in (";", "\t") if len(names) == 1 and each in names[0]), None)
            remedy = f"give a comma-separated header line with {', '.join(needed)}"
            if separator:
                remedy = f"its cells are separated by {separator!r}; {remedy}"
            _check_columns(file, names, needed, remedy)
            for cells in reader:
                if not cells:  # an empty line
                    continue
                line = reader.line_num - sum(cell.count("\n") for cell in cells)
                if len(cells) != len(names):
                    remedy = (
                        "quote cells that hold a comma" if len(cells) > len(names) else "leave a cell empty for none"
                    )
                    raise ValueError(f"{file}, line {line} has {len(cells)} cells for {len(names)} columns; {remedy}")
                yield Row(line, dict(zip(names, cells, strict=True)))
        except (csv.Error, UnicodeDecodeError) as error:
            hint = "; close the open quote" if "unexpected end" in str(error) else ""
            if isinstance(error, UnicodeDecodeError):
                hint = "; save it as CSV UTF-8"
            raise ValueError(
                f"{file} cannot be read as CSV in UTF-8 after line {reader.line_num}: {error}{hint}"
            ) from error


def _json_rows(file: Path, needed: Sequence[str]) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="\n") as stream:
        line = 0
        try:
            for line, text in enumerate(stream, start=1):
                if text.strip():
                    yield Row(line, _json_cells(f"{file}, line {line}", text, needed))
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} cannot be read as JSON Lines in UTF-8 after line {line}: {error}") from error


def _json_cells(label: str, text: str, needed: Sequence[str]) -> dict[str, str | None]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{label} is not valid JSON: {error}; give one object per line") from error
    if not isinstance(values, dict):
        raise ValueError(f"{label} holds a JSON {type(values).__name__}; give one object per line")
    missing = [name for name in needed if name not in values]
    if missing:
        raise ValueError(f"{label} lacks {', '.join(missing)}; give null for an empty cell")
    for name in needed:
        if isinstance(values[name], (bool, dict)) or (isinstance(values[name], list) and name not in LISTS):
            raise ValueError(f"{label}: {name} is a JSON {type(values[name]).__name__}; give text")
    return {name: _text(value) for name, value in values.items()}


def _parquet_rows(file: Path, needed: Sequence[str]) -> Iterator[Row]:
    parquet = pyarrow_parquet()
    file.open("rb").close()  # pyarrow raises errors of its own for a missing file
    try:
        table = parquet.ParquetFile(file).read()  # read_table would add columns for folders such as seed=3
    except (OSError, ValueError) as error:  # pyarrow's errors derive from both
        raise ValueError(f"{file} cannot be read as Parquet: {error}") from error
    _check_columns(file, list(table.column_names), needed, f"give {', '.join(needed)}")
    for line, values in enumerate(table.to_pylist(), start=1):
        yield Row(line, {name: _text(value) for name, value in values.items()})


def _text(value: object) -> str | None:
    if isinstance(value, list):
        return json.dumps(value)
    return None if value is None else str(value)


def is_parquet(file: Path) -> bool:
    """Whether a table of this name is Parquet."""
    return file.suffix.lower() == ".parquet"


def write_table(file: Path, rows: Sequence[Cells], columns: Sequence[str], numbers: Collection[str]) -> None:
    """Write rows to a Parquet file if the name ends with .parquet, else to CSV.

    The file appears complete or not at all; an older file of its name is replaced, a link to it stays. In CSV, None is
    an empty cell; in Parquet it is null, and ``numbers`` are the columns that hold numbers. NaN is nan in both.

    Raises:
        OSError: if the file cannot be written.
        ImportError: for Parquet without pyarrow.
    """
    # File names may hold bytes, and JSON halves of surrogate pairs, that UTF-8 cannot encode.
    cells = [[_encodable(row[name]) for name in columns] for row in rows]
    if not is_parquet(file):
        text = io.StringIO(newline="")
        csv.writer(text).writerow(columns)
        csv.writer(text).writerows(
            [f"{cell:.9g}" if isinstance(cell, float) else cell for cell in line] for line in cells
        )
        with replacing(file) as stream:
            stream.write(text.getvalue().encode())
        return
    parquet = pyarrow_parquet()
    import pyarrow

    schema = pyarrow.schema([(name, pyarrow.float64() if name in numbers else pyarrow.string()) for name in columns])
    table = pyarrow.Table.from_pylist([dict(zip(columns, line, strict=True)) for line in cells], schema=schema)
    with replacing(file) as stream:
        parquet.write_table(table, stream)


def _encodable(cell: str | float | None) -> str | float | None:
    return cell.encode(errors="backslashreplace").decode() if isinstance(cell, str) else cell


@contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """Open a file to be written to; it gets its name when the block ends without an error, synced to the disk.

    Raises:
        OSError: if it cannot be written.
    """
    file = file.resolve()  # replace the target of a link, not the link
    if file.exists() and not file.is_file():
        raise OSError(f"{file} is not a regular file; give another name")
    part = file.with_name(file.name + ".part")
    try:
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
