"""The paper's claims, measured with the bundled checkpoint on rendered benchmarks with known ground truth.

``python tests/support/claims.py`` measures the figures and writes the tables into docs/claims.md and the model card.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
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
"""Side of a patch of a 128-pixel image with 64 patches; mask noise removes complete patches."""

DILATIONS = (0, 2, 4, 8, 16)
DROPOUTS = (0.0, 0.1, 0.25, 0.5, 0.75)

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "docs" / "claims.md", Path(masc_metrics.__file__).parent / "assets" / "tiny" / "README.md")


@dataclass(frozen=True)
class Ranking:
    """How well a score of the subject ranks identity damage.

    Attributes:
        spearman: rank correlation with the number of attributes kept.
        auc: AUC of the same subject against three or four changed attributes.
    """

    spearman: float
    auc: float


@dataclass(frozen=True)
class Noisy:
    """Both scores under noisy masks.

    Attributes:
        identity: ranking by concept preservation.
        prompt: AUC of prompt following.
        undefined: fraction of samples with an undefined score, which are excluded.
    """

    identity: Ranking
    prompt: float
    undefined: float


@dataclass(frozen=True)
class Claims:
    """Figures of one benchmark, or their means over several.

    Attributes:
        identity: ranking of identity damage, by the score.
        prompt: AUC of prompted against swapped scenes, by pooling and prompt.
        dilated: figures with dilated masks, by the number of pixels.
        dropped: figures with masks that lack patches, by their fraction.
    """

    identity: dict[str, Ranking]
    prompt: dict[tuple[str, str], float]
    dilated: dict[float, Noisy]
    dropped: dict[float, Noisy]


@cache
def measured(seed: int) -> Claims:
    backbone = load_backbone("tiny")
    benchmark = concept_benchmark(PAIRS, seed)
    generated_images, generated_masks, reference_images, reference_masks = (
        torch.from_numpy(array)
        for array in (
            benchmark.generated_images,
            benchmark.generated_masks,
            benchmark.reference_images,
            benchmark.reference_masks,
        )
    )
    damage, followed = torch.from_numpy(benchmark.identity_damage), ~torch.from_numpy(benchmark.prompt_damage)
    settings = {"backbone": backbone, "max_num_patches": MAX_NUM_PATCHES, "encode_batch_size": PAIRS}

    def preservation(masks: Tensor) -> Tensor:
        return functional.concept_preservation(generated_images, reference_images, masks, **settings)

    def following(masks: Tensor, pooling: str = "background", prompt: str = "stripped") -> Tensor:
        return functional.prompt_following(
            generated_images, masks, benchmark.prompts, benchmark.subjects,
            pooling=pooling, strip_subject=prompt == "stripped", **settings,
        )  # fmt: skip

    def noisy(noise: Callable[[Tensor], Tensor]) -> Noisy:
        cp, pf = preservation(noise(reference_masks)), following(noise(generated_masks))
        return Noisy(_ranking(cp, damage), _auc(pf, followed), float((cp.isnan() | pf.isnan()).float().mean()))

    exact = noisy(lambda masks: masks)
    return Claims(
        identity={
            "subject": exact.identity,
            "all patches": _ranking(preservation(torch.ones_like(reference_masks)), damage),
            "global pool": _ranking(_global_pool(backbone, reference_images, generated_images), damage),
        },
        prompt={
            (pooling, prompt): _auc(following(generated_masks, pooling, prompt), followed)
            for pooling in ("background", "full", "foreground")
            for prompt in ("stripped", "unstripped")
        },
        dilated={0: exact} | {reach: noisy(partial(dilated, reach=reach)) for reach in DILATIONS[1:]},
        dropped={0: exact} | {share: noisy(partial(dropped, share=share)) for share in DROPOUTS[1:]},
    )


def mean_claims() -> Claims:
    """Means of all figures over the seeds."""
    parts = [measured(seed) for seed in SEEDS]
    return Claims(
        identity={name: _mean_ranking(part.identity[name] for part in parts) for name in parts[0].identity},
        prompt={key: statistics.fmean(part.prompt[key] for part in parts) for key in parts[0].prompt},
        dilated={level: _mean_noisy(part.dilated[level] for part in parts) for level in DILATIONS},
        dropped={level: _mean_noisy(part.dropped[level] for part in parts) for level in DROPOUTS},
    )


def _mean_ranking(rankings: Iterable[Ranking]) -> Ranking:
    rankings = list(rankings)
    return Ranking(
        statistics.fmean(ranking.spearman for ranking in rankings),
        statistics.fmean(ranking.auc for ranking in rankings),
    )


def _mean_noisy(parts: Iterable[Noisy]) -> Noisy:
    parts = list(parts)
    return Noisy(
        _mean_ranking(part.identity for part in parts),
        statistics.fmean(part.prompt for part in parts),
        statistics.fmean(part.undefined for part in parts),
    )


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
    unit = (values[defined].double() + 1) / 2  # torchmetrics treats values outside [0, 1] as logits
    return float(binary_auroc(unit, positive[defined].long()))


def dilated(masks: Tensor, reach: float) -> Tensor:
    """Masks dilated by ``reach`` pixels in every direction."""
    pixels = int(reach)
    return F.max_pool2d(masks.float()[:, None], 2 * pixels + 1, stride=1, padding=pixels)[:, 0] > 0.5


def dropped(masks: Tensor, share: float) -> Tensor:
    """Masks without a random fraction of their patches."""
    count, height, width = masks.shape
    rng = np.random.default_rng(0)
    kept = torch.from_numpy(rng.random((count, height // CELL, width // CELL)) >= share)
    return masks & kept.repeat_interleave(CELL, dim=1).repeat_interleave(CELL, dim=2)


def tables(claims: Claims) -> str:
    """Tables of the figures in Markdown."""
    names = {
        "subject": "**concept preservation**: best cosines, mean over the subject's patches",
        "all patches": "best cosines, mean over all reference patches",
        "global pool": "cosine of the two pooled images",
    }
    lines = ["| score of the subject | Spearman with the truth | AUC, same against 3-4 changed |", "|---|---|---|"]
    lines += [f"| {names[key]} | {row.spearman:.2f} | {row.auc:.3f} |" for key, row in claims.identity.items()]
    lines += ["", "| image pooled over | prompt without its subject | prompt as it is |", "|---|---|---|"]
    for pooling in ("background", "full", "foreground"):
        stripped, unstripped = (claims.prompt[pooling, prompt] for prompt in ("stripped", "unstripped"))
        name, stripped_text = pooling, f"{stripped:.3f}"
        if pooling == "background":
            name, stripped_text = "**background**", f"**{stripped_text}** (prompt following)"
        lines.append(f"| {name} | {stripped_text} | {unstripped:.3f} |")
    lines += ["", "| masks | CP: Spearman | CP: AUC | PF: AUC | undefined |", "|---|---|---|---|---|"]
    for levels, wording in (
        (claims.dilated, "grown by {:.0f} pixels of 128"),
        (claims.dropped, "without {:.0%} of their patches"),
    ):
        for level, row in levels.items():
            if level or levels is claims.dilated:
                name = wording.format(level) if level else "exact"
                ranking = row.identity
                figures = f"{ranking.spearman:.2f} | {ranking.auc:.3f} | {row.prompt:.3f} | {row.undefined:.1%}"
                lines.append(f"| {name} | {figures} |")
    return "\n".join(lines)


def with_tables(page: str, text: str) -> str:
    """Replace the text between the markers of a page."""
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
