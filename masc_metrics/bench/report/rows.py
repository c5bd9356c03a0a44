"""The table of scores as a report needs it: its scores as numbers, and the samples that are worth a look.

Letters in names: ``N`` samples, ``S`` scores.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masc_metrics.bench.compare import TEXTS, cell_of, number_in
from masc_metrics.bench.run import CP_COLUMNS, MASC_SCORES, PF_COLUMNS, SCORE_NAMES
from masc_metrics.bench.sample import FILES, SEPARATOR, Sample
from masc_metrics.bench.sample_list import files_of_cell, references_of
from masc_metrics.bench.tables import Row, file_in, read_rows, text_of
from masc_metrics.intervals import Numbers

_KNOWN_SCORES = tuple(dict.fromkeys((*SCORE_NAMES, *CP_COLUMNS, *PF_COLUMNS)))

STATES = ("scored", "undefined", "not scored", "left out", "incomplete", "failed")
"""What became of a sample: all of its scores are defined, one is undefined, it has none, it was skipped, an error left
it without some of its scores, or without all."""


@dataclass(frozen=True, slots=True)
class ScoredTable:
    """A table of scores.

    Attributes:
        file: the table.
        rows: its rows.
        scores: columns that hold scores.
        values_NS: the scores; NaN where undefined or not computed.
    """

    file: Path
    rows: tuple[Row, ...]
    scores: tuple[str, ...]
    values_NS: Numbers

    def method(self, number: int) -> str:
        """Method of a row; the name of the table if it has none."""
        return text_of(self.rows[number], "method") or self.file.stem

    def concept(self, number: int) -> str:
        """Concept of a row; without one, its reference image stands for it."""
        return text_of(self.rows[number], "concept") or self.text(number, "reference_image")

    def sample_id(self, number: int) -> str:
        """Id of a row; without one, its position from 1."""
        return text_of(self.rows[number], "sample_id") or str(number + 1)

    def text(self, number: int, column: str) -> str:
        """Text of a cell. Files are relative to the table, also in the texts of errors."""
        row = self.rows[number]
        text = text_of(row, column) if column not in ("prompt", "subject") else row.cells.get(column) or ""
        folder = self.file.parent
        if column in FILES:
            return SEPARATOR.join(os.path.relpath(file, folder) for file in self._files(row, column))
        if column in ("error", "left_out"):
            for file in (file for name in FILES for file in self._files(row, name)):
                text = text.replace(os.path.abspath(file), os.path.relpath(file, folder))
            text = text.replace(f"{folder.resolve()}{os.sep}", "")
        return text

    def _files(self, row: Row, column: str) -> list[str]:
        cell = text_of(row, column)
        try:
            return files_of_cell(cell, self.file.parent, column)
        except ValueError:  # not a list of files: shown as it is
            return [os.path.join(self.file.parent, cell)]

    def state(self, number: int) -> str:
        """One of ``STATES``."""
        row = self.rows[number]
        has_scores = not np.isnan(self.values_NS[number]).all()
        if text_of(row, "error"):
            return "incomplete" if has_scores else "failed"
        if text_of(row, "left_out"):
            return "left out"
        # An undefined score is written as nan, one that is not computed as an empty cell.
        values = zip(self.scores, self.values_NS[number].tolist(), strict=True)
        if any(math.isnan(value) and row.cells.get(name) for name, value in values):
            return "undefined"
        return "scored" if has_scores else "not scored"

    def sample(self, number: int) -> Sample:
        """A row as a sample whose files can be loaded; paths are as the table's folder is given.

        Raises:
            ValueError: if the numbers of its references and of their masks differ.
        """
        row, folder = self.rows[number], self.file.parent
        cells = {name: text_of(row, name) for name in FILES}
        (reference_image, reference_mask), *more = references_of(cells, folder, f"{self.file}, line {row.line}")
        image, mask = (cells[name] and file_in(folder, cells[name]) for name in ("generated_image", "generated_mask"))
        noun = text_of(row, "noun") or row.cells.get("subject") or ""
        return Sample(
            line=row.line,
            sample_id=self.sample_id(number),
            generated_image=image,
            generated_mask=mask or None,
            reference_image=reference_image,
            reference_mask=reference_mask,
            more_references=tuple(more),
            prompt=None,
            subject=None,
            reference_noun=noun,
            generated_noun=noun,
        )


def read_table(file: Path, scores: Sequence[str] = ()) -> ScoredTable:
    """Read a table of scores.

    Args:
        file: the table.
        scores: columns that hold scores; without any, the scores of this package that it has.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is malformed, has no rows or no score, or a score is not a number.
    """
    rows = tuple(read_rows(file, scores, texts=TEXTS))
    if not rows:
        raise ValueError(f"{file} has no rows; give a table of scores")
    header = dict.fromkeys(name for row in rows for name in row.cells)
    found = tuple(scores) or tuple(name for name in _KNOWN_SCORES if name in header)
    if not found:
        raise ValueError(f"{file} has no score, such as cp or pf; its columns are {list(header)}")
    values = [[number_in(file, row, name) for name in found] for row in rows]
    return ScoredTable(file, rows, found, np.array(values, dtype=np.float64))


@dataclass(frozen=True, slots=True)
class Group:
    """Samples that are shown together.

    Attributes:
        title: what they have in common.
        score: the score that they were chosen by.
        samples: positions of the samples in the table: one, or two that are compared, the higher one first.
    """

    title: str
    score: str
    samples: tuple[tuple[int, ...], ...]


def chosen_groups(table: ScoredTable, count: int) -> list[Group]:
    """The worst and the best samples by each score of MaSC, and the pairs of methods' samples that differ most.

    Without a score of MaSC, the first score of the table takes its place. The worst and the best have no sample in
    common.

    Args:
        table: the table of scores.
        count: number of samples, or of pairs, in a group.
    """
    groups = []
    for score in [name for name in MASC_SCORES if name in table.scores] or table.scores[:1]:
        values_N = table.values_NS[:, table.scores.index(score)]
        defined = np.flatnonzero(~np.isnan(values_N))
        order = defined[np.argsort(values_N[defined], kind="stable")].tolist()
        least = order[: min(count, (len(order) + 1) // 2)]
        most = order[::-1][: min(count, len(order) // 2)]
        groups.append(Group(f"Lowest {score.upper()}", score, tuple((number,) for number in least)))
        groups.append(Group(f"Highest {score.upper()}", score, tuple((number,) for number in most)))
        groups.append(Group(f"Methods differ most in {score.upper()}", score, _widest_pairs(table, values_N, count)))
    return [group for group in groups if group.samples]


def _widest_pairs(table: ScoredTable, values_N: Numbers, count: int) -> tuple[tuple[int, int], ...]:
    """For each cell the samples of two methods that differ most, higher one first; the cells that differ most."""
    cells: dict[object, list[int]] = {}
    for number in np.flatnonzero(~np.isnan(values_N)).tolist():
        cells.setdefault(cell_of(table.file, table.rows[number]), []).append(number)
    pairs = []
    for numbers in cells.values():
        extremes: dict[str, tuple[int, int]] = {}
        for number in numbers:
            low, high = extremes.get(table.method(number), (number, number))
            method = table.method(number)
            extremes[method] = min(low, number, key=values_N.item), max(high, number, key=values_N.item)
        differences = [
            (values_N.item(high) - values_N.item(low), high, low)
            for first, (_, high) in extremes.items()
            for second, (low, _) in extremes.items()
            if first != second
        ]
        if differences:
            pairs.append(max(differences))
    pairs.sort(key=lambda pair: -pair[0])
    return tuple((high, low) for difference, high, low in pairs[:count] if difference > 0)
