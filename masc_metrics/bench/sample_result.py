"""Result of scoring one sample: one row of the table of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from masc_metrics.bench.sample import GROUPS, Sample
from masc_metrics.bench.tables import Cells

MEASURES = (
    "reference_coverage",
    "generated_coverage",
    "reference_patches",
    "reference_subject_patches",
    "generated_patches",
    "generated_subject_patches",
)


@dataclass(frozen=True, slots=True)
class SampleResult:
    """Result of scoring one sample.

    Attributes:
        number: the sample's position in its list, from 0.
        scores: scores by name, in the order of the run's. NaN if the masks leave nothing to score; None if the sample
            does not have the input of the score, failed, or was skipped.
        measures: values by name of ``MEASURES``: of both images the attributes of
            :class:`masc_metrics.bench.loading.LoadedImage`.
        stripped_prompt: text that prompt following embeds; empty if it is not scored.
        left_out: why the sample was skipped by a filter; empty if it was not.
        error: why the sample failed; empty if it did not.
    """

    number: int
    scores: Mapping[str, float | None]
    measures: Mapping[str, float | None]
    stripped_prompt: str = ""
    left_out: str = ""
    error: str = ""


def columns(scores: Sequence[str]) -> tuple[str, ...]:
    """Columns of the table of scores."""
    return ("sample_id", *GROUPS, *scores, *MEASURES, "stripped_prompt", "left_out", "error")


def table_row(sample: Sample, result: SampleResult) -> Cells:
    """Row of the table of scores, by column."""
    return {
        "sample_id": sample.sample_id,
        **{name: getattr(sample, name) for name in GROUPS},
        **result.scores,
        **{name: result.measures.get(name) for name in MEASURES},
        "stripped_prompt": result.stripped_prompt,
        "left_out": result.left_out,
        "error": result.error,
    }
