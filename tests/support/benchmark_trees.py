"""Small DreamBench++ and ORIDa trees: their folder layouts, filled with rendered scenes and exact masks."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masc_metrics.scenes import SCENES, Subject, random_subject, render
from masc_metrics.scenes.pictures import Picture

METHODS = (
    "dreambooth_lora_sdxl_gs7_5_step100_seed42_torch_float16",
    "ip_adapter_vit_giant_sdxl_scale0_6_gs7_5_step100_seed42_torch_float16",
)
COLLECTIONS = (
    "live_subject_animal_00_kitten",
    "live_subject_human_06_pixelated_warrior",
    "object_07_hair_style_toy",
    "style_10_ukiyo-e",
)
CATEGORY_PATHS = {
    "live_subject_animal": "live_subject/animal",
    "live_subject_human": "live_subject/human",
    "object": "object",
    "style": "style",
}
PROMPTS = 9
REFERENCE_SIZE, GENERATED_SIZE = (80, 72), (64, 96)
PHOTOGRAPH_SIZE = (64, 75)


def location_of(collection: str) -> tuple[str, str, str]:
    """Category path, number and subject of a collection."""
    prefix = next(prefix for prefix in CATEGORY_PATHS if collection.startswith(f"{prefix}_"))
    number, _, noun = collection.removeprefix(f"{prefix}_").partition("_")
    return CATEGORY_PATHS[prefix], number, noun.replace("_", " ")


def prompts_of(collection: str) -> list[str]:
    """The nine prompts; each names a different scene, and 4..6 a style."""
    noun = location_of(collection)[2]
    styles = {4: ", oil painting", 5: ", pencil drawing", 6: ", pixel art"}
    return [f"a photo of a {noun} {SCENES[prompt]}{styles.get(prompt, '')}" for prompt in range(PROMPTS)]


def dreambench_plus_tree(
    root: Path,
    methods: Sequence[str] = METHODS,
    collections: Sequence[str] = COLLECTIONS,
    prompts: Iterable[int] = range(PROMPTS),
    seeds: Iterable[int] = (0,),
) -> Path:
    """Write a complete DreamBench++ tree with masks into ``root``.

    Generated images show the prompt's scene; the n-th method's subject differs from the reference's in n attributes.
    """
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    for collection in collections:
        path, number, noun = location_of(collection)
        subject, seed_of_collection = _subject(collection), _seed(collection)
        reference = root / "images" / path / f"{number}.jpg"
        picture = render(subject, SCENES[-1], seed=seed_of_collection, size=REFERENCE_SIZE)
        _save_picture(reference, picture.image)
        _save_mask(root / "masks" / "refs" / path / f"{number}.png", picture)
        _save_text(root / "captions" / path / f"{number}.txt", "\n".join([noun, *prompts_of(collection)]) + "\n")
        for damage, method in enumerate(methods):
            shown = subject.damaged(min(damage, 4), np.random.default_rng(seed_of_collection))
            run = root / "samples" / method
            for prompt, seed in pairs:
                name = f"{collection}/{prompt}_{seed}"
                picture = render(shown, SCENES[prompt], seed=_seed(f"{method}/{name}"), size=GENERATED_SIZE)
                _save_picture(run / "tgt_image" / f"{name}.jpg", picture.image)
                _save_mask(root / "masks" / "samples" / method / f"{name}.png", picture)
                _save_text(run / "text" / f"{name}.txt", prompts_of(collection)[prompt])
                copy = run / "src_image" / f"{name}.jpg"
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(reference, copy)
    for method in methods:
        _save_text(root / "samples" / method / "negative_prompt.txt", "")
    return root


def orida_tree(root: Path, subjects: int = 3, backgrounds: int = 10) -> Path:
    """Write a complete ORIDa train split into ``root / "train"``: subjects 1, 2, 3, ...

    Each has one image per background in ``factual_only``, and a second camera angle of the first background. The last
    background is only in ``factual_counterfactual``, with and without the object.
    """
    for number in range(1, subjects + 1):
        folder = root / "train" / str(number)
        for background in range(1, backgrounds):
            for angle in "ab" if background == 1 else "a":
                orida_picture(folder / "factual_only", number, f"{background:02d}{angle}")
        scene = f"{backgrounds:02d}a"
        last = folder / "factual_counterfactual" / scene
        orida_picture(last, number, scene)
        orida_picture(last, number, scene, ending="0")
    return root


def orida_picture(folder: Path, subject: int, scene: str, *, ending: str = "1", coverage: float | None = None) -> Path:
    """Write one image with its mask; returns its path. The mask marks the subject, or that share of the pixels."""
    stem = f"00{subject:03d}_{scene}_{ending}"
    shown = _subject(f"orida {subject}")
    scene_text = SCENES[_seed(scene[:-1]) % len(SCENES)]
    picture = render(shown, scene_text, seed=_seed(f"{subject} {scene}"), size=PHOTOGRAPH_SIZE)
    image = folder / "images" / f"{stem}.jpg"
    _save_picture(image, picture.image)
    if ending != "0":
        mask = picture.mask.astype(np.uint8) * 255
        if coverage is not None:
            mask = np.zeros_like(mask)
            mask.reshape(-1)[: round(coverage * mask.size)] = 255
        file = folder / "annotations" / "masks" / f"{stem}_mask.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        # JPEG would change pixels around the marked ones, and so the share.
        Image.fromarray(mask).save(file, format="JPEG" if coverage is None else "PNG", quality=100)
    return image


def _seed(name: str) -> int:
    return zlib.crc32(name.encode())


def _subject(name: str) -> Subject:
    return random_subject(np.random.default_rng(_seed(name)), held_out=True)


def _save_picture(file: Path, image: NDArray[np.uint8]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.transpose(1, 2, 0)).save(file, quality=95)


def _save_mask(file: Path, picture: Picture) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.mask.astype(np.uint8) * 255).save(file)


def _save_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
