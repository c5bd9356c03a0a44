"""One sample to score: its image files, its texts and the groups that it is averaged in."""

from __future__ import annotations

from dataclasses import dataclass

FILES = ("generated_image", "generated_mask", "reference_image", "reference_mask")

COLUMNS = (*FILES, "prompt", "subject")
"""Columns of a sample list that describe a sample."""

GROUPS = ("method", "concept", "category", "key")
"""Optional columns of a sample list, copied into the table of scores."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a sample list, or one pair of a benchmark.

    Attributes:
        line: line of its list on which it begins, from 1; without a list, its position from 1.
        sample_id: unique id; without a column of ids, its position from 1.
        generated_image: file of the generated image. Files are strings, since a Path takes a kilobyte.
        generated_mask: file of the subject's mask in the generated image; None if prompt following is not scored.
        reference_image: file of the image of the subject.
        reference_mask: file of the subject's mask in the reference image; None if concept preservation is not scored.
        prompt: text that the image was generated from; None if prompt following is not scored.
        subject: name of the subject in the prompt; None keeps the prompt as it is.
        method: what generated the image; may be empty. Means are given by method, concept and category.
        concept: the subject's identity; if empty, the reference image stands for it.
        category: any further group.
        key: identifies a sample across methods: samples of several methods with one key are rated together.
        error: why the sample cannot be scored; empty if it can, as far as its list shows.
    """

    line: int
    sample_id: str
    generated_image: str
    generated_mask: str | None
    reference_image: str
    reference_mask: str | None
    prompt: str | None
    subject: str | None
    method: str = ""
    concept: str = ""
    category: str = ""
    key: str = ""
    error: str = ""
