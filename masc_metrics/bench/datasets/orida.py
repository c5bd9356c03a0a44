"""ORIDa on disk: pairs of pictures that show the same subject, or two, before different backgrounds.

::

    ROOT/train/<subject>/factual_only/images/<stem>.jpg           annotations/masks/<stem>_mask.jpg
    ROOT/train/<subject>/factual_counterfactual/<scene>/images/<stem>.jpg and annotations/masks/ likewise

A scene is the second part of a stem split at ``_``, and its last character the camera angle: what stands before it is
the background. In ``factual_counterfactual`` a stem ending in ``_1`` has the object, one ending in ``_0`` has not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

import numpy as np

from masc_metrics.arguments import check_positive
from masc_metrics.bench.agreement.statistics import auc
from masc_metrics.bench.pictures import open_picture
from masc_metrics.bench.sample import Sample

MIN_COVERAGE = 0.005
"""A mask with at most this share of non-zero pixels is empty."""

SAME, CROSS = "same", "cross"
"""The categories of the pairs."""

_LAYOUT = (
    "give the folder that holds ORIDa's train/, or train/ itself, with <subject>/factual_only/images/<stem>.jpg and "
    "<subject>/factual_only/annotations/masks/<stem>_mask.jpg"
)


@dataclass(frozen=True, slots=True)
class Orida:
    """What is to be scored.

    Attributes:
        samples: pairs of one subject, then pairs of two.
        subjects: those that the pairs are of, in order.
        skipped: a line a subject that has too few backgrounds, with what is wrong with the others.
        notes: what differs from the protocol, such as too few subjects.
    """

    samples: tuple[Sample, ...]
    subjects: tuple[str, ...]
    skipped: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SameAgainstCross:
    """How well a score tells pairs of one subject from pairs of two.

    Attributes:
        auc: the chance that a pair of one subject has the higher score, ties counted half, in [0, 1]; nan if one kind
            has no scores.
        same: scored pairs of one subject.
        cross: scored pairs of two subjects.
        left_out: pairs without a score, or with an undefined one.
    """

    auc: float
    same: int
    cross: int
    left_out: int


@dataclass(frozen=True, slots=True)
class _View:
    """One picture of a subject, with its mask."""

    image: Path
    mask: Path


@dataclass(frozen=True, slots=True)
class _Subject:
    name: str
    views: tuple[_View, ...]


def read_orida(
    root: Path, *, subjects: int = 50, backgrounds: int = 10, cross_pairs: int = 2250, seed: int = 0
) -> Orida:
    r"""The protocol's pairs; the defaults are the paper's.

    Subjects come in numeric order. Per background the first picture by name of ``factual_only`` is taken, unless its
    mask is missing or empty (see ``MIN_COVERAGE``); then, or if there is none, the first scene by name of that
    background in ``factual_counterfactual``, its picture ``00<subject, 3 digits>_<scene>_1.jpg`` or else its first one
    that ends in ``_1``, under the same condition. A subject with fewer than ``backgrounds`` is skipped, of more the
    first by name are taken.

    Pairs of one subject are all (i < j) of its pictures, 2250 = 50 x 45; the earlier one, with its mask, is the
    reference. Pairs of two are drawn from all (a < b, i of a, j of b), nested in that order, 122 500 in full, by
    ``np.random.default_rng(seed).choice(n, size=cross_pairs, replace=False)``, and stand in the order drawn; with fewer
    than ``cross_pairs`` all are taken, in their own order.

    A sample's category is "same" or "cross", its concept the reference's subject, its id ``same/<subject>/<i>-<j>`` or
    ``cross/<a>.<i>/<b>.<j>``, places counted from 0. There are neither prompts nor generated masks.

    Args:
        root: the folder that holds ``train``, or ``train`` itself.
        subjects: stop at so many.
        backgrounds: pictures of a subject.
        cross_pairs: pairs of two subjects.
        seed: of the draw.

    Raises:
        FileNotFoundError: if there are no folders of subjects.
        OSError: if a folder cannot be read.
        TypeError: if a number is no integer.
        ValueError: if a number is below 1, or no subject has enough backgrounds.

    Source: MaSC, arXiv 2605.22469, on the train split of ORIDa.
    """
    for name, value in (("subjects", subjects), ("backgrounds", backgrounds), ("cross_pairs", cross_pairs)):
        check_positive(name, value)
    train = root / "train" if (root / "train").is_dir() else root
    folders = [entry for entry in _entries(train) if entry.name.isdecimal() and entry.is_dir()]
    if not folders:
        raise FileNotFoundError(f"{train} holds no folders of numbered subjects; {_LAYOUT}")
    chosen: list[_Subject] = []
    skipped: list[str] = []
    for folder in sorted(folders, key=lambda folder: (int(folder.name), folder.name)):
        if len(chosen) == subjects:
            break
        views, faults = _views(folder, backgrounds)
        if len(views) == backgrounds:
            chosen.append(_Subject(folder.name, tuple(views)))
        else:
            reasons = "".join(f"; {fault}" for fault in faults)
            skipped.append(f"{folder}: {len(views)} of {backgrounds} backgrounds{reasons}")
    if not chosen:
        raise ValueError(f"no subject of {train} has {backgrounds} backgrounds (first {skipped[0]}); {_LAYOUT}")
    notes = [] if len(chosen) == subjects else [f"{len(chosen)} subjects instead of {subjects} have enough backgrounds"]
    pairs = [
        (a, b, i, j) for a, b in combinations(range(len(chosen)), 2) for i, j in product(range(backgrounds), repeat=2)
    ]
    if len(pairs) < cross_pairs:
        notes.append(f"all {len(pairs)} pairs of two subjects are taken, since there are no {cross_pairs} to draw")
    else:
        drawn = np.random.default_rng(seed).choice(len(pairs), size=cross_pairs, replace=False)
        pairs = [pairs[place] for place in drawn.tolist()]
    same = [(a, a, i, j) for a in range(len(chosen)) for i, j in combinations(range(backgrounds), 2)]
    samples = tuple(_samples(chosen, [*same, *pairs]))
    return Orida(samples, tuple(subject.name for subject in chosen), tuple(skipped), tuple(notes))


def same_against_cross(scores: Iterable[tuple[str, float | None]]) -> SameAgainstCross:
    """AUC of pairs of one subject against pairs of two.

    Args:
        scores: the category, "same" or "cross", and the score of each pair; None or nan is left out.

    Raises:
        ValueError: for any other category.
    """
    found: dict[str, list[float]] = {SAME: [], CROSS: []}
    left_out = 0
    for category, score in scores:
        if category not in found:
            raise ValueError(f"category is {category!r}; give {SAME!r} or {CROSS!r}")
        if score is None or math.isnan(score):
            left_out += 1
        else:
            found[category].append(score)
    return SameAgainstCross(auc(found[SAME], found[CROSS]), len(found[SAME]), len(found[CROSS]), left_out)


def _samples(subjects: Sequence[_Subject], pairs: Iterable[tuple[int, int, int, int]]) -> Iterator[Sample]:
    for line, (a, b, i, j) in enumerate(pairs, start=1):
        one, other = subjects[a], subjects[b]
        yield Sample(
            line=line,
            sample_id=f"{SAME}/{one.name}/{i}-{j}" if a == b else f"{CROSS}/{one.name}.{i}/{other.name}.{j}",
            generated_image=str(other.views[j].image),
            generated_mask=None,
            reference_image=str(one.views[i].image),
            reference_mask=str(one.views[i].mask),
            prompt=None,
            subject=None,
            concept=one.name,
            category=SAME if a == b else CROSS,
        )


def _views(subject: Path, wanted: int) -> tuple[list[_View], list[str]]:
    """The first so many backgrounds' pictures, and why other backgrounds have none."""
    first: dict[str, Path] = {}
    for image in _pictures(subject / "factual_only"):
        parts = image.stem.split("_")
        if len(parts) > 1 and len(parts[1]) > 1:
            first.setdefault(parts[1][:-1], image)
    scenes: dict[str, Path] = {}
    for folder in _entries(subject / "factual_counterfactual"):
        if folder.is_dir() and len(folder.name) > 1:
            scenes.setdefault(folder.name[:-1], folder)
    views: list[_View] = []
    faults: list[str] = []
    for background in sorted({*first, *scenes}):
        found: list[str] = []
        for image in filter(None, (first.get(background), _with_object(subject, scenes.get(background)))):
            view = _View(image, image.parent.parent / "annotations" / "masks" / f"{image.stem}_mask.jpg")
            if not (fault := _fault(view.mask)):
                views.append(view)
                break
            found.append(fault)
        else:
            faults.append(", ".join(found) or f"{scenes[background]} has no picture with the object")
        if len(views) == wanted:
            break
    return views, faults


def _with_object(subject: Path, scene: Path | None) -> Path | None:
    """A counterfactual scene's picture that has the object."""
    if scene is None:
        return None
    images = _pictures(scene)
    by_rule = scene / "images" / f"00{int(subject.name):03d}_{scene.name}_1.jpg"
    return by_rule if by_rule in images else next((image for image in images if image.stem.endswith("_1")), None)


def _fault(mask: Path) -> str:
    """Why a mask marks no subject; empty if it marks one."""
    try:
        pixels = np.asarray(open_picture(mask, "mask").convert("L"))
    except OSError as error:
        return str(error)
    coverage = np.count_nonzero(pixels) / pixels.size
    return "" if coverage > MIN_COVERAGE else f"mask {mask} marks {100 * coverage:.2f} % of its pixels"


def _pictures(folder: Path) -> list[Path]:
    return [file for file in _entries(folder / "images") if file.suffix == ".jpg"]


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".")) if folder.is_dir() else []
