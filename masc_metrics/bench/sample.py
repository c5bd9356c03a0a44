"""A sample to score, and the result of scoring it: one row of a sample list, and one row of the table of scores."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

WHICH = ("reference", "generated")
"""The two images of a sample."""

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
        reference_image: file of the image of the subject; empty if no score needs it.
        reference_mask: file of the subject's mask in the reference image; None if concept preservation is not scored.
        prompt: text that the image was generated from; None if prompt following is not scored.
        subject: name of the subject in the prompt; None keeps the prompt as it is.
        method: what generated the image; may be empty. Means are given by method, concept and category.
        concept: the subject's identity; if empty, the reference image stands for it.
        category: any further group.
        key: identifies a sample across methods: samples of several methods with one key are rated together.
        reference_noun: what a segmenter marks in the reference image if ``reference_mask`` is None; may be empty.
        generated_noun: likewise in the generated image.
        error: why the sample cannot be scored; empty if it can, as far as its list shows.
        lacks: why it does not have an input, by column of the input; scores that need others are computed.
        orientation_mask: file of a mask of a generated image without ``generated_mask``; it only decides whether the
            image's EXIF orientation is applied.
        more_references: image and mask files of further references of the subject, after the first.
        extra: cells of the list's other columns, copied into the table of scores.
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
    reference_noun: str = ""
    generated_noun: str = ""
    error: str = ""
    orientation_mask: str | None = None
    more_references: tuple[tuple[str, str | None], ...] = ()
    extra: Mapping[str, str | None] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)

    @property
    def references(self) -> tuple[tuple[str, str | None], ...]:
        """Image and mask files of all references."""
        return ((self.reference_image, self.reference_mask), *self.more_references)

    @property
    def files(self) -> tuple[str, ...]:
        """All files that exist according to the list."""
        files = (self.generated_image, self.generated_mask, *(file for pair in self.references for file in pair))
        return tuple(file for file in files if file)


MEASURES = (
    "reference_coverage",
    "generated_coverage",
    "reference_patches",
    "reference_subject_patches",
    "generated_patches",
    "generated_subject_patches",
)

NUMBERS = (*MEASURES, "mask_confidence", "mask_check", "reference_mask_confidence", "prompt_tokens_cut")
"""Columns of the table of scores that hold numbers, beside the scores."""

_MASK = ("mask_source", "mask_confidence", "mask_check", "reference_mask_source", "reference_mask_confidence")


@dataclass(frozen=True, slots=True)
class SampleResult:
    """Result of scoring one sample.

    Attributes:
        number: the sample's position in its list, from 0.
        scores: scores by name, in the order of the run's. NaN if the masks leave nothing to score; None if the sample
            does not have the input of the score, failed, or was skipped.
        measures: values by name of ``MEASURES``: of both images the attributes of
            :class:`masc_metrics.bench.loading.LoadedImage`; of several references the mean coverage, and the sums.
        concept_scores: concept preservation with every concept of the run's gallery, see
            :class:`masc_metrics.bench.gallery.Gallery`; empty without one.
        mask_source: mask of the generated image: "given", "transferred" or the name of a segmenter; empty without one.
        mask_confidence: confidence of a transferred mask, see :class:`masc_metrics.transfer.TransferredMasks`, or score
            of a segmenter's, see :class:`masc_metrics.segmenters.Segmentation`; None if nothing was found.
        mask_check: how well masks can be transferred with the sample's reference, see
            :func:`masc_metrics.functional.check_transfer`; None without a transferred mask.
        reference_mask_source: as ``mask_source``, of the reference image.
        reference_mask_confidence: as ``mask_confidence``, of the reference image.
        stripped_prompt: text that prompt following embeds; empty if it is not scored.
        prompt_tokens_cut: number of tokens at the end of the prompt that the text tower, or the text network of a
            baseline, did not read; the largest of several. None if no score needs a text.
        left_out: why the sample was skipped by a filter; empty if it was not.
        error: why the sample failed, or lacks some of its scores; empty if it has all.
        noticed: its images that are probably wrong, by what is wrong; see
            :class:`masc_metrics.bench.loading.LoadedImage`.
    """

    number: int
    scores: Mapping[str, float | None]
    measures: Mapping[str, float | None]
    mask_source: str = ""
    mask_confidence: float | None = None
    mask_check: float | None = None
    reference_mask_source: str = ""
    reference_mask_confidence: float | None = None
    stripped_prompt: str = ""
    prompt_tokens_cut: int | None = None
    left_out: str = ""
    error: str = ""
    noticed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    concept_scores: Sequence[float] = ()


def columns(scores: Sequence[str], extra: Iterable[str] = ()) -> tuple[str, ...]:
    """Columns of the table of scores."""
    own = ("sample_id", *GROUPS, *scores, *MEASURES, *_MASK, "stripped_prompt", "prompt_tokens_cut")
    return (*own, "left_out", "error", *COLUMNS, *extra)


def table_row(sample: Sample, result: SampleResult, relative: Callable[[str], str]) -> dict[str, str | float | None]:
    """Row of the table of scores, by column; ``relative`` gives a file relative to the table's folder."""
    files: dict[str, list[str | None]] = {
        "generated_image": [sample.generated_image],
        "generated_mask": [sample.generated_mask],
        "reference_image": [image for image, _ in sample.references],
        "reference_mask": [mask for _, mask in sample.references],
    }
    return {
        **sample.extra,
        "sample_id": sample.sample_id,
        **{name: getattr(sample, name) for name in GROUPS},
        **result.scores,
        **{name: result.measures.get(name) for name in MEASURES},
        **{name: getattr(result, name) for name in _MASK},
        "stripped_prompt": result.stripped_prompt,
        "prompt_tokens_cut": result.prompt_tokens_cut,
        "left_out": result.left_out,
        "error": result.error,
        **{name: _cell([relative(file) for file in each if file]) for name, each in files.items()},
        "prompt": sample.prompt,
        "subject": sample.subject,
    }


def relative_to(folder: Path) -> Callable[[str], str]:
    """A function that names files relative to a folder, as ``os.path.relpath`` does, but computes each folder once."""
    start = os.path.abspath(folder)

    @lru_cache(maxsize=2**16)
    def of_folder(name: str) -> str:
        return os.path.relpath(name or os.curdir, start)

    def relative(file: str) -> str:
        head, name = os.path.split(file)
        if name in ("", os.curdir, os.pardir):
            return os.path.relpath(file, start)
        parent = of_folder(head)
        return name if parent == os.curdir else os.path.join(parent, name)

    return relative


SEPARATOR = ";"
"""Between several files in one cell."""


def _cell(files: Sequence[str]) -> str | None:
    """Several files in one cell: as a JSON list if a name holds the separator."""
    if len(files) > 1 and any(SEPARATOR in file for file in files):
        return json.dumps(files)
    return SEPARATOR.join(files) or None
