"""How good transferred masks are, on rendered scenes; run as a program, writes the table into docs/masks.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for when it is run as a program

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from masc_metrics import SigLIP2Backbone, load_backbone
from masc_metrics.functional import concept_preservation, match_maps, prompt_following, transfer_masks
from masc_metrics.plots import PanelRow, Shot, panel
from masc_metrics.scenes import SCENES, ConceptBenchmark, concept_benchmark, random_subject, render
from masc_metrics.transfer import TransferredMasks
from support.blocks import with_block
from support.photographs import array, pasted, photograph

PAGE = Path(__file__).parents[2] / "docs" / "masks.md"
PATCHES = 256


def iou(mask: Tensor, truth: Tensor) -> float:
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else 1.0


def auc(positive: Tensor, negative: Tensor) -> float:
    """Probability that a positive value is above a negative one; ties count half."""
    above, equal = positive[:, None] > negative[None], positive[:, None] == negative[None]
    return float((above.float() + 0.5 * equal.float()).mean())


@dataclass(frozen=True)
class Scenes:
    """Rendered pairs with exact masks, on the bundled checkpoint."""

    benchmark: ConceptBenchmark

    @classmethod
    def of(cls, samples: int, seed: int) -> Scenes:
        return cls(concept_benchmark(samples, seed))

    @property
    def backbone(self) -> SigLIP2Backbone:
        return load_backbone("tiny")

    @property
    def damage(self) -> Tensor:
        return torch.from_numpy(self.benchmark.identity_damage)

    @property
    def exact(self) -> Tensor:
        return torch.from_numpy(self.benchmark.generated_masks)

    @property
    def ellipses(self) -> Tensor:
        """An ellipse in the middle of each image."""
        _, height, width = self.exact.shape
        y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]
        return (x**2 + y**2 < 0.6**2).expand_as(self.exact)

    @cached_property
    def transferred(self) -> TransferredMasks:
        return self._from(np.arange(len(self.damage)))

    @cached_property
    def transferred_from_others(self) -> TransferredMasks:
        """From the references of other samples, whose subject is not there."""
        return self._from(np.roll(np.arange(len(self.damage)), 7))

    def _from(self, samples: np.ndarray) -> TransferredMasks:
        return transfer_masks(
            torch.from_numpy(self.benchmark.generated_images),
            torch.from_numpy(self.benchmark.reference_images[samples]),
            torch.from_numpy(self.benchmark.reference_masks[samples]),
            backbone=self.backbone,
            max_num_patches=PATCHES,
        )

    def overlap(self, masks: Sequence[Tensor] | Tensor) -> Tensor:
        """IoU of each mask with the exact one."""
        return torch.tensor([iou(mask, truth) for mask, truth in zip(masks, self.exact, strict=True)])

    def prompt_following(self, masks: Sequence[Tensor] | Tensor | None) -> Tensor:
        return prompt_following(
            torch.from_numpy(self.benchmark.generated_images),
            masks,
            self.benchmark.prompts,
            self.benchmark.subjects,
            backbone=self.backbone,
            max_num_patches=PATCHES,
            pooling="full" if masks is None else "background",
        )

    def prompt_auc(self, masks: Sequence[Tensor] | Tensor | None) -> float:
        """How well PF tells images that follow their prompt from images that do not."""
        scores, wrong = self.prompt_following(masks), torch.from_numpy(self.benchmark.prompt_damage)
        return auc(*(values[~values.isnan()] for values in (scores[~wrong], scores[wrong])))


def table(samples: int) -> str:
    scenes = Scenes.of(samples, seed=31)
    same, other = scenes.damage == 0, scenes.damage == int(scenes.damage.max())
    exact = scenes.prompt_following(scenes.exact)
    lines = [
        "| mask | IoU, same subject | IoU, another subject painted | AUC of PF | correlation of PF with exact masks |",
        "|---|---|---|---|---|",
    ]
    for name, masks in (
        ("exact", scenes.exact),
        ("transferred", scenes.transferred.masks),
        ("ellipse in the middle", scenes.ellipses),
        ("none", None),
    ):
        overlap = None if masks is None else scenes.overlap(masks)
        scores = scenes.prompt_following(masks)
        both = ~(scores.isnan() | exact.isnan())
        correlation = np.corrcoef(scores[both].numpy(), exact[both].numpy())[0, 1]
        cells = ["", ""] if overlap is None else [f"{overlap[chosen].mean():.2f}" for chosen in (same, other)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {scenes.prompt_auc(masks):.3f} | {correlation:.2f} |")
    empty = int(scenes.transferred.empty_count)
    confidence = [
        each.confidence_B[same].nan_to_num(-1) for each in (scenes.transferred, scenes.transferred_from_others)
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"{samples} rendered pairs of 128 x 128, {PATCHES} patches, the bundled checkpoint.",
            f"Nothing was found in {empty}.",
            f"The confidence tells the reference's own subject from another one with an AUC of {auc(*confidence):.2f}.",
        ]
    )


def picture() -> Image.Image:
    """Rendered scenes and photographs with the outlines of transferred masks."""
    rng = np.random.default_rng(8)
    rows = []
    for title, names in (("rendered, same subject", [0, 0, 0]), ("rendered, damaged subject", [1, 2, 4])):
        subject = random_subject(rng, held_out=True)
        scenes = rng.choice(SCENES, size=4, replace=False).tolist()
        reference, *shots = (
            render(subject.damaged(damage, rng), scene, seed=int(rng.integers(2**32)), size=(256, 256))
            for damage, scene in zip([0, *names], scenes, strict=True)
        )
        rows.append((title, *map(torch.from_numpy, (reference.image, reference.mask)), [
            (torch.from_numpy(shot.image), torch.from_numpy(shot.mask), shot.caption, subject.name) for shot in shots
        ]))  # fmt: skip
    for name, places in (("coffee", ["astronaut", "cat", "rocket"]), ("cat", ["coffee", "rocket", "astronaut"])):
        source = photograph(name).resized(256, 256)
        shots = [(f"in place of {place}", pasted(name, place, 256, 256)) for place in places]
        rows.append((f"photograph, {name}", pixels(source.image), torch.from_numpy(array(source.mask)), [
            (pixels(shot.image), torch.from_numpy(array(shot.mask)) > 0, caption, name) for caption, shot in shots
        ]))  # fmt: skip
    return panel([_row(*row) for row in rows])


def _row(title: str, reference: Tensor, mask: Tensor, shots: list[tuple[Tensor, Tensor, str, str]]) -> PanelRow:
    tiny: dict[str, Any] = {"backbone": load_backbone("tiny"), "max_num_patches": PATCHES}
    images = [image for image, *_ in shots]
    pairs = images, [reference] * len(images), [mask] * len(images)
    found = transfer_masks(*pairs, **tiny)
    cp, maps = concept_preservation(*pairs, **tiny), match_maps(*pairs, **tiny)
    pf = prompt_following(images, found, [caption for *_, caption, _ in shots], [name for *_, name in shots], **tiny)
    return PanelRow(title, reference, mask, [
        Shot(image, float(cp[index]), float(pf[index]), maps[index], found[index],
             f"IoU {iou(found[index], truth):.2f}, confidence {found.confidence_B[index]:.2f}")
        for index, (image, truth, *_) in enumerate(shots)
    ])  # fmt: skip


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


if __name__ == "__main__":
    picture().save(PAGE.with_name("transferred_masks.png"))
    PAGE.write_text(with_block(PAGE.read_text(encoding="utf-8"), "transfer", table(600)), encoding="utf-8")
