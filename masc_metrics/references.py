"""Reference images of a subject with its masks: checks of all accepted forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from torch import Tensor

from masc_metrics.arguments import check_count, check_sequence
from masc_metrics.images import ImageBatch, Images, check_images
from masc_metrics.masks import MaskBatch, Masks, check_masks

ReferenceImages: TypeAlias = "Images | Sequence[Images]"
ReferenceMasks: TypeAlias = "Masks | Sequence[Masks]"


@dataclass(frozen=True, slots=True)
class References:
    """Checked references of one sample.

    Attributes:
        images: one or more images of the subject.
        masks: mask of the subject in each of them.
    """

    images: ImageBatch
    masks: MaskBatch


def check_references(
    images: ReferenceImages | None, masks: ReferenceMasks | None, count: int
) -> tuple[References, ...]:
    """Check reference images and masks: one of each for every sample, or a list of several for every sample.

    Args:
        images: B images, in any form that :func:`masc_metrics.images.check_images` accepts; or a list of B such
            batches, each with one or more images of one subject; or a (B, k, 3, H, W) tensor.
        masks: the masks, in the same arrangement.
        count: number of samples, B.

    Raises:
        TypeError, ValueError: if an argument is not accepted; the error text names the sample.
    """
    if images is None or masks is None:
        missing = "reference_images" if images is None else "reference_masks"
        raise TypeError(f"{missing} is None; give reference_images together with reference_masks")
    if isinstance(images, Tensor) and images.ndim == 5:  # (B, k, 3, H, W), with masks (B, k, H, W)
        images, masks = list(images), list(masks) if isinstance(masks, Tensor) else masks
    if _is_nested(images):
        sets = check_sequence("reference_images", images, "a list with a list of images for each sample")
        sets_of_masks = check_sequence("reference_masks", masks, "a list with a list of masks for each sample")
        check_count("reference_images", len(sets), count)
        check_count("reference_masks", len(sets_of_masks), count)
        batches = [check_images(each, f"reference_images[{index}]") for index, each in enumerate(sets)]
        return tuple(
            References(batch, check_masks(each, f"reference_masks[{index}]", batch.sizes))
            for index, (batch, each) in enumerate(zip(batches, sets_of_masks, strict=True))
        )
    # Not nested: one image and one mask a sample, whatever else their types allow.
    batch = check_images(cast("Images", images), "reference_images")
    check_count("reference_images", len(batch), count)
    planes = check_masks(cast("Masks", masks), "reference_masks", batch.sizes)
    return tuple(
        References(ImageBatch((image,)), MaskBatch((mask,)))
        for image, mask in zip(batch.images, planes.masks, strict=True)
    )


def _is_nested(images: object) -> bool:
    if isinstance(images, (Tensor, ImageBatch)) or not isinstance(images, Sequence):
        return False
    return any(
        isinstance(item, (list, tuple, ImageBatch)) or (isinstance(item, Tensor) and item.ndim == 4) for item in images
    )
