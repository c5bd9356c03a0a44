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
from typing import NamedTuple

from masc_metrics.arguments import check_choice, json_type_name
from masc_metrics.bench.agreement.names import method_name, sample_key
from masc_metrics.bench.commands import RATED_SCORES, SEEDS
from masc_metrics.bench.tables import LONGEST_QUOTE, READ, Row, quoted, read_rows

HIGHEST_RATING = 4.0

_RATING_FOLDERS = {"data_gpt_rating", "data_human_rating"}

_TABLES = tuple(ending for ending in READ if ending != ".json")  # .json holds ratings by key, as of DreamBench++


@dataclass(frozen=True, slots=True)
class Scores:
    """Numbers of one scorer or one group of raters.

    Attributes:
        name: name of the scorer or group.
        values: number by (method, key), all finite.
        rates_0_to_4: whether the numbers are ratings from 0 to 4: of people, or of a judge.
        dropped: number of cells that were left out, by reason.
        source: the file or folder.
        seeds: how several numbers of one (method, key) were combined, one of ``SEEDS``.
        column: column of the table; empty for JSON.
        averaged: number of (method, key) whose several numbers were averaged.
    """

    name: str
    values: Mapping[tuple[str, str], float]
    rates_0_to_4: bool
    dropped: Mapping[str, int]
    source: str
    seeds: str
    column: str = ""
    averaged: int = 0


def read_scores(
    source: Path,
    score: str,
    *,
    columns: Sequence[str] = (),
    name: str | None = None,
    seeds: str = "mean",
    judge: bool = False,
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
        seeds: "mean" averages the numbers of one (method, key). "last" uses the last by file name, as text, so that
            ``3_9`` comes after ``3_10``: the name in the column ``generated_image``, or else the key with its seed. Of
            equal names the last in the file counts.
        judge: whether the numbers are ratings from 0 to 4. JSON in a folder ``data_gpt_rating`` or
            ``data_human_rating``, or below it, always is. The numbers themselves do not decide.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is malformed, holds something that is not a number, a judge's number outside 0..4, or no
            number at all.
        ImportError: for Parquet without pyarrow.
    """
    highest = HIGHEST_RATING if judge else None
    if source.suffix.lower() in _TABLES and not source.is_dir():
        rows, available = _table(source, "scores")
        wanted = tuple(columns) or (score,)
        found = [column for column in wanted if column in available]
        if not found:
            raise ValueError(f"{source} has no column {' or '.join(wanted)}; give one of {', '.join(available)}")
        names = [f"{name}:{column}" if name and len(found) > 1 else name or column for column in found]
        return [
            _scores(scorer, source, _table_cells(source, rows, column), seeds, highest, column)
            for scorer, column in zip(names, found, strict=True)
        ]
    files = _json_files(source) if source.is_dir() else [source]
    if not files:
        raise ValueError(f"{source} holds no <method>.json; give a folder such as data_dino_rating, or a CSV file")
    name = name or (source.resolve().name if source.is_dir() else source.stem)
    folder = source.resolve() if source.is_dir() else source.resolve().parent
    if not _RATING_FOLDERS.isdisjoint((folder.name, *(parent.name for parent in list(folder.parents)[:2]))):
        highest = HIGHEST_RATING
    return [_scores(name, source, _json_cells(files, score), seeds, highest)]


def scores_of_samples(name: str, samples: Iterable[tuple[str, str, float]], source: Path) -> Scores:
    """A scorer whose numbers are at hand: method, key and number of each sample of a list, several of one key averaged.

    Raises:
        ValueError: as :func:`read_scores`; also if no sample has a method, a key and a number.
    """
    cells = (
        _Cell(method, key, number, f"{source}, method {method}, key {key}, {name}", "")
        for method, key, number in samples
    )
    return _scores(name, source, cells, SEEDS[0], column=name)


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
            found = [
                _scores(name, source, _table_cells(source, rows, name), seeds, HIGHEST_RATING, name)
                for name in dict.fromkeys(groups or columns)
            ]
        except ValueError as error:
            if groups:
                raise
            raise ValueError(f"{error}; if only other columns are raters, name those by --group") from error
    else:
        for choices in (("data_human_rating",), ("merged_data", "raw_data")):
            source = next((source / choice for choice in choices if (source / choice).is_dir()), source)
        folders = {path.name: path for path in sorted(source.iterdir()) if path.is_dir() and _json_files(path)}
        _check_groups(source, groups, list(folders))
        found = [
            _scores(name, folders[name], _json_cells(_json_files(folders[name]), score, True), "last", HIGHEST_RATING)
            for name in dict.fromkeys(groups or folders)
        ]
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


_UNDEFINED = "undefined (nan)"


class _Cell(NamedTuple):
    """A number as found, with its label for error texts, the name of the scored file, and what NaN means there."""

    method: str
    key: str
    value: object
    label: str
    file: str
    undefined: str = _UNDEFINED


def _scores(
    name: str, source: Path, cells: Iterable[_Cell], seeds: str, highest: float | None = None, column: str = ""
) -> Scores:
    """Check and combine the cells of one scorer, or of raters, whose ``highest`` rating is given."""
    check_choice("seeds", seeds, SEEDS)
    numbers: dict[tuple[str, str], list[float]] = {}
    last_file: dict[tuple[str, str], str] = {}
    spellings: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    for method, key, cell, label, file, undefined in cells:
        if column and not (method.strip() and key.strip()):  # cells of a table may be empty
            dropped["row without method or key"] += 1
            continue
        number = _number(cell, label)
        if number is None or math.isnan(number):
            dropped["empty" if number is None else undefined] += 1
            continue
        if highest is not None and not 0 <= number <= highest:
            raise ValueError(
                f"{label}: {quoted(cell)} is not a rating from 0 to {highest:g}; correct it, or leave it empty"
            )
        short = method_name(method)
        if spellings.setdefault(short, method) != method:
            raise ValueError(
                f"{label}: the methods {quoted(spellings[short])} and {quoted(method)} are both {quoted(short)} "
                "without their run settings; rename one, or give them in separate files"
            )
        pair = (short, sample_key(key))
        if seeds == "last" and pair in numbers:
            dropped["overwritten by a later number of its key"] += 1
            if file < last_file[pair]:
                continue
            numbers[pair].clear()
        last_file[pair] = file
        numbers.setdefault(pair, []).append(number)
    if not numbers:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in dropped.items()) or "it is empty"
        raise ValueError(f"{source} holds no number for {(column or name)!r} ({reasons}); check the file and the name")
    values = {pair: math.fsum(of_key) / len(of_key) for pair, of_key in numbers.items()}
    averaged = sum(len(of_key) > 1 for of_key in numbers.values())
    return Scores(name, values, highest is not None, dict(dropped), str(source), seeds, column, averaged)


def _number(cell: object, label: str) -> float | None:
    """The finite number or NaN in a cell; None if it is empty."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    try:
        number = math.inf if isinstance(cell, bool) or not isinstance(cell, str | int | float) else float(cell)
    except (ValueError, OverflowError):
        number = math.inf
    if math.isinf(number):
        raise ValueError(
            f"{label}: {quoted(cell)} is not a finite number; correct it, or leave it empty (null in JSON)"
        )
    return number


def _table(file: Path, what: str) -> tuple[list[Row], list[str]]:
    """Rows of a table, and its columns except method and key; in JSON Lines a later row may add columns."""
    rows = read_rows(file, ("method", "key"), texts=("generated_image",), pictures=("generated_image",))
    if not rows:
        raise ValueError(f"{file} lists no {what}; give one row per sample below the header line")
    return rows, list(dict.fromkeys(name for row in rows for name in row.cells if name not in ("method", "key")))


def _table_cells(file: Path, rows: Iterable[Row], column: str) -> Iterator[_Cell]:
    for row in rows:
        method, key = (row.cells.get(name) or "" for name in ("method", "key"))
        label = f"{file}, line {row.line}, method {method[:LONGEST_QUOTE]}, key {key[:LONGEST_QUOTE]}, column {column}"
        generated = Path(row.cells.get("generated_image") or key).name
        no_patch = column == "cp" and _number(row.cells.get("reference_subject_patches"), label) == 0
        undefined = f"{_UNDEFINED}: reference mask that covers no patch by more than half" if no_patch else _UNDEFINED
        yield _Cell(method, key, row.cells.get(column), label, generated, undefined)


def _json_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))


def _json_cells(files: Iterable[Path], score: str, of_raters: bool = False) -> Iterator[_Cell]:
    for file in files:
        method, _, suffix = file.stem.rpartition("-")
        if suffix not in RATED_SCORES:  # the file holds both scores; in raw data a rater comes before the method
            method = suffix if of_raters else file.stem
        elif suffix != score:
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:  # invalid JSON or UTF-8
            raise ValueError(
                f"{file} cannot be read as JSON: {error}; correct it, or remove it from the folder"
            ) from error
        if not isinstance(content, dict):
            raise ValueError(f"{file} holds {json_type_name(content)}; give an object of keys and numbers")
        for key, value in content.items():
            label = f"{file}, key {key[:LONGEST_QUOTE]}"
            if isinstance(value, list):
                if len(value) != len(RATED_SCORES):
                    raise ValueError(f"{label}: {quoted(value)} is not a pair of numbers; give one number, or [cp, pf]")
                value = value[RATED_SCORES.index(score)]
            yield _Cell(method, key, value, label, "" if of_raters else key)
