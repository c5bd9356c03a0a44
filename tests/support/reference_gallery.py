"""What a score is worth, on rendered scenes; run as a program, writes tables and picture of docs/references.md."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for when it is run as a program

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from masc_metrics import load_backbone
from masc_metrics.functional import concept_anchors, concept_matrix, concept_preservation, match_maps, prompt_following
from masc_metrics.plots import PanelRow, Shot, panel
from masc_metrics.scenes import ATTRIBUTES, SCENES, Picture, Subject, random_subject, render
from masc_metrics.scores import concept_margins, concept_ranks, double_centred
from support.blocks import with_block
from support.transfer_quality import auc

PAGE = Path(__file__).parents[2] / "docs" / "references.md"
PATCHES = 256
PICTURES, REFERENCES = 4, 4


@dataclass(frozen=True)
class Gallery:
    """Subjects with references, and generated pictures of each."""

    subjects: list[Subject]
    references: list[list[Picture]]
    generated: list[Picture]
    own: Tensor

    @classmethod
    def of(cls, subjects: list[Subject], rng: np.random.Generator, damage: int = 0) -> Gallery:
        """Pictures of the subjects in random scenes, with changed attributes if ``damage`` is above 0."""

        def rendered(subject: Subject, count: int) -> list[Picture]:
            scenes = rng.choice(SCENES, size=count, replace=False).tolist()
            return [render(subject, scene, seed=int(rng.integers(2**32))) for scene in scenes]

        references = [rendered(subject, REFERENCES) for subject in subjects]
        generated = [rendered(subject.damaged(damage, rng), PICTURES) for subject in subjects]
        own = torch.arange(len(subjects)).repeat_interleave(PICTURES)
        return cls(subjects, references, [picture for each in generated for picture in each], own)

    def matrix(self, references: int = 1, **settings: Any) -> Tensor:
        """Every picture against every subject, by its first references."""
        return concept_matrix(pixels(self.generated), *self.nested(references), **TINY, **settings).double()

    def nested(self, references: int) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        chosen = [each[:references] for each in self.references]
        return [pixels(each) for each in chosen], [[torch.from_numpy(each.mask) for each in its] for its in chosen]


TINY: dict[str, Any] = {"backbone": load_backbone("tiny"), "max_num_patches": PATCHES}


def pixels(pictures: list[Picture]) -> list[Tensor]:
    return [torch.from_numpy(picture.image) for picture in pictures]


def different(rng: np.random.Generator, count: int) -> list[Subject]:
    """Subjects that differ in most attributes."""
    return [random_subject(rng, held_out=True) for _ in range(count)]


def similar(rng: np.random.Generator, count: int) -> list[Subject]:
    """Groups of three, which differ from the first of their group in one attribute."""
    subjects: list[Subject] = []
    while len(subjects) < count:
        first = random_subject(rng, held_out=True)
        group = {first}
        while len(group) < 3:
            group.add(first.damaged(1, rng))
        subjects += sorted(group, key=repr)
    return subjects[:count]


def separation(matrix: Tensor, own: Tensor) -> dict[str, float]:
    """AUC of pictures with their own subject against pictures with others, by three scores."""
    mine = own[:, None] == torch.arange(matrix.shape[1])
    floors = torch.where(mine, 0, matrix).sum(dim=0) / (~mine).sum(dim=0)
    scores = {"CP": matrix, "one side": matrix - floors, "both sides": double_centred(matrix, own)}
    return {name: auc(values[mine].float(), values[~mine].float()) for name, values in scores.items()}


def separation_table(concepts: int) -> str:
    lines = [
        "| subjects | references | AUC of CP | minus the mean of pictures of others | margin | identified |",
        "|---|---|---|---|---|---|",
    ]
    for name, choose in (("different", different), ("similar", similar)):
        rng = np.random.default_rng(1)
        gallery = Gallery.of(choose(rng, concepts), rng)
        for references, reduction in ((1, "mean"), (REFERENCES, "mean"), (REFERENCES, "max"), (REFERENCES, "pool")):
            matrix = gallery.matrix(references, reference_reduction=reduction)
            cells = " | ".join(f"{value:.3f}" for value in separation(matrix, gallery.own).values())
            share = float((concept_ranks(matrix, gallery.own) == 1).double().mean())
            label = "1" if references == 1 else f"{references}, {reduction}"
            lines.append(f"| {name} | {label} | {cells} | {share:.3f} |")
    total = concepts * PICTURES
    lines += ["", f"{total} pictures of {concepts} rendered subjects, {PATCHES} patches, the bundled checkpoint."]
    return "\n".join(lines)


def damage_table(concepts: int) -> str:
    lines = [
        "| changed attributes | CP | identified | mean reciprocal rank | margin |",
        "|---|---|---|---|---|",
    ]
    for damage in range(ATTRIBUTES + 1):
        rng = np.random.default_rng(1)
        gallery = Gallery.of(different(rng, concepts), rng, damage)
        matrix, own = gallery.matrix(), gallery.own
        ranks = concept_ranks(matrix, own)
        figures = (
            matrix.gather(1, own[:, None]).mean(),
            (ranks == 1).double().mean(),
            (1 / ranks).mean(),
            concept_margins(matrix, own).mean(),
        )
        lines.append(f"| {damage} | {' | '.join(f'{float(figure):.3f}' for figure in figures)} |")
    anchors = concept_anchors(*gallery.nested(REFERENCES), **TINY)
    lines += [
        "",
        f"The anchors of these {concepts} subjects, by {REFERENCES} references each: ceiling "
        f"{float(anchors.ceiling_R.mean()):.3f}, floor {float(anchors.floor_R.mean()):.3f} on average.",
    ]
    return "\n".join(lines)


def picture(concepts: int = 30) -> Image.Image:
    """Rows of one subject: a reference, and pictures of it, of one that resembles it, and of another."""
    rng = np.random.default_rng(5)
    gallery = Gallery.of(different(rng, concepts), rng)
    anchors = concept_anchors(*gallery.nested(REFERENCES), **TINY)
    rows = []
    for concept in (0, 4, 9):
        subject, reference = gallery.subjects[concept], gallery.references[concept][0]
        shown = [subject, subject.damaged(1, rng), subject.damaged(2, rng), gallery.subjects[concept + 1]]
        scenes = rng.choice(SCENES, size=len(shown), replace=False).tolist()
        pictures = [
            render(each, scene, seed=int(rng.integers(2**32))) for each, scene in zip(shown, scenes, strict=True)
        ]
        # The pictures are added to those of the other subjects, by which they are centred.
        others = gallery.own != concept
        matrix = torch.cat([
            concept_matrix(pixels(pictures), *gallery.nested(1), **TINY).double(), gallery.matrix()[others]
        ])  # fmt: skip
        own = torch.cat([torch.full((len(pictures),), concept), gallery.own[others]])
        ranks, margins = concept_ranks(matrix, own), concept_margins(matrix, own)
        pairs = (
            pixels(pictures),
            pixels([reference] * len(pictures)),
            [torch.from_numpy(reference.mask)] * len(pictures),
        )
        cp, maps = concept_preservation(*pairs, **TINY), match_maps(*pairs, **TINY)
        masks, prompts = [torch.from_numpy(each.mask) for each in pictures], [each.caption for each in pictures]
        pf = prompt_following(pairs[0], masks, prompts, [each.name for each in shown], **TINY)
        ceiling, floor = float(anchors.ceiling_R[concept]), float(anchors.floor_R[concept])
        rows.append(
            PanelRow(
                f"ceiling {ceiling:.2f}, floor {floor:.2f}",
                pairs[1][0],
                pairs[2][0],
                [
                    Shot(image, float(cp[index]), float(pf[index]), maps[index],
                         caption=f"rank {int(ranks[index])} of {concepts}, margin {float(margins[index]):.2f}")
                    for index, image in enumerate(pairs[0])
                ],
            )
        )  # fmt: skip
    return panel(rows, ["the subject", "1 attribute changed", "2 attributes changed", "another subject"])


if __name__ == "__main__":
    picture().save(PAGE.with_name("references.png"))
    text = PAGE.read_text(encoding="utf-8")
    for block, content in (("separation", separation_table(30)), ("damage", damage_table(30))):
        text = with_block(text, block, content)
    PAGE.write_text(text, encoding="utf-8")
