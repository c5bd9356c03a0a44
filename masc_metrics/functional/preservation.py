"""Concept preservation of each sample, its ablations, and the maps behind it.

Shape suffixes: B samples, N patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from masc_metrics.arguments import (
    check_choice,
    check_sequence,
)
from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.functional.encoding import check_pairs, check_settings, coverage_of, encoded_pairs, finite, in_order
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.images import Images
from masc_metrics.masks import (
    FOREGROUND_THRESHOLD,
    Masks,
    check_masks,
)
from masc_metrics.precision import eager
from masc_metrics.scores import (
    best_cosine,
    masked_max_cosine,
    mutual_recall,
    weighted_max_cosine,
)
from masc_metrics.settings import DEFAULT_AGGREGATION, DEFAULT_ENCODE_BATCH_SIZE, Aggregation


@eager
def concept_preservation(
    generated_images: Images,
    reference_images: Images,
    reference_masks: Masks,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
) -> Tensor:
    """Concept preservation of each sample, see :func:`masc_metrics.scores.masked_max_cosine`.

    Args:
        generated_images: B images; (B, 3, H, W) uint8 or float in [0, 1], or a list of (3, H, W) tensors of any sizes
            or PIL images.
        reference_images: B images of the subject, in any of these forms.
        reference_masks: B masks of the subject in the reference images; (B, H, W) or (B, 1, H, W), boolean, integer or
            float in [0, 1], or a list of (H, W) tensors or PIL images.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        encode_batch_size: samples encoded together; larger batches are faster on a GPU and need more memory.

    Returns:
        (B,) float32 on the backbone's device, in [-1, 1], higher is better; NaN where no reference patch is more than
        half covered by its mask.

    Raises:
        TypeError, ValueError: if an argument is not accepted; the error text names argument, sample and remedy.
        OSError: if the checkpoint is not available.
        RuntimeError: if features of the network are not finite, such as after an overflow in float16.

    Source: MaSC, arXiv 2605.22469.
    """
    return concept_preservation_variants(
        generated_images,
        reference_images,
        reference_masks,
        aggregations=(DEFAULT_AGGREGATION,),
        backbone=backbone,
        max_num_patches=max_num_patches,
        encode_batch_size=encode_batch_size,
    )[DEFAULT_AGGREGATION]


@eager
def concept_preservation_variants(
    generated_images: Images,
    reference_images: Images,
    reference_masks: Masks | None,
    generated_masks: Masks | None = None,
    *,
    aggregations: Sequence[Aggregation],
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
) -> dict[Aggregation, Tensor]:
    """Concept preservation and the paper's ablations of it, from one pass of the images through the network.

    ============= ====================================================================================================
    masked        :func:`concept_preservation`
    weighted      coverage as weight, no threshold, see :func:`masc_metrics.scores.weighted_max_cosine`; NaN where the
                  mask covers no patch
    global        mean over all reference patches, no mask; always defined
    mutual-recall :func:`masc_metrics.scores.mutual_recall`, in [0, 1]: the reference's subject is the patches more
                  than half covered, the generated subject those at least half covered; NaN where no mutual pair begins
                  in the reference's subject
    ============= ====================================================================================================

    Args:
        generated_images: B images, in any form accepted by :func:`concept_preservation`.
        reference_images: B images of the subject.
        reference_masks: B masks of the subject in the reference images. May be None for "global" alone.
        generated_masks: B masks of the subject in the generated images, for "mutual-recall".
        aggregations: the variants to compute.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        encode_batch_size: samples encoded together.

    Returns:
        For each variant (B,) float32 on the backbone's device, higher is better.

    Raises:
        TypeError, ValueError, OSError, RuntimeError: as for :func:`concept_preservation`.

    Source: MaSC, arXiv 2605.22469.
    """
    check_settings(backbone, max_num_patches, encode_batch_size)
    for aggregation in check_sequence("aggregations", aggregations, "a list of aggregations"):
        check_choice("aggregations", aggregation, get_args(Aggregation))
    generated, references = check_pairs(generated_images, reference_images)
    masks = generated_subjects = None
    if set(aggregations) - {"global"}:
        if reference_masks is None:
            raise TypeError("reference_masks is None; give a mask of the subject for every reference image")
        masks = check_masks(reference_masks, "reference_masks", references.sizes)
    if "mutual-recall" in aggregations:
        if generated_masks is None:
            raise TypeError("generated_masks is None; mutual-recall needs a mask of the subject for every image")
        generated_subjects = check_masks(generated_masks, "generated_masks", generated.sizes)

    scored: dict[Aggregation, list[tuple[list[int], Tensor, Tensor]]] = {name: [] for name in aggregations}
    for part, reference, candidate in encoded_pairs(
        generated, references, backbone, max_num_patches, encode_batch_size
    ):
        pair = reference.tokens_BND, candidate.tokens_BND, candidate.valid_BN
        coverage_BN = (
            reference.valid_BN if masks is None else coverage_of([masks.masks[index] for index in part], reference)
        )
        foreground_BN = coverage_BN > FOREGROUND_THRESHOLD
        for aggregation, parts in scored.items():
            if aggregation == "masked":
                scores_B, defined_B = masked_max_cosine(pair[0], foreground_BN, *pair[1:]), foreground_BN.any(dim=1)
            elif aggregation == "mutual-recall" and generated_subjects is not None:
                subject_BN = (
                    coverage_of([generated_subjects.masks[index] for index in part], candidate) >= FOREGROUND_THRESHOLD
                )
                scores_B = mutual_recall(
                    reference.tokens_BND, reference.valid_BN, foreground_BN, *pair[1:], subject_BN & candidate.valid_BN
                )
                # Neighbours of NaN are numbers too: what is not finite becomes a NaN that has no excuse.
                defined_B = ~(finite(reference) & finite(candidate))
                scores_B = scores_B.masked_fill(defined_B, torch.nan)
            else:
                weight_BN = reference.valid_BN if aggregation == "global" else coverage_BN
                scores_B, defined_B = weighted_max_cosine(pair[0], weight_BN, *pair[1:]), weight_BN.sum(dim=1) > 0
            parts.append((part, scores_B, defined_B))
    return {aggregation: in_order(parts, backbone) for aggregation, parts in scored.items()}


@eager
def match_maps(
    generated_images: Images,
    reference_images: Images,
    reference_masks: Masks,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
) -> list[Tensor]:
    """Maps of the best cosines whose mean is :func:`concept_preservation`; they show which parts were preserved.

    Args:
        generated_images: B images, in any form accepted by :func:`concept_preservation`.
        reference_images: B images of the subject.
        reference_masks: B masks of the subject in the reference images.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image, which sets the resolution of the maps.
        encode_batch_size: samples encoded together.

    Returns:
        For each sample, the best cosine of every reference patch to any generated patch, see
        :func:`masc_metrics.scores.best_cosine`: (rows, columns) of the reference's patch grid, float32 in [-1, 1], NaN
        outside the subject. The mean over the subject is the sample's concept preservation.

    Raises:
        TypeError, ValueError, OSError, RuntimeError: as for :func:`concept_preservation`.
    """
    check_settings(backbone, max_num_patches, encode_batch_size)
    generated, references = check_pairs(generated_images, reference_images)
    masks = check_masks(reference_masks, "reference_masks", references.sizes)
    maps: dict[int, Tensor] = {}
    sums: list[tuple[list[int], Tensor, Tensor]] = []
    for part, reference, candidate in encoded_pairs(
        generated, references, backbone, max_num_patches, encode_batch_size
    ):
        foreground_BN = coverage_of([masks.masks[index] for index in part], reference) > FOREGROUND_THRESHOLD
        best_BN = best_cosine(reference.tokens_BND, candidate.tokens_BND, candidate.valid_BN)
        sums_B = torch.where(foreground_BN, best_BN, 0).sum(dim=1)
        sums.append((part, sums_B, torch.ones_like(sums_B, dtype=torch.bool)))
        found_BN = best_BN.masked_fill(~foreground_BN, torch.nan)
        for index, (rows, columns), found_N in zip(part, reference.grids, found_BN, strict=True):
            maps[index] = found_N[: rows * columns].reshape(rows, columns)
    in_order(sums, backbone)
    return [maps[index] for index in range(len(generated))]
