"""Warnings about single rows at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from masc_metrics.bench.sample import Sample
from masc_metrics.bench.sample_list import SampleList
from masc_metrics.bench.sample_result import SampleResult
from masc_metrics.prompts import holds_subject

_SHOWN = 20  # the table of scores has all

_UNDEFINED = {
    "cp": "reference_mask covers no reference patch by more than half",
    "pf": "generated_mask leaves no background patch",
}


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
