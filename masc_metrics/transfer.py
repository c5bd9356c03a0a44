"""The subject of reference images, found again in generated images by the similarity of patches.

Shape suffixes: B samples, R reference patches (of all references of a sample), G generated patches, D feature width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from masc_metrics.images import ImageBatch
from masc_metrics.masks import FOREGROUND_THRESHOLD, MaskBatch
from masc_metrics.precision import without_autocast
from masc_metrics.references import References
from masc_metrics.scores import patch_similarity, sample_blocks

NEIGHBOURS = 5
"""Reference patches whose mean cosine says how similar a patch is to the subject, and to the background."""

BACKGROUND_COVERAGE = 0.2
"""A reference patch belongs to the background if its coverage is below; patches at the outline belong to neither."""

POINTS = 3
"""Points of each found region that a segmenter gets with its box."""

TRUSTED_IOU = 0.6
"""Least agreement in :func:`masc_metrics.functional.check_transfer` with which transferred masks should be used."""


@dataclass(frozen=True, slots=True)
class TransferredMasks(MaskBatch):
    """Masks of generated images, found by :func:`masc_metrics.functional.transfer_masks`; accepted as masks everywhere.

    Attributes:
        masks: an (H, W) bool tensor for each image, of its size; True marks the subject. Without True if nothing of the
            subject was found.
        confidence_B: float32 in [-1, 1], mean over the found patches of the best cosine to the reference's subject; NaN
            if nothing was found. It is high if the subject of the reference is there, and lower if something else was
            marked.
    """

    confidence_B: Tensor

    @property
    def empty_count(self) -> int:
        """Number of images in which nothing was found."""
        return int(self.confidence_B.isnan().sum())


def find_subject(
    reference_BRD: Tensor, coverage_BR: Tensor, reference_valid_BR: Tensor, generated_BGD: Tensor, valid_BG: Tensor
) -> tuple[Tensor, Tensor]:
    r"""How much more each generated patch belongs to the subject than to the background.

    A first margin compares the patch g with the reference: the mean of its 5 best cosines to patches of the subject
    minus the same for patches of the background. The patches with a positive margin and the others are then two groups
    S and T of the generated image itself, and the result is

    .. math:: m_g = \frac{1}{|S|} \sum_{s \in S} \cos(f_g, f_s) - \frac{1}{|T|} \sum_{t \in T} \cos(f_g, f_t)

    The second step completes the subject by patches that look like it here, in this pose and light. If one of the
    groups is empty, the first margin is the result. A reference without background is compared with the mean over the
    patches of the generated image instead; without a patch of the subject, nothing is found.

    Args:
        reference_BRD: features of the patches of all references of a sample.
        coverage_BR: their coverage by the reference masks, in [0, 1].
        reference_valid_BR: bool, False on padding.
        generated_BGD: features of the generated image.
        valid_BG: bool, False on padding.

    Returns:
        (B, G) float32 margins in [-2, 2], positive on the subject, -2 on padding; and (B,) float32 confidences, see
        :class:`TransferredMasks`.
    """
    subject_BR = (coverage_BR > FOREGROUND_THRESHOLD) & reference_valid_BR
    background_BR = (coverage_BR < BACKGROUND_COVERAGE) & reference_valid_BR
    margins, confidences = [], []
    for block in sample_blocks(reference_BRD, generated_BGD, subject_BR, background_BR, valid_BG):
        margin_BG, confidence_B = _find_in_block(*block)
        margins.append(margin_BG)
        confidences.append(confidence_B)
    return torch.cat(margins), torch.cat(confidences)


def _find_in_block(
    reference_BRD: Tensor, generated_BGD: Tensor, subject_BR: Tensor, background_BR: Tensor, valid_BG: Tensor
) -> tuple[Tensor, Tensor]:
    similarity_BRG = patch_similarity(reference_BRD, generated_BGD)
    subject_BG, best_BG = _mean_of_best(similarity_BRG, subject_BR)
    background_BG, _ = _mean_of_best(similarity_BRG, background_BR)
    patches_B1 = valid_BG.sum(dim=1, keepdim=True)
    typical_B1 = torch.where(valid_BG, subject_BG, 0).sum(dim=1, keepdim=True) / patches_B1
    margin_BG = subject_BG - torch.where(background_BR.any(dim=1, keepdim=True), background_BG, typical_B1)
    margin_BG = margin_BG.masked_fill(~(subject_BR.any(dim=1, keepdim=True) & valid_BG), -2)
    margin_BG = _completed(margin_BG, generated_BGD, valid_BG)
    found_BG = margin_BG > 0
    return margin_BG, torch.where(found_BG, best_BG, 0).sum(dim=1) / found_BG.sum(dim=1)


def _mean_of_best(similarity_BRG: Tensor, chosen_BR: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the best cosines to the chosen reference patches, or to all of them if there are fewer, and the best."""
    others_BR1 = ~chosen_BR[:, :, None]
    best_BKG = similarity_BRG.masked_fill(others_BR1, -2).topk(min(NEIGHBOURS, similarity_BRG.shape[1]), dim=1).values
    chosen_BKG = best_BKG > -1.5  # a cosine is at least -1
    return torch.where(chosen_BKG, best_BKG, 0).sum(dim=1) / chosen_BKG.sum(dim=1).clamp(min=1), best_BKG[:, 0]


def _completed(margin_BG: Tensor, generated_BGD: Tensor, valid_BG: Tensor) -> Tensor:
    with without_autocast(generated_BGD.device):
        unit_BGD = F.normalize(generated_BGD.float(), dim=-1)
        found_BG, rest_BG = (margin_BG > 0) & valid_BG, (margin_BG <= 0) & valid_BG
        groups_B2G = torch.stack([found_BG, rest_BG], dim=1).float()
        means_B2D = (groups_B2G @ unit_BGD) / groups_B2G.sum(dim=2, keepdim=True)
        to_found_BG, to_rest_BG = (unit_BGD @ means_B2D.mT).unbind(dim=2)
    both_B1 = (found_BG.any(dim=1) & rest_BG.any(dim=1))[:, None]
    return torch.where(both_B1, to_found_BG - to_rest_BG, margin_BG).masked_fill(~valid_BG, -2)


def mask_of_patches(margin_G: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Mask of an image, (H, W) bool: its patches' margins, interpolated bilinearly, above 0."""
    rows, columns = grid
    margin_11RC = margin_G[: rows * columns].reshape(1, 1, rows, columns)
    mask: Tensor = F.interpolate(margin_11RC, size=size, mode="bilinear", align_corners=False)[0, 0] > 0
    return mask


def prompts_of_regions(margin_G: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Box and points of each connected region of patches with a positive margin, as prompts of a segmenter.

    Patches that touch at a corner are connected. The points are the centres of the patches with the highest margins
    among those whose eight neighbours belong to the region, or among all if there is none. If there are fewer than
    ``POINTS``, the best are repeated.

    Returns:
        (N, 4) boxes, left, top, right and bottom, and (N, ``POINTS``, 2) points, x and y, both float32 on the CPU in
        pixels of an image of this size.
    """
    rows, columns = grid
    margin_RC = margin_G[: rows * columns].reshape(rows, columns).float().cpu()
    found_RC = margin_RC > 0
    # Beyond the edge of the image nothing is known: it is not counted as outside of the region.
    inner_RC = F.max_pool2d((~found_RC).float()[None], 3, stride=1, padding=1)[0] == 0
    label_RC = torch.arange(1, rows * columns + 1, dtype=torch.float32, device="cpu").reshape(rows, columns) * found_RC
    while True:  # the largest label spreads over its region
        spread_RC = F.max_pool2d(label_RC[None], 3, stride=1, padding=1)[0] * found_RC
        if torch.equal(spread_RC, label_RC):
            break
        label_RC = spread_RC
    boxes, points = [], []
    for label in sorted(set(label_RC[found_RC].tolist())):
        region_RC = label_RC == label
        row_N, column_N = region_RC.nonzero(as_tuple=True)
        boxes.append([column_N.min(), row_N.min(), column_N.max() + 1, row_N.max() + 1])
        chosen_RC = region_RC & inner_RC if (region_RC & inner_RC).any() else region_RC
        order = margin_RC.masked_fill(~chosen_RC, -math.inf).flatten().argsort(descending=True, stable=True)
        best = order[: min(POINTS, int(chosen_RC.sum()))].tolist()
        cells = [divmod(patch, columns) for patch in (best * POINTS)[:POINTS]]
        points.append([[column + 0.5, row + 0.5] for row, column in cells])
    scale = torch.tensor([size[1] / columns, size[0] / rows], dtype=torch.float32, device="cpu")
    return (
        torch.tensor(boxes, dtype=torch.float32, device="cpu").reshape(-1, 4) * scale.repeat(2),
        torch.tensor(points, dtype=torch.float32, device="cpu").reshape(-1, POINTS, 2) * scale,
    )


@dataclass(frozen=True, slots=True)
class Trial:
    """One transfer whose result is known.

    Attributes:
        references: the references to transfer from.
        image: image to transfer to.
        mask: (H, W) bool, the given mask of the subject in it, of its size.
    """

    references: References
    image: Tensor
    mask: Tensor


def trials_of(references: References) -> list[Trial]:
    """From each reference to each of the others; from a single one to its own subject in another place."""
    pairs = list(zip(references.images.images, references.masks.masks, strict=True))
    known = [(image, _of_size(mask, (image.shape[1], image.shape[2]))) for image, mask in pairs]
    if len(known) == 1:
        known.append(_in_another_place(*known[0]))
    singles = [References(ImageBatch((image,)), MaskBatch((mask,))) for image, mask in known]
    numbers = range(len(known)) if len(pairs) > 1 else range(1)
    return [
        Trial(singles[number], image, mask)
        for number in numbers
        for other, (image, mask) in enumerate(known)
        if other != number
    ]


def _of_size(mask: Tensor, size: tuple[int, int]) -> Tensor:
    resized: Tensor = F.interpolate(mask[None, None].float(), size=size, mode="bilinear", align_corners=False)[0, 0]
    return resized > FOREGROUND_THRESHOLD


def _in_another_place(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The subject, mirrored and reduced to three quarters, in the middle of its own background turned upside down."""
    mask = mask.to(image.device)
    height, width = mask.shape
    size = (max(1, round(0.75 * height)), max(1, round(0.75 * width)))
    pixels = image.float()
    rest = pixels[:, ~mask] if not mask.all() else pixels.flatten(1)
    background = torch.where(mask, rest.mean(dim=1)[:, None, None], pixels).flip(1)
    reduced = F.interpolate(pixels.flip(2)[None], size=size, mode="bilinear", antialias=True)[0]
    place = _of_size(mask.flip(1), size)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    margins = (left, width - size[1] - left, top, height - size[0] - top)
    moved, moved_mask = F.pad(reduced, margins), F.pad(place, margins)
    composed = torch.where(moved_mask, moved, background)
    return composed if image.is_floating_point() else composed.round().to(image.dtype), moved_mask


def intersection_over_union(mask: Tensor, truth: Tensor) -> Tensor:
    """IoU of two (H, W) bool masks, a float32 scalar on the CPU; 0 if both are empty."""
    mask, truth = mask.cpu(), truth.cpu()
    return (mask & truth).sum().float() / (mask | truth).sum().clamp(min=1).float()
