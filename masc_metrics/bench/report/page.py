"""The page of a report: one HTML file that loads nothing, with the data as JSON that no browser takes for a script."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

import masc_metrics
from masc_metrics.bench.compare import Comparison, MethodScores
from masc_metrics.bench.report.pictures import Pictures
from masc_metrics.bench.report.rows import STATES, Group, ScoredTable
from masc_metrics.bench.run import MASC_SCORES, NOT_COMPARED
from masc_metrics.bench.sample import FILES, NUMBERS
from masc_metrics.bench.summary import interval_text, product_figure
from masc_metrics.intervals import ONE_CONCEPT

TEXT_BYTES = 12_000_000
"""Texts of a table take at most about this much of the file; the longest are cut."""

MOST_COMPARED = 12
"""More methods are not compared pair by pair: 12 give 66 pairs."""

_TEXT_LENGTHS = (10_000, 1000, 400, 200, 100, 50, 25)
_SHOWN_REASONS = 100
_PRODUCT = "cp \u00d7 pf"
_SCORE_NAMES = {"cp": "Concept preservation", "pf": "Prompt following", _PRODUCT: "Product of both means"}
_DERIVED = ("sample_id", "method", "concept")
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Training:
    """Validations of a training, whose steps are the methods of the page's table.

    Attributes:
        steps: training steps, ascending.
        eras: for each step, the number of changes of settings before it; scores of two eras are not comparable.
        curves: by score, for each step the mean over concepts and both ends of its interval; None where undefined.
        concepts: by concept and score, the mean at each step; None where undefined.
        anchors: by concept, floor and ceiling of CP; None where undefined.
        changes: settings that changed between steps, in words.
    """

    steps: tuple[int, ...]
    eras: tuple[int, ...]
    curves: Mapping[str, Sequence[tuple[float | None, ...]]]
    concepts: Mapping[str, Mapping[str, Sequence[float | None]]]
    anchors: Mapping[str, tuple[float | None, float | None]]
    changes: Sequence[str]


def jinja() -> ModuleType:
    """Import the template engine.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("a report needs Jinja2: pip install 'masc-metrics[report]'") from error
    return jinja2


def script_json(value: Any) -> str:
    """JSON that can stand in a script element: no character of it ends the element or a line of a script."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def write_page(
    stream: IO[bytes],
    table: ScoredTable,
    methods: Sequence[MethodScores],
    comparisons: Sequence[Comparison],
    groups: Sequence[Group],
    pictures: Iterable[Pictures],
    summary: Mapping[str, Any],
    training: Training | None = None,
) -> None:
    """Write the page; pictures are taken and written one by one.

    Args:
        stream: the file.
        table: the table of scores.
        methods: its methods, for their means.
        comparisons: their paired differences.
        groups: the samples to show.
        pictures: pictures of samples.
        summary: the summary of the run; empty if there is none.
        training: for a training, its curves; its samples are shown by step instead of in groups.
    """
    jinja2 = jinja()
    folder = resources.files(__package__)
    style, page, curves = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "training.js")
    )
    script = f'"use strict";\n(() => {{\n{page}{curves if training else ""}}})();\n'
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    states = [table.state(number) for number in range(len(table.rows))]
    problems = [number for number, state in enumerate(states) if state in ("failed", "incomplete", "left out")]
    safe = jinja2.utils.markupsafe.Markup
    parts = environment.get_template("page.html").generate(
        version=masc_metrics.__version__,
        file=table.file.name,
        counts={
            "samples" if training is None else "images": len(table.rows),
            "methods" if training is None else "validations": len(methods),
            "concepts": len({table.concept(number) for number in range(len(table.rows))}),
            **{state: count for state in STATES[1:] if (count := states.count(state))},
        },
        scores=[{"name": name, "title": _SCORE_NAMES.get(name, "")} for name in (*table.scores, *_products(table))],
        methods=_method_lines(methods, table),
        comparisons=_comparison_lines(comparisons),
        not_compared=training is None and len(methods) > MOST_COMPARED and not comparisons,
        problems=[_problem(table, number, states[number]) for number in problems[:_SHOWN_REASONS]],
        problem_count=len(problems),
        anchors=_anchor_lines(summary),
        training=training,
        settings=list(_setting_lines(summary.get("settings", {}))),
        style=safe(style),
        script=safe(script),
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        data=safe(script_json(_data(table, states, groups) | ({"training": asdict(training)} if training else {}))),
        pictures=(safe(script_json(each)) for each in _blocks(pictures)),
    )
    for part in parts:
        # JSON files may hold halves of surrogate pairs, that UTF-8 cannot encode.
        stream.write(part.encode(errors="backslashreplace"))


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _blocks(pictures: Iterable[Pictures]) -> Iterator[dict[str, Any]]:
    """Pictures as values of JSON; a picture that an earlier block holds, such as a reference, is its number."""
    known: dict[bytes, int] = {}
    for each in pictures:
        images: dict[str, str | int] = {}
        for kind, uri in each.images.items():
            digest = hashlib.sha256(uri.encode()).digest()
            images[kind] = known.get(digest, uri)
            known.setdefault(digest, len(known))
        yield {"row": each.number, "images": images, "notes": each.notes}


def _data(table: ScoredTable, states: Sequence[str], groups: Sequence[Group]) -> dict[str, Any]:
    header = dict.fromkeys(name for row in table.rows for name in row.cells)
    numbers = [name for name in NUMBERS if name in header and name not in table.scores]
    others = [name for name in header if name not in (*table.scores, *numbers, *_DERIVED)]
    count = len(table.rows)
    texts: dict[str, list[str]] = {
        "sample_id": [table.sample_id(number) for number in range(count)],
        "method": [table.method(number) for number in range(count)],
        "concept": [table.concept(number) for number in range(count)],
        "state": list(states),
        **{name: [table.text(number, name) for number in range(count)] for name in others},
    }
    measured = {name: [_number(table.text(number, name)) for number in range(count)] for name in numbers}
    texts = {name: values for name, values in texts.items() if any(values)}
    length = _text_length(texts)
    return {
        "count": count,
        "scores": {
            name: [
                _rounded(value) if not math.isnan(value) else "nan" if row.cells.get(name) else None
                for row, value in zip(table.rows, table.values_NS[:, index].tolist(), strict=True)
            ]
            for index, name in enumerate(table.scores)
        },
        "numbers": {name: values for name, values in measured.items() if any(v is not None for v in values)},
        "texts": {name: _coded([_cut(value, length) for value in values]) for name, values in texts.items()},
        "files": [name for name in FILES if name in texts],
        "groups": [
            {"title": group.title, "score": group.score, "samples": [list(each) for each in group.samples]}
            for group in groups
        ],
    }


def _coded(values: Sequence[str]) -> dict[str, Any]:
    """Texts as distinct values, and for each row the position of its value; without positions if all are distinct."""
    position_of = {value: position for position, value in enumerate(dict.fromkeys(values))}
    if len(position_of) == len(values):
        return {"values": list(values)}
    return {"values": list(position_of), "rows": [position_of[value] for value in values]}


def _text_length(texts: Mapping[str, Sequence[str]]) -> int:
    """The largest length at which all distinct texts fit into about ``TEXT_BYTES``."""
    distinct = [value for values in texts.values() for value in dict.fromkeys(values) if value]
    sizes = [(len(value), len(script_json(value).encode())) for value in distinct]
    for length in _TEXT_LENGTHS[:-1]:
        if sum(size * min(length / characters, 1) for characters, size in sizes) <= TEXT_BYTES:
            return length
    return _TEXT_LENGTHS[-1]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]} … ({len(text)} characters)"


def _number(text: str) -> float | None:
    try:
        value = float(text) if text else math.nan
    except ValueError:
        return None
    return _rounded(value) if math.isfinite(value) else None


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _bar(figure: Mapping[str, Any], place: Callable[[float], float]) -> dict[str, float] | None:
    """Horizontal places, in percent, of a mean and of the ends of its interval."""
    if figure["mean"] is None:
        return None
    low, high = figure["interval_95"] or (figure["mean"], figure["mean"])
    return {name: round(place(value), 2) for name, value in (("mean", figure["mean"]), ("low", low), ("high", high))}


def _scale(figures: Sequence[Mapping[str, Any]], *, symmetric: bool = False) -> Callable[[float], float]:
    """From values to percent of a width."""
    means = [figure["mean"] for figure in figures if figure["mean"] is not None] or [0.0]
    ends = [end for figure in figures if figure["interval_95"] for end in figure["interval_95"]]
    low, high = (choose([*means, *ends]) for choose in (min, max))
    if symmetric:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    width = (high - low) or 1.0
    return lambda value: min(100.0, max(0.0, 4 + 92 * (value - low) / width))


def _products(table: ScoredTable) -> tuple[str, ...]:
    return (_PRODUCT,) if set(MASC_SCORES) <= set(table.scores) else ()


def _method_lines(methods: Sequence[MethodScores], table: ScoredTable) -> list[dict[str, Any]]:
    figures = {method.name: [method.figure(score) for score in table.scores] for method in methods}
    if _products(table):
        columns = [table.scores.index(score) for score in MASC_SCORES]
        rows_of: dict[str, list[int]] = {name: [] for name in figures}
        for number in range(len(table.rows)):
            rows_of[table.method(number)].append(number)
        for name, rows in rows_of.items():
            concepts_N = np.array([table.concept(number) for number in rows], dtype=object)
            figures[name].append(product_figure(table.values_NS[rows][:, columns], concepts_N))
    scales = [_scale(list(column)) for column in zip(*figures.values(), strict=True)]
    return [
        {
            "name": name,
            "samples": max(figure["n"] for figure in of_method if "n" in figure),
            "concepts": max(figure["concepts"] for figure in of_method if "concepts" in figure),
            "figures": [
                {**figure, "interval": interval_text(figure, 3), "bar": _bar(figure, scale)}
                for figure, scale in zip(of_method, scales, strict=True)
            ],
            "one_concept": any(figure["interval_over"] == ONE_CONCEPT for figure in of_method),
        }
        for name, of_method in figures.items()
    ]


def _comparison_lines(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    figures = [{"mean": each.difference, "interval_95": each.interval_95} for each in comparisons]
    scale = _scale(figures, symmetric=True)
    return [
        {
            "comparison": each,
            **figure,
            "interval": interval_text(figure, 3),
            "bar": _bar(figure, scale),
            "zero": round(scale(0.0), 2),
            "higher": each.higher,
        }
        for each, figure in zip(comparisons, figures, strict=True)
    ]


def _anchor_lines(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Mean CP of each concept of a gallery, and what its references reach: its scale."""
    means = summary.get("by", {}).get("concept", {})
    return [
        {"concept": concept, "cp": means.get(concept, {}).get("cp", {}).get("mean"), **limits}
        for concept, limits in summary.get("gallery", {}).get("anchors", {}).items()
    ]


def _problem(table: ScoredTable, number: int, state: str) -> dict[str, Any]:
    reason = _cut(table.text(number, "error") or table.text(number, "left_out"), _TEXT_LENGTHS[1])
    name, method = (_cut(text, _TEXT_LENGTHS[3]) for text in (table.sample_id(number), table.method(number)))
    return {"number": number, "sample_id": name, "method": method, "state": state, "reason": reason}


def _setting_lines(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and texts of the settings that affect the scores; of paths only the last part."""
    for name, value in settings.items():
        if value in (None, [], {}, "") or (not prefix and name in NOT_COMPARED):
            continue
        if isinstance(value, dict):
            yield from _setting_lines(value, f"{prefix}{name}.")
        else:
            parts = value if isinstance(value, list) else [value]
            texts = (Path(part).name if isinstance(part, str) and Path(part).is_absolute() else part for part in parts)
            yield f"{prefix}{_path_free(name)}", ", ".join(map(str, texts))


def _path_free(name: str) -> str:
    return Path(name).name if Path(name).is_absolute() else name
