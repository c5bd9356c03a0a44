"""Outputs of generators and segmenters in known wrong forms, and what to return instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from masc_metrics.arguments import type_name
from masc_metrics.images import ImageBatch
from masc_metrics.masks import MaskBatch


def check_generated(output: Any) -> None:
    """Raise TypeError if the output of ``generate`` is a pipeline's output with images in it; name the remedy."""
    if isinstance(output, ImageBatch):
        return
    if isinstance(output, Mapping) or hasattr(output, "images"):
        raise TypeError(f"generate output is {type_name(output)}; return its images, such as output.images")
    if hasattr(output, "sample"):
        raise TypeError(
            f"generate output is {type_name(output)}; return its image in [0, 1], such as "
            "(output.sample / 2 + 0.5).clamp(0, 1)"
        )
    if isinstance(output, tuple) and output and isinstance(output[0], (list, Tensor)) and not _is_image(output[0]):
        raise TypeError(
            "generate output is a tuple, as pipelines return with return_dict=False; return its first item, output[0]"
        )


def check_segmented(output: Any, images: int) -> None:
    """Raise TypeError or ValueError if the output of ``segment`` has several masks an image; name the remedy.

    Args:
        output: what ``segment`` returned.
        images: number of images that it was given.
    """
    if isinstance(output, MaskBatch):
        return
    if isinstance(output, Mapping) or hasattr(output, "masks") or hasattr(output, "pred_masks"):
        raise TypeError(
            f"segment output is {type_name(output)}; return one (H, W) mask for each image, such as the union of "
            "an image's instances, masks.any(0)"
        )
    if isinstance(output, Tensor):
        if output.ndim == 4 and output.shape[1] != 1:
            raise ValueError(
                f"segment output has shape {tuple(output.shape)}, {output.shape[1]} masks for each image; return their "
                "union, masks.any(1)"
            )
        if output.ndim == 3 and images == 1 and len(output) != 1:
            raise ValueError(
                f"segment output has shape {tuple(output.shape)}, {len(output)} masks for one image; return their "
                "union in a list, [masks.any(0)]"
            )
        return
    if not isinstance(output, Sequence) or isinstance(output, str):
        return
    for index, mask in enumerate(output):
        instances = _instances(mask)
        if instances == "dicts":
            raise TypeError(
                f"segment output[{index}] holds dicts, as transformers' pipelines return; return the union of their "
                "masks, torch.from_numpy(numpy.any([numpy.array(each['mask']) for each in output], axis=0))"
            )
        if instances:
            raise ValueError(
                f"segment output[{index}] holds {instances} masks of one image; return their union, mask.any(0)"
            )


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3


def _instances(mask: Any) -> str:
    """Number of masks in the mask of an image, if it is a stack or list of several; "dicts" for a pipeline's output."""
    if isinstance(mask, Mapping):
        return "dicts"
    if isinstance(mask, Tensor) and mask.ndim == 3 and mask.shape[0] != 1:
        return str(mask.shape[0])
    if isinstance(mask, (list, tuple)):
        return "dicts" if mask and isinstance(mask[0], Mapping) else str(len(mask))
    return ""
