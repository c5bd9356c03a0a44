"""ORIDa on disk: pairs of photographs of one subject, or of two, in front of different backgrounds.

::

    ROOT/train/<subject>/factual_only/images/<stem>.jpg           annotations/masks/<stem>_mask.jpg
    ROOT/train/<subject>/factual_counterfactual/<scene>/images/<stem>.jpg and annotations/masks/ likewise

A scene is the second part of a stem split at ``_``. Its last character is the camera angle, the rest the background. In
``factual_counterfactual``, images whose stem ends in ``_1`` show the object, those that end in ``_0`` do not. Images
may also be .jpeg or .png, in upper or lower case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

import numpy as np

from masc_metrics.arguments import check_choice, check_positive
from masc_metrics.bench.agreement.statistics import auc
from masc_metrics.bench.loading import open_image
from masc_metrics.bench.sample import Sample
from masc_metrics.bench.tables import LONGEST_QUOTE, read_rows

MIN_COVERAGE = 0.005
"""A mask with at most this share of non-zero pixels counts as empty."""

SAME, CROSS = "same", "cross"
"""Categories of the pairs: of one subject, and of two."""

_LAYOUT = (
    "give the folder that holds ORIDa's train/, or train/ itself, with <subject>/factual_only/images/<stem>.jpg and "
    "<subject>/factual_only/annotations/masks/<stem>_mask.jpg"
)


@dataclass(frozen=True, slots=True)
class Orida:
    """The protocol's pairs.

    Attributes:
        samples: pairs of one subject, then pairs of two.
        skipped: a line for each subject with too few backgrounds, with the faults of the others.
        notes: deviations from the protocol, such as too few subjects.
    """

    samples: tuple[Sample, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SameAgainstCross:
    """How well a score separates pairs of one subject from pairs of two.

    Attributes:
        auc: probability that a pair of one subject has the higher score, ties counted half, in [0, 1]; NaN if one
            category has fewer than two scores.
        same: number of scored pairs of one subject.
        cross: number of scored pairs of two subjects.
        left_out: number of pairs without a defined score.
        same_mean: mean score of pairs of one subject; NaN without any.
        same_deviation: their standard deviation; NaN for fewer than two.
        cross_mean: mean score of pairs of two subjects; NaN without any.
        cross_deviation: their standard deviation; NaN for fewer than two.
        difference: ``same_mean`` minus ``cross_mean``.
        scaled_difference: the same after scaling all scores to [0, 1]; NaN if they are all equal.
    """

    auc: float
    same: int
    cross: int
    left_out: int
    same_mean: float
    same_deviation: float
    cross_mean: float
    cross_deviation: float
    difference: float
    scaled_difference: float


def read_orida(
    root: Path, *, subjects: int = 50, backgrounds: int = 10, cross_pairs: int | None = None, seed: int = 0
) -> Orida:
    r"""Build the protocol's pairs; the defaults are the paper's.

    Subjects are in numeric order. For each background, the first image by name in ``factual_only`` is used, unless its
    mask is missing or empty (see ``MIN_COVERAGE``). Else the first scene by name of that background in
    ``factual_counterfactual`` is used: its image ``00<subject, 3 digits>_<scene>_1.jpg``, or else its first one that
    ends in ``_1``, under the same condition. A subject with fewer than ``backgrounds`` is skipped; of more, the first
    by name are used.

    Pairs of one subject are all (i < j) of its images, 2250 = 50 x 45; the earlier image, with its mask, is the
    reference. Pairs of two are drawn from all (a < b, i of a, j of b), nested in that order, 122 500 in full, by
    ``np.random.default_rng(seed).choice(n, size=cross_pairs, replace=False)``, and keep the order drawn. If there are
    fewer than ``cross_pairs``, all are used, in their own order.

    A sample has "same" or "cross" as category, the reference's subject as concept, and the id
    ``same/<subject>/<i>-<j>`` or ``cross/<a>.<i>/<b>.<j>``, with positions from 0. It has no prompt, and the
    generated image's mask only decides about the image's EXIF orientation.

    Args:
        root: folder that holds ``train``, or ``train`` itself.
        subjects: largest number of subjects.
        backgrounds: images per subject.
        cross_pairs: pairs of two subjects; None for as many as there are pairs of one.
        seed: random seed of the draw.

    Raises:
        FileNotFoundError: if there are no folders of subjects.
        OSError: if a folder cannot be read.
        TypeError: if a number is not an integer.
        ValueError: if a number is below 1, or no subject has enough backgrounds.

    Source: MaSC, arXiv 2605.22469, on the train split of ORIDa.
    """
    for name, value in (("subjects", subjects), ("backgrounds", backgrounds), ("cross_pairs", cross_pairs)):
        if value is not None:
            check_positive(name, value)
    train = root / "train" if (root / "train").is_dir() else root
    folders = [entry for entry in _entries(train) if entry.name.isdecimal() and entry.is_dir()]
    if not folders:
        raise FileNotFoundError(f"{train} holds no folders of numbered subjects; {_LAYOUT}")
    chosen: list[tuple[str, list[Path]]] = []  # subjects, each with its images
    skipped: list[str] = []
    for folder in sorted(folders, key=lambda folder: (int(folder.name), folder.name)):
        if len(chosen) == subjects:
            break
        images, faults = _images_of(folder, backgrounds)
        if len(images) == backgrounds:
            chosen.append((folder.name, images))
        else:
            skipped.append("; ".join([f"{folder}: {len(images)} of {backgrounds} backgrounds", *faults]))
    if not chosen:
        raise ValueError(f"no subject of {train} has {backgrounds} backgrounds (first {skipped[0]}); {_LAYOUT}")
    notes = [] if len(chosen) == subjects else [f"{len(chosen)} of {subjects} subjects have enough backgrounds"]
    same = [(a, a, i, j) for a in range(len(chosen)) for i, j in combinations(range(backgrounds), 2)]
    cross = [
        (a, b, i, j) for a, b in combinations(range(len(chosen)), 2) for i, j in product(range(backgrounds), repeat=2)
    ]
    if cross_pairs is None:
        cross_pairs = len(same)
    if len(cross) < cross_pairs:
        notes.append(f"all {len(cross)} pairs of two subjects are used, since there are fewer than {cross_pairs}")
    else:
        drawn = np.random.default_rng(seed).choice(len(cross), size=cross_pairs, replace=False)
        cross = [cross[index] for index in drawn.tolist()]
    samples = []
    for line, (a, b, i, j) in enumerate([*same, *cross], start=1):
        (concept, references), (other, generated) = chosen[a], chosen[b]
        sample = Sample(
            line=line,
            sample_id=f"{SAME}/{concept}/{i}-{j}" if a == b else f"{CROSS}/{concept}.{i}/{other}.{j}",
            generated_image=str(generated[j]),
            generated_mask=None,
            orientation_mask=str(_mask_of(generated[j])),
            reference_image=str(references[i]),
            reference_mask=str(_mask_of(references[i])),
            prompt=None,
            subject=None,
            concept=concept,
            category=SAME if a == b else CROSS,
        )
        samples.append(sample)
    return Orida(tuple(samples), tuple(skipped), tuple(notes))


def same_against_cross(table: Path, score: str) -> SameAgainstCross:
    """AUC of pairs of one subject against pairs of two.

    Args:
        table: table of scores of the pairs, with the columns ``category`` ("same" or "cross") and the score.
        score: name of the score.

    Raises:
        OSError: if the table cannot be read.
        ValueError: if it lacks a column, or has another category.
    """
    scores: dict[str, list[float]] = {SAME: [], CROSS: []}
    for row in read_rows(table, ("category", score)):
        category = row.cells["category"] or ""
        check_choice(f"{table}, line {row.line}: category", category[:LONGEST_QUOTE], (SAME, CROSS))
        scores[category].append(float(row.cells[score] or "nan"))
    same, cross = (np.array([value for value in values if not math.isnan(value)]) for values in scores.values())
    same_mean, cross_mean = (float(side.mean()) if len(side) else math.nan for side in (same, cross))
    same_deviation, cross_deviation = (float(side.std(ddof=1)) if len(side) > 1 else math.nan for side in (same, cross))
    spread = float(np.ptp([*same, *cross])) if len(same) + len(cross) else 0.0
    return SameAgainstCross(
        auc=auc(same, cross),
        same=len(same),
        cross=len(cross),
        left_out=sum(map(len, scores.values())) - len(same) - len(cross),
        same_mean=same_mean,
        same_deviation=same_deviation,
        cross_mean=cross_mean,
        cross_deviation=cross_deviation,
        difference=same_mean - cross_mean,
        scaled_difference=(same_mean - cross_mean) / spread if spread else math.nan,
    )


def _images_of(subject: Path, wanted: int) -> tuple[list[Path], list[str]]:
    """Images of the first backgrounds, and the faults of backgrounds without a usable image."""
    factual: dict[str, Path] = {}
    for image in _images(subject / "factual_only"):
        parts = image.stem.split("_")
        if len(parts) > 1 and len(parts[1]) > 1:
            factual.setdefault(parts[1][:-1], image)
    scenes: dict[str, Path] = {}
    for folder in _entries(subject / "factual_counterfactual"):
        if folder.is_dir() and len(folder.name) > 1:
            scenes.setdefault(folder.name[:-1], folder)
    usable: list[Path] = []
    faults: list[str] = []
    for background in sorted({*factual, *scenes}):
        candidates = [factual[background]] if background in factual else []
        if background in scenes:
            candidates += _with_object(subject, scenes[background])
        unusable: list[str] = []
        for image in candidates:
            if not (fault := _fault(_mask_of(image))):
                usable.append(image)
                break
            unusable.append(fault)
        else:
            faults.append(", ".join(unusable) or f"{scenes[background]} has no image with the object")
        if len(usable) == wanted:
            break
    return usable, faults


def _with_object(subject: Path, scene: Path) -> list[Path]:
    """A counterfactual scene's image with the object; empty if it has none."""
    images = _images(scene)
    expected = f"00{int(subject.name):03d}_{scene.name}_1"
    with_object = [image for image in images if image.stem.endswith("_1")]
    return ([image for image in with_object if image.stem == expected] or with_object)[:1]


def _mask_of(image: Path) -> Path:
    return image.parent.parent / "annotations" / "masks" / f"{image.stem}_mask.jpg"


def _fault(mask: Path) -> str:
    """Why a mask cannot be used; empty if it can."""
    try:
        pixels = np.asarray(open_image(mask, "mask").convert("L"))
    except OSError as error:
        return str(error)
    coverage = np.count_nonzero(pixels) / pixels.size
    return "" if coverage > MIN_COVERAGE else f"mask {mask} marks {100 * coverage:.2f} % of its pixels"


def _images(folder: Path) -> list[Path]:
    return [file for file in _entries(folder / "images") if file.suffix.lower() in (".jpg", ".jpeg", ".png")]


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".")) if folder.is_dir() else []
