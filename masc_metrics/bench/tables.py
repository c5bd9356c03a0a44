"""Rows of text cells from CSV, JSON Lines and Parquet, one at a time, each with its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        line: the file's line on which it begins, counted from 1; of a Parquet file the row.
        cells: text by column; None where a cell is missing or null.
        error: why it cannot be read; empty if it can.
    """

    line: int
    cells: Mapping[str, str | None]
    error: str = ""


def read_rows(file: Path, needed: Iterable[str] = ()) -> Iterator[Row]:
    """Rows of a file, by its name: .jsonl (or .ndjson), .parquet, anything else is CSV with commas in UTF-8.

    A damaged line of JSON, or a CSV row of wrong length, is a row with an error, so that the others stay.

    Args:
        file: the file.
        needed: columns that must be there.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no such file or lacks a column.
        ImportError: for Parquet without pyarrow.
    """
    suffix = file.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return _json_rows(file, list(needed))
    if suffix == ".parquet":
        return _parquet_rows(file, list(needed))
    return _csv_rows(file, list(needed))


def pyarrow_parquet() -> ModuleType:
    """The module that reads and writes Parquet.

    Raises:
        ImportError: if pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet needs pyarrow: pip install 'masc-metrics[bench]', or use CSV") from error
    module: ModuleType = pyarrow.parquet
    return module


def _check_columns(file: Path, names: list[str], needed: list[str], remedy: str) -> None:
    missing = [name for name in needed if name not in names]
    if missing:
        raise ValueError(
            f"{file} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; {remedy}; it names {names}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{file} names a column twice: {names}")


def _csv_rows(file: Path, needed: list[str]) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        # Strict, because an unclosed quote would swallow the rest of the file as one cell.
        reader = csv.DictReader(stream, skipinitialspace=True, strict=True)
        try:
            remedy = f"its first line must name {', '.join(needed)}, with commas between"
            _check_columns(file, list(reader.fieldnames or ()), needed, remedy)
            for row in reader:
                cells: Mapping[Any, Any] = row
                line = reader.line_num - sum(cell.count("\n") for cell in cells.values() if isinstance(cell, str))
                error = ""
                if None in cells.values():
                    error = "it has fewer cells than there are columns; leave a cell empty to give no subject"
                if None in cells:
                    error = "it has more cells than there are columns; quote a prompt that holds a comma"
                yield Row(line, {name: cell for name, cell in cells.items() if name is not None}, error)
        except (csv.Error, UnicodeDecodeError) as error:
            hint = "; is a quote left open?" if "unexpected end" in str(error) else ""
            raise ValueError(
                f"{file} cannot be read as CSV in UTF-8, in the row after line {reader.line_num}: {error}{hint}"
            ) from error


def _json_rows(file: Path, needed: list[str]) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="\n") as stream:
        line = 0
        try:
            for line, text in enumerate(stream, start=1):
                if text.strip():
                    yield _json_row(line, text, needed)
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} cannot be read as JSON Lines in UTF-8, after line {line}: {error}") from error


def _json_row(line: int, text: str, needed: list[str]) -> Row:
    nothing: dict[str, str | None] = dict.fromkeys(needed)
    try:
        values = json.loads(text)
    except ValueError as error:
        return Row(line, nothing, f"it is no JSON: {error}")
    if not isinstance(values, dict):
        return Row(line, nothing, f"it is a JSON {type(values).__name__}; give an object, one a line")
    missing = [name for name in needed if name not in values]
    wrong = f"it lacks {', '.join(missing)}; give null for no subject" if missing else ""
    return Row(line, nothing | {name: _text(value) for name, value in values.items()}, wrong)


def _parquet_rows(file: Path, needed: list[str]) -> Iterator[Row]:
    parquet = pyarrow_parquet()
    file.open("rb").close()  # a plain OSError if it is not there
    try:
        table = parquet.ParquetFile(file)
        names = list(table.schema_arrow.names)
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        raise ValueError(f"{file} cannot be read as Parquet: {error}") from error
    with table:
        _check_columns(file, names, needed, f"give {', '.join(needed)}")
        line = 0
        for batch in table.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                line += 1
                yield Row(line, {name: _text(value) for name, value in values.items()})


def _text(value: object) -> str | None:
    return None if value is None else str(value)
