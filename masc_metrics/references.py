"""Reference images of a subject with its masks: checks of all accepted forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from PIL import Image
from torch import Tensor

from masc_metrics.arguments import check_sequence
from masc_metrics.images import ImageBatch, Images, check_image, check_images
from masc_metrics.masks import MaskBatch, Masks, check_mask, check_masks

ReferenceImages: TypeAlias = "Images | Sequence[Images]"
ReferenceMasks: TypeAlias = "Masks | Sequence[Masks]"


@dataclass(frozen=True, slots=True)
class References:
    """Checked references of one sample.

    Attributes:
        images: one or more images of the subject.
        masks: mask of the subject in each of them.
        listed: whether they were given as a list, even if of one.
    """

    images: ImageBatch
    masks: MaskBatch
    listed: bool = False

    def __len__(self) -> int:
        return len(self.images)


def check_references(
    images: ReferenceImages | None, masks: ReferenceMasks | None, count: int | None, *, need_masks: bool = True
) -> tuple[References, ...]:
    """Check reference images and masks: one of each for every sample, or a list of several for every sample.

    Args:
        images: B images, in any form that :func:`masc_metrics.images.check_images` accepts; or a list whose items are
            such batches, each with one or more images of one subject, or single images; or a (B, k, 3, H, W) tensor.
        masks: the masks, in the same arrangement.
        count: number of samples, B; None for any number.
        need_masks: whether masks must be given; otherwise None marks all of every image.

    Returns:
        The references of each sample; samples that are given the same list share one object.

    Raises:
        TypeError, ValueError: if an argument is not accepted; the error text names the sample.
    """
    if images is None or (masks is None and need_masks):
        missing = "reference_images" if images is None else "reference_masks"
        raise TypeError(f"{missing} is None; give reference_images together with reference_masks")
    if isinstance(images, Tensor) and images.ndim == 5:  # (B, k, 3, H, W), with masks (B, k, H, W)
        images, masks = list(images), list(masks) if isinstance(masks, Tensor) else masks
    if not _is_nested(images):
        batch = check_images(cast("Images", images), "reference_images")
        _check_count("reference_images", len(batch), count)
        planes = _check_masks(masks, "reference_masks", batch)
        return tuple(
            References(ImageBatch((image,)), MaskBatch((mask,)))
            for image, mask in zip(batch.images, planes.masks, strict=True)
        )
    sets = check_sequence("reference_images", images, "a list with a list of images for each sample")
    give = "a list with a list of masks for each sample"
    sets_of_masks = [None] * len(sets) if masks is None else check_sequence("reference_masks", masks, give)
    _check_not_transposed(sets, count)
    _check_count("reference_images", len(sets), count)
    _check_count("reference_masks", len(sets_of_masks), len(sets))
    checked: dict[tuple[object, ...], References] = {}  # a list that many samples share is checked once
    references = []
    for index, (pictures, planes_of_set) in enumerate(zip(sets, sets_of_masks, strict=True)):
        key = (_identity(pictures), _identity(planes_of_set))
        if key not in checked:
            if planes_of_set is None and masks is not None:
                raise TypeError(
                    f"reference_masks[{index}] is None; give the mask of every image of reference_images[{index}]"
                )
            checked[key] = _check_set(pictures, planes_of_set, index)
        references.append(checked[key])
    return tuple(references)


def _check_set(pictures: Any, masks: Any, index: int) -> References:
    """The references of one sample of a nested list, which may also be a single image."""
    name, mask_name = f"reference_images[{index}]", f"reference_masks[{index}]"
    if not _is_picture(pictures):
        batch = check_images(pictures, name)
        return References(batch, _check_masks(masks, mask_name, batch), listed=True)
    batch = ImageBatch((check_image(pictures, name),))
    mask_batch = _full_masks(batch) if masks is None else MaskBatch((check_mask(masks, mask_name, batch.sizes[0]),))
    return References(batch, mask_batch)


def _check_masks(masks: Any, name: str, images: ImageBatch) -> MaskBatch:
    return _full_masks(images) if masks is None else check_masks(masks, name, images.sizes)


def _full_masks(images: ImageBatch) -> MaskBatch:
    return MaskBatch(tuple(torch.ones(size, dtype=torch.bool, device="cpu") for size in images.sizes))


def _check_count(name: str, found: int, count: int | None) -> None:
    if count is None or found == count:
        return
    several = found % count == 0 and found > count and name == "reference_images"
    hint = f"; for {found // count} references of each sample, give a list of {count} lists" if several else ""
    raise ValueError(f"{name} holds {found} samples but generated_images holds {count}; give one for each{hint}")


def _check_not_transposed(sets: Sequence[Any], count: int | None) -> None:
    """The default collate of torch turns B lists of k images into a list of k batches of B images."""
    if count is None or len(sets) == count:
        return
    if all(not _is_picture(each) and hasattr(each, "__len__") and len(each) == count for each in sets):
        raise ValueError(
            f"reference_images holds {len(sets)} lists of {count} images but generated_images holds {count}, as "
            "torch's default collate arranges lists; give one list for each sample: list(zip(*reference_images)), and "
            "the masks likewise"
        )


def _identity(value: object) -> object:
    """Equal for one object, and for lists of the same objects."""
    return tuple(map(id, value)) if isinstance(value, (list, tuple)) else id(value)


def _is_picture(value: object) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, Tensor) and value.ndim == 3)


def _is_nested(images: object) -> bool:
    if isinstance(images, (Tensor, ImageBatch)) or not isinstance(images, Sequence):
        return False
    return any(
        isinstance(item, (list, tuple, ImageBatch)) or (isinstance(item, Tensor) and item.ndim == 4) for item in images
    )
