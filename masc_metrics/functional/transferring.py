"""Masks of generated images, transferred from references through the network, and how far to trust them.

Shape suffixes: B samples, N patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from masc_metrics.arguments import type_name
from masc_metrics.backbone import PatchFeatures, SigLIP2Backbone
from masc_metrics.functional.encoding import Shown, check_settings, encoded_references, finite, pairs_of
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES, Grid
from masc_metrics.images import ImageBatch, Images, check_images
from masc_metrics.precision import eager, to_device
from masc_metrics.reading import NotFiniteError
from masc_metrics.references import ReferenceImages, ReferenceMasks, check_references
from masc_metrics.settings import DEFAULT_ENCODE_BATCH_SIZE
from masc_metrics.transfer import (
    TransferredMasks,
    find_subject,
    intersection_over_union,
    mask_of_patches,
    prompts_of_regions,
    trials_of,
)


class Refiner(Protocol):
    """What :func:`transfer_masks` takes as ``refine``: a segmenter with SAM 2, or any object with this method."""

    def masks_in_boxes(self, images: Images, boxes: Sequence[Tensor], points: Sequence[Tensor]) -> Sequence[Tensor]:
        """Mask what is in the boxes of each image.

        Args:
            images: B images.
            boxes: for each image an (N, 4) tensor on the CPU, the left, top, right and bottom of each found region in
                pixels; N may be 0.
            points: for each image an (N, K, 2) tensor on the CPU, x and y of K points inside of each region.

        Returns:
            For each image an (H, W) bool tensor of its size: the union of the masks of its regions.
        """


@eager
def transfer_masks(
    generated_images: Images,
    reference_images: ReferenceImages,
    reference_masks: ReferenceMasks,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
    refine: Refiner | None = None,
) -> TransferredMasks:
    """Masks of the subject in generated images, found by the patch features of reference images and their masks.

    No other network is needed, and images that are scored too are encoded once. How a patch is assigned to the subject
    is described at :func:`masc_metrics.transfer.find_subject`. If the subject is not there, often the object that
    resembles it most is marked; the confidence is lower then. Scores with these masks are not the paper's protocol.

    Args:
        generated_images: B images, in any form accepted by :func:`concept_preservation`.
        reference_images: B images of the subject; or a list of B lists, with several images of one subject each.
        reference_masks: masks of the subject in them, in the same arrangement.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image, which sets the resolution of the masks.
        encode_batch_size: samples encoded together.
        refine: segmenter "grounded_sam2" or "owlv2_sam2" of :func:`masc_metrics.segmenters.load_segmenter`. Its SAM 2
            gets the box of each connected region of found patches and the centres of its three best patches, see
            :func:`masc_metrics.transfer.prompts_of_regions`, and returns a mask with pixel outlines. A mask stays as it
            was if SAM 2 marks nothing. The confidence is that of the transfer.

    Returns:
        B masks, each (H, W) bool of its image's size on the backbone's device, and a confidence for each. A mask is
        without True if nothing was found.

    Raises:
        TypeError, ValueError, OSError: as for :func:`concept_preservation`; ValueError also if ``refine`` has no SAM 2.
    """
    if refine is not None and not callable(getattr(refine, "masks_in_boxes", None)):
        raise TypeError(f"refine is {type_name(refine)}; give load_segmenter('grounded_sam2') or None")
    check_settings(backbone, max_num_patches, encode_batch_size)
    generated = check_images(generated_images, "generated_images")
    references = check_references(reference_images, reference_masks, len(generated))
    transferred = Transferring(generated)
    for part in encoded_references(generated, references, backbone, max_num_patches, encode_batch_size):
        transferred.add(*part)
    found = transferred.masks(backbone)
    if refine is None:
        return found
    boxes, points = zip(*transferred.prompts(), strict=True)
    refined = zip(refine.masks_in_boxes(generated, boxes, points), found.masks, strict=True)
    masks = tuple(to_device(mask, rough.device) if mask.any() else rough for mask, rough in refined)
    return TransferredMasks(masks, found.confidence_B)


@eager
def check_transfer(
    reference_images: ReferenceImages,
    reference_masks: ReferenceMasks,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
) -> Tensor:
    r"""How well masks can be transferred with these references and this network: agreement with the given masks.

    With several references of a subject, the mask of each is transferred onto each of the others. With one, it is
    transferred onto an image made of it: the subject mirrored, reduced, in front of its own background turned upside
    down, which is easier than a new image. The given masks are the truth:

    .. math:: \mathrm{IoU} = \frac{|\text{transferred} \cap \text{given}|}{|\text{transferred} \cup \text{given}|}

    Args:
        reference_images: C images, or a list of C lists with several images of one subject each.
        reference_masks: masks of the subject in them, in the same arrangement.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        encode_batch_size: samples encoded together.

    Returns:
        (C,) float32, mean IoU of each subject, in [0, 1]. Below 0.6 (:data:`masc_metrics.transfer.TRUSTED_IOU`), give
        masks of the generated images instead.

    Raises:
        TypeError, ValueError, OSError: as for :func:`transfer_masks`.
    """
    check_settings(backbone, max_num_patches, encode_batch_size)
    count = len(reference_images) if hasattr(reference_images, "__len__") else 0
    checked = check_references(reference_images, reference_masks, count)
    trials = [(number, trial) for number, each in enumerate(checked) for trial in trials_of(each)]
    found = transfer_masks(
        ImageBatch(tuple(trial.image for _, trial in trials)),
        [trial.references.images for _, trial in trials],
        [trial.references.masks for _, trial in trials],
        backbone=backbone,
        max_num_patches=max_num_patches,
        encode_batch_size=encode_batch_size,
    )
    agreement_T = torch.stack(
        [intersection_over_union(mask, trial.mask) for mask, (_, trial) in zip(found.masks, trials, strict=True)]
    )
    numbers_T = torch.tensor([number for number, _ in trials], device="cpu")
    return torch.stack([agreement_T[numbers_T == number].mean() for number in range(len(checked))])


class Transferring:
    """Collects the transferred masks of all parts."""

    def __init__(self, generated: ImageBatch) -> None:
        self._sizes = generated.sizes
        self._found: dict[int, tuple[Tensor, Tensor]] = {}
        self._finite: list[tuple[list[int], Tensor]] = []
        self._margins: dict[int, tuple[Tensor, Grid]] = {}

    def add(self, part: list[int], shown: Shown, generated: PatchFeatures) -> list[Tensor]:
        """Masks of the generated images of a part."""
        found = []
        for pairs in pairs_of(shown, generated, None, pool=True):
            reference, candidate = pairs.tokens_PRD, (pairs.generated_PGD, pairs.generated_valid_PG)
            finite_P = finite(reference, pairs.valid_PR) & finite(*candidate)
            found.append((*find_subject(reference, pairs.coverage_PR, pairs.valid_PR, *candidate), finite_P))
        margin_BN, confidence_B, finite_B = (torch.cat(values) for values in zip(*found, strict=True))
        self._finite.append((part, finite_B))
        masks = [
            mask_of_patches(margin_N, grid, self._sizes[index])
            for index, margin_N, grid in zip(part, margin_BN, generated.grids, strict=True)
        ]
        self._margins |= zip(part, zip(margin_BN, generated.grids, strict=True), strict=True)
        self._found |= zip(part, zip(masks, confidence_B, strict=True), strict=True)
        return masks

    def prompts(self) -> list[tuple[Tensor, Tensor]]:
        """Boxes of the found regions of each image."""
        return [prompts_of_regions(*self._margins[index], size) for index, size in enumerate(self._sizes)]

    def masks(self, backbone: SigLIP2Backbone) -> TransferredMasks:
        """Masks of all images; features that are not finite must not be mistaken for a subject that is not there."""
        finite_B = torch.cat([finite for _, finite in self._finite])
        if not bool(finite_B.all()):
            index = [index for part, _ in self._finite for index in part][int((~finite_B).nonzero()[0])]
            raise NotFiniteError(
                f"{backbone} gave features that are not finite for generated_images[{index}] or its reference; run it "
                "in torch.bfloat16 or torch.float32, and check its weights"
            )
        found = [self._found[index] for index in range(len(self._sizes))]
        return TransferredMasks(tuple(mask for mask, _ in found), torch.stack([confidence for _, confidence in found]))
