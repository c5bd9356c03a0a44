"""The file of scores, CSV or Parquet: written beside its place, and moved there when it is whole."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from masc_metrics.bench.outcome import MEASURES
from masc_metrics.bench.tables import pyarrow_parquet

_ROWS_AT_A_TIME = 4096

Cells = Mapping[str, str | float | None]


class ScoreFile:
    """Rows go to ``<out>.part``; leaving the block without an error gives the file its name.

    An older file of that name stays until then. A device such as /dev/stdout is written to directly.

    Args:
        out: the file to write; Parquet if it ends with .parquet, else CSV.
        columns: its columns.
        scores: those of them that are scores.

    Raises:
        OSError: if it cannot be written.
        ImportError: for Parquet without pyarrow.
    """

    def __init__(self, out: Path, columns: Sequence[str], scores: Sequence[str]) -> None:
        self._out = out if is_device(out) else out.resolve()  # a link stays, what it leads to is replaced
        self._part = out if is_device(out) else self._out.with_name(self._out.name + ".part")
        numbers = (*scores, *MEASURES)
        if is_parquet(out):
            pyarrow_parquet()
        try:
            kind = _ParquetRows if is_parquet(out) else _CSVRows
            self._rows: _ParquetRows | _CSVRows = kind(self._part, columns, numbers)
        except OSError as error:
            raise OSError(f"{out} cannot be written: {error.strerror}") from error

    def __enter__(self) -> ScoreFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._rows.close()
            if error is None and self._part != self._out:
                os.replace(self._part, self._out)
        except OSError:
            if error is None:  # else a full disk has been said, in write
                raise
        finally:
            if self._part != self._out:
                self._part.unlink(missing_ok=True)

    def write(self, cells: Cells) -> None:
        """Write one row: an undefined score is nan, one that is not there an empty cell (null in Parquet)."""
        # Names of files may hold bytes, and JSON halves of surrogate pairs, that UTF-8 has no place for.
        writable = {
            name: value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
            for name, value in cells.items()
        }
        self._rows.write(writable)


def is_parquet(out: Path) -> bool:
    """Whether a score file of that name is Parquet."""
    return out.suffix.lower() == ".parquet"


def is_device(out: Path) -> bool:
    """Whether it is written to directly, such as /dev/stdout."""
    # /dev/stdout is a file where it is redirected to one, and still must not be replaced.
    return out.exists() and (not out.is_file() or out.absolute().parts[1:2] in (("dev",), ("proc",)))


class _CSVRows:
    def __init__(self, file: Path, columns: Sequence[str], _: Sequence[str]) -> None:
        self._columns = columns
        self._stream = file.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._stream)
        self._writer.writerow(columns)

    def write(self, cells: Cells) -> None:
        values = (cells[name] for name in self._columns)
        self._writer.writerow([f"{value:.9g}" if isinstance(value, float) else value for value in values])

    def close(self) -> None:
        self._stream.close()


class _ParquetRows:
    """Written a few thousand rows at a time, so that memory does not grow with their number."""

    def __init__(self, file: Path, columns: Sequence[str], numbers: Sequence[str]) -> None:
        import pyarrow

        self._pyarrow: Any = pyarrow
        types = {name: pyarrow.float64() if name in numbers else pyarrow.string() for name in columns}
        self._schema = pyarrow.schema(list(types.items()))
        self._writer = pyarrow_parquet().ParquetWriter(file, self._schema)
        self._waiting: list[Cells] = []

    def write(self, cells: Cells) -> None:
        self._waiting.append(cells)
        if len(self._waiting) == _ROWS_AT_A_TIME:
            self._write()

    def close(self) -> None:
        self._write()
        self._writer.close()

    def _write(self) -> None:
        rows, self._waiting = self._waiting, []
        self._writer.write_table(self._pyarrow.Table.from_pylist([dict(row) for row in rows], schema=self._schema))
