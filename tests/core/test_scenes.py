"""Rendered scenes: seeds, exact masks, and the requested damage."""

from __future__ import annotations

from dataclasses import astuple, replace
from itertools import product

import numpy as np
import pytest

from masc_metrics import strip_subject
from masc_metrics.scenes import (
    ATTRIBUTES,
    COLOURS,
    PATTERNS,
    SCENES,
    SHAPES,
    Subject,
    concept_benchmark,
    random_subject,
    render,
)

STAR = Subject("star", "red", "blue", "striped")

ALL_SUBJECTS = [
    Subject(shape, primary, secondary, pattern)
    for shape, primary, secondary, pattern in product(SHAPES, COLOURS, COLOURS, PATTERNS)
    if primary != secondary
]


def differences(first: Subject, second: Subject) -> int:
    return sum(a != b for a, b in zip(astuple(first), astuple(second), strict=True))


def test_scenes_and_attributes_have_enough_values() -> None:
    assert len(SHAPES) >= 12
    assert len(COLOURS) >= 8
    assert len(PATTERNS) >= 5
    assert len(SCENES) >= 12
    assert len(set(SCENES)) == len(SCENES)


def test_images_depend_only_on_the_arguments() -> None:
    first, second = render(STAR, "on a beach", seed=5), render(STAR, "on a beach", seed=5)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.mask, second.mask)
    assert not np.array_equal(first.image, render(STAR, "on a beach", seed=6).image)


def test_poses_depend_on_the_seed_and_not_on_the_scene() -> None:
    masks = [render(STAR, scene, seed=3).mask for scene in SCENES]
    assert all(np.array_equal(mask, masks[0]) for mask in masks)


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (201, 77), (16, 16)])
def test_images_have_the_requested_size_and_contain_the_complete_subject(size: tuple[int, int]) -> None:
    for seed, shape in enumerate(SHAPES):
        picture = render(replace(STAR, shape=shape), SCENES[seed], seed=seed, size=size)
        assert picture.image.shape == (3, *size)
        assert picture.image.dtype == np.uint8
        assert picture.mask.shape == size
        assert picture.mask.dtype == np.bool_
        share = picture.mask.sum() / min(size) ** 2
        assert 0.05 < share < 0.6, shape
        # Corners of shapes may touch the border, but edges may not.
        border = np.concatenate([picture.mask[0], picture.mask[-1], picture.mask[:, 0], picture.mask[:, -1]])
        assert border.mean() < 0.1, shape


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_exact(shape: str) -> None:
    """Images of two subjects of equal shape without a common colour differ only inside the mask and its soft edge."""
    first = render(Subject(shape, "red", "blue", "checked"), "in the snow", seed=1)
    second = render(Subject(shape, "green", "black", "checked"), "in the snow", seed=1)
    assert np.array_equal(first.mask, second.mask)
    changed = (first.image != second.image).any(axis=0)
    assert changed[first.mask].all()
    outside = changed & ~first.mask
    touching = np.zeros_like(outside)
    for rows, columns in product((-1, 0, 1), repeat=2):
        touching |= np.roll(first.mask, (rows, columns), axis=(0, 1))
    # Tips thinner than a pixel never cover half of a pixel.
    assert (outside & ~touching).sum() <= 0.01 * first.mask.sum()


def test_every_attribute_changes_the_image() -> None:
    plain = render(STAR, "in a desert", seed=2).image.astype(int)
    for change in ({"shape": "gear"}, {"primary": "green"}, {"secondary": "yellow"}, {"pattern": "halved"}):
        other = render(replace(STAR, **change), "in a desert", seed=2).image.astype(int)
        assert (np.abs(plain - other).max(axis=0) > 40).mean() > 0.02, change


def test_scenes_differ_in_their_colours() -> None:
    pictures = {scene: [render(STAR, scene, seed=seed).image for seed in range(4)] for scene in SCENES}

    def colours(image: np.ndarray) -> np.ndarray:
        histogram, _ = np.histogramdd(image.reshape(3, -1).T, bins=6, range=[(0, 256)] * 3)
        return histogram / histogram.sum()

    mean = {scene: np.mean([colours(image) for image in images], axis=0) for scene, images in pictures.items()}
    for first, second in product(SCENES, SCENES):
        if first != second:
            assert np.abs(mean[first] - mean[second]).sum() > 0.25, (first, second)


def test_captions_contain_subject_and_scene_and_stripping_leaves_the_scene() -> None:
    picture = render(STAR, "on a beach", seed=0)
    assert picture.caption == "a red and blue striped star on a beach"
    assert strip_subject(picture.caption, STAR.name) == "on a beach"
    orange = Subject("arrow", "orange", "black", "dotted")
    assert render(orange, "at sunset", seed=0).caption == "an orange and black dotted arrow at sunset"
    for scene in SCENES:
        caption = render(orange, scene, seed=0, size=(16, 16)).caption
        assert strip_subject(caption, orange.name) == scene


def test_held_out_subjects_are_a_quarter_with_all_their_patterns() -> None:
    held_out = [subject for subject in ALL_SUBJECTS if subject.held_out]
    assert 0.2 < len(held_out) / len(ALL_SUBJECTS) < 0.3
    for subject in ALL_SUBJECTS[:: len(PATTERNS)]:
        assert len({replace(subject, pattern=pattern).held_out for pattern in PATTERNS}) == 1
    for values, name in ((SHAPES, "shape"), (COLOURS, "primary"), (COLOURS, "secondary")):
        assert {getattr(subject, name) for subject in ALL_SUBJECTS if not subject.held_out} == set(values)


@pytest.mark.parametrize("count", range(ATTRIBUTES + 1))
@pytest.mark.parametrize("held_out", [True, False])
def test_damage_changes_the_requested_number_of_attributes(count: int, held_out: bool) -> None:
    rng = np.random.default_rng(0)
    changed = set()
    for _ in range(40):
        subject = random_subject(rng, held_out=held_out)
        assert subject.held_out == held_out
        other = subject.damaged(count, rng)
        assert differences(subject, other) == count
        assert other.held_out == held_out
        if count:
            assert {other.primary, other.secondary} != {subject.primary, subject.secondary} or count < 3
        changed |= {name for name in ("shape", "primary", "secondary", "pattern")
                    if getattr(subject, name) != getattr(other, name)}  # fmt: skip
    assert len(changed) == (ATTRIBUTES if count else 0), "some attribute is never damaged"


def test_benchmarks_are_balanced_and_use_held_out_subjects() -> None:
    benchmark = concept_benchmark(40, seed=7)
    assert benchmark.reference_images.shape == benchmark.generated_images.shape == (40, 3, 128, 128)
    assert benchmark.reference_masks.shape == benchmark.generated_masks.shape == (40, 128, 128)
    for damage, swapped in product(range(5), (False, True)):
        assert ((benchmark.identity_damage == damage) & (benchmark.prompt_damage == swapped)).sum() == 4
    for prompt, name in zip(benchmark.prompts, benchmark.subjects, strict=True):
        primary, _, secondary, pattern, shape = name.split()
        assert Subject(shape, primary, secondary, pattern).held_out
        assert strip_subject(prompt, name) in SCENES


def test_benchmarks_depend_only_on_their_seed() -> None:
    first, second, other = (concept_benchmark(10, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.generated_images, second.generated_images)
    assert first.prompts == second.prompts
    assert not np.array_equal(first.generated_images, other.generated_images)
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    concept_benchmark(1, seed=0)
    assert np.array_equal(state, np.random.get_state()[1]), "the global random state has changed"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Subject("cube", "red", "blue", "striped"), r"shape is 'cube'; give one of ball, box"),
        (lambda: Subject("star", "red", "mauve", "striped"), r"secondary is 'mauve'; give one of red"),
        (lambda: Subject("star", "red", "red", "striped"), r"primary and secondary are both 'red'; give two colours"),
        (lambda: render(STAR, "beach", seed=0), r"scene is 'beach'; give one of 'on a beach'"),
        (lambda: render(STAR, "on a beach", seed=0, size=(128, 8)), r"size is \(128, 8\); give at least 16 x 16"),
        (lambda: render(STAR, "on a beach", seed=-1), r"seed is -1; give at least 0"),
        (lambda: STAR.damaged(5, np.random.default_rng(0)), r"count is 5; a subject has 4 attributes"),
        (lambda: render("star", "on a beach", seed=0), r"subject is a str; give a Subject"),
        (lambda: render(STAR, "on a beach", seed=0, size=64), r"size is 64; give \(height, width\)"),
        (lambda: concept_benchmark(0, seed=0), r"n is 0; give at least 1"),
        (lambda: concept_benchmark(1, seed=-1), r"seed is -1; give at least 0"),
        (lambda: concept_benchmark(1.5, seed=0), r"n is 1.5, a float; give an integer"),
        (lambda: render(STAR, "on a beach", seed=None), r"seed is None, a NoneType; give an integer"),
        (lambda: render(STAR, "on a beach", seed=0, size=(128.5, 128)), r"height is 128.5, a float"),
    ],
)
def test_errors_for_invalid_arguments_name_the_argument(call: object, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        call()  # type: ignore[operator]
