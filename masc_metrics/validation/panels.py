"""Which images a panel shows, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from PIL import Image

from masc_metrics.plots import PanelRow, Shot, panel
from masc_metrics.validation.concept_scores import ConceptScores
from masc_metrics.validation.concepts import Concept, GenerationTask

_MISSING = Shot(
    torch.full((3, 64, 64), 200, dtype=torch.uint8), torch.nan, torch.nan, torch.full((1, 1), torch.nan), caption=""
)


def panel_tasks(tasks: Sequence[GenerationTask], size: tuple[int, int] | None) -> list[tuple[GenerationTask, ...]]:
    """Images in the panel, one row for each concept."""
    rows, columns = size or (0, 0)
    tasks_of_concept = [tuple(task for task in tasks if task.concept == concept) for concept in range(rows)]
    return [row[:columns] for row in tasks_of_concept if row]


def draw_panel(
    concepts: Sequence[Concept],
    task_rows: Sequence[Sequence[GenerationTask]],
    scores: ConceptScores,
    shots: Mapping[int, Shot],
) -> Image.Image:
    """Draw a row for each concept: its first reference and the generated images.

    Args:
        concepts: all concepts.
        task_rows: tasks of each row, of one concept.
        scores: scores of all images.
        shots: generated images by the index of their task; a missing image is drawn as a grey square.
    """
    rows = []
    for tasks in task_rows:
        concept = concepts[tasks[0].concept]
        note = f" (CP for the first of {len(concept.references)} references)" if len(concept.references) > 1 else ""
        row_shots = [
            replace(
                shots.get(task.index, _MISSING),
                cp=float(scores.shown_cp_S[task.index]),
                pf=float(scores.pf_S[task.index]),
                caption=task.prompt,
            )
            for task in tasks
        ]
        rows.append(PanelRow(concept.name + note, concept.references.images[0], concept.masks.masks[0], row_shots))
    return panel(rows)
