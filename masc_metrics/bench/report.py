"""What a run comes to: means, standard errors and intervals, over all and by group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from masc_metrics.bench.outcome import Outcome
from masc_metrics.bench.sample import Sample

Numbers: TypeAlias = npt.NDArray[np.float64]

REPLICATES = 1000
"""Resamples of the bootstrap."""

GROUPINGS = (("method",), ("category",), ("concept",), ("method", "category"))


class Summary:
    """Collects outcomes one by one; keeps their scores and groups alone.

    Args:
        scores: names of the scores.
        seed: of the bootstrap.
    """

    def __init__(self, scores: Sequence[str], seed: int = 0) -> None:
        self._scores = tuple(scores)
        self._seed = seed
        self._values: list[tuple[float, ...]] = []
        self._groups: list[tuple[str, str, str]] = []  # method, category, concept
        self._interned: dict[str, str] = {}
        self.samples = self.failed = self.left_out = 0
        self.undefined = dict.fromkeys(self._scores, 0)

    def add(self, sample: Sample, outcome: Outcome) -> None:
        """Count one sample in."""
        self.samples += 1
        if outcome.error or outcome.left_out:
            self.failed += bool(outcome.error)
            self.left_out += bool(outcome.left_out)
            return
        values = tuple(outcome.scores.get(name) for name in self._scores)
        for name, value in zip(self._scores, values, strict=True):
            self.undefined[name] += value is not None and math.isnan(value)
        self._values.append(tuple(math.nan if value is None else value for value in values))
        groups = (sample.method, sample.category, sample.concept or sample.reference_image)
        method, category, concept = (self._interned.setdefault(name, name) for name in groups)
        self._groups.append((method, category, concept))

    def mean(self, score: str) -> tuple[float, int]:
        """Mean of a score and the number of samples that have it; NaN and 0 if none has."""
        column = [values[self._scores.index(score)] for values in self._values]
        there = [value for value in column if not math.isnan(value)]
        return (math.fsum(there) / len(there) if there else math.nan), len(there)

    def as_dict(self) -> dict[str, Any]:
        """All figures, ready for JSON.

        For each score of all samples and of each group: ``n`` samples that have it, ``mean``, ``standard_error`` (of
        independent samples: standard deviation over the root of n), ``concepts`` and ``interval_95``, the 2.5th and
        97.5th percentile of the mean under resampling of concepts with replacement, which keeps what samples of one
        concept have in common. ``cp_times_pf`` is the product of the two means. None stands for what is not defined:
        any figure of no sample, a standard error of one, an interval of one concept.
        """
        values_NS = np.array(self._values, dtype=np.float64).reshape(len(self._values), len(self._scores))
        columns = {
            "method": [method for method, _, _ in self._groups],
            "category": [category for _, category, _ in self._groups],
            "concept": [concept for _, _, concept in self._groups],
        }
        concepts = np.unique(np.array(columns["concept"], dtype=object), return_inverse=True)[1]
        groups: dict[str, Any] = {}
        for grouping in GROUPINGS:
            rows_of: dict[str, list[int]] = {}
            for place, labels in enumerate(zip(*(columns[name] for name in grouping), strict=True)):
                if all(labels):
                    rows_of.setdefault(" / ".join(labels), []).append(place)
            if rows_of:
                groups[" / ".join(grouping)] = {
                    label: self._figures(values_NS[rows], concepts[rows]) for label, rows in sorted(rows_of.items())
                }
        return {
            "samples": self.samples,
            "failed": self.failed,
            "left_out": self.left_out,
            "undefined": self.undefined,
            "bootstrap": {"replicates": REPLICATES, "seed": self._seed, "over": "concepts"},
            "all": self._figures(values_NS, concepts),
            "by": groups,
        }

    def _figures(self, values_NS: Numbers, concepts_N: npt.NDArray[np.intp]) -> dict[str, Any]:
        labels, concepts_N = np.unique(concepts_N, return_inverse=True)
        means_RS = _resampled_means(values_NS, concepts_N, len(labels), self._seed)
        figures: dict[str, Any] = {}
        for place, name in enumerate(self._scores):
            there_N = ~np.isnan(values_NS[:, place])
            column = values_NS[there_N, place]
            spread = float(column.std(ddof=1)) / math.sqrt(len(column)) if len(column) > 1 else None
            figures[name] = {
                "n": len(column),
                "mean": float(column.mean()) if len(column) else None,
                "standard_error": spread,
                "concepts": len(np.unique(concepts_N[there_N])),
                "interval_95": _interval(means_RS[:, place]),
            }
        if {"cp", "pf"} <= set(self._scores):
            cp, pf = (self._scores.index(name) for name in ("cp", "pf"))
            means = [figures[name]["mean"] for name in ("cp", "pf")]
            figures["cp_times_pf"] = {
                "mean": None if None in means else means[0] * means[1],
                "interval_95": _interval(means_RS[:, cp] * means_RS[:, pf]),
            }
        return figures


def _resampled_means(values_NS: Numbers, concepts_N: npt.NDArray[np.intp], concepts: int, seed: int) -> Numbers:
    """(R, S) means of R resamples of the concepts, NaN where a resample has none of a score."""
    if concepts < 2:
        return np.full((1, values_NS.shape[1]), np.nan)
    there_NS = ~np.isnan(values_NS)
    sums_CS, counts_CS = np.zeros((concepts, values_NS.shape[1])), np.zeros((concepts, values_NS.shape[1]))
    np.add.at(sums_CS, concepts_N, np.where(there_NS, values_NS, 0))
    np.add.at(counts_CS, concepts_N, there_NS)
    dice = np.random.default_rng(seed)
    weights_RC = dice.multinomial(concepts, np.full(concepts, 1 / concepts), size=REPLICATES).astype(np.float64)
    counts_RS = weights_RC @ counts_CS
    means_RS: Numbers = np.divide(
        weights_RC @ sums_CS, counts_RS, out=np.full(counts_RS.shape, np.nan), where=counts_RS > 0
    )
    return means_RS


def _interval(means_R: Numbers) -> list[float] | None:
    there = means_R[~np.isnan(means_R)]
    return None if len(there) == 0 else [float(bound) for bound in np.percentile(there, (2.5, 97.5))]


def mean_lines(summary: Summary, scores: Iterable[str]) -> list[str]:
    """A line for each score: its mean, and how many samples it is of."""
    lines = []
    for name in scores:
        mean, count = summary.mean(name)
        undefined = f", {summary.undefined[name]} undefined" if summary.undefined[name] else ""
        said = f"{mean:.4f}  mean of {count} samples" if count else "no sample scored"
        lines.append(f"{name.upper()}  {said}{undefined}")
    return lines


def method_lines(figures: Mapping[str, Any], scores: Sequence[str]) -> list[str]:
    """A table with a line for each method: means with the half width of their 95 % intervals; empty below two."""
    methods: Mapping[str, Any] = figures["by"].get("method", {})
    if len(methods) < 2:
        return []
    names = [name for name in (*scores, "cp_times_pf") if name in figures["all"]]
    width = max(len("method"), *map(len, methods))
    lines = ["  ".join([f"{'method':{width}}", *(f"{_title(name):>15}" for name in names), f"{'samples':>7}"])]
    for method, figure in methods.items():
        count = max(figure[name]["n"] for name in scores)
        lines.append("  ".join([f"{method:{width}}", *(f"{_cell(figure[name]):>15}" for name in names), f"{count:7}"]))
    return lines


def _title(name: str) -> str:
    return "CP x PF" if name == "cp_times_pf" else name.upper()


def _cell(figure: Mapping[str, Any]) -> str:
    if figure["mean"] is None:
        return "-"
    if figure["interval_95"] is None:
        return f"{figure['mean']:.4f}"
    low, high = figure["interval_95"]
    return f"{figure['mean']:.4f} ±{(high - low) / 2:.4f}"
