"""The paper's claims in small: what the bundled checkpoint's scores are worth on rendered benchmarks of known truth.

``python tests/claims.py`` measures them and writes the tables into docs/claims.md and the model card.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.functional.regression import spearman_corrcoef

import masc_metrics
from masc_metrics import SigLIP2Backbone, functional, load_backbone, scores
from masc_metrics.scenes import concept_benchmark

SEEDS = (0, 1, 2)
PAIRS = 200
MAX_NUM_PATCHES = 64
CELL = 16
"""Side of a patch of a 128-pixel picture in 64 patches: mask noise falls on whole patches."""

DILATIONS = (0, 2, 4, 8, 16, 32)
DROPOUTS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "claims.md", Path(masc_metrics.__file__).parent / "assets" / "tiny" / "README.md")


@dataclass(frozen=True)
class Ranking:
    """How well a score of the subject ranks identity damage.

    Attributes:
        spearman: rank correlation with the number of attributes kept.
        auc: same subject against three or four attributes changed.
    """

    spearman: float
    auc: float


@dataclass(frozen=True)
class Claims:
    """Figures of one benchmark, or their means over several.

    Attributes:
        identity: by what the score averages over.
        prompt: AUC of scenes as asked against swapped ones, by pooling and prompt.
        dilated: concept preservation's ranking and prompt following's AUC under masks grown by so many pixels.
        dropped: the same under masks without so large a share of their patches.
    """

    identity: dict[str, Ranking]
    prompt: dict[tuple[str, str], float]
    dilated: dict[float, tuple[Ranking, float]]
    dropped: dict[float, tuple[Ranking, float]]


@cache
def measured(seed: int) -> Claims:
    backbone = load_backbone("tiny")
    made = concept_benchmark(PAIRS, seed)
    generated_images, generated_masks, reference_images, reference_masks = (
        torch.from_numpy(array)
        for array in (made.generated_images, made.generated_masks, made.reference_images, made.reference_masks)
    )
    damage, swapped = torch.from_numpy(made.identity_damage), torch.from_numpy(made.prompt_damage)
    settings = {"backbone": backbone, "max_num_patches": MAX_NUM_PATCHES}

    def preservation(masks: Tensor) -> Ranking:
        return _ranking(functional.concept_preservation(generated_images, reference_images, masks, **settings), damage)

    def following(masks: Tensor, pooling: str = "background", strip: bool = True) -> float:
        values = functional.prompt_following(
            generated_images, masks, made.prompts, made.subjects, pooling=pooling, strip_subject=strip, **settings
        )
        return _auc(values, ~swapped)

    return Claims(
        identity={
            "subject": preservation(reference_masks),
            "whole image": preservation(torch.ones_like(reference_masks)),
            "global pool": _ranking(_global_pool(backbone, reference_images, generated_images), damage),
        },
        prompt={
            (pooling, prompt): following(generated_masks, pooling, strip=prompt == "stripped")
            for pooling in ("background", "full", "foreground")
            for prompt in ("stripped", "whole")
        },
        dilated={
            reach: (preservation(dilated(reference_masks, reach)), following(dilated(generated_masks, reach)))
            for reach in DILATIONS
        },
        dropped={
            share: (preservation(dropped(reference_masks, share)), following(dropped(generated_masks, share)))
            for share in DROPOUTS
        },
    )


def mean_claims() -> Claims:
    """Every figure's mean over the seeds."""
    parts = [measured(seed) for seed in SEEDS]
    return Claims(
        identity={name: _mean_ranking(part.identity[name] for part in parts) for name in parts[0].identity},
        prompt={key: statistics.fmean(part.prompt[key] for part in parts) for key in parts[0].prompt},
        dilated=_mean_noise([part.dilated for part in parts]),
        dropped=_mean_noise([part.dropped for part in parts]),
    )


def _mean_ranking(rankings: Iterable[Ranking]) -> Ranking:
    rankings = list(rankings)
    return Ranking(
        statistics.fmean(ranking.spearman for ranking in rankings),
        statistics.fmean(ranking.auc for ranking in rankings),
    )


def _mean_noise(parts: list[dict[float, tuple[Ranking, float]]]) -> dict[float, tuple[Ranking, float]]:
    return {
        level: (
            _mean_ranking(part[level][0] for part in parts),
            statistics.fmean(part[level][1] for part in parts),
        )
        for level in parts[0]
    }


def _global_pool(backbone: SigLIP2Backbone, reference_images: Tensor, generated_images: Tensor) -> Tensor:
    pooled = []
    for images in (reference_images, generated_images):
        features = backbone.encode_images(images, max_num_patches=MAX_NUM_PATCHES)
        pooled.append(backbone.pool(features, features.valid_BN))
    return scores.embedding_cosine(*pooled)


def _ranking(values: Tensor, damage: Tensor) -> Ranking:
    defined = ~values.isnan()
    values, damage = values[defined], damage[defined]
    ends = (damage == 0) | (damage >= 3)
    return Ranking(float(spearman_corrcoef(values.double(), -damage.double())), _auc(values[ends], damage[ends] == 0))


def _auc(values: Tensor, positive: Tensor) -> float:
    defined = ~values.isnan()
    unit = (values[defined].double() + 1) / 2  # torchmetrics takes what lies outside [0, 1] for logits
    return float(binary_auroc(unit, positive[defined].long()))


def dilated(masks: Tensor, reach: float) -> Tensor:
    """Masks grown by so many pixels to every side."""
    pixels = int(reach)
    return F.max_pool2d(masks.float()[:, None], 2 * pixels + 1, stride=1, padding=pixels)[:, 0] > 0.5


def dropped(masks: Tensor, share: float) -> Tensor:
    """Masks without a random share of their patches."""
    count, height, width = masks.shape
    rng = np.random.default_rng(0)
    kept = torch.from_numpy(rng.random((count, height // CELL, width // CELL)) >= share)
    return masks & kept.repeat_interleave(CELL, dim=1).repeat_interleave(CELL, dim=2)


def tables(claims: Claims) -> str:
    """The figures as Markdown."""
    names = {
        "subject": "**concept preservation**: best cosines, mean over the subject's patches",
        "whole image": "best cosines, mean over all reference patches",
        "global pool": "cosine of the two pooled images",
    }
    lines = ["| score of the subject | Spearman with the truth | AUC, same against 3-4 changed |", "|---|---|---|"]
    lines += [f"| {names[key]} | {row.spearman:.2f} | {row.auc:.3f} |" for key, row in claims.identity.items()]
    lines += ["", "| image pooled over | prompt without its subject | prompt as it is |", "|---|---|---|"]
    for pooling in ("background", "full", "foreground"):
        stripped, whole = (claims.prompt[pooling, prompt] for prompt in ("stripped", "whole"))
        name, stripped_text = pooling, f"{stripped:.3f}"
        if pooling == "background":
            name, stripped_text = "**background**", f"**{stripped_text}** (prompt following)"
        lines.append(f"| {name} | {stripped_text} | {whole:.3f} |")
    lines += ["", "| masks | CP: Spearman | CP: AUC | PF: AUC |", "|---|---|---|---|"]
    for levels, wording in (
        (claims.dilated, "grown by {:.0f} pixels of 128"),
        (claims.dropped, "without {:.0%} of their patches"),
    ):
        for level, (ranking, auc) in levels.items():
            if level or levels is claims.dilated:
                name = wording.format(level) if level else "exact"
                lines.append(f"| {name} | {ranking.spearman:.2f} | {ranking.auc:.3f} | {auc:.3f} |")
    return "\n".join(lines)


def with_tables(page: str, text: str) -> str:
    """The page with the text between its marks."""
    start, end = "<!-- measured -->", "<!-- end of measured -->"
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{text}\n{end}{after}"


if __name__ == "__main__":
    torch.set_num_threads(2)
    text = tables(mean_claims())
    print(text)
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8"), text), encoding="utf-8")
