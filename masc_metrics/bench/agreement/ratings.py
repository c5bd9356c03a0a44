"""Readers of scores and of human ratings: tables of this package, and files of DreamBench++.

Both are numbers by (method, key). A key is ``<collection>-<prompt>``, such as ``object_00_motorcycle-3``; a seed after
it (``object_00_motorcycle-3_0``) is removed, since people rated one image per key.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from masc_metrics.arguments import check_choice
from masc_metrics.bench.agreement.names import method_name, sample_key
from masc_metrics.bench.tables import Row, read_rows

RATED_SCORES = ("cp", "pf")
"""Scores that people rated, in the order of a ``[cp, pf]`` pair."""

SEEDS = ("mean", "last")
"""How several numbers of one (method, key) are combined."""

HIGHEST_RATING = 4.0

_TABLES = (".csv", ".parquet", ".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Scores:
    """Numbers of one scorer or one group of raters.

    Attributes:
        name: name of the scorer or group.
        values: number by (method, key), all finite.
        rates_0_to_4: whether the numbers are ratings like people's: before seeds are averaged, all are integers from 0
            to 4, and some are above 1, since 0 and 1 only are a yes or no.
        dropped: number of cells that were left out, by reason.
        source: the file or folder.
        seeds: how several numbers of one (method, key) were combined, one of ``SEEDS``.
        column: column of the table; empty for JSON.
    """

    name: str
    values: Mapping[tuple[str, str], float]
    rates_0_to_4: bool
    dropped: Mapping[str, int]
    source: str
    seeds: str
    column: str = ""


def read_scores(
    source: Path, score: str, *, columns: Sequence[str] = (), name: str | None = None, seeds: str = "mean"
) -> list[Scores]:
    """Read scorers from a table or from JSON.

    Args:
        source: a CSV, Parquet or JSON Lines file with the columns ``method`` and ``key`` and one per scorer; or a
            folder of ``<method>.json`` (``data_gpt_rating/<variant>``, ``data_dino_rating``), or one such file, each a
            mapping of keys to a number or to ``[cp, pf]``.
        score: "cp" or "pf": which of two numbers to read.
        columns: columns of a table, each a scorer; columns that the table lacks are ignored if it has others. Empty for
            the column named like the score.
        name: name of the scorer; of several columns, the beginning of their names. None for the column, folder or file.
        seeds: "mean" averages the numbers of one (method, key), "last" uses the last.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is malformed, holds something that is not a number, or no number at all.
        ImportError: for Parquet without pyarrow.
    """
    if source.suffix.lower() in _TABLES and not source.is_dir():
        rows, available = _table(source, "scores")
        wanted = tuple(columns) or (score,)
        named = [column for column in wanted if column in available]
        if not named:
            raise ValueError(f"{source} has no column {' or '.join(wanted)}; give one of {', '.join(available)}")
        found = _columns(source, rows, named, seeds)
        names = [f"{name}:{part.name}" if name and len(found) > 1 else name or part.name for part in found]
        return [part.scores(scorer, column=part.name) for scorer, part in zip(names, found, strict=True)]
    files = _json_files(source) if source.is_dir() else [source]
    if not files:
        raise ValueError(f"{source} holds no <method>.json; give a folder such as data_dino_rating, or a CSV file")
    collected = _Collected(source.resolve().name if source.is_dir() else source.stem, source, seeds)
    for file in files:
        method, _, suffix = file.stem.rpartition("-")
        if suffix not in RATED_SCORES:
            method, suffix = file.stem, score
        if suffix == score:
            _read_json(file, method, score, collected)
    return [collected.scores(name or collected.name)]


def read_ratings(source: Path, score: str, *, groups: Sequence[str] = (), seeds: str = "mean") -> list[Scores]:
    """Read ratings 0..4 of groups of people.

    Args:
        source: the folder ``data_human_rating`` or its parent, its ``merged_data`` (``<group>/<method>-{cp,pf}.json``,
            preferred if both exist) or ``raw_data`` (``<group>/*-<method>.json``, of which the last file by name
            counts); or a table with the columns ``method``, ``key`` and one for each of two or more groups.
        score: "cp" or "pf"; a table holds one of them.
        groups: columns or folders to read; empty for all folders, or all columns except ``method`` and ``key``.
        seeds: for a table, as in :func:`read_scores`.

    Returns:
        One :class:`Scores` per group.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it has another form, lacks a group or has fewer than two, or holds something that is not a
            rating.
        ImportError: for Parquet without pyarrow.
    """
    if not source.is_dir():
        if source.suffix.lower() not in _TABLES:
            raise ValueError(
                f"{source} is neither a folder nor a table; give data_human_rating or a {', '.join(_TABLES)} file"
            )
        rows, columns = _table(source, "ratings")
        _check_groups(source, groups, columns)
        try:
            parts = _columns(source, rows, dict.fromkeys(groups or columns), seeds, HIGHEST_RATING)
        except ValueError as error:
            if groups:
                raise
            raise ValueError(f"{error}; if only other columns are raters, name those by --group") from error
        found = [part.scores(part.name, column=part.name) for part in parts]
    else:
        for choices in (("data_human_rating",), ("merged_data", "raw_data")):
            source = next((source / choice for choice in choices if (source / choice).is_dir()), source)
        folders = {path.name: path for path in sorted(source.iterdir()) if path.is_dir() and _json_files(path)}
        _check_groups(source, groups, list(folders))
        found = [_read_group(folders[name], score) for name in dict.fromkeys(groups or folders)]
    if len(found) < 2:
        raise ValueError(
            f"{source} has {len(found)} groups of raters ({', '.join(group.name for group in found)}); give two or "
            "more, as columns of a table or folders merged_data/<group> or raw_data/<group>"
        )
    return found


def _check_groups(source: Path, groups: Sequence[str], available: Sequence[str]) -> None:
    for group in groups:
        if group not in available:
            raise ValueError(f"--group is {group!r}; the groups of {source} are {', '.join(available) or 'none'}")


def _read_group(folder: Path, score: str) -> Scores:
    collected = _Collected(folder.name, folder, "last", HIGHEST_RATING)
    for file in _json_files(folder):
        method, _, last = file.stem.rpartition("-")
        if last not in RATED_SCORES:  # raw data: the name holds a rater before the method, the file both scores
            method = last
        if last in (score, method):
            _read_json(file, method, score, collected)
    return collected.scores(folder.name)


class _Collected:
    """Collects the numbers of one scorer."""

    def __init__(self, name: str, source: Path, seeds: str, highest: float | None = None) -> None:
        check_choice("seeds", seeds, SEEDS)
        self.name = name
        self._source, self._seeds, self._highest = source, seeds, highest
        self._numbers: dict[tuple[str, str], list[float]] = {}
        self._spellings: dict[str, str] = {}
        self._dropped: Counter[str] = Counter()
        self._all_integers, self._some_above_one = True, False

    def drop(self, reason: str) -> None:
        self._dropped[reason] += 1

    def add(self, method: str, key: str, cell: object, label: str) -> None:
        number = _number(cell, label)
        if number is None:
            return self.drop("empty or nan")
        if self._highest is not None and not 0 <= number <= self._highest:
            raise ValueError(
                f"{label}: {cell!r} is not a rating from 0 to {self._highest:g}; correct it, or leave it empty"
            )
        self._all_integers = self._all_integers and number in (0, 1, 2, 3, 4)
        self._some_above_one = self._some_above_one or number > 1
        short = method_name(method)
        if self._spellings.setdefault(short, method) != method:
            raise ValueError(
                f"{label}: the methods {self._spellings[short]!r} and {method!r} are both {short!r} without their run "
                "settings; rename one, or give them in separate files"
            )
        numbers = self._numbers.setdefault((short, sample_key(key)), [])
        if numbers and self._seeds == "last":
            numbers.clear()
            self.drop("overwritten by a later number of its key")
        numbers.append(number)

    def scores(self, name: str, column: str = "") -> Scores:
        if not self._numbers:
            dropped = ", ".join(f"{count} x {reason}" for reason, count in self._dropped.items()) or "it is empty"
            raise ValueError(
                f"{self._source} holds no number for {self.name!r} ({dropped}); check the file and the name"
            )
        values = {pair: math.fsum(numbers) / len(numbers) for pair, numbers in self._numbers.items()}
        are_ratings = self._all_integers and self._some_above_one
        return Scores(name, values, are_ratings, dict(self._dropped), str(self._source), self._seeds, column)


def _number(cell: object, label: str) -> float | None:
    """The finite number in a cell; None if it is empty or NaN."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    try:
        number = math.inf if isinstance(cell, bool) or not isinstance(cell, str | int | float) else float(cell)
    except (ValueError, OverflowError):
        number = math.inf
    if math.isinf(number):
        raise ValueError(f"{label}: {cell!r} is not a finite number; correct it, or leave it empty (null in JSON)")
    return None if math.isnan(number) else number


def _table(file: Path, what: str) -> tuple[list[Row], list[str]]:
    """Rows of a table, and its columns except method and key; in JSON Lines a later row may add columns."""
    rows = read_rows(file, ("method", "key"))
    if not rows:
        raise ValueError(f"{file} lists no {what}; give one row per sample below the header line")
    return rows, list(dict.fromkeys(name for row in rows for name in row.cells if name not in ("method", "key")))


def _columns(
    file: Path, rows: Sequence[Row], names: Iterable[str], seeds: str, highest: float | None = None
) -> list[_Collected]:
    """Numbers of each column."""
    parts = [_Collected(name, file, seeds, highest) for name in names]
    for row in rows:
        method, key = (row.cells.get(name) or "" for name in ("method", "key"))
        for part in parts:
            if not method.strip() or not key.strip():
                part.drop("row without method or key")
            else:
                label = f"{file}, line {row.line}, method {method}, key {key}, column {part.name}"
                part.add(method, key, row.cells.get(part.name), label)
    return parts


def _json_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))


def _read_json(file: Path, method: str, score: str, collected: _Collected) -> None:
    for key, value in _json_items(file):
        label = f"{file}, key {key}"
        if isinstance(value, list):
            if len(value) != len(RATED_SCORES):
                raise ValueError(f"{label}: {value} is not a pair of numbers; give one number, or [cp, pf]")
            value = value[RATED_SCORES.index(score)]
        collected.add(method, key, value, label)


def _json_items(file: Path) -> Iterator[tuple[str, object]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # invalid JSON or UTF-8
        raise ValueError(f"{file} cannot be read as JSON: {error}; correct it, or remove it from the folder") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a JSON {type(content).__name__}; give a mapping of keys to numbers")
    yield from content.items()
