"""A demonstration, offline and in seconds: rendered subjects, damaged in known ways, and what the two metrics say.

Shape suffixes: S subjects, V variants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchmetrics import MetricCollection

from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.functional import match_maps
from masc_metrics.metrics import MaSCConceptPreservation, MaSCPromptFollowing
from masc_metrics.plots import PanelRow, Shot, panel
from masc_metrics.scenes import ATTRIBUTES, SCENES, Picture, caption, random_subject, render
from masc_metrics.scenes.pictures import check_seed

DEFAULT_SEED = 2
SUBJECTS = 3
SIZE = (256, 256)
MAX_NUM_PATCHES = 256
_BAR = 16


@dataclass(frozen=True, slots=True)
class Variant:
    """What a pretended generator got right and wrong.

    Attributes:
        subject: what it did to the subject, in words.
        scene: what it did to the scene, in words.
        identity_damage: how many of the subject's four attributes it changed.
        prompt_damage: whether it painted the reference's scene again and not the one asked for.
    """

    subject: str
    scene: str
    identity_damage: int
    prompt_damage: bool


VARIANTS = (
    Variant("same subject", "scene as asked", 0, False),
    Variant("same subject", "the reference's scene", 0, True),
    Variant("one attribute off", "scene as asked", 1, False),
    Variant("two attributes off", "scene as asked", 2, False),
    Variant("another subject", "scene as asked", ATTRIBUTES, False),
    Variant("another subject", "the reference's scene", ATTRIBUTES, True),
)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What the demonstration found.

    Attributes:
        cp: concept preservation of each variant, mean over the subjects.
        pf: prompt following of each variant, mean over the subjects.
        image: every picture with its scores and match map.
    """

    cp: tuple[float, ...]
    pf: tuple[float, ...]
    image: Image.Image

    def table(self) -> str:
        """The means as lines of text with bars."""
        lines = [f"{'what was generated':44}{'CP: subject kept?':28}PF: prompt followed?", ""]
        for variant, cp, pf in zip(VARIANTS, self.cp, self.pf, strict=True):
            what = f"{variant.subject}, {variant.scene}"
            lines.append(f"{what:44}{_bar(cp):28}{_bar(pf)}".rstrip())
        return "\n".join(lines)


def _bar(score: float) -> str:
    return f"{score:5.2f}  {'#' * round(max(0.0, score) * _BAR)}"


def demonstrate(backbone: SigLIP2Backbone, *, seed: int = DEFAULT_SEED) -> Demonstration:
    """Render held-out subjects under every variant and score them with both metrics.

    Args:
        backbone: from :func:`masc_metrics.load_backbone`.
        seed: of the dice that choose subjects, scenes and poses; at least 0.

    Returns:
        The means of both scores, and every picture with its own.

    Raises:
        TypeError, ValueError: for a seed that is no integer, or negative.
        OSError, ValueError: if the checkpoint's text tower cannot be had.
        RuntimeError: if its features are not finite.
    """
    check_seed(seed)
    rng = np.random.default_rng(seed)
    references: list[Picture] = []
    generated: list[Picture] = []
    prompts: list[str] = []
    names: list[str] = []
    for _ in range(SUBJECTS):
        subject = random_subject(rng, held_out=True)
        here, asked = rng.choice(SCENES, size=2, replace=False).tolist()
        references.append(render(subject, here, seed=int(rng.integers(2**32)), size=SIZE))
        names.append(subject.name)
        for variant in VARIANTS:
            shown = subject.damaged(variant.identity_damage, rng)
            scene = here if variant.prompt_damage else asked
            generated.append(render(shown, scene, seed=int(rng.integers(2**32)), size=SIZE))
            prompts.append(caption(subject, asked))

    cp = MaSCConceptPreservation(backbone, max_num_patches=MAX_NUM_PATCHES, reduction="none")
    pf = MaSCPromptFollowing(backbone, max_num_patches=MAX_NUM_PATCHES, reduction="none")
    of = [subject for subject in range(SUBJECTS) for _ in VARIANTS]  # whose picture each generated one is
    generated_images = _stacked([picture.image for picture in generated])
    reference_images = _stacked([picture.image for picture in references])[of]
    reference_masks = _stacked([picture.mask for picture in references])[of]
    both = MetricCollection({"cp": cp, "pf": pf})
    both.update(
        generated_images=generated_images,
        generated_masks=_stacked([picture.mask for picture in generated]),
        reference_images=reference_images,
        reference_masks=reference_masks,
        prompts=prompts,
        subjects=[names[subject] for subject in of],
    )
    scores = both.compute()
    cp_SV, pf_SV = (scores[name].reshape(SUBJECTS, len(VARIANTS)) for name in ("cp", "pf"))
    found = match_maps(
        generated_images,
        reference_images,
        reference_masks,
        backbone=backbone,
        max_num_patches=MAX_NUM_PATCHES,
    )
    shots = [
        Shot(image, *values)
        for image, *values in zip(
            generated_images, cp_SV.flatten().tolist(), pf_SV.flatten().tolist(), found, strict=True
        )
    ]
    rows = [
        PanelRow(
            f'{names[subject]}, asked for as "{prompts[start]}"',
            reference_images[start],
            reference_masks[start],
            shots[start : start + len(VARIANTS)],
        )
        for subject, start in enumerate(range(0, len(shots), len(VARIANTS)))
    ]
    columns = [f"{variant.subject},\n{variant.scene}" for variant in VARIANTS]
    return Demonstration(tuple(cp_SV.mean(dim=0).tolist()), tuple(pf_SV.mean(dim=0).tolist()), panel(rows, columns))


def _stacked(arrays: Sequence[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
