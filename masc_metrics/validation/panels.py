"""Which images a panel shows, and how."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from PIL import Image

from masc_metrics.plots import PanelRow, Shot, panel
from masc_metrics.validation.concepts import Concept, GenerationTask

PanelChoice = Literal["first", "worst"]

_MISSING = Shot(
    torch.full((3, 64, 64), 200, dtype=torch.uint8), torch.nan, torch.nan, torch.full((1, 1), torch.nan), caption=""
)


@dataclass(frozen=True, slots=True, eq=False)
class ShownConcept:
    """A concept in a panel.

    Attributes:
        name: name of the concept.
        row: its first reference and some of its images, each with the CP of this reference.
        indices: position of each of these images among all images.
    """

    name: str
    row: PanelRow
    indices: tuple[int, ...]


def panel_rows(
    tasks: Sequence[GenerationTask],
    size: tuple[int, int] | None,
    worst: tuple[Sequence[float], Sequence[float]] | None = None,
    drawable: Collection[int] = (),
) -> list[tuple[GenerationTask, ...]]:
    """Images in the panel, one row for each concept.

    Args:
        tasks: all images.
        size: maximum numbers of concepts and of images per concept; None for no rows.
        worst: CP and PF of all images, for the worst images of each concept; None for the first.
        drawable: indices of the images from which the worst are chosen, unless a concept has none.
    """
    rows, columns = size or (0, 0)
    chosen = []
    for concept in range(rows):
        row = {task.index: task for task in tasks if task.concept == concept}
        if worst is not None and (candidates := [index for index in row if index in drawable]):
            row = {index: row[index] for index in worst_first(candidates, *worst)}
        chosen.append(tuple(row.values())[:columns])
    return [row for row in chosen if row]


def worst_first(indices: Collection[int], cp: Sequence[float], pf: Sequence[float]) -> list[int]:
    """Alternately the image of lowest CP and that of lowest PF of those left; undefined scores are the lowest."""
    alternating = zip(ascending(indices, cp), ascending(indices, pf), strict=True)
    return list(dict.fromkeys(index for pair in alternating for index in pair))


def ascending(indices: Collection[int], values: Mapping[int, float] | Sequence[float]) -> list[int]:
    """Indices by their values, NaN first."""
    return sorted(indices, key=lambda index: (not math.isnan(values[index]), values[index], index))


def shown_concepts(
    concepts: Sequence[Concept],
    task_rows: Sequence[Sequence[GenerationTask]],
    cp: Sequence[float],
    pf: Sequence[float],
    shots: Mapping[int, Shot],
    *,
    with_seeds: bool = False,
) -> tuple[ShownConcept, ...]:
    """What a panel shows: of each row the concept's first reference and the generated images.

    Args:
        concepts: all concepts.
        task_rows: tasks of each row, of one concept.
        cp: concept preservation of all images with the first reference of their concept.
        pf: prompt following of all images.
        shots: generated images by the index of their task; a missing image is drawn as a grey square.
        with_seeds: put the seed before the prompt.
    """
    found = []
    for tasks in task_rows:
        concept = concepts[tasks[0].concept]
        note = f" (CP for the first of {len(concept.references)} references)" if len(concept.references) > 1 else ""
        row_shots = [
            replace(
                shots.get(task.index, _MISSING),
                cp=cp[task.index],
                pf=pf[task.index],
                caption=f"seed {task.seed}: {task.prompt}" if with_seeds else task.prompt,
            )
            for task in tasks
        ]
        row = PanelRow(concept.name + note, concept.references.images[0], concept.masks.masks[0], row_shots)
        found.append(ShownConcept(concept.name, row, tuple(task.index for task in tasks)))
    return tuple(found)


def draw_panel(shown: Sequence[ShownConcept]) -> Image.Image:
    """Draw a row for each concept."""
    return panel([each.row for each in shown])
