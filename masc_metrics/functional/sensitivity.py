"""Both scores with wrong masks, from one pass through the network.

Shape suffixes: B samples, N patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from masc_metrics.arguments import (
    check_integer,
    check_sequence,
    check_type,
)
from masc_metrics.backbone import PatchFeatures, SigLIP2Backbone
from masc_metrics.functional.encoding import (
    Shown,
    check_pairs,
    check_settings,
    check_texts,
    coverage_of,
    encoded_pairs,
    followed,
    in_order,
)
from masc_metrics.functional.transferring import Transferring
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.images import Images
from masc_metrics.masks import (
    FOREGROUND_THRESHOLD,
    Masks,
    Perturbation,
    check_masks,
    perturb,
)
from masc_metrics.precision import eager
from masc_metrics.scores import (
    best_cosine,
    weighted_mean,
)
from masc_metrics.settings import DEFAULT_ENCODE_BATCH_SIZE


@dataclass(frozen=True, slots=True)
class MaskSensitivity:
    """Results of :func:`mask_sensitivity`; all scores are (B,) float32 on the backbone's device, NaN if undefined.

    Attributes:
        cp_B: concept preservation with the given masks.
        pf_B: prompt following with the given masks.
        cp: concept preservation with each perturbation of the reference masks; "transferred" is not among them.
        pf: prompt following with each perturbation of the generated masks.
    """

    cp_B: Tensor
    pf_B: Tensor
    cp: dict[Perturbation, Tensor]
    pf: dict[Perturbation, Tensor]


@eager
def mask_sensitivity(
    generated_images: Images,
    generated_masks: Masks,
    reference_images: Images,
    reference_masks: Masks,
    prompts: Sequence[str],
    subjects: Sequence[str | None] | None = None,
    *,
    perturbations: Sequence[Perturbation],
    seed: int = 0,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
) -> MaskSensitivity:
    """Both scores with wrong masks: how much they depend on the masks.

    Every image and every text is encoded once. A perturbation costs a mean for concept preservation, and the pooling
    head for prompt following.

    Args:
        generated_images: B images, in any form accepted by :func:`concept_preservation`.
        generated_masks: B masks of the subject in them. Masks that are not boolean are perturbed as mask > 0.5.
        reference_images: B images of the subject.
        reference_masks: B masks of the subject in them, likewise.
        prompts: B prompts that the images were generated from.
        subjects: B names of the subject, spelled as in the prompts.
        perturbations: how the masks are made wrong, see :class:`masc_metrics.masks.Perturbation`. The blocks of
            "dropout" have the size of a patch.
        seed: random seed of the perturbations, see :func:`masc_metrics.masks.perturb`.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        encode_batch_size: samples encoded together.

    Returns:
        The scores with the given masks, which are those of :func:`concept_preservation` and :func:`prompt_following`,
        and the scores with each perturbation.

    Raises:
        TypeError, ValueError, OSError, RuntimeError: as for :func:`concept_preservation`.
    """
    check_settings(backbone, max_num_patches, encode_batch_size)
    check_integer("seed", seed, least=0)
    for index, change in enumerate(check_sequence("perturbations", perturbations, "a list of Perturbation")):
        check_type(f"perturbations[{index}]", change, Perturbation, "a masc_metrics.masks.Perturbation")
    generated, references = check_pairs(generated_images, reference_images)
    reference_given = check_masks(reference_masks, "reference_masks", references.sizes)
    generated_given = check_masks(generated_masks, "generated_masks", generated.sizes)
    texts = check_texts(prompts, subjects, len(generated), strip_subject=True)

    transferred = Transferring(generated)
    changes: list[Perturbation | None] = [None, *dict.fromkeys(perturbations)]
    preserved: dict[Perturbation | None, list[tuple[list[int], Tensor, Tensor]]] = {
        change: [] for change in changes if change is None or change.kind != "transferred"
    }
    pooled: dict[Perturbation | None, list[tuple[list[int], Tensor, Tensor]]] = {change: [] for change in changes}
    for part, reference, candidate in encoded_pairs(
        generated, references, backbone, max_num_patches, encode_batch_size
    ):
        part_masks = [reference_given.masks[index] for index in part]
        best_BN = best_cosine(reference.tokens_BND, candidate.tokens_BND, candidate.valid_BN)
        for change, parts in preserved.items():
            foreground_BN = (
                coverage_of(_perturbed(part_masks, change, seed, reference), reference) > FOREGROUND_THRESHOLD
            )
            parts.append((part, weighted_mean(best_BN, foreground_BN), foreground_BN.any(dim=1)))
        alone = _without_padding(candidate)  # as prompt following encodes them
        for change, parts in pooled.items():
            if change is not None and change.kind == "transferred":
                shown = Shown(reference, coverage_of(part_masks, reference), [[row] for row in range(len(part))])
                wrong: Sequence[Tensor] = transferred.add(part, shown, candidate)
            else:
                wrong = _perturbed([generated_given.masks[index] for index in part], change, seed, alone)
            keep_BN = alone.valid_BN & (coverage_of(wrong, alone) < FOREGROUND_THRESHOLD)
            parts.append((part, backbone.pool(alone, keep_BN), keep_BN.any(dim=1)))
    embeddings_BD = backbone.encode_texts(texts, batch_size=encode_batch_size)
    cp = {change: in_order(parts, backbone) for change, parts in preserved.items()}
    pf = {change: followed(parts, embeddings_BD, backbone) for change, parts in pooled.items()}
    return MaskSensitivity(
        cp_B=cp[None],
        pf_B=pf[None],
        cp={change: scores_B for change, scores_B in cp.items() if change is not None},
        pf={change: scores_B for change, scores_B in pf.items() if change is not None},
    )


def _perturbed(
    masks: Sequence[Tensor], change: Perturbation | None, seed: int, features: PatchFeatures
) -> Sequence[Tensor]:
    """The masks of a part with a perturbation; a mask that occurs several times is perturbed once."""
    if change is None:
        return masks
    keys = [(id(mask), -(-len(mask) // rows)) for mask, (rows, _) in zip(masks, features.grids, strict=True)]
    changed: dict[tuple[int, int], Tensor] = {}
    for key, mask in dict(zip(keys, masks, strict=True)).items():
        marked = mask if mask.dtype == torch.bool else mask > FOREGROUND_THRESHOLD
        changed[key] = perturb(marked, change.kind, change.amount, seed, block=key[1])
    return [changed[key] for key in keys]


def _without_padding(features: PatchFeatures) -> PatchFeatures:
    """The features without the columns that are padding in every image."""
    width = max(rows * columns for rows, columns in features.grids)
    return PatchFeatures(
        features.tokens_BND[:, :width].contiguous(), features.valid_BN[:, :width].contiguous(), features.grids
    )
