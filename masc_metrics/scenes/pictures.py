"""Rendering of scenes, and a synthetic benchmark with known ground truth.

Shapes: H, W image sides in pixels; images are (3, H, W) uint8 and masks (H, W) bool.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from masc_metrics.arguments import check_integer, check_positive, check_type
from masc_metrics.scenes.backgrounds import SCENES, Plane, mix, paint
from masc_metrics.scenes.subjects import ATTRIBUTES, Subject, random_subject, with_article

DEFAULT_SIZE = (128, 128)

_THICKEST_HAZE = 0.9
"""Maximum opacity of the haze over the background, which makes some scenes hard to recognise."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A rendered scene.

    Attributes:
        image: (3, H, W) uint8.
        mask: (H, W) bool, True on the subject.
        caption: caption of the image, such as "a red and blue striped star on a beach".
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    caption: str


def render(subject: Subject, scene: str, *, seed: int, size: tuple[int, int] = DEFAULT_SIZE) -> Picture:
    """Render a subject in a scene; pose, size, light and background depend on the seed.

    The pose depends only on the seed and the size, not on the subject or scene.

    Args:
        subject: subject to render.
        scene: one of ``SCENES``.
        seed: random seed, >= 0.
        size: (height, width) in pixels, each at least 16.

    Raises:
        TypeError: if the subject is not a Subject, or if the seed or a side is not an integer.
        ValueError: if the scene is unknown, the seed is negative, or the size is too small.
    """
    check_type("subject", subject, Subject, "a Subject")
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise TypeError(f"size is {size!r}; give (height, width)")
    height, width = size
    check_positive("height", height)
    check_positive("width", width)
    if min(size) < 16:
        raise ValueError(f"size is {size}; give at least 16 x 16 pixels")
    check_integer("seed", seed, least=0)
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
    """Caption of a subject in a scene, such as "a red and blue striped star on a beach"."""
    return f"{with_article(subject.name)} {scene}"


def _cover(distance: Plane, radius: float) -> Plane:
    """Fraction of each pixel on the positive side of an outline."""
    return np.clip(distance * np.float32(radius) + 0.5, 0, 1)


@dataclass(frozen=True, slots=True)
class ConceptBenchmark:
    """n pairs of a reference and a simulated generated image, with prompts and the ground truth for both scores.

    Attributes:
        reference_images, generated_images: (n, 3, H, W) uint8.
        reference_masks, generated_masks: (n, H, W) bool, exact.
        prompts: prompts of the generated images.
        subjects: names of the subjects, as in the prompts.
        identity_damage: (n,) int, 0..4, number of attributes in which the generated subject differs from the reference.
        prompt_damage: (n,) bool, whether the scene differs from the prompt.
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
    """Render a benchmark of held-out subjects with all combinations of identity damage and prompt damage.

    With prompt damage, the scene is that of the reference, as generated by an overfitted model. It misleads scores of
    the complete image.

    Args:
        n: number of pairs, at least 1; multiples of 10 have all combinations equally often.
        seed: random seed, >= 0.
        size: (height, width) of every image.

    Raises:
        TypeError: if an argument is not an integer.
        ValueError: if ``n`` is below 1, the seed is negative, or the size is too small.
    """
    check_positive("n", n)
    check_integer("seed", seed, least=0)
    rng = np.random.default_rng(seed)
    references, generated, prompts, subjects = [], [], [], []
    damages = [(index % (ATTRIBUTES + 1), bool(index // (ATTRIBUTES + 1) % 2)) for index in range(n)]
    for identity_damage, prompt_damage in damages:
        subject = random_subject(rng, held_out=True)
        reference_scene, prompt_scene = rng.choice(SCENES, size=2, replace=False).tolist()
        first, second = rng.integers(2**32, size=2).tolist()
        references.append(render(subject, reference_scene, seed=first, size=size))
        scene = reference_scene if prompt_damage else prompt_scene
        generated.append(render(subject.damaged(identity_damage, rng), scene, seed=second, size=size))
        prompts.append(caption(subject, prompt_scene))
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
