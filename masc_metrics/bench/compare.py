"""``masc-metrics compare``: which of several methods is better, by differences between paired samples.

Samples are paired by concept, key (else prompt) and, where the tables have one, ``seed``. Samples of one concept depend
on each other, so the differences of a concept count as one: intervals and tests are over concepts. With one concept,
they are over its keys, with the seeds of a key averaged, and hold for this concept only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from masc_metrics.bench.commands import CompareOptions
from masc_metrics.bench.run import SCORE_NAMES
from masc_metrics.bench.run_folder import check_json_file, write_json
from masc_metrics.bench.summary import limits_of, mean_cell, mean_figure
from masc_metrics.bench.tables import Row, printable, quoted, read_rows, text_of, text_table
from masc_metrics.bench.terminal import UNUSABLE, fail
from masc_metrics.intervals import ONE_CONCEPT, ROUNDING, Numbers, all_equal, mean, unit_means

LEVEL = 0.05
"""A difference is called significant if its corrected p value is below."""

_ENOUGH_UNITS = 12  # the smallest p value of their sign flips, 0.0005, survives the correction for 100 comparisons
_EXACT_UNITS = 14  # up to 16 384 sign patterns are all tried
_DRAWS = 20_000
_DRAWN_SIGNS = 2**22  # at a time, so that memory does not grow with the number of units

TEXTS = ("method", "concept", "reference_image", "key", "prompt", "seed", "mask_source")
"""Columns of a table of scores that hold text."""

Cell = tuple[str, str, str]
"""What pairs two samples: concept, key (else prompt), seed."""


_SOURCE_COLUMNS = {"cp": "reference_mask_source", "pf": "mask_source"}
"""Column of the table of scores that says where the masks of a score come from."""


@dataclass(frozen=True, slots=True)
class MethodScores:
    """Scores of one method.

    Attributes:
        name: the method.
        values: for each score, all samples' values by cell; samples without the score are not in it.
        mask_sources: where the masks of its generated images come from.
        reference_mask_sources: where those of its references come from.
        left_out: scores of its table that another table lacks.
    """

    name: str
    values: Mapping[str, Mapping[Cell, Sequence[float]]]
    mask_sources: frozenset[str] = frozenset()
    reference_mask_sources: frozenset[str] = frozenset()
    left_out: tuple[str, ...] = ()

    def figure(self, score: str) -> dict[str, Any]:
        """Mean over concepts, its interval, and the numbers of samples and concepts."""
        samples = [(cell[0], value) for cell, values in self.values[score].items() for value in values]
        values_N = np.array([value for _, value in samples], dtype=np.float64)
        return mean_figure(values_N, np.array([concept for concept, _ in samples]), limits_of(score))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired difference of two methods in one score.

    Attributes:
        a: the first method.
        b: the second method.
        score: the score.
        pairs: cells that both methods have. Several samples of a cell count as their mean.
        concepts: concepts of the pairs.
        unpaired: cells that only one of the two has.
        difference: mean of a minus b, in which every concept counts equally; None without pairs.
        interval_95: its 95 % interval; None for fewer than two concepts, or of one concept fewer than two keys, and if
            all differences are equal.
        p: p value of the hypothesis that the methods are equal; None if it cannot be tested.
        p_holm: p value corrected by Holm's method for all comparisons made together.
        wins: share of pairs in which a is higher, ties counted half.
        test: how p was found.
        interval_over: "concepts" or "this concept only".
    """

    a: str
    b: str
    score: str
    pairs: int
    concepts: int
    unpaired: int
    difference: float | None
    interval_95: tuple[float, float] | None
    p: float | None
    p_holm: float | None
    wins: float | None
    test: str
    interval_over: str

    @property
    def higher(self) -> str | None:
        """The method that is shown to be higher; None if no difference is."""
        if self.difference is None or self.p_holm is None or self.p_holm >= LEVEL:
            return None
        return self.a if self.difference > 0 else self.b

    @property
    def verdict(self) -> str:
        """The answer in words."""
        if self.difference is None or self.p_holm is None:
            return "not testable"
        return "no difference shown" if self.higher is None else f"{self.higher} is higher"


def read_methods(files: Sequence[Path], scores: Sequence[str] | None = None) -> tuple[list[MethodScores], list[str]]:
    """Read the methods of tables of scores.

    Args:
        files: the tables.
        scores: columns to read; None reads the scores of this package that every table has.

    Returns:
        The methods in the order of the tables, and the names of the scores.

    Raises:
        OSError: if a table cannot be read.
        ValueError: if it is malformed, lacks a column, or has a method that another table has.
    """
    return methods_of({file: read_rows(file, texts=TEXTS, pictures=("reference_image",)) for file in files}, scores)


def methods_of(
    tables: Mapping[Path, Sequence[Row]], scores: Sequence[str] | None = None
) -> tuple[list[MethodScores], list[str]]:
    """The methods of tables that have been read; as :func:`read_methods`.

    Raises:
        ValueError: if a table lacks a column, or has a method that another table has.
    """
    for file, rows in tables.items():
        if not rows:
            raise ValueError(f"{file} has no rows; give a table of scores")
    headers = [set().union(*(row.cells for row in rows)) for rows in tables.values()]
    shared = [name for name in SCORE_NAMES if all(name in header for header in headers)]
    names = list(dict.fromkeys(scores)) if scores else shared
    for file, header in zip(tables, headers, strict=True):
        if missing := [name for name in names if name not in header]:
            raise ValueError(
                f"{file} lacks the column {missing[0]}; --score accepts {', '.join([*shared, 'any column of numbers'])}"
            )
        if not header & {"concept", "reference_image"}:
            raise ValueError(f"{file} has neither a column concept nor reference_image; samples cannot be paired")
    if not names:
        raise ValueError(f"the tables share no score; name a column with --score: {', '.join(sorted(headers[0]))}")
    found: dict[str, dict[str, dict[Cell, list[float]]]] = {}
    sources: dict[str, dict[str, set[str]]] = {}
    left_out: dict[str, tuple[str, ...]] = {}
    file_of: dict[str, Path] = {}
    stems = [file.stem for file in tables]
    for (file, rows), header in zip(tables.items(), headers, strict=True):
        unnamed = file.stem if stems.count(file.stem) == 1 else f"{file.resolve().parent.name}/{file.stem}"
        for row in rows:
            method = text_of(row, "method") or unnamed
            if file_of.setdefault(method, file) != file:
                raise ValueError(
                    f"method {quoted(method)} is in {file_of[method]} and in {file}; rename it in one of them"
                )
            values = found.setdefault(method, {name: {} for name in names})
            of_method = sources.setdefault(method, {column: set() for column in _SOURCE_COLUMNS.values()})
            for column, found_sources in of_method.items():
                found_sources.update({text_of(row, column)} - {""})
            left_out[method] = () if scores else tuple(name for name in SCORE_NAMES if name in header - {*names})
            for name in names:
                value = number_in(file, row, name)
                if not math.isnan(value):
                    values[name].setdefault(cell_of(file, row), []).append(value)
    methods = [
        MethodScores(
            method,
            values,
            **{f"{column}s": frozenset(used) for column, used in sources[method].items()},
            left_out=left_out[method],
        )
        for method, values in found.items()
    ]
    return methods, names


def cell_of(file: Path, row: Row) -> Cell:
    """What pairs a row of a table with those of other methods; ValueError without a concept and a reference image."""
    concept, reference = text_of(row, "concept"), text_of(row, "reference_image")
    if not concept and not reference:
        raise ValueError(f"{file}, line {row.line} has neither a concept nor a reference_image; give one to pair it by")
    # Paths are relative to the table, and tables may lie in different folders.
    subject = concept or os.path.abspath(file.parent / reference)
    return subject, text_of(row, "key") or text_of(row, "prompt"), text_of(row, "seed")


def number_in(file: Path, row: Row, name: str) -> float:
    """A score in a row of a table, NaN if it is undefined or not computed; ValueError for any other text."""
    text = row.cells.get(name)
    try:
        value = float(text) if text else math.nan
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise ValueError(f"{file}, line {row.line}: {name} is {quoted(text)}; give a finite number, or an empty cell")
    return value


def compare(a: MethodScores, b: MethodScores, score: str) -> Comparison:
    """Compare two methods in one score; ``p_holm`` is p until :func:`holm` corrects it."""
    first, second = a.values[score], b.values[score]
    cells = sorted(first.keys() & second.keys())
    differences_P = np.array([np.mean(first[cell]) - np.mean(second[cell]) for cell in cells], dtype=np.float64)
    concepts, keys = ([cell[index] for cell in cells] for index in (0, 1))
    units_US, over = unit_means(differences_P[:, None], np.array(concepts))
    if over == ONE_CONCEPT:
        units_US, _ = unit_means(differences_P[:, None], np.array(keys))
    low, high = limits_of(score)
    estimate = mean(units_US[:, 0], (low - high, high - low))
    p, test = _p_value(units_US[:, 0])
    return Comparison(
        a=a.name,
        b=b.name,
        score=score,
        pairs=len(cells),
        concepts=len(set(concepts)),
        unpaired=len(first.keys() ^ second.keys()),
        difference=estimate.value,
        interval_95=estimate.interval,
        p=p,
        p_holm=p,
        wins=float(np.mean((differences_P > 0) + 0.5 * (differences_P == 0))) if cells else None,
        test=test,
        interval_over=over,
    )


def _p_value(units_U: Numbers) -> tuple[float | None, str]:
    """Two-sided p value of a zero mean, and the test: sign flips where there are enough units, else Student's t."""
    count = len(units_U)
    if count < 2:
        return None, "none: fewer than two concepts or pairs"
    if not units_U.any():
        return 1.0, "none: all differences are zero"
    if count < _ENOUGH_UNITS:
        if all_equal(units_U):
            return None, "none: all differences are equal"
        from scipy import stats

        return float(stats.ttest_1samp(units_U, 0).pvalue), "Student's t"
    observed = abs(units_U.sum()) - ROUNDING * np.abs(units_U).sum()
    if count <= _EXACT_UNITS:
        signs_FU = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        return float(np.mean(np.abs(signs_FU @ units_U) >= observed)), "sign flips, all"
    generator = np.random.default_rng(0)
    block = max(1, _DRAWN_SIGNS // count)
    as_large = 0
    for start in range(0, _DRAWS, block):
        signs_FU = 1 - 2 * generator.integers(0, 2, size=(min(block, _DRAWS - start), count), dtype=np.int8)
        as_large += int((np.abs(signs_FU @ units_U) >= observed).sum())
    return (1 + as_large) / (1 + _DRAWS), f"sign flips, {_DRAWS}"


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Correct the p values of comparisons that are made together."""
    tested = sorted((c.p, index) for index, c in enumerate(comparisons) if c.p is not None)
    corrected = list(comparisons)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[index] = replace(comparisons[index], p_holm=largest)
    return corrected


def compare_all(
    methods: Sequence[MethodScores], scores: Sequence[str], a: str | None = None, b: str | None = None
) -> list[Comparison]:
    """Compare every pair of methods in every score, or only those with ``a``, or ``a`` with ``b``.

    Raises:
        ValueError: if there are fewer than two methods, a name is unknown, or no samples can be paired.
    """
    by_name = {method.name: method for method in methods}
    if len(by_name) < 2:
        raise ValueError(f"the tables have only the method {', '.join(by_name)}; give a table of another method")
    for option_name, name in (("--a", a), ("--b", b)):
        if name is not None and name not in by_name:
            raise ValueError(f"{option_name} is {name!r}; the methods are {', '.join(by_name)}")
    if a is None and b is not None:
        a, b = b, None
    if a is not None and a == b:
        raise ValueError(f"--a and --b are both {a!r}; give two methods")
    if a is None:
        pairs = list(combinations(by_name, 2))
    else:
        pairs = [(a, name) for name in by_name if name != a and b in (None, name)]
    comparisons = [compare(by_name[first], by_name[second], score) for first, second in pairs for score in scores]
    if not any(comparison.pairs for comparison in comparisons):
        examples = (f"{name}: {quoted(min(by_name[name].values[scores[0]], default='no sample'))}" for name in pairs[0])
        raise ValueError(
            "no samples can be paired; they are paired by concept, key (else prompt) and seed, which are in "
            f"{' and in '.join(examples)}; write them alike"
        )
    return holm(comparisons)


def report_lines(
    methods: Sequence[MethodScores], figures: Mapping[str, Mapping[str, Any]], comparisons: Sequence[Comparison]
) -> Iterator[str]:
    """The tables that the command prints, given the figures of each method and score."""
    scores = list(figures[methods[0].name])
    rows = [["method", *(score.upper() for score in scores), "samples", "concepts"]]
    for name, of_scores in figures.items():
        counts = [str(max(figure[count] for figure in of_scores.values())) for count in ("n", "concepts")]
        rows.append([name, *map(mean_cell, of_scores.values()), *counts])
    yield from text_table(rows)
    yield ""
    rows = [["difference", "score", "value", "p", "p, Holm", "won", "pairs", "concepts", "test", ""]]
    for comparison in comparisons:
        figure = {"mean": comparison.difference, "interval_95": comparison.interval_95}
        p_values = ("-" if p is None else f"{p:.2g}" for p in (comparison.p, comparison.p_holm))
        won = "-" if comparison.wins is None else f"{100 * comparison.wins:.0f} %"
        counts = [str(comparison.pairs), str(comparison.concepts)]
        row = [f"{comparison.a} - {comparison.b}", comparison.score.upper(), mean_cell(figure), *p_values, won, *counts]
        rows.append([*row, comparison.test, comparison.verdict])
    yield from text_table(rows)
    yield from comparison_notes(methods, scores, comparisons)


def comparison_notes(
    methods: Sequence[MethodScores], scores: Sequence[str], comparisons: Sequence[Comparison]
) -> Iterator[str]:
    """What limits the comparisons, in sentences."""
    if any(comparison.interval_over == ONE_CONCEPT and comparison.pairs for comparison in comparisons):
        yield f"Comparisons of one concept hold for {ONE_CONCEPT}."
    for score, column in _SOURCE_COLUMNS.items():
        used = sorted(frozenset[str]().union(*(getattr(method, f"{column}s") for method in methods)))
        if len(used) > 1 and any(name.startswith(score) for name in scores):
            yield f"{score.upper()} uses masks of several sources ({', '.join(used)}); compare samples of one {column}."
    if missing := list(dict.fromkeys(name for method in methods for name in method.left_out)):
        yield f"Not compared, because a table lacks it: {', '.join(missing)}."
    for method in methods:
        repeated = max(sum(len(values) - 1 for values in method.values[score].values()) for score in scores)
        if repeated:
            yield (
                f"{method.name}: {repeated} samples have the concept, key (else prompt) and seed of another; their "
                "mean is compared"
            )
    for comparison in comparisons:
        if comparison.unpaired:
            compared = f"{comparison.a} and {comparison.b}, {comparison.score.upper()}"
            yield f"{compared}: samples without a partner, which are left out: {comparison.unpaired}"


def compare_tables(options: CompareOptions) -> int:
    """Run ``masc-metrics compare``; returns the exit code."""
    try:
        if options.out is not None:
            check_json_file(options.out, options.scores)
        chosen = [name.strip() for name in (options.score or "").split(",") if name.strip()]
        methods, scores = read_methods(options.scores, chosen)
        comparisons = compare_all(methods, scores, options.a, options.b)
        figures = {method.name: {score: method.figure(score) for score in scores} for method in methods}
        if options.out is not None:  # first, because printing can fail
            write_json(options.out, {"methods": figures, "comparisons": [asdict(each) for each in comparisons]})
        for line in report_lines(methods, figures, comparisons):
            print(printable(line))
    except (OSError, ValueError, ImportError) as error:
        return fail(UNUSABLE, error)
    return 0
