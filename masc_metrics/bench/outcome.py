"""What became of a sample: one row of a score file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from masc_metrics.bench.sample import GROUPS, Sample

MEASURES = (
    "reference_coverage",
    "generated_coverage",
    "reference_patches",
    "reference_subject_patches",
    "generated_patches",
    "generated_subject_patches",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One sample's outcome.

    Attributes:
        number: its place in the sample list, from 0.
        scores: by name, in the order asked for. NaN if the masks leave nothing to score, None if there is no score:
            it was not asked of this sample, or the sample failed or was left out.
        measures: see :class:`masc_metrics.bench.pictures.Picture`, for both images, under the names of ``MEASURES``.
        stripped_prompt: the text that prompt following embeds; empty if it was not asked for.
        left_out: why a filter took it out; empty if none did.
        error: why it failed; empty if it did not.
    """

    number: int
    scores: Mapping[str, float | None]
    measures: Mapping[str, float | None]
    stripped_prompt: str = ""
    left_out: str = ""
    error: str = ""


def header(scores: Sequence[str]) -> tuple[str, ...]:
    """Columns of a score file."""
    return ("sample_id", *GROUPS, *scores, *MEASURES, "stripped_prompt", "left_out", "error")


def row(sample: Sample, outcome: Outcome) -> dict[str, str | float | None]:
    """A score file's row, by column."""
    said: dict[str, str | float | None] = {"sample_id": sample.sample_id}
    said |= {name: getattr(sample, name) for name in GROUPS}
    said |= outcome.scores
    said |= {name: outcome.measures.get(name) for name in MEASURES}
    return said | {
        "stripped_prompt": outcome.stripped_prompt,
        "left_out": outcome.left_out,
        "error": outcome.error,
    }
