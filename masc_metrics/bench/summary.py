"""Summary of a run: means, standard errors and intervals, of all samples and by group; warnings about single rows.

Letters in names: ``N`` samples, ``S`` scores, ``C`` concepts, ``R`` resamples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masc_metrics.bench.run import BASELINES, CP_COLUMNS, PF_COLUMNS
from masc_metrics.bench.sample import WHICH, Sample, SampleResult
from masc_metrics.bench.sample_list import SampleList
from masc_metrics.bench.tables import LONGEST_QUOTE, quoted, text_table
from masc_metrics.intervals import (
    CONFIDENCE,
    COSINES,
    ONE_CONCEPT,
    UNLIMITED,
    Limits,
    Numbers,
    mean,
    product,
    unit_means,
)
from masc_metrics.prompts import holds_subject
from masc_metrics.segmenters.segmenter import ALMOST_FULL
from masc_metrics.transfer import TRUSTED_IOU

_GROUPINGS = (("method",), ("category",), ("concept",), ("method", "category"))

_SHOWN = 20  # the table of scores has all

_SHOWN_DIFFERENCE = 1e-4  # figures have four decimals

_UNPOOLED = {
    "background": "generated_mask leaves no background patch",
    "foreground": "generated_mask covers no patch by at least half",
}

_UNDEFINED = {
    "cp": "reference_mask covers no reference patch by more than half",
    "cp_weighted": "reference_mask covers no reference patch",
    "cp_mutual_recall": "no mutual pair of nearest patches begins in the reference's subject",
} | {column: _UNPOOLED[pooling] for column, (pooling, _) in PF_COLUMNS.items() if pooling in _UNPOOLED}

_NOTICED = {
    "orientation": (
        "orientation_undecided",
        "images of uncertain orientation: {}; only one of image and mask has an EXIF orientation, and they fit with "
        "and without it; it was not applied; if they are not aligned, save both without it",
    ),
    "one_colour": (
        "one_colour",
        "{} generated images have one colour, as a safety checker's black images do; their scores count in the means",
    ),
    "inverted_mask": (
        "inverted_masks",
        "the masks of {} images cover most of the image and almost all of its border, as inverted masks do; 255 marks "
        "the subject",
    ),
    "several_pictures": (
        "several_pictures",
        "the files of {} images, or of their masks, hold several pictures, as animations and files of several pages "
        "do; the first picture was taken",
    ),
}
"""For what is noticed in images: its name in the summary, and the warning."""

_STRIPPED = [column for column, (_, prompt) in PF_COLUMNS.items() if prompt == "stripped"]


def summarize(samples: Sequence[Sample], results: Sequence[SampleResult], scores: Sequence[str]) -> dict[str, Any]:
    """Summarize the scores of a run.

    For each score, of all samples and of each group: ``n`` samples with a defined score, the number of ``concepts``,
    the ``mean``, in which every concept counts equally, its ``standard_error`` and ``interval_95`` by
    :mod:`masc_metrics.intervals`, and ``interval_over``: several "concepts", or the samples of "this concept
    only". ``cp_times_pf`` is the product of the two means. None stands for what is undefined: any figure of no sample,
    an interval of a single concept with a single sample.

    Args:
        samples: the sample list.
        results: result of each sample.
        scores: names of the scores.

    Returns:
        Counts, figures of all samples under ``all``, and of groups under ``by``; JSON-serialisable.
    """
    scored = [
        (sample, [result.scores.get(name) for name in scores])
        for sample, result in zip(samples, results, strict=True)
        if not result.left_out and (not result.error or _has_score(result))
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
                label: _figures(values_NS[rows], concepts_N[rows], scores) for label, rows in sorted(rows_of.items())
            }
    return {
        "samples": len(samples),
        "failed": sum(bool(result.error) for result in results),
        "failed_in_part": sum(bool(result.error) and _has_score(result) for result in results),
        "left_out": sum(bool(result.left_out) for result in results),
        "masks": {which: _mask_counts(results, which) for which in WHICH},
        "prompts_cut": sum(bool(result.prompt_tokens_cut) for result in results),
        **{_NOTICED[kind][0]: len(_noticed(results, kind)) for kind in _NOTICED},
        "undefined": {
            name: sum(values[index] is not None and math.isnan(values[index] or 0) for _, values in scored)
            for index, name in enumerate(scores)
        },
        "interval": {"confidence": CONFIDENCE, "method": "Student's t on the means of concepts"},
        "all": _figures(values_NS, concepts_N, scores),
        "by": by,
    }


def _has_score(result: SampleResult) -> bool:
    return any(value is not None for value in result.scores.values())


def _figures(values_NS: Numbers, concepts_N: NDArray[np.intp], scores: Sequence[str]) -> dict[str, Any]:
    figures = {name: mean_figure(values_NS[:, index], concepts_N, limits_of(name)) for index, name in enumerate(scores)}
    if {"cp", "pf"} <= set(scores):
        figures["cp_times_pf"] = product_figure(values_NS[:, [scores.index("cp"), scores.index("pf")]], concepts_N)
    return figures


def product_figure(values_N2: Numbers, concepts_N: NDArray[Any]) -> dict[str, Any]:
    """Product of the means of CP and PF with its interval, and what it is over; see :func:`summarize`.

    Args:
        values_N2: both scores, NaN where undefined.
        concepts_N: the concept of each sample.
    """
    units_U2, over = unit_means(values_N2, concepts_N)
    estimate = product(units_U2, COSINES)
    return {"mean": estimate.value, "interval_95": estimate.interval, "interval_over": over}


def limits_of(score: str) -> Limits:
    """Range of a score; what functions of the user's return is not limited."""
    return COSINES if score in (*CP_COLUMNS, *PF_COLUMNS, *BASELINES) else UNLIMITED


def mean_figure(values_N: Numbers, concepts_N: NDArray[Any], limits: Limits = UNLIMITED) -> dict[str, Any]:
    """Mean of a score over concepts with its interval, and what it is over; see :func:`summarize`.

    Args:
        values_N: scores, NaN where undefined.
        concepts_N: the concept of each sample.
        limits: range of the score.
    """
    units_US, over = unit_means(values_N[:, None], concepts_N)
    estimate = mean(units_US[:, 0], limits)
    defined_N = ~np.isnan(values_N)
    return {
        "n": int(defined_N.sum()),
        "mean": estimate.value,
        "standard_error": estimate.standard_error,
        "concepts": len(np.unique(concepts_N[defined_N])),
        "interval_95": estimate.interval,
        "interval_over": over,
    }


def summary_lines(summary: Mapping[str, Any], scores: Sequence[str]) -> list[str]:
    """A line for each score, and with two or more methods a table of methods: means with their 95 % intervals."""
    lines = []
    for name in scores:
        figure, undefined = summary["all"][name], summary["undefined"][name]
        over = f"{figure['concepts']} concepts"
        if figure["interval_over"] == ONE_CONCEPT:
            over = f"1 concept{f'; the interval holds for {ONE_CONCEPT}' if figure['interval_95'] else ''}"
        counts = f"{figure['n']} samples of {over}" if figure["n"] else "no sample has a score"
        lines.append(f"{name.upper()}  {mean_cell(figure)}  {counts}{f'; {undefined} undefined' if undefined else ''}")
    methods: Mapping[str, Any] = summary["by"].get("method", {})
    if len(methods) < 2:
        return lines
    names = [name for name in (*scores, "cp_times_pf") if name in summary["all"]]
    header = ["method", *("CP x PF" if name == "cp_times_pf" else name.upper() for name in names), "samples"]
    rows = [
        [method, *(mean_cell(figures[name]) for name in names), str(max(figures[name]["n"] for name in scores))]
        for method, figures in methods.items()
    ]
    return [*lines, *text_table([header, *rows])]


def mean_cell(figure: Mapping[str, Any]) -> str:
    """A mean with the half width of its interval, or with both ends if one is a limit of the score's range."""
    if figure["mean"] is None:
        return "-"
    return f"{figure['mean']:.4f} {interval_text(figure)}".rstrip()


def interval_text(figure: Mapping[str, Any], digits: int = 4) -> str:
    """Half width of an interval, or both of its ends if one is a limit of the score's range; empty if it has none."""
    if figure["interval_95"] is None:
        return ""
    mean, (low, high) = figure["mean"], figure["interval_95"]
    if not math.isclose(high - mean, mean - low, abs_tol=_SHOWN_DIFFERENCE):
        return f"[{low:.{digits}f}, {high:.{digits}f}]"
    return f"±{(high - low) / 2:.{digits}f}"


def row_warnings(samples: SampleList, results: Sequence[SampleResult]) -> list[str]:
    """Lines about rows that failed, are undefined, or need a look at their prompt or their images' orientation."""
    rows = list(zip(samples.samples, results, strict=True))
    problems = [line for sample, result in rows for line in _problems(samples, sample, result)]
    lines = problems[:_SHOWN]
    if len(problems) > _SHOWN:
        lines.append(f"{samples.source}: {len(problems) - _SHOWN} more rows failed or are undefined; see the scores")
    followed = [sample for sample, result in rows if any(result.scores.get(column) is not None for column in _STRIPPED)]
    without = sum(not (sample.subject or "").strip() for sample in followed)
    if without:
        lines.append(
            f"{samples.source}: {without} of {len(followed)} samples have no subject, so nothing was stripped from "
            "their prompts"
        )
    unstripped = [sample for sample in followed if not holds_subject(sample.prompt or "", sample.subject)]
    if unstripped:
        first = unstripped[0]
        lines.append(
            f"{samples.source}: {len(unstripped)} of {len(followed)} prompts do not contain their subject as separate "
            f"words, so nothing was stripped from them; spell it as in the prompt; the first is in line {first.line}: "
            f"{quoted(first.subject)} in {quoted(first.prompt)}"
        )
    if cut := [(sample, result) for sample, result in rows if result.prompt_tokens_cut]:
        first, most = max(cut, key=lambda row: row[1].prompt_tokens_cut or 0)
        lines.append(
            f"{samples.source}: prompts whose end is ignored: {len(cut)}; they have more tokens than a text network "
            f"reads (SigLIP2 64, CLIP 77); most in line {first.line}, {most.prompt_tokens_cut} tokens too many; see "
            "the column prompt_tokens_cut"
        )
    lines += _mask_warnings(samples, results)
    for kind, (_, text) in _NOTICED.items():
        if files := _noticed(results, kind):
            lines.append(f"{samples.source}: {text.format(len(files))}; the first is {files[0]}")
    return lines


def _mask_warnings(samples: SampleList, results: Sequence[SampleResult]) -> Iterator[str]:
    rows = list(zip(samples.samples, results, strict=True))
    for which in WHICH:
        yield from _empty_mask_warnings(samples, rows, which)
        by_source: dict[str, list[tuple[Sample, SampleResult]]] = {}
        for row in rows:
            by_source.setdefault(_mask_source(row[1], which), []).append(row)
        given = len(by_source.pop("given", ()))
        mixed = f", {given} have given ones; compare only samples of one kind" if given else ""
        for source, made in by_source.items():
            if source == "transferred":
                yield (
                    f"{samples.source}: {len(made)} samples have masks transferred from their references, which is not "
                    f"the paper's protocol{mixed}"
                )
                yield from _transfer_warnings(samples, made)
            elif source:
                yield f"{samples.source}: {len(made)} samples have {which} masks made by {source}{mixed}"
                if full := sum((result.measures[f"{which}_coverage"] or 0) > ALMOST_FULL for _, result in made):
                    share = f"{ALMOST_FULL * 100:.0f} %"
                    yield (
                        f"{samples.source}: {full} of them have a mask over more than {share} of the image; "
                        "masc-metrics masks draws such masks"
                    )


def _empty_mask_warnings(samples: SampleList, rows: Sequence[tuple[Sample, SampleResult]], which: str) -> Iterator[str]:
    used = (
        [column for column in PF_COLUMNS if PF_COLUMNS[column][0] == "background"] if which == "generated" else ["cp"]
    )
    empty = [
        (sample, result)
        for sample, result in rows
        if _is_empty(result, which)
        and (result.left_out or any(result.scores.get(column) is not None for column in used))
    ]
    if not empty:
        return
    skipped = sum(bool(result.left_out) for _, result in empty)
    effect = "their CP is undefined" if which == "reference" else "their PF is that of the complete image"
    so = "they are skipped" if skipped == len(empty) else effect
    others = f" ({skipped} are skipped instead)" if 0 < skipped < len(empty) else ""
    yield (
        f"{samples.source}: the {which} masks of {len(empty)} samples mark "
        f"nothing, so {so}{others}; the first is sample {empty[0][0].sample_id}, line {empty[0][0].line}"
    )


def _transfer_warnings(samples: SampleList, made: Sequence[tuple[Sample, SampleResult]]) -> Iterator[str]:
    low = {
        sample.reference_image: result.mask_check
        for sample, result in made
        if result.mask_check is not None and result.mask_check < TRUSTED_IOU
    }
    if low:
        first, check = next(iter(low.items()))
        yield (
            f"{samples.source}: masks transferred from {len(low)} references are unreliable (mask_check below "
            f"{TRUSTED_IOU}); give masks; the first is {first}, {check:.2f}"
        )


def _mask_source(result: SampleResult, which: str) -> str:
    return result.reference_mask_source if which == "reference" else result.mask_source


def _is_empty(result: SampleResult, which: str) -> bool:
    """Whether a mask marks nothing."""
    return bool(_mask_source(result, which)) and result.measures.get(f"{which}_coverage") == 0


def _mask_counts(results: Sequence[SampleResult], which: str) -> dict[str, int]:
    """Number of samples by the source of a mask, and of those whose mask marks nothing."""
    sources = Counter(source for result in results if (source := _mask_source(result, which)))
    return {**dict(sorted(sources.items())), "empty": sum(_is_empty(result, which) for result in results)}


def _noticed(results: Sequence[SampleResult], kind: str) -> list[str]:
    return list(dict.fromkeys(file for result in results for file in result.noticed.get(kind, ())))


def _problems(samples: SampleList, sample: Sample, result: SampleResult) -> Iterator[str]:
    label = f"{samples.source}, line {sample.line} (sample {sample.sample_id[:LONGEST_QUOTE]})"
    if result.error:
        yield f"{label}: {result.error}"
    for name, value in result.scores.items():
        if value is not None and math.isnan(value):
            yield f"{label}: {name.upper()} is undefined, because {_UNDEFINED.get(name, 'its function gave NaN')}"
