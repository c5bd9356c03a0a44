"""An offline demonstration: both metrics on rendered subjects with known damage.

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

from masc_metrics.arguments import check_integer
from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.functional import match_maps
from masc_metrics.metrics import MaSCConceptPreservation, MaSCPromptFollowing
from masc_metrics.plots import PanelRow, Shot, panel
from masc_metrics.scenes import ATTRIBUTES, SCENES, Picture, caption, random_subject, render

DEFAULT_SEED = 2
SUBJECTS = 3
SIZE = (256, 256)
MAX_NUM_PATCHES = 256
_BAR = 16


@dataclass(frozen=True, slots=True)
class Variant:
    """Simulated result of a generator.

    Attributes:
        subject: description of the generated subject.
        scene: description of the generated scene.
        identity_damage: number of changed attributes of the subject, 0..4.
        prompt_damage: whether the scene is that of the reference instead of the prompt.
    """

    subject: str
    scene: str
    identity_damage: int
    prompt_damage: bool


VARIANTS = (
    Variant("same subject", "scene as prompted", 0, False),
    Variant("same subject", "scene of the reference", 0, True),
    Variant("one attribute changed", "scene as prompted", 1, False),
    Variant("two attributes changed", "scene as prompted", 2, False),
    Variant("another subject", "scene as prompted", ATTRIBUTES, False),
    Variant("another subject", "scene of the reference", ATTRIBUTES, True),
)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Result of the demonstration.

    Attributes:
        cp: concept preservation of each variant, mean over the subjects.
        pf: prompt following of each variant, mean over the subjects.
        image: panel of all generated images with their scores and match maps.
    """

    cp: tuple[float, ...]
    pf: tuple[float, ...]
    image: Image.Image

    def table(self) -> str:
        """Return the means as a text table with bars."""
        lines = [f"{'generated image':44}{'CP: subject kept?':28}PF: prompt followed?", ""]
        for variant, cp, pf in zip(VARIANTS, self.cp, self.pf, strict=True):
            description = f"{variant.subject}, {variant.scene}"
            lines.append(f"{description:44}{_bar(cp):28}{_bar(pf)}".rstrip())
        return "\n".join(lines)


def _bar(score: float) -> str:
    return f"{score:5.2f}  {'#' * round(max(0.0, score) * _BAR)}"


def demonstrate(backbone: SigLIP2Backbone, *, seed: int = DEFAULT_SEED) -> Demonstration:
    """Render held-out subjects in every variant and score them with both metrics.

    Args:
        backbone: from :func:`masc_metrics.load_backbone`.
        seed: random seed for subjects, scenes and poses, >= 0.

    Returns:
        The mean scores of each variant, and a panel of all images.

    Raises:
        TypeError, ValueError: if the seed is not an integer, or negative.
        OSError, ValueError: if the text tower of the checkpoint is not available.
        RuntimeError: if features of the network are not finite.
    """
    check_integer("seed", seed, least=0)
    rng = np.random.default_rng(seed)
    references: list[Picture] = []
    generated: list[Picture] = []
    prompts: list[str] = []
    names: list[str] = []
    for _ in range(SUBJECTS):
        subject = random_subject(rng, held_out=True)
        reference_scene, prompt_scene = rng.choice(SCENES, size=2, replace=False).tolist()
        references.append(render(subject, reference_scene, seed=int(rng.integers(2**32)), size=SIZE))
        names.append(subject.name)
        for variant in VARIANTS:
            damaged = subject.damaged(variant.identity_damage, rng)
            scene = reference_scene if variant.prompt_damage else prompt_scene
            generated.append(render(damaged, scene, seed=int(rng.integers(2**32)), size=SIZE))
            prompts.append(caption(subject, prompt_scene))

    cp = MaSCConceptPreservation(backbone, max_num_patches=MAX_NUM_PATCHES, reduction="none")
    pf = MaSCPromptFollowing(backbone, max_num_patches=MAX_NUM_PATCHES, reduction="none")
    subject_of_sample = [subject for subject in range(SUBJECTS) for _ in VARIANTS]
    generated_images = _stack([picture.image for picture in generated])
    reference_images = _stack([picture.image for picture in references])[subject_of_sample]
    reference_masks = _stack([picture.mask for picture in references])[subject_of_sample]
    metrics = MetricCollection({"cp": cp, "pf": pf})
    metrics.update(
        generated_images=generated_images,
        generated_masks=_stack([picture.mask for picture in generated]),
        reference_images=reference_images,
        reference_masks=reference_masks,
        prompts=prompts,
        subjects=[names[subject] for subject in subject_of_sample],
    )
    scores = metrics.compute()
    cp_SV, pf_SV = (scores[name].reshape(SUBJECTS, len(VARIANTS)) for name in ("cp", "pf"))
    maps = match_maps(
        generated_images,
        reference_images,
        reference_masks,
        backbone=backbone,
        max_num_patches=MAX_NUM_PATCHES,
    )
    shots = [
        Shot(image, *values)
        for image, *values in zip(
            generated_images, cp_SV.flatten().tolist(), pf_SV.flatten().tolist(), maps, strict=True
        )
    ]
    rows = [
        PanelRow(
            f'{names[subject]}, prompt "{prompts[start]}"',
            reference_images[start],
            reference_masks[start],
            shots[start : start + len(VARIANTS)],
        )
        for subject, start in enumerate(range(0, len(shots), len(VARIANTS)))
    ]
    columns = [f"{variant.subject},\n{variant.scene}" for variant in VARIANTS]
    return Demonstration(tuple(cp_SV.mean(dim=0).tolist()), tuple(pf_SV.mean(dim=0).tolist()), panel(rows, columns))


def _stack(arrays: Sequence[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
