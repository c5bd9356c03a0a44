"""One thing to score: its files, its words and the groups that it counts in."""

from __future__ import annotations

from dataclasses import dataclass

FILES = ("generated_image", "generated_mask", "reference_image", "reference_mask")

COLUMNS = (*FILES, "prompt", "subject")
"""What a list says of a sample."""

GROUPS = ("method", "concept", "category", "key")
"""What a list may say besides, and a score file repeats."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a sample list, or one pair of a benchmark.

    Attributes:
        line: where it stands in its list, counted from 1: the line of a file on which it begins.
        sample_id: its own id, else its number, counted from 1.
        generated_image: file of the generated image. Files are strings, since a Path takes a kilobyte.
        generated_mask: file of the subject's mask in it; None where no prompt following is asked for.
        reference_image: file of the subject's picture.
        reference_mask: file of the subject's mask in it; None where no concept preservation is asked for.
        prompt: the text that it was generated from; None where no prompt following is asked for.
        subject: the subject's name in the prompt; None keeps the prompt.
        method: what generated it; empty if nothing is said. Means are given by method, concept and category.
        concept: whose subject it shows; empty for the reference image itself.
        category: any further group.
        key: what methods have in common: samples of several methods with one key are rated together.
        error: why it cannot be scored; empty if nothing is known against it.
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
