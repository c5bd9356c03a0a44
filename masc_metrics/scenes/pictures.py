"""Rendering one picture, and a benchmark of many with known truth.

Shapes: H, W picture sides in pixels; images are (3, H, W) uint8 and masks (H, W) bool.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from masc_metrics.arguments import check_positive
from masc_metrics.scenes.backgrounds import SCENES, Plane, mix, paint
from masc_metrics.scenes.subjects import ATTRIBUTES, Subject, random_subject, with_article

DEFAULT_SIZE = (128, 128)

_THICKEST_HAZE = 0.9
"""Share of the background that haze may hide, so that some scenes are hard to tell."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A rendered scene.

    Attributes:
        image: (3, H, W) uint8.
        mask: (H, W) bool, True on the subject.
        caption: what the picture shows, such as "a red and blue striped star on a beach".
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    caption: str


def render(subject: Subject, scene: str, *, seed: int, size: tuple[int, int] = DEFAULT_SIZE) -> Picture:
    """Paint a subject before a scene; pose, size, light and background vary with the seed.

    Equal seeds give equal poses, whatever the subject and scene.

    Args:
        subject: what to paint.
        scene: one of ``SCENES``.
        seed: of the dice, at least 0.
        size: (height, width) in pixels, each at least 16.

    Raises:
        TypeError: for no Subject, or if the seed or a side is no integer.
        ValueError: if there is no such scene, the seed is negative or the picture would be too small.
    """
    if not isinstance(subject, Subject):
        raise TypeError(f"subject is {subject!r}, a {type(subject).__name__}; give a Subject")
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise TypeError(f"size is {size!r}; give (height, width)")
    height, width = size
    check_positive("height", height)
    check_positive("width", width)
    if min(size) < 16:
        raise ValueError(f"size is {size}; give at least 16 x 16 pixels")
    check_seed(seed)
    rng = np.random.default_rng(seed)
    radius = rng.uniform(0.26, 0.46) * min(size)
    centre_y, centre_x = rng.uniform(radius, height - radius), rng.uniform(radius, width - radius)
    turn, light, gain, warmth = rng.uniform(-0.45, 0.45), rng.uniform(0, 2 * np.pi), *rng.uniform(-1, 1, size=2)

    y = ((np.arange(height) + 0.5 - centre_y) / radius).astype(np.float32)[:, None]
    x = ((np.arange(width) + 0.5 - centre_x) / radius).astype(np.float32)[None, :]
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    inside, second = subject.outlines(cos * x + sin * y, cos * y - sin * x)
    alpha = _cover(inside, radius)
    shade = 0.88 + 0.16 * (np.float32(np.cos(light)) * x + np.float32(np.sin(light)) * y)
    paintwork = mix(*subject.colours, _cover(second, radius)) * shade
    haze, veil = _THICKEST_HAZE * rng.random() ** 2, rng.uniform(0.15, 0.9, size=3) * 0.3 + rng.uniform(0.1, 0.6)
    background = mix(paint(scene, height, width, rng), tuple(veil), np.full((1, 1), haze))
    picture = mix(background, paintwork, alpha)
    tint = np.asarray([1 + 0.06 * warmth, 1, 1 - 0.06 * warmth], np.float32) * np.float32(255 * (1 + 0.15 * gain))
    pixels = np.clip(picture * tint[:, None, None] + 0.5, 0, 255).astype(np.uint8)
    return Picture(pixels, alpha >= 0.5, caption(subject, scene))


def caption(subject: Subject, scene: str) -> str:
    """What a picture shows, such as "a red and blue striped star on a beach"."""
    return f"{with_article(subject.name)} {scene}"


def check_seed(seed: int) -> None:
    """Raise TypeError unless the seed is an integer, ValueError if it is negative."""
    if not isinstance(seed, Integral):
        raise TypeError(f"seed is {seed!r}, a {type(seed).__name__}; give an integer")
    if seed < 0:
        raise ValueError(f"seed is {seed}; give 0 or more")


def _cover(distance: Plane, radius: float) -> Plane:
    """Share of a pixel on the positive side of an outline."""
    return np.clip(distance * np.float32(radius) + 0.5, 0, 1)


@dataclass(frozen=True, slots=True)
class ConceptBenchmark:
    """n pairs of a reference and a "generated" picture, with prompts and the truth about both scores.

    Attributes:
        reference_images, generated_images: (n, 3, H, W) uint8.
        reference_masks, generated_masks: (n, H, W) bool, exact.
        prompts: what the generated pictures should show.
        subjects: the subjects' names, as the prompts have them.
        identity_damage: (n,) int, 0..4, attributes in which the generated subject differs from the reference's.
        prompt_damage: (n,) bool, whether another scene was painted than the prompt says.
    """

    reference_images: NDArray[np.uint8]
    reference_masks: NDArray[np.bool_]
    generated_images: NDArray[np.uint8]
    generated_masks: NDArray[np.bool_]
    prompts: list[str]
    subjects: list[str]
    identity_damage: NDArray[np.int64]
    prompt_damage: NDArray[np.bool_]


def concept_benchmark(n: int, seed: int, *, size: tuple[int, int] = DEFAULT_SIZE) -> ConceptBenchmark:
    """Render a benchmark of held-out subjects; each identity damage with each prompt damage equally often.

    Where the prompt is not followed, the scene is the reference's: what an over-trained model does, and what fools a
    score that looks at the whole picture.

    Args:
        n: pairs, at least 1; a multiple of 10 is balanced.
        seed: of the dice, at least 0.
        size: (height, width) of every picture.

    Raises:
        TypeError: if an argument is no integer.
        ValueError: if ``n`` is below 1, the seed negative or the size too small.
    """
    check_positive("n", n)
    check_seed(seed)
    rng = np.random.default_rng(seed)
    references, generated, prompts, subjects = [], [], [], []
    damages = [(index % (ATTRIBUTES + 1), bool(index // (ATTRIBUTES + 1) % 2)) for index in range(n)]
    for identity_damage, prompt_damage in damages:
        subject = random_subject(rng, held_out=True)
        here, asked = rng.choice(SCENES, size=2, replace=False).tolist()
        first, second = rng.integers(2**32, size=2).tolist()
        references.append(render(subject, here, seed=first, size=size))
        painted = here if prompt_damage else asked
        generated.append(render(subject.damaged(identity_damage, rng), painted, seed=second, size=size))
        prompts.append(caption(subject, asked))
        subjects.append(subject.name)
    return ConceptBenchmark(
        reference_images=np.stack([picture.image for picture in references]),
        reference_masks=np.stack([picture.mask for picture in references]),
        generated_images=np.stack([picture.image for picture in generated]),
        generated_masks=np.stack([picture.mask for picture in generated]),
        prompts=prompts,
        subjects=subjects,
        identity_damage=np.array([damage for damage, _ in damages]),
        prompt_damage=np.array([damage for _, damage in damages]),
    )
