"""A report on a training run: one HTML file with all validations so far, written anew after each.

The validations are kept in a folder beside it, so that a resumed training goes on with its report: scores in lines of
JSON, and pictures in a file for each step, so that those of other steps need not be read. Each step is a method of the
page's table: its samples are paired with those of other steps, and compared like methods.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from masc_metrics.arguments import check_integer, check_type
from masc_metrics.bench.compare import Comparison, MethodScores, compare_all, number_in
from masc_metrics.bench.report.page import Training, jinja, write_page
from masc_metrics.bench.report.pictures import Pictures, match_uri, outlined_uri
from masc_metrics.bench.report.rows import ScoredTable
from masc_metrics.bench.run import MASC_SCORES
from masc_metrics.bench.tables import Row, replacing
from masc_metrics.validation.loggers import is_remote, versions
from masc_metrics.validation.panels import ShownConcept
from masc_metrics.validation.ranks import rank_and_world
from masc_metrics.validation.validate import ConceptValidation, ValidatedImage

SIDE = 192
"""Longest side of a picture, in pixels."""

PICTURE_BYTES = 20_000_000
"""Pictures take at most about this much of a report. If there are more, only every second step has them, or every
fourth, and so on, counted from the first; the last step has them always."""

COMPARED_STEPS = 4
"""The last step is compared with at most as many earlier ones, which are evenly spaced."""

_COLUMNS = ("sample_id", "method", *(field.name for field in fields(ValidatedImage)))

Entry: TypeAlias = Mapping[str, Any]
"""A validation as in a line of JSON: step, settings, anchors, cells of the table, and the size of its pictures."""


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """A report in a file, and the validations that it shows.

    Attributes:
        file: the HTML file.

    Raises:
        TypeError, ValueError: if the name is not one of a local HTML file.
        ImportError: if Jinja2 is not installed.
    """

    file: Path

    @classmethod
    def of(cls, file: str | os.PathLike[str]) -> TrainingReport:
        """The report in a file that exists or not; the arguments are checked."""
        check_type("report", file, (str, os.PathLike), "the name of an HTML file, or None")
        path = Path(os.path.expanduser(file))
        if path.suffix.lower() != ".html" or path.is_dir() or is_remote(file):
            raise ValueError(f"report is {os.fspath(file)!r}; give a local file whose name ends with .html, or None")
        jinja()
        return cls(path)

    @property
    def folder(self) -> Path:
        """Folder of the validations, beside the report."""
        return self.file.with_suffix(".masc")

    @property
    def journal(self) -> Path:
        """Lines of JSON: the validations without their pictures."""
        return self.folder / "validations.jsonl"

    def _pictures_of(self, entry: Entry) -> Path:
        return self.folder / f"step-{entry['step']:08}.json"

    def unused(self) -> TrainingReport:
        """This report, or if it exists the first one with a version number that does not: ``report-v1.html``."""
        return next(report for report in self._versions() if not report._exists())

    def newest(self) -> TrainingReport:
        """The existing report with the highest version number; this one if none exists."""
        return [self, *self._existing()][-1]

    def version_of(self, name: str) -> TrainingReport | None:
        """The existing version whose file has this name; None if there is none."""
        return next((report for report in self._existing() if report.file.name == name), None)

    def _existing(self) -> Iterator[TrainingReport]:
        return itertools.takewhile(TrainingReport._exists, self._versions())

    def _versions(self) -> Iterator[TrainingReport]:
        return map(TrainingReport, versions(self.file))

    def _exists(self) -> bool:
        return self.file.exists() or self.folder.exists()

    def resume(self, step: int) -> None:
        """Leave out validations of later steps from now on, because training goes on from this one.

        Raises:
            OSError: if the file of JSON lines cannot be written.
            ValueError: if it holds something else.
        """
        if any(entry["step"] > step for entry in self._entries()):
            self._append({"resumed": step})

    def add(self, result: ConceptValidation, step: int) -> None:
        """Add a validation, in place of an earlier one of the same step, and write the report.

        Raises:
            OSError: if a file cannot be written.
            ValueError: if the file of JSON lines holds something else.
        """
        pictures = {str(index): images for shown in result.shown for index, images in _pictures(shown)}
        added = _entry(result, step, pictures)
        entries = [*(entry for entry in self._entries() if entry["step"] != step), added]
        entries.sort(key=lambda entry: entry["step"])
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._pictures_of(added)) as stream:
            stream.write(json.dumps(pictures).encode())
        self._append(added)
        shown = _pictured(entries)
        for entry in entries:
            if entry not in shown:
                self._pictures_of(entry).unlink(missing_ok=True)
        with replacing(self.file) as stream:
            _write(stream, self.file, entries, self._page_pictures(entries))

    def _page_pictures(self, entries: Sequence[Entry]) -> Iterator[Pictures]:
        """Pictures by row of the page's table."""
        start = 0
        for entry in entries:
            file = self._pictures_of(entry)
            if entry["picture_bytes"] and file.exists():
                for index, images in json.loads(file.read_bytes()).items():
                    yield Pictures(start + int(index), images, ())
            start += len(entry["cells"])

    def _append(self, line: Entry) -> None:
        with self.journal.open("ab") as stream:
            # A line that a kill has cut short is ended first.
            stream.write(b"\n" * bool(stream.tell()) + json.dumps(line).encode())
            stream.flush()
            os.fsync(stream.fileno())

    def _entries(self) -> list[Entry]:
        """Validations by step."""
        found: dict[int, Entry] = {}
        if not self.journal.exists():
            return []
        with self.journal.open("rb") as stream:
            for line in stream:
                try:
                    entry = json.loads(line)
                except ValueError:  # cut short by a kill
                    continue
                if not isinstance(entry, dict) or not entry.keys() & {"step", "resumed"}:
                    raise ValueError(f"{self.journal} does not hold validations of a report; rename it")
                if "resumed" in entry:
                    found = {step: known for step, known in found.items() if step <= entry["resumed"]}
                else:
                    found[entry["step"]] = entry
        return [found[step] for step in sorted(found)]


def add_to_report(result: ConceptValidation, file: str | os.PathLike[str], step: int) -> None:
    """Add a validation to a report on a training run; on ranks other than the first, do nothing.

    The report is one HTML file, which opens in any browser: curves of both scores by concept, a slider through the
    steps with the images of each, comparisons of the last step with earlier ones, and a table of all images. It is
    written anew in every call. The validations are kept in a folder beside it, such as ``training.masc`` of
    ``training.html``. Images are those of the panel.

    Args:
        result: result of :func:`masc_metrics.validation.validate_concepts`.
        file: the HTML file; its folder is created.
        step: training step of the model. A validation of the same step is replaced.

    Raises:
        TypeError, ValueError: if an argument is not accepted.
        OSError: if a file cannot be written.
        ImportError: if Jinja2 is not installed.
    """
    check_integer("step", step, least=0)
    report = TrainingReport.of(file)
    if rank_and_world()[0] == 0:
        report.add(result, int(step))


def _entry(result: ConceptValidation, step: int, pictures: Mapping[str, Mapping[str, str]]) -> Entry:
    return {
        "step": step,
        "settings": dict(result.settings),
        "anchors": {name: [_defined(each.floor), _defined(each.ceiling)] for name, each in result.anchors.items()},
        "cells": [[_cell(name, value) for name, value in asdict(image).items()] for image in result.table],
        # References are in the page once, whatever the number of steps.
        "picture_bytes": sum(
            len(uri) for images in pictures.values() for kind, uri in images.items() if kind != "reference"
        ),
    }


def _cell(name: str, value: str | float) -> str:
    if not isinstance(value, float) or name in MASC_SCORES:
        return str(value)
    return "" if math.isnan(value) else f"{value:.4g}"


def _pictures(shown: ShownConcept) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Data URIs of each image of a concept, by its index."""
    row = shown.row
    reference = outlined_uri(row.reference, row.mask, SIDE)
    for index, shot in zip(shown.indices, row.shots, strict=True):
        yield (
            index,
            {
                "reference": reference,
                "generated": outlined_uri(shot.image, shot.mask, SIDE),
                "match": match_uri(row.reference, shot.found, SIDE),
            },
        )


def _pictured(entries: Sequence[Entry]) -> list[Entry]:
    """The steps that have pictures. They are the same after a further step, but for those left out for it."""
    every = 1
    while True:
        shown = [entry for number, entry in enumerate(entries) if number % every == 0 or number == len(entries) - 1]
        if every >= len(entries) or sum(entry["picture_bytes"] for entry in shown) <= PICTURE_BYTES:
            return shown
        every *= 2


def _write(stream: Any, file: Path, entries: Sequence[Entry], pictures: Iterable[Pictures]) -> None:
    rows = [
        Row(0, dict(zip(_COLUMNS, [cells[0], _name(entry), *cells], strict=True)))
        for entry in entries
        for cells in entry["cells"]
    ]
    values = np.array([[number_in(file, row, score) for score in MASC_SCORES] for row in rows], dtype=np.float64)
    table = ScoredTable(file, tuple(rows), MASC_SCORES, values)
    methods = [_method(entry) for entry in entries]
    concepts = _concept_means(list(dict.fromkeys(row.cells["concept"] or "" for row in rows)), methods)
    anchors = {name: {"floor": floor, "ceiling": ceiling} for name, (floor, ceiling) in entries[-1]["anchors"].items()}
    last_means = {
        name: {score: {"mean": means[-1]} for score, means in of_scores.items()} for name, of_scores in concepts.items()
    }
    summary = {
        "settings": {"validation": entries[-1]["settings"]},
        "gallery": {"anchors": anchors},
        "by": {"concept": last_means},
    }
    eras = _eras(entries)
    training = Training(
        steps=tuple(entry["step"] for entry in entries),
        eras=eras,
        curves={
            score: [
                (figure["mean"], *(figure["interval_95"] or (None, None)))
                for figure in (method.figure(score) for method in methods)
            ]
            for score in MASC_SCORES
        },
        concepts=concepts,
        anchors={name: (each["floor"], each["ceiling"]) for name, each in anchors.items()},
        changes=_changed_settings(entries),
    )
    comparisons = _comparisons([method for method, era in zip(methods, eras, strict=True) if era == eras[-1]])
    write_page(stream, table, methods, comparisons, (), pictures, summary, training)


def _name(entry: Entry) -> str:
    return f"step {entry['step']}"


def _method(entry: Entry) -> MethodScores:
    values: dict[str, dict[tuple[str, str, str], list[float]]] = {score: {} for score in MASC_SCORES}
    for cells in entry["cells"]:
        row = dict(zip(_COLUMNS[2:], cells, strict=True))
        for score, of_score in values.items():
            if not math.isnan(value := float(row[score])):
                of_score.setdefault((row["concept"], row["prompt"], row["seed"]), []).append(value)
    return MethodScores(_name(entry), values)


def _concept_means(
    concepts: Sequence[str], methods: Sequence[MethodScores]
) -> dict[str, dict[str, list[float | None]]]:
    """Mean of each concept and score at each step; None where undefined."""
    found: dict[str, dict[str, list[float | None]]] = {name: {score: [] for score in MASC_SCORES} for name in concepts}
    for method in methods:
        for score in MASC_SCORES:
            values: dict[str, list[float]] = {name: [] for name in concepts}
            for (concept, _, _), of_cell in method.values[score].items():
                values[concept] += of_cell
            for name, of_concept in values.items():
                found[name][score].append(float(np.mean(of_concept)) if of_concept else None)
    return found


def _comparisons(methods: Sequence[MethodScores]) -> Sequence[Comparison]:
    """The last step against some earlier ones, the first among them."""
    earlier = methods[:-1]
    count = min(COMPARED_STEPS, len(earlier))
    if not count:
        return ()
    chosen = sorted({round(position) for position in np.linspace(0, len(earlier) - 1, count)})
    try:
        return compare_all([*(earlier[position] for position in chosen), methods[-1]], MASC_SCORES, methods[-1].name)
    except ValueError:  # nothing can be paired, because the prompts or seeds have changed
        return ()


def _changed_settings(entries: Sequence[Entry]) -> list[str]:
    """Settings that changed between steps, so that scores before and after are not comparable."""
    changes = []
    for before, after in itertools.pairwise(entries):
        for name in dict.fromkeys((*before["settings"], *after["settings"])):
            old, new = (entry["settings"].get(name, "") for entry in (before, after))
            if old != new:
                changes.append(f"{name} changed from {old} to {new} at step {after['step']}")
    return changes


def _eras(entries: Sequence[Entry]) -> tuple[int, ...]:
    """For each step, how often settings have changed before."""
    changed = [before["settings"] != after["settings"] for before, after in itertools.pairwise(entries)]
    return tuple(itertools.accumulate(changed, initial=0))


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
