"""Readers of scores and of human ratings, ours and those that DreamBench++ ships.

Both are numbers by (method, key). A key is ``<collection>-<prompt>``, such as ``object_00_motorcycle-3``; a seed behind
it (``object_00_motorcycle-3_0``) is dropped, since people rated one picture a key.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from masc_metrics.bench.agreement.names import method_name, sample_key
from masc_metrics.bench.tables import Row, read_rows

SCORES = ("cp", "pf")
"""What people rated, in the order of a ``[cp, pf]`` pair."""

SEEDS = ("mean", "last")
"""What becomes of several numbers of one (method, key)."""

HIGHEST_RATING = 4.0

_TABLES = (".csv", ".parquet", ".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Scores:
    """What one scorer, or one group of raters, gave.

    Attributes:
        name: of the scorer or group.
        values: number by (method, key), all finite.
        rates_0_to_4: whether it rates as people do: every number in the file is a whole one from 0 to 4, and some are
            above 1, for 0 and 1 alone are a yes and a no. Numbers count before seeds are averaged.
        dropped: how many cells were left out, by reason.
        source: the file or folder.
        seeds: what became of several numbers of one (method, key), one of ``SEEDS``.
        column: of the table; empty for JSON.
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
        source: a CSV, Parquet or JSON Lines file with the columns ``method`` and ``key`` and one a score; or a folder
            of ``<method>.json`` (``data_gpt_rating/<variant>``, ``data_dino_rating``), or one such file, each a mapping
            of keys to a number or to ``[cp, pf]``.
        score: "cp" or "pf": which of two numbers is meant.
        columns: of a table, each a scorer; of those that the file lacks, the others are read. None: the one named as
            the score.
        name: of the scorer; of several columns the beginning of their names. None: the column, folder or file.
        seeds: "mean" averages the numbers of one (method, key), with "last" the last one counts.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no such file, or holds something that is no number, or no number at all.
        ImportError: for Parquet without pyarrow.
    """
    if source.suffix.lower() in _TABLES and not source.is_dir():
        rows, there = _table(source, "scores")
        wanted = tuple(columns) or (score,)
        named = [column for column in wanted if column in there]
        if not named:
            raise ValueError(f"{source} has no column {' or '.join(wanted)}; name one of {', '.join(there)}")
        found = _columns(source, rows, named, seeds)
        names = [f"{name}:{part.name}" if name and len(found) > 1 else name or part.name for part in found]
        return [part.scores(called, column=part.name) for called, part in zip(names, found, strict=True)]
    files = _json_files(source) if source.is_dir() else [source]
    if not files:
        raise ValueError(f"{source} holds no <method>.json; give a folder such as data_dino_rating, or a CSV file")
    collected = _Collected(source.resolve().name if source.is_dir() else source.stem, source, seeds)
    for file in files:
        method, _, suffix = file.stem.rpartition("-")
        if suffix not in SCORES:
            method, suffix = file.stem, score
        if suffix == score:
            _read_json(file, method, score, collected)
    return [collected.scores(name or collected.name)]


def read_ratings(source: Path, score: str, *, groups: Sequence[str] = (), seeds: str = "mean") -> list[Scores]:
    """Read what groups of people gave, 0..4, one :class:`Scores` a group.

    Args:
        source: the folder ``data_human_rating`` or the one above it, its ``merged_data``
            (``<group>/<method>-{cp,pf}.json``, preferred where both are there) or ``raw_data``
            (``<group>/*-<method>.json``, of which the last file by name wins); or a table with the columns ``method``,
            ``key`` and one for each of two or more groups.
        score: "cp" or "pf"; a table holds one of them.
        groups: names of columns or folders to read; empty: all of them, of a table but ``method`` and ``key``.
        seeds: of a table, as in :func:`read_scores`.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is neither, has fewer than two groups or not those in ``groups``, or holds what is no rating.
        ImportError: for Parquet without pyarrow.
    """
    if not source.is_dir():
        if source.suffix.lower() not in _TABLES:
            raise ValueError(
                f"{source} is no folder and no table; give data_human_rating or a {', '.join(_TABLES)} file"
            )
        rows, there = _table(source, "ratings")
        _check_groups(source, groups, there)
        try:
            parts = _columns(source, rows, dict.fromkeys(groups or there), seeds, HIGHEST_RATING)
        except ValueError as error:
            if groups:
                raise
            raise ValueError(f"{error}; if raters gave other columns alone, name those with --group") from error
        found = [part.scores(part.name, column=part.name) for part in parts]
    else:
        for choices in (("data_human_rating",), ("merged_data", "raw_data")):
            source = next((source / choice for choice in choices if (source / choice).is_dir()), source)
        folders = {path.name: path for path in sorted(source.iterdir()) if path.is_dir() and _json_files(path)}
        _check_groups(source, groups, list(folders))
        found = [_read_group(folders[name], score) for name in dict.fromkeys(groups or folders)]
    if len(found) < 2:
        raise ValueError(
            f"{source}: ratings by {', '.join(group.name for group in found) or 'nobody'}, but two or more groups are "
            "needed; give a table with a column for each, or the folder with merged_data/group1, or raw_data/<group>"
        )
    return found


def _check_groups(source: Path, groups: Sequence[str], there: Sequence[str]) -> None:
    for group in groups:
        if group not in there:
            names = ", ".join(there) or "nobody"
            raise ValueError(f"{source}: --group is {group!r}, but there are ratings by {names}; name groups of these")


def _read_group(folder: Path, score: str) -> Scores:
    collected = _Collected(folder.name, folder, "last", HIGHEST_RATING)
    for file in _json_files(folder):
        method, _, last = file.stem.rpartition("-")
        if last not in SCORES:  # raw data: a rater before the method, both scores within
            method = last
        if last in (score, method):
            _read_json(file, method, score, collected)
    return collected.scores(folder.name)


class _Collected:
    """Numbers of one scorer as they come in."""

    def __init__(self, name: str, source: Path, seeds: str, highest: float | None = None) -> None:
        if seeds not in SEEDS:
            raise ValueError(f"seeds is {seeds!r}; give one of {', '.join(SEEDS)}")
        self.name = name
        self._source, self._seeds, self._highest = source, seeds, highest
        self._numbers: dict[tuple[str, str], list[float]] = {}
        self._spelt: dict[str, str] = {}
        self._dropped: Counter[str] = Counter()
        self._whole, self._above_one = True, False

    def drop(self, reason: str) -> None:
        self._dropped[reason] += 1

    def add(self, method: str, key: str, cell: object, place: str) -> None:
        number = _number(cell, place)
        if number is None:
            return self.drop("empty or nan")
        if self._highest is not None and not 0 <= number <= self._highest:
            raise ValueError(
                f"{place}: {cell!r} is no rating from 0 to {self._highest:g}; correct it, or leave it empty"
            )
        self._whole = self._whole and number in (0, 1, 2, 3, 4)
        self._above_one = self._above_one or number > 1
        short = method_name(method)
        if self._spelt.setdefault(short, method) != method:
            raise ValueError(
                f"{place}: the methods {self._spelt[short]!r} and {method!r} are both {short!r} without their run "
                "settings; rename one, or keep them in files of their own"
            )
        numbers = self._numbers.setdefault((short, sample_key(key)), [])
        if numbers and self._seeds == "last":
            numbers.clear()
            self.drop("overwritten by a later number of its key")
        numbers.append(number)

    def scores(self, name: str, column: str = "") -> Scores:
        if not self._numbers:
            dropped = ", ".join(f"{count} x {reason}" for reason, count in self._dropped.items()) or "nothing is in it"
            raise ValueError(
                f"{self._source} holds no number for {self.name!r} ({dropped}); check the file and the name"
            )
        values = {at: math.fsum(numbers) / len(numbers) for at, numbers in self._numbers.items()}
        whole = self._whole and self._above_one
        return Scores(name, values, whole, dict(self._dropped), str(self._source), self._seeds, column)


def _number(cell: object, place: str) -> float | None:
    """The finite number that a cell holds; None if it is empty or nan."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    try:
        number = math.inf if isinstance(cell, bool) or not isinstance(cell, str | int | float) else float(cell)
    except (ValueError, OverflowError):
        number = math.inf
    if math.isinf(number):
        raise ValueError(f"{place}: {cell!r} is no finite number; correct it, or leave it empty (null in JSON)")
    return None if math.isnan(number) else number


def _table(file: Path, what: str) -> tuple[list[Row], list[str]]:
    """Its rows, and its columns but method and key, of which JSON Lines may name one late."""
    rows = list(read_rows(file, ("method", "key")))
    if not rows:
        raise ValueError(f"{file} lists no {what}; give one row a sample below the column names")
    return rows, list(dict.fromkeys(name for row in rows for name in row.cells if name not in ("method", "key")))


def _columns(
    file: Path, rows: Sequence[Row], names: Iterable[str], seeds: str, highest: float | None = None
) -> list[_Collected]:
    """One collection a column."""
    parts = [_Collected(name, file, seeds, highest) for name in names]
    for row in rows:
        method, key = (row.cells.get(name) or "" for name in ("method", "key"))
        for part in parts:
            if row.error:
                part.drop("row that cannot be read")
            elif not method.strip() or not key.strip():
                part.drop("row without method or key")
            else:
                place = f"{file}, line {row.line}, method {method}, key {key}, column {part.name}"
                part.add(method, key, row.cells.get(part.name), place)
    return parts


def _json_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))


def _read_json(file: Path, method: str, score: str, collected: _Collected) -> None:
    for key, value in _json_items(file):
        place = f"{file}, key {key}"
        if isinstance(value, list):
            if len(value) != len(SCORES):
                raise ValueError(f"{place}: {value} is no pair of numbers; give one number, or [cp, pf]")
            value = value[SCORES.index(score)]
        collected.add(method, key, value, place)


def _json_items(file: Path) -> Iterator[tuple[str, object]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # of JSON and of UTF-8
        raise ValueError(f"{file} cannot be read as JSON: {error}; repair it, or take it out of the folder") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a JSON {type(content).__name__}; give a mapping of keys to numbers")
    yield from content.items()
