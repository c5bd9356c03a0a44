"""Tables in files: rows read and written as CSV, tab-separated text, JSON Lines and Parquet; tables as text.

A Parquet file may hold pictures in its cells. They are not read with the rows: a cell is then the picture's place, such
as ``samples.parquet#reference_image:0``, and :func:`stored_picture` reads that one picture.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
import tempfile
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import IO, Any, TypeAlias

from masc_metrics.arguments import json_type_name, type_name

LISTS = ("reference_image", "reference_mask")
"""Columns of which a JSON or Parquet cell may be a list; its text is JSON."""

Cells = Mapping[str, str | float | None]

READ = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Endings of tables that are read; a file with any other ending is read as CSV, unless it is of a known kind."""

WRITTEN = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Endings of tables that are written."""

_SAVE_AS = "save it as .csv, .tsv, .jsonl or .parquet"

_OTHER_ENDINGS = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods", ".numbers"), f"is a spreadsheet; {_SAVE_AS}"),
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz"), "is compressed; unpack it first"),
    **dict.fromkeys((".arrow", ".feather", ".pkl", ".pickle"), f"is not a table that can be read; {_SAVE_AS}"),
}

_CONTENTS = {
    b"PK\x03\x04": f"is a spreadsheet or a ZIP archive; {_SAVE_AS}",
    b"\xd0\xcf\x11\xe0": f"is a spreadsheet; {_SAVE_AS}",
    b"\x1f\x8b": "is compressed; unpack it first",
    b"PAR1": "is Parquet; rename it to end with .parquet",
    b"\xff\xfe": "is UTF-16; save it as UTF-8",
    b"\xfe\xff": "is UTF-16; save it as UTF-8",
}
"""What files of text are that begin so, and the remedy."""

ESCAPED = "escaped_formulas"
"""Column that says in which cells of its row the first apostrophe is not part of the text: a JSON list of their
columns, or empty. Tables without it are read as they are."""

LONGEST_QUOTE = 200
"""Characters of a cell that an error text quotes at most."""

LONGEST_LINE = 4000
"""Characters of a line on the terminal, which may hold paths."""

_PICTURE_ROWS, _TEXT_ROWS = 16, 2**16  # of Parquet in memory at a time, with and without pictures
_PLACE = re.compile(r"(?P<file>.*\.parquet)#(?P<column>.*):(?P<row>\d+)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        line: line of the file on which it begins, from 1; in Parquet and in a JSON array the number of the row.
        cells: text by column; None for a missing or null cell.
    """

    line: int
    cells: Mapping[str, str | None]


def read_rows(
    file: Path, needed: Sequence[str] = (), *, texts: Collection[str] = (), pictures: Collection[str] = ()
) -> list[Row]:
    """All rows of a file; arguments and errors as of :func:`iterate_rows`."""
    return list(iterate_rows(file, needed, texts=texts, pictures=pictures))


def iterate_rows(
    file: Path,
    needed: Sequence[str] = (),
    *,
    texts: Collection[str] = (),
    pictures: Collection[str] = (),
    place_of: dict[tuple[str, bytes], str] | None = None,
) -> Iterator[Row]:
    """Read the rows of a file, of which only a JSON array is in memory as a whole.

    A file is CSV or tab-separated text in UTF-8, JSON Lines, a JSON array of objects, or Parquet. Numbers become text,
    such as "0.5". Lists, mappings and booleans become JSON text, such as ``["a", "b"]``, and bytes become their place
    in the file. Formulas that :func:`write_table` has escaped are the original text, and the column ``ESCAPED`` is left
    out.

    Args:
        file: its ending says its format, see ``READ``.
        needed: columns that it must have.
        texts: columns that hold text or numbers if they are there, as those of ``needed``; anything else in them is an
            error.
        pictures: columns whose cells may be pictures in Parquet: bytes, or Hugging Face's ``{"bytes", "path"}``. Equal
            pictures of a column have one place.
        place_of: while the rows are read, gets the place of each stored picture, by column and SHA-256.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is malformed, lacks a column, or holds something else than text; the text names the file, the
            line and the remedy.
        ImportError: for Parquet without pyarrow.
    """
    return _unescaped(file, _rows_as_stored(file, needed, texts, pictures, {} if place_of is None else place_of))


def _rows_as_stored(
    file: Path,
    needed: Sequence[str],
    texts: Collection[str],
    pictures: Collection[str],
    place_of: dict[tuple[str, bytes], str],
) -> Iterator[Row]:
    suffix = file.suffix.lower()
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file")
    if not file.is_file():  # of a pipe, what is read once is gone, and other ranks and a later start read it again
        raise ValueError(f"{file} is not a regular file; save the table as a file, and give its name")
    if suffix in _OTHER_ENDINGS:
        raise ValueError(f"{file} {_OTHER_ENDINGS[suffix]}")
    plain = {*needed, *texts}
    if suffix == ".parquet":
        return _parquet_rows(file, needed, plain, pictures, place_of)
    with file.open("rb") as stream:
        head = stream.read(8)
    for beginning, kind in _CONTENTS.items():
        if head.startswith(beginning):
            raise ValueError(f"{file} {kind}")
    if suffix in (".jsonl", ".ndjson"):
        return _json_rows(file, needed, plain)
    if suffix == ".json":
        return _json_array_rows(file, needed, plain)
    return _csv_rows(file, needed, "\t" if suffix == ".tsv" else ",")


def text_of(row: Row, name: str) -> str:
    """Text of a cell without surrounding space; empty for a missing cell, and for the NaN that dataframes write."""
    return texts_of(row, (name,))[name]


def texts_of(row: Row, names: Iterable[str]) -> dict[str, str]:
    """:func:`text_of` of several cells, by column."""
    cells = row.cells
    return {name: "" if (text := (cells.get(name) or "").strip()) in ("nan", "NaN") else text for name in names}


def quoted(cell: object) -> str:
    """A cell as error texts quote it: at most 200 characters of it, control characters escaped."""
    if isinstance(cell, str):
        cell = cell[: LONGEST_QUOTE + 1]
    text = ascii(cell) if isinstance(cell, str) and not cell.isprintable() else repr(cell)
    return text if len(text) <= LONGEST_QUOTE else f"{text[: LONGEST_QUOTE - 3]}..."


def printable(text: str, longest: int = LONGEST_LINE) -> str:
    """A line for the terminal: at most so many characters of it, from its beginning and its end.

    Control characters, which could move the cursor or clear the screen, are escaped.
    """
    if len(text) > longest:
        end = longest // 3  # where the remedy is
        text = f"{text[: longest - end - 3]}...{text[-end:]}"
    return "".join(
        character.encode("unicode_escape", "backslashreplace").decode()
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _TURNING
        else character
        for character in text
    )


_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that change the direction of the text after them."""


def file_in(folder: str | Path, cell: str) -> str:
    """File that a cell names, relative to a folder. Backslashes of Windows are read if only that names a file."""
    file = os.path.join(folder, cell)
    if "\\" in cell and os.sep == "/" and not os.path.exists(file):
        turned = os.path.join(folder, cell.replace("\\", "/"))
        return turned if os.path.exists(turned) else file
    return file


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


def _check_columns(file: Path, names: Sequence[str], needed: Sequence[str], remedy: str) -> None:
    missing = [name for name in needed if name not in names]
    if missing:
        raise ValueError(
            f"{file} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; {remedy}; its columns are "
            f"{quoted(list(names))}"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{file} has two columns of one name: {quoted(list(names))}; rename one")


def _column_names(given: Iterable[str]) -> list[str]:
    names = [_column_name(name) for name in given]
    return [_unescaped_name(name) for name in names] if ESCAPED in names else names


def _column_name(name: str) -> str:
    return name.strip("\ufeff \t\r\n")  # spreadsheets and joined files leave spaces and byte order marks


_SIGNS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What formulas begin with; some programs take the signs of full width too."""

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


def _is_formula(text: str) -> bool:
    """Whether a spreadsheet may run a cell. A number is not one."""
    begins = text.startswith(("\t", "\r", "\n")) or text.lstrip().startswith(_SIGNS)
    return begins and not _NUMBER.fullmatch(text.strip())


def _escaped(row: Cells, columns: Sequence[str]) -> Cells:
    formulas = [name for name in columns if isinstance(cell := row[name], str) and _is_formula(cell)]
    return {**row, **{name: f"'{row[name]}" for name in formulas}, ESCAPED: json.dumps(formulas) if formulas else None}


def _escaped_name(name: str) -> str:
    # Names have no column that says which are escaped, so those that look so are escaped too.
    return f"'{name}" if _is_formula(name.lstrip("'")) else name


def _unescaped_name(name: str) -> str:
    return name[1:] if name.startswith("'") and _is_formula(name.lstrip("'")) else name


def _unescaped(file: Path, rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        if ESCAPED not in row.cells:
            yield row
            continue
        cells = {name: cell for name, cell in row.cells.items() if name != ESCAPED}
        for name in _escaped_columns(file, row):
            cells[name] = (cells.get(name) or "").removeprefix("'")
        yield Row(row.line, cells)


def _escaped_columns(file: Path, row: Row) -> list[str]:
    text = text_of(row, ESCAPED)
    try:
        names = json.loads(text) if text else []
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) and name in row.cells for name in names):
        raise ValueError(
            f"{file}, line {row.line}: {ESCAPED} is {quoted(text)}, not a JSON list of columns; leave it as "
            "--escape-formulas has written it, or rename the column"
        )
    return names


def _csv_rows(file: Path, needed: Sequence[str], separator: str) -> Iterator[Row]:
    tabs = separator == "\t"
    kind, cells_of = ("tab-separated text", "tab") if tabs else ("CSV", "comma")
    with file.open(encoding="utf-8-sig", newline="") as stream:
        # Not strict, an unclosed quote would swallow the rest of the file as one cell.
        reader = csv.reader(stream, delimiter=separator, skipinitialspace=not tabs, strict=True)
        try:
            names = _column_names(next(reader, []))
            other = next((each for each in (";", "\t", ",") if len(names) == 1 and each in names[0]), None)
            remedy = f"give a {cells_of}-separated header line with {', '.join(needed)}"
            if names and names[0].startswith(("{", "[")):
                remedy = f"it looks like JSON: rename it to end with .jsonl or .json, or {remedy}"
            elif other:
                remedy = (
                    f"its cells are separated by {other!r}; {remedy}{', or name it .tsv' if other == chr(9) else ''}"
                )
            _check_columns(file, names, needed, remedy)
            next_line = reader.line_num + 1
            for cells in reader:
                line, next_line = next_line, reader.line_num + 1
                if not cells:  # an empty line
                    continue
                if len(cells) != len(names):
                    remedy = (
                        f"quote cells that hold a {cells_of}"
                        if len(cells) > len(names)
                        else "leave a cell empty for none"
                    )
                    raise ValueError(f"{file}, line {line} has {len(cells)} cells for {len(names)} columns; {remedy}")
                yield Row(line, dict(zip(names, cells, strict=True)))
        except UnicodeDecodeError as error:
            raise _undecodable(file, kind) from error
        except csv.Error as error:
            hint = "; close the open quote" if "unexpected end" in str(error) else ""
            raise ValueError(
                f"{file} cannot be read as {kind} in UTF-8 after line {reader.line_num}: {error}{hint}"
            ) from error


def _undecodable(file: Path, kind: str) -> ValueError:
    """The error of a text that is not UTF-8, with the line; a stream decodes ahead of the lines that it gives."""
    content = file.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return ValueError(
            f"{file}, line {line} cannot be read as {kind} in UTF-8: byte {content[error.start]:#04x}, {error.reason}; "
            f"save it as {kind} UTF-8"
        )
    return ValueError(f"{file} changed while it was read; start again")


def _json_rows(file: Path, needed: Sequence[str], texts: Collection[str]) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", newline="\n") as stream:
        try:
            for line, text in enumerate(stream, start=1):
                if text.strip():
                    yield Row(line, _json_cells(f"{file}, line {line}", _parsed(file, line, text), needed, texts))
        except UnicodeDecodeError as error:
            raise _undecodable(file, "JSON Lines") from error


def _parsed(file: Path, line: int, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        array = line == 1 and text.lstrip().startswith("[")
        remedy = "an array of objects must end with .json" if array else "give one object per line"
        raise ValueError(f"{file}, line {line} is not valid JSON: {error}; {remedy}") from error


def _json_array_rows(file: Path, needed: Sequence[str], texts: Collection[str]) -> Iterator[Row]:
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # invalid JSON or UTF-8
        remedy = "if it has one object per line, rename it to end with .jsonl"
        raise ValueError(f"{file} cannot be read as JSON in UTF-8: {error}; {remedy}") from error
    if not isinstance(values, list):
        raise ValueError(f"{file} holds {json_type_name(values)}; give an array of objects, one per row")
    for line, value in enumerate(values, start=1):
        yield Row(line, _json_cells(f"{file}, row {line}", value, needed, texts))


def _json_cells(label: str, values: object, needed: Sequence[str], texts: Collection[str]) -> dict[str, str | None]:
    if not isinstance(values, dict):
        raise ValueError(f"{label} holds {json_type_name(values)}; give one object per line")
    named = dict(zip(_column_names(values), values.values(), strict=True))
    missing = [name for name in needed if name not in named]
    if missing:
        raise ValueError(f"{label} lacks {', '.join(missing)}; give null for an empty cell")
    return {name: _text(value, f"{label}: {name}", _must_be_text(name, value, texts)) for name, value in named.items()}


def _must_be_text(name: str, value: object, texts: Collection[str]) -> bool:
    return name in texts and not (name in LISTS and isinstance(value, list))


def _text(value: object, label: str, must_be_text: bool) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, (bool, list, dict, bytes)):  # numbers and dates
        return str(value)
    if must_be_text:
        kind = type_name(value) if isinstance(value, bytes) else json_type_name(value)
        raise ValueError(f"{label} is {kind}; give text")
    return json.dumps(value, ensure_ascii=False, default=str)


def _parquet_rows(
    file: Path,
    needed: Sequence[str],
    texts: Collection[str],
    pictures: Collection[str],
    place_of: dict[tuple[str, bytes], str],
) -> Iterator[Row]:
    parquet = pyarrow_parquet()
    file.open("rb").close()  # pyarrow raises errors of its own for a missing file
    try:
        with parquet.ParquetFile(file) as table:  # read_table would add columns for folders such as seed=3
            schema = table.schema_arrow
            names = _column_names(schema.names)
            _check_columns(file, names, needed, f"give {', '.join(needed)}")
            stored = {
                name
                for name, kind in zip(names, schema.types, strict=True)
                if _holds_bytes(kind) and (name in pictures or name not in texts)
            }
            lines = itertools.count(1)
            for batch in table.iter_batches(batch_size=_PICTURE_ROWS if stored else _TEXT_ROWS):
                columns = [
                    batch.column(index) if name in stored else batch.column(index).to_pylist()
                    for index, name in enumerate(names)
                ]
                for index, line in zip(range(batch.num_rows), lines, strict=False):
                    cells: dict[str, str | None] = {}
                    for name, column in zip(names, columns, strict=True):
                        if name in stored:
                            cells[name] = _place(column[index].as_py(), file, name, line - 1, place_of)
                        else:
                            must_be_text = _must_be_text(name, column[index], texts)
                            cells[name] = _text(column[index], f"{file}, row {line}: {name}", must_be_text)
                    yield Row(line, cells)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from both
        if str(error).startswith(str(file)):
            raise
        raise ValueError(f"{file} cannot be read as Parquet: {error}") from error


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _content(cell: Any) -> bytes | None:
    """Bytes of a cell of bytes, or of ``{"bytes", "path"}``."""
    content: bytes | None = cell.get("bytes") if isinstance(cell, dict) else cell
    return content


def _place(cell: Any, file: Path, column: str, row: int, place_of: dict[tuple[str, bytes], str]) -> str | None:
    content = _content(cell)
    if content is None:
        path: str | None = cell.get("path") if isinstance(cell, dict) else None
        return path
    digest = hashlib.sha256(content).digest()
    return place_of.setdefault((column, digest), f"{file.name}#{column}:{row}")


def stored_picture(place: str) -> bytes | None:
    """Bytes of the picture at a place in a Parquet file, from row 0; None for the name of a file.

    Raises:
        OSError: if there is no picture, or the file cannot be read.
        ImportError: if pyarrow is not installed.
    """
    found = _PLACE.fullmatch(place)
    if not found or os.path.exists(place):
        return None
    # By process, because one that is forked would share the file's position.
    return _pictures(os.getpid(), found["file"], found["column"]).read(int(found["row"]))


@lru_cache(maxsize=4)
def _pictures(process: int, file: str, column: str) -> _Pictures:
    return _Pictures(Path(file), column)


class _Pictures:
    """The pictures in a column, read forward in small batches, so that a few are in memory at a time."""

    def __init__(self, file: Path, column: str) -> None:
        file.open("rb").close()
        self._table = pyarrow_parquet().ParquetFile(file)
        self._columns = [name for name in self._table.schema_arrow.names if _column_name(name) == column]
        self._file, self._column = file, column
        self._begin()

    def _begin(self) -> None:
        # Without threads, because image-loading workers are forked.
        self._batches = self._table.iter_batches(batch_size=_PICTURE_ROWS, columns=self._columns, use_threads=False)
        self._batch: Any = None
        self._first = self._next = 0

    def read(self, row: int) -> bytes:
        if row < self._first:
            self._begin()
        while row >= self._next:
            self._batch = next(self._batches, None)
            if self._batch is None or not self._columns:
                self._begin()
                raise OSError(f"{self._file} has no picture in column {self._column}, row {row}")
            self._first, self._next = self._next, self._next + self._batch.num_rows
        content = _content(self._batch.column(0)[row - self._first].as_py())
        if content is None:
            raise OSError(f"{self._file} has no picture in column {self._column}, row {row}")
        return content


def is_parquet(file: Path) -> bool:
    """Whether a table of this name is Parquet."""
    return file.suffix.lower() == ".parquet"


def check_table_name(option: str, out: Path, escape_formulas: bool = False) -> None:
    """Raise ValueError unless a table can be written under this name, and ImportError without pyarrow for Parquet."""
    if out.suffix.lower() not in WRITTEN:
        *others, last = WRITTEN
        raise ValueError(f"{option} is {out}; give a name that ends with {', '.join(others)} or {last}")
    if escape_formulas and out.suffix.lower() not in (".csv", ".tsv"):
        raise ValueError(
            f"--escape-formulas is given, but {option} is {out}, in which no cell is a formula; leave it out, or write "
            ".csv or .tsv"
        )
    if is_parquet(out):
        pyarrow_parquet()


def write_table(
    file: Path,
    rows: Iterable[Cells],
    columns: Sequence[str],
    numbers: Collection[str],
    *,
    escape_formulas: bool = False,
) -> None:
    """Write rows as the name says: .parquet, .jsonl or .ndjson, .tsv, or .csv.

    The file appears complete or not at all; an older file of its name is replaced, a link to it stays. In CSV and
    tab-separated text, None is an empty cell; elsewhere it is null. ``numbers`` are the columns that hold numbers. NaN
    is nan everywhere; in JSON, which has no such number, it is the text "nan". ``escape_formulas``, for CSV and
    tab-separated text, puts an apostrophe before texts that a spreadsheet may run as a formula, and adds the column
    ``ESCAPED``, by which :func:`iterate_rows` finds them.

    Raises:
        OSError: if the file cannot be written.
        ValueError: for any other name.
        ImportError: for Parquet without pyarrow.
    """
    check_table_name("the table's file", file, escape_formulas)
    header = columns
    if escape_formulas:
        rows = map(partial(_escaped, columns=columns), rows)
        columns = (*columns, ESCAPED)
        header = [_escaped_name(name) for name in columns]
    lines = ([_encodable(row[name]) for name in columns] for row in rows)
    suffix = file.suffix.lower()
    with replacing(file) as stream:
        if suffix == ".parquet":
            _write_parquet(stream, lines, columns, numbers)
        elif suffix in (".jsonl", ".ndjson"):
            _write_json_lines(stream, lines, columns)
        else:
            _write_csv(stream, lines, header, "\t" if suffix == ".tsv" else ",")


_Lines: TypeAlias = "Iterable[Sequence[str | float | None]]"
"""Cells of rows, in the order of the columns."""


def _write_parquet(stream: IO[bytes], lines: _Lines, columns: Sequence[str], numbers: Collection[str]) -> None:
    parquet = pyarrow_parquet()
    import pyarrow

    schema = pyarrow.schema([(name, pyarrow.float64() if name in numbers else pyarrow.string()) for name in columns])
    remaining = iter(lines)
    with parquet.ParquetWriter(stream, schema) as writer:
        while group := list(itertools.islice(remaining, _TEXT_ROWS)):
            cells = [
                pyarrow.array(column, kind) for column, kind in zip(zip(*group, strict=True), schema.types, strict=True)
            ]
            writer.write_table(pyarrow.Table.from_arrays(cells, schema=schema))


def _write_json_lines(stream: IO[bytes], lines: _Lines, columns: Sequence[str]) -> None:
    for line in lines:
        cells = {
            name: "nan" if isinstance(cell, float) and math.isnan(cell) else cell
            for name, cell in zip(columns, line, strict=True)
        }
        stream.write((json.dumps(cells, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _write_csv(stream: IO[bytes], lines: _Lines, columns: Sequence[str], separator: str) -> None:
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    writer = csv.writer(text, delimiter=separator)
    writer.writerow(columns)
    writer.writerows([f"{cell:.9g}" if isinstance(cell, float) else cell for cell in line] for line in lines)
    text.detach()  # writes what is left, and leaves the stream open


def _encodable(cell: str | float | None) -> str | float | None:
    # File names may hold bytes, and JSON halves of surrogate pairs, that UTF-8 cannot encode.
    if not isinstance(cell, str) or cell.isascii():
        return cell
    return cell.encode(errors="backslashreplace").decode()


@contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """Open a file to be written to; it gets its name when the block ends without an error, synced to the disk.

    Raises:
        OSError: if it cannot be written.
    """
    file = file.resolve()  # replace the target of a link, not the link
    if file.exists() and not file.is_file():
        raise OSError(f"{file} is not a regular file; give another name")
    part = _part_of(file)
    part.unlink(missing_ok=True)  # of a run that was killed; opening it would write into the target of a link
    try:
        with part.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def _part_of(file: Path) -> Path:
    return file.with_name(file.name + ".part")


def check_replaceable(option: str, out: Path, file: Path | None = None) -> None:
    """Raise OSError if :func:`replacing` could not write a file, before it is known what to write.

    Args:
        option: name of the option in error texts.
        out: its value.
        file: the file, if it is another one, whose name follows from the value.
    """
    file = file or out
    try:
        with suppress(FileNotFoundError):
            file.stat()  # fails for links that lead in a circle
        target = file.resolve()
        for each in (target, _part_of(target)):
            if each.is_dir():
                raise OSError(f"{option} is {out}, but {each}, which it would write, is a folder; give another name")
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        if error.strerror is None:
            raise
        raise OSError(f"{option} is {out}, which cannot be written: {error.strerror}") from error


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with columns of equal width."""
    rows = [[printable(cell, LONGEST_QUOTE) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
