"""Summary of a run: means, standard errors and intervals, of all samples and by group; warnings about single rows.

Letters in names: ``N`` samples, ``S`` scores, ``C`` concepts, ``R`` resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masc_metrics.bench.bootstrap import REPLICATES, Numbers, concept_weights, interval
from masc_metrics.bench.sample import Sample, SampleResult
from masc_metrics.bench.sample_list import SampleList
from masc_metrics.bench.tables import text_table
from masc_metrics.prompts import holds_subject

_GROUPINGS = (("method",), ("category",), ("concept",), ("method", "category"))

_SHOWN = 20  # the table of scores has all

_UNDEFINED = {
    "cp": "reference_mask covers no reference patch by more than half",
    "pf": "generated_mask leaves no background patch",
}


def summarize(
    samples: Sequence[Sample], results: Sequence[SampleResult], scores: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Summarize the scores of a run.

    For each score, of all samples and of each group: ``n`` samples with a defined score, their ``mean``, its
    ``standard_error`` (of independent samples: standard deviation over the root of n), the number of ``concepts``, and
    ``interval_95`` of the mean by :mod:`masc_metrics.bench.bootstrap`. ``cp_times_pf`` is the product of the two means.
    None stands for what is undefined: any figure of no sample, a standard error of one sample, an interval of one
    concept.

    Args:
        samples: the sample list.
        results: result of each sample.
        scores: names of the scores.
        seed: random seed of the bootstrap.

    Returns:
        Counts, figures of all samples under ``all``, and of groups under ``by``; JSON-serialisable.
    """
    scored = [
        (sample, [result.scores.get(name) for name in scores])
        for sample, result in zip(samples, results, strict=True)
        if not result.error and not result.left_out
    ]
    values_NS = np.array([values for _, values in scored], dtype=np.float64).reshape(len(scored), len(scores))
    concepts = [sample.concept or sample.reference_image for sample, _ in scored]
    concepts_N = np.unique(np.array(concepts, dtype=object), return_inverse=True)[1]
    by: dict[str, Any] = {}
    for grouping in _GROUPINGS:
        rows_of: dict[str, list[int]] = {}
        for row, (sample, _) in enumerate(scored):
            labels = [concepts[row] if name == "concept" else getattr(sample, name) for name in grouping]
            if all(labels):
                rows_of.setdefault(" / ".join(labels), []).append(row)
        if rows_of:
            by[" / ".join(grouping)] = {
                label: _figures(values_NS[rows], concepts_N[rows], scores, seed)
                for label, rows in sorted(rows_of.items())
            }
    return {
        "samples": len(samples),
        "failed": sum(bool(result.error) for result in results),
        "left_out": sum(bool(result.left_out) for result in results),
        "undefined": {
            name: sum(values[index] is not None and math.isnan(values[index] or 0) for _, values in scored)
            for index, name in enumerate(scores)
        },
        "bootstrap": {"replicates": REPLICATES, "seed": seed, "over": "concepts"},
        "all": _figures(values_NS, concepts_N, scores, seed),
        "by": by,
    }


def _figures(values_NS: Numbers, concepts_N: NDArray[np.intp], scores: Sequence[str], seed: int) -> dict[str, Any]:
    means_RS = _resampled_means(values_NS, concepts_N, seed)
    figures: dict[str, Any] = {}
    for index, name in enumerate(scores):
        defined_N = ~np.isnan(values_NS[:, index])
        column = values_NS[defined_N, index]
        figures[name] = {
            "n": len(column),
            "mean": float(column.mean()) if len(column) else None,
            "standard_error": float(column.std(ddof=1)) / math.sqrt(len(column)) if len(column) > 1 else None,
            "concepts": len(np.unique(concepts_N[defined_N])),
            "interval_95": interval(means_RS[:, index]),
        }
    if {"cp", "pf"} <= set(scores):
        means = [figures[name]["mean"] for name in ("cp", "pf")]
        figures["cp_times_pf"] = {
            "mean": None if None in means else means[0] * means[1],
            "interval_95": interval(means_RS[:, scores.index("cp")] * means_RS[:, scores.index("pf")]),
        }
    return figures


def _resampled_means(values_NS: Numbers, concepts_N: NDArray[np.intp], seed: int) -> Numbers:
    """(R, S) means of resampled concepts; NaN where a resample has no sample with the score."""
    labels, concepts_N = np.unique(concepts_N, return_inverse=True)
    weights_RC = concept_weights(len(labels), REPLICATES, seed)
    defined_NS = ~np.isnan(values_NS)
    sums_CS, counts_CS = np.zeros((len(labels), values_NS.shape[1])), np.zeros((len(labels), values_NS.shape[1]))
    np.add.at(sums_CS, concepts_N, np.where(defined_NS, values_NS, 0))
    np.add.at(counts_CS, concepts_N, defined_NS)
    counts_RS = weights_RC @ counts_CS
    means_RS: Numbers = np.divide(
        weights_RC @ sums_CS, counts_RS, out=np.full(counts_RS.shape, np.nan), where=counts_RS > 0
    )
    return means_RS


def summary_lines(summary: Mapping[str, Any], scores: Sequence[str]) -> list[str]:
    """A line for each score, and with two or more methods a table of methods.

    The table has means with the half width of their 95 % intervals.
    """
    lines = []
    for name in scores:
        figure, undefined = summary["all"][name], summary["undefined"][name]
        mean = f"{figure['mean']:.4f}  mean of {figure['n']} samples" if figure["n"] else "no sample has a score"
        lines.append(f"{name.upper()}  {mean}{f', {undefined} undefined' if undefined else ''}")
    methods: Mapping[str, Any] = summary["by"].get("method", {})
    if len(methods) < 2:
        return lines
    names = [name for name in (*scores, "cp_times_pf") if name in summary["all"]]
    header = ["method", *("CP x PF" if name == "cp_times_pf" else name.upper() for name in names), "samples"]
    rows = [
        [method, *(_cell(figures[name]) for name in names), str(max(figures[name]["n"] for name in scores))]
        for method, figures in methods.items()
    ]
    return [*lines, *text_table([header, *rows])]


def _cell(figure: Mapping[str, Any]) -> str:
    if figure["mean"] is None:
        return "-"
    if figure["interval_95"] is None:
        return f"{figure['mean']:.4f}"
    low, high = figure["interval_95"]
    return f"{figure['mean']:.4f} ±{(high - low) / 2:.4f}"


def row_warnings(samples: SampleList, results: Sequence[SampleResult]) -> list[str]:
    """Lines about rows that failed, are undefined, or whose prompt does not contain its subject."""
    rows = list(zip(samples.samples, results, strict=True))
    problems = [line for sample, result in rows for line in _problems(samples, sample, result)]
    lines = problems[:_SHOWN]
    if len(problems) > _SHOWN:
        lines.append(f"{samples.source}: {len(problems) - _SHOWN} more rows failed or are undefined; see the scores")
    followed = [sample for sample, result in rows if result.scores.get("pf") is not None]
    unstripped = [sample for sample in followed if not holds_subject(sample.prompt or "", sample.subject)]
    if unstripped:
        first = unstripped[0]
        lines.append(
            f"{samples.source}: {len(unstripped)} of {len(followed)} prompts do not contain their subject as separate "
            f"words, so nothing was stripped from them; the first is in line {first.line}: {first.subject!r} in "
            f"{first.prompt!r}"
        )
    return lines


def _problems(samples: SampleList, sample: Sample, result: SampleResult) -> Iterator[str]:
    label = f"{samples.source}, line {sample.line} (sample {sample.sample_id})"
    if result.error:
        yield f"{label}: {result.error}"
    for name, reason in _UNDEFINED.items():
        value = result.scores.get(name)
        if value is not None and math.isnan(value):
            yield f"{label}: {name.upper()} is undefined, because {reason}"
