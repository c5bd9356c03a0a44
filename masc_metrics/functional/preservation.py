"""Concept preservation of each sample, its ablations, and the maps behind it.

Shape suffixes: B samples, N patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, get_args, overload

import torch
from PIL import Image
from torch import Tensor

from masc_metrics.arguments import (
    check_choice,
    check_sequence,
)
from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.functional.encoding import (
    Pairs,
    check_settings,
    coverage_of,
    encoded_references,
    finite,
    in_order,
    pairs_of,
)
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.images import ImageBatch, Images, check_images
from masc_metrics.masks import (
    FOREGROUND_THRESHOLD,
    Masks,
    check_masks,
)
from masc_metrics.precision import eager
from masc_metrics.references import (
    ReferenceImages,
    ReferenceMasks,
    check_references,
)
from masc_metrics.scores import (
    best_cosine,
    masked_max_cosine,
    mutual_recall,
    over_references,
    weighted_max_cosine,
)
from masc_metrics.settings import (
    DEFAULT_AGGREGATION,
    DEFAULT_ENCODE_BATCH_SIZE,
    DEFAULT_REFERENCE_REDUCTION,
    Aggregation,
    ReferenceReduction,
)


@eager
def concept_preservation(
    generated_images: Images,
    reference_images: ReferenceImages,
    reference_masks: ReferenceMasks,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
    reference_reduction: ReferenceReduction = DEFAULT_REFERENCE_REDUCTION,
) -> Tensor:
    """Concept preservation of each sample, see :func:`masc_metrics.scores.masked_max_cosine`.

    Args:
        generated_images: B images; (B, 3, H, W) uint8 or float in [0, 1], or a list of (3, H, W) tensors of any sizes
            or PIL images.
        reference_images: B images of the subject, in any of these forms. For several references of one sample, a list
            of them in place of the image, or a (B, k, 3, H, W) tensor; see :mod:`masc_metrics.references`.
        reference_masks: B masks of the subject in the reference images; (B, H, W) or (B, 1, H, W), boolean, integer or
            float in [0, 1], or a list of (H, W) tensors or PIL images. In the same arrangement as the images.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        encode_batch_size: samples encoded together; larger batches are faster on a GPU and need more memory.
        reference_reduction: how several references of a sample give one score: "mean" or "max" of the scores with each
            of them, or "pool", the mean over the subject patches of all of them together. References without a
            foreground patch are left out.

    Returns:
        (B,) float32 on the backbone's device, in [-1, 1], higher is better; NaN where no patch of any reference is more
        than half covered by its mask.

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
        reference_reduction=reference_reduction,
    )[DEFAULT_AGGREGATION]


@eager
def concept_preservation_variants(
    generated_images: Images,
    reference_images: ReferenceImages,
    reference_masks: ReferenceMasks | None,
    generated_masks: Masks | None = None,
    *,
    aggregations: Sequence[Aggregation],
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
    reference_reduction: ReferenceReduction = DEFAULT_REFERENCE_REDUCTION,
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
        reference_images: B images of the subject, or lists of several.
        reference_masks: masks of the subject in them, in the same arrangement. May be None for "global" alone.
        generated_masks: B masks of the subject in the generated images, for "mutual-recall".
        aggregations: the variants to compute.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        encode_batch_size: samples encoded together.
        reference_reduction: how several references give one score, see :func:`concept_preservation`. With "pool", the
            patches of all references of a sample are those of one large reference, also for "mutual-recall".

    Returns:
        For each variant (B,) float32 on the backbone's device, higher is better.

    Raises:
        TypeError, ValueError, OSError, RuntimeError: as for :func:`concept_preservation`.

    Source: MaSC, arXiv 2605.22469.
    """
    check_settings(backbone, max_num_patches, encode_batch_size)
    for aggregation in check_sequence("aggregations", aggregations, "a list of aggregations"):
        check_choice("aggregations", aggregation, get_args(Aggregation))
    check_choice("reference_reduction", reference_reduction, get_args(ReferenceReduction))
    generated = check_images(generated_images, "generated_images")
    masked = bool(set(aggregations) - {"global"})
    if masked and reference_masks is None:
        raise TypeError("reference_masks is None; give a mask of the subject for every reference image")
    references = check_references(reference_images, reference_masks, len(generated), need_masks=masked)
    generated_subjects = None
    if "mutual-recall" in aggregations:
        if generated_masks is None:
            raise TypeError("generated_masks is None; mutual-recall needs a mask of the subject for every image")
        generated_subjects = check_masks(generated_masks, "generated_masks", generated.sizes)

    scored: dict[Aggregation, list[tuple[list[int], Tensor, Tensor]]] = {name: [] for name in aggregations}
    for part, shown, candidate in encoded_references(
        generated, references, backbone, max_num_patches, encode_batch_size
    ):
        subject_BN = None
        if generated_subjects is not None:
            subject_BN = coverage_of([generated_subjects.masks[index] for index in part], candidate)
        of_pairs: dict[Aggregation, list[tuple[Tensor, Tensor]]] = {name: [] for name in aggregations}
        for pairs in pairs_of(shown, candidate, subject_BN, pool=reference_reduction == "pool"):
            for aggregation, each in of_pairs.items():
                each.append(_scores_of_pairs(aggregation, pairs))
        counts = [1] * len(part) if reference_reduction == "pool" else [len(rows) for rows in shown.rows]
        for aggregation, each in of_pairs.items():
            scores_P, defined_P = (torch.cat(values) for values in zip(*each, strict=True))
            largest = reference_reduction == "max"
            scored[aggregation].append((part, *over_references(scores_P, defined_P, counts, largest=largest)))
    return {aggregation: in_order(parts, backbone) for aggregation, parts in scored.items()}


def _scores_of_pairs(aggregation: Aggregation, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Scores of pairs, and whether they are defined; a score that is NaN all the same is an error of the network."""
    foreground_PR = pairs.coverage_PR > FOREGROUND_THRESHOLD
    generated = pairs.generated_PGD, pairs.generated_valid_PG
    if aggregation == "masked":
        return masked_max_cosine(pairs.tokens_PRD, foreground_PR, *generated), foreground_PR.any(dim=1)
    if aggregation == "mutual-recall" and pairs.subject_PG is not None:
        subject_PG = (pairs.subject_PG >= FOREGROUND_THRESHOLD) & pairs.generated_valid_PG
        scores_P = mutual_recall(pairs.tokens_PRD, pairs.valid_PR, foreground_PR, *generated, subject_PG)
        # Neighbours of NaN are numbers too: what is not finite becomes a NaN that has no excuse.
        broken_P = ~(finite(pairs.tokens_PRD, pairs.valid_PR) & finite(*generated))
        return scores_P.masked_fill(broken_P, torch.nan), broken_P | ~scores_P.isnan()
    weight_PR = pairs.valid_PR if aggregation == "global" else pairs.coverage_PR
    return weighted_max_cosine(pairs.tokens_PRD, weight_PR, *generated), weight_PR.sum(dim=1) > 0


Listed: TypeAlias = "Sequence[Sequence[Tensor | Image.Image]] | Sequence[ImageBatch]"


@overload
def match_maps(
    generated_images: Images,
    reference_images: Images,
    reference_masks: Masks,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = ...,
    encode_batch_size: int = ...,
) -> list[Tensor]: ...


@overload
def match_maps(
    generated_images: Images,
    reference_images: Listed,
    reference_masks: ReferenceMasks,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = ...,
    encode_batch_size: int = ...,
) -> list[list[Tensor]]: ...


@eager
def match_maps(
    generated_images: Images,
    reference_images: ReferenceImages,
    reference_masks: ReferenceMasks,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
) -> list[Any]:
    """Maps of the best cosines whose mean is :func:`concept_preservation`; they show which parts were preserved.

    Args:
        generated_images: B images, in any form accepted by :func:`concept_preservation`.
        reference_images: B images of the subject, or lists of several.
        reference_masks: masks of the subject in them, in the same arrangement.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image, which sets the resolution of the maps.
        encode_batch_size: samples encoded together.

    Returns:
        For each sample, the best cosine of every reference patch to any generated patch, see
        :func:`masc_metrics.scores.best_cosine`: (rows, columns) of the reference's patch grid, float32 in [-1, 1], NaN
        outside the subject. The mean over the subject is the sample's concept preservation. For a sample with a list of
        references, a list with the map of each.

    Raises:
        TypeError, ValueError, OSError, RuntimeError: as for :func:`concept_preservation`.
    """
    check_settings(backbone, max_num_patches, encode_batch_size)
    generated = check_images(generated_images, "generated_images")
    references = check_references(reference_images, reference_masks, len(generated))
    maps: dict[int, list[Tensor]] = {}
    sums: list[tuple[list[int], Tensor, Tensor]] = []
    for part, shown, candidate in encoded_references(
        generated, references, backbone, max_num_patches, encode_batch_size
    ):
        found: list[Tensor] = []
        sums_of_pairs = []
        for pairs in pairs_of(shown, candidate, None, pool=False):
            foreground_PR = pairs.coverage_PR > FOREGROUND_THRESHOLD
            best_PR = best_cosine(pairs.tokens_PRD, pairs.generated_PGD, pairs.generated_valid_PG)
            sums_of_pairs.append(torch.where(foreground_PR, best_PR, 0).sum(dim=1))
            found += best_PR.masked_fill(~foreground_PR, torch.nan)
        counts = [len(rows) for rows in shown.rows]
        sums_P = torch.cat(sums_of_pairs)
        sums.append((part, *over_references(sums_P, torch.ones_like(sums_P, dtype=torch.bool), counts)))
        grids = shown.features.grids
        next_map = iter(found)
        for index, rows in zip(part, shown.rows, strict=True):
            maps[index] = [next(next_map)[: grids[row][0] * grids[row][1]].reshape(grids[row]) for row in rows]
    in_order(sums, backbone)
    return [maps[index] if each.listed else maps[index][0] for index, each in enumerate(references)]
