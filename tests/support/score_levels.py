"""Score levels of the bundled checkpoint: mean CP and PF of generated images whose truth is known.

``python tests/support/score_levels.py`` measures them and writes the table into README.md.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from masc_metrics import functional, load_backbone
from masc_metrics.scenes import ATTRIBUTES, SCENES, Picture, caption, random_subject, render

PAIRS = 50
SEED = 0
MAX_NUM_PATCHES = 64
README = Path(__file__).parents[2] / "README.md"
HEAD = "| generated image |"

VARIANTS = (
    "the reference image itself",
    "same subject, the prompt's scene",
    "same subject, the reference's scene",
    "another subject, the prompt's scene",
)


def score_levels() -> dict[str, tuple[float, float]]:
    """(CP, PF) of each variant, means over ``PAIRS`` held-out subjects.

    The prompt asks for another scene than the reference's. Poses, backgrounds and light differ from image to image.
    """
    rng = np.random.default_rng(SEED)
    references: list[Picture] = []
    prompts: list[str] = []
    subjects: list[str] = []
    generated: dict[str, list[Picture]] = {variant: [] for variant in VARIANTS}
    for _ in range(PAIRS):
        subject = random_subject(rng, held_out=True)
        other = subject.damaged(ATTRIBUTES, rng)
        own_scene, prompt_scene = rng.choice(SCENES, size=2, replace=False).tolist()
        seeds = rng.integers(2**32, size=len(VARIANTS)).tolist()
        references.append(render(subject, own_scene, seed=seeds[0]))
        prompts.append(caption(subject, prompt_scene))
        subjects.append(subject.name)
        images = (
            references[-1],
            render(subject, prompt_scene, seed=seeds[1]),
            render(subject, own_scene, seed=seeds[2]),
            render(other, prompt_scene, seed=seeds[3]),
        )
        for variant, image in zip(VARIANTS, images, strict=True):
            generated[variant].append(image)

    settings = {"backbone": load_backbone("tiny"), "max_num_patches": MAX_NUM_PATCHES}
    levels = {}
    for variant, pictures in generated.items():
        images = _stacked([picture.image for picture in pictures])
        cp_B = functional.concept_preservation(
            images,
            _stacked([picture.image for picture in references]),
            _stacked([picture.mask for picture in references]),
            **settings,
        )
        masks = _stacked([picture.mask for picture in pictures])
        pf_B = functional.prompt_following(images, masks, prompts, subjects, **settings)
        levels[variant] = (float(cp_B.mean()), float(pf_B.mean()))
    return levels


def table(levels: dict[str, tuple[float, float]]) -> str:
    """The levels as a Markdown table, one column a variant."""
    rows = [f"| {name} | " + " | ".join(f"{scores[index]:.2f}" for scores in levels.values()) + " |"
            for index, name in enumerate(("CP", "PF"))]  # fmt: skip
    return "\n".join([f"{HEAD} {' | '.join(levels)} |", "|---" * (len(levels) + 1) + "|", *rows])


def with_table(page: str, text: str) -> str:
    """The page with its table of levels replaced."""
    replaced, count = re.subn(rf"^{re.escape(HEAD)}.*\n(\|.*\n)*", text + "\n", page, flags=re.MULTILINE)
    assert count == 1, "the README has one table of levels"
    return replaced


def _stacked(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


if __name__ == "__main__":
    text = table(score_levels())
    print(text)
    README.write_text(with_table(README.read_text(encoding="utf-8"), text), encoding="utf-8")
