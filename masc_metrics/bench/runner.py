"""Scores for a sample list, row by row; a bad row is reported and the rest goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from masc_metrics.backbone import DEFAULT_ENCODE_BATCH_SIZE, SigLIP2Backbone
from masc_metrics.bench.samples import COLUMNS, Sample, open_picture
from masc_metrics.functional import concept_preservation, prompt_following
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.prompts import strip_subject


@dataclass(frozen=True, slots=True)
class Scored:
    """One sample's outcome.

    Attributes:
        sample: the row.
        cp: concept preservation; NaN if undefined, None if the row failed.
        pf: prompt following; likewise.
        stripped_prompt: the text that was embedded; empty if the row failed.
        error: why it failed; empty if it did not.
    """

    sample: Sample
    cp: float | None
    pf: float | None
    stripped_prompt: str
    error: str


Pictures = tuple[Image.Image, Image.Image, Image.Image, Image.Image]


def score_samples(
    samples: Sequence[Sample],
    backbone: SigLIP2Backbone,
    *,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
) -> Iterator[Scored]:
    """Score samples a batch at a time, in order.

    Args:
        samples: from :func:`masc_metrics.bench.samples.read_samples`.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        batch_size: samples read, encoded and scored at a time.

    Yields:
        One outcome a sample. Input that cannot be scored becomes the outcome's error; anything else, such as too
        little memory, is raised.
    """
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        outcomes: dict[int, Scored] = {}
        readable: list[tuple[Sample, Pictures]] = []
        for sample in batch:
            try:
                if sample.error:
                    raise ValueError(sample.error)
                readable.append((sample, _open(sample)))
            except (OSError, ValueError) as error:
                outcomes[sample.line] = _failed(sample, str(error))
        for outcome in _score(readable, backbone, max_num_patches, batch_size):
            outcomes[outcome.sample.line] = outcome
        yield from (outcomes[sample.line] for sample in batch)


def _failed(sample: Sample, error: str) -> Scored:
    return Scored(sample, None, None, "", error)


def _open(sample: Sample) -> Pictures:
    generated, mask, reference, reference_mask = (
        open_picture(getattr(sample, column), column) for column in COLUMNS[:4]
    )
    return generated, mask, reference, reference_mask


def _in_columns(error: str, sample: Sample) -> str:
    """An error about arguments, which are the columns' plurals, in terms of the row: its columns and files."""

    def column(match: re.Match[str]) -> str:
        value = getattr(sample, match[1])
        return f"{match[1]} {value}" if isinstance(value, Path) else match[1]

    return re.sub(rf"\b({'|'.join(COLUMNS)})s\[0\]", column, error)


def _score(
    readable: list[tuple[Sample, Pictures]], backbone: SigLIP2Backbone, max_num_patches: int, batch_size: int
) -> list[Scored]:
    if not readable:
        return []
    generated, masks, references, reference_masks = (
        list(column) for column in zip(*(pictures for _, pictures in readable), strict=True)
    )
    try:
        pf = prompt_following(
            generated,
            masks,
            [sample.prompt for sample, _ in readable],
            [sample.subject for sample, _ in readable],
            backbone=backbone,
            max_num_patches=max_num_patches,
            encode_batch_size=batch_size,
        )
        cp = concept_preservation(
            generated,
            references,
            reference_masks,
            backbone=backbone,
            max_num_patches=max_num_patches,
            encode_batch_size=batch_size,
        )
    except (TypeError, ValueError) as error:
        if len(readable) > 1:  # one of them is bad: alone, each speaks for itself
            return [outcome for one in readable for outcome in _score([one], backbone, max_num_patches, batch_size)]
        sample = readable[0][0]
        return [_failed(sample, _in_columns(str(error), sample))]
    return [
        Scored(sample, cp_score, pf_score, strip_subject(sample.prompt, sample.subject), "")
        for (sample, _), cp_score, pf_score in zip(readable, cp.tolist(), pf.tolist(), strict=True)
    ]
