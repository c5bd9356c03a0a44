"""Masks: checks of all accepted forms, and coverage of the patches of a grid.

Shape suffixes: H, W mask sides in pixels; N patches.
"""

from __future__ import annotations

import math
import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from masc_metrics.arguments import check_choice, check_integer, check_number, check_positive, check_sequence, check_type
from masc_metrics.grid import Grid
from masc_metrics.images import FLOAT_DTYPES, MAX_UINT8, RANGE_SLACK, check_values, pil_to_array, value_bounds

Masks: TypeAlias = "Tensor | Sequence[Tensor | Image.Image] | MaskBatch"

FOREGROUND_THRESHOLD = 0.5
"""A reference patch is foreground if its coverage is above the threshold; a generated patch is background if its
coverage is below it. Both strict inequalities are the paper's."""

# The channels of a grey JPEG differ by a few levels, those of a label colour by much more.
_COLOUR_SPREAD = 32


@dataclass(frozen=True, slots=True)
class MaskBatch:
    """Checked subject masks of any sizes.

    Attributes:
        masks: an (H, W) tensor for each mask, bool or float32 in [0, 1]; True or 1 marks the subject.
    """

    masks: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> Tensor:
        return self.masks[index]


def check_masks(masks: Masks, name: str, image_sizes: Sequence[tuple[int, int]]) -> MaskBatch:
    """Check masks and convert them to one form.

    Args:
        masks: a (B, H, W) or (B, 1, H, W) tensor, or a sequence whose items are (H, W) or (1, H, W) tensors or PIL
            images (read as "L"). Values are booleans, integers 0 and 1, integers 0..255 if the largest value of a mask
            is above 1, or floating point in [0, 1]. Intermediate values are partial coverage by the subject.
        name: name of the argument in error texts.
        image_sizes: (height, width) of the image of each mask. A mask may differ from its image in size but not in
            aspect ratio, to within a pixel.

    Returns:
        The masks as (H, W) tensors, bool if they were given so and float32 in [0, 1] otherwise, in order, each on its
        original device.

    Raises:
        TypeError: if a form or dtype is not accepted.
        ValueError: for a wrong rank, count, aspect ratio or value range, or NaN.

    Warns:
        UserWarning: if integers look like labels, which would not reach the foreground threshold.
    """
    if isinstance(masks, Tensor):
        if masks.ndim not in (3, 4):
            raise ValueError(f"{name} has shape {tuple(masks.shape)}; give (B, H, W) or (B, 1, H, W)")
    elif isinstance(masks, Image.Image):
        raise TypeError(f"{name} is a single PIL image; put it into a list")
    elif not isinstance(masks, MaskBatch):
        hint = _conversion_hint(masks, "masks")
        check_sequence(name, masks, f"a (B, H, W) tensor, or a list of (H, W) tensors or PIL images{hint}")
    if len(masks) != len(image_sizes):
        hint = ""
        if len(image_sizes) == 1 and len(masks) > 1 and not isinstance(masks, MaskBatch):
            union = "masks.any(0, keepdim=True)" if isinstance(masks, Tensor) else f"[{_conversion(masks, 'masks')}]"
            hint = f", such as {union} for the instances of one subject" if union != "[]" else ""
        raise ValueError(f"{name} holds {len(masks)} masks for {len(image_sizes)} images; give one mask for each{hint}")
    labels = [f"{name}[{index}]" for index in range(len(masks))]
    if isinstance(masks, MaskBatch):
        _check_aspects(masks.masks, labels, image_sizes)
        return masks
    return MaskBatch(_checked(list(masks), labels, image_sizes))


def check_mask(mask: Tensor | Image.Image, label: str, image_size: tuple[int, int]) -> Tensor:
    """Check one mask as :func:`check_masks` does.

    Args:
        mask: an (H, W) or (1, H, W) tensor or a PIL image, with the values that :func:`check_masks` accepts.
        label: name of the mask in error texts.
        image_size: (height, width) of its image.

    Returns:
        (H, W), bool or float32 in [0, 1], on its original device.

    Raises:
        TypeError, ValueError: as for :func:`check_masks`.

    Warns:
        UserWarning: as for :func:`check_masks`.
    """
    return _checked([mask], [label], [image_size])[0]


def _checked(
    masks: Sequence[object], labels: Sequence[str], image_sizes: Sequence[tuple[int, int]]
) -> tuple[Tensor, ...]:
    planes = [_check_form(mask, label) for mask, label in zip(masks, labels, strict=True)]
    _check_aspects(planes, labels, image_sizes)
    return tuple(_to_unit_range(planes, labels))


def _check_aspects(planes: Sequence[Tensor], labels: Sequence[str], image_sizes: Sequence[tuple[int, int]]) -> None:
    for plane, label, size in zip(planes, labels, image_sizes, strict=True):
        if not same_aspect((plane.shape[0], plane.shape[1]), size):
            raise ValueError(
                f"{label} is {tuple(plane.shape)} but its image is {tuple(size)}; give masks the shape of their image"
            )


def _check_form(mask: Any, label: str) -> Tensor:
    if isinstance(mask, Image.Image):
        mask = _from_pil(mask, label)
    check_type(label, mask, Tensor, f"an (H, W) tensor or a PIL image{_conversion_hint(mask, 'mask')}")
    shape = tuple(mask.shape)
    plane: Tensor = mask[0] if mask.ndim == 3 and shape[0] == 1 else mask
    if plane.ndim != 2:
        remedy = ""
        if plane.ndim == 3:
            remedy = ": mask[..., 0]" if shape[2] == 1 else ", such as mask.any(0) if it holds instances of the subject"
        raise ValueError(f"{label} has shape {shape}; give (H, W) or (1, H, W){remedy}")
    if 0 in shape:
        raise ValueError(f"{label} has shape {shape}, which has no pixels; give a mask of the image's shape")
    if plane.is_complex() or (plane.is_floating_point() and plane.dtype not in FLOAT_DTYPES):
        raise TypeError(f"{label} is {plane.dtype}; give booleans, integers or floating point in [0, 1]")
    check_values(plane, label)
    # torch has few kernels for the wide unsigned types
    return plane.long() if plane.dtype in (torch.uint16, torch.uint32, torch.uint64) else plane


def _conversion_hint(value: object, name: str) -> str:
    code = _conversion(value, name)
    if name == "masks" and isinstance(value, (str, os.PathLike, Mapping)):  # one mask instead of a batch
        code = code and f"[{code}]"
    return f"; {code} converts it" if code else ""


def _conversion(value: object, name: str) -> str:
    """Code that converts another common form of a mask to an (H, W) tensor or a PIL image; empty if there is none.

    Instances of an image are joined. The name is "mask", or "masks" for what was given for a batch.
    """
    if isinstance(value, np.ndarray):
        return f"torch.from_numpy({_numpy_plane(value, name)})"
    if isinstance(value, (str, os.PathLike)):
        return f"PIL.Image.open({name})"
    if isinstance(value, Mapping):
        if "counts" in value and "size" in value:  # COCO's run lengths, compressed or not
            rle = f"pycocotools.mask.frPyObjects({name}, *{name}['size'])" if _numbers(value["counts"]) else name
            return f"torch.from_numpy(pycocotools.mask.decode({rle}))"
        key = next((key for key in ("segmentation", "mask", "masks") if key in value), None)
        return "" if key is None else _conversion(value[key], f"{name}[{key!r}]") or f"{name}[{key!r}]"
    if isinstance(value, Tensor):
        return name if value.ndim == 2 else f"{name}.any(0)"
    if not isinstance(value, (list, tuple)) or not value:
        return ""
    first = value[0]
    if isinstance(first, Mapping) and isinstance(first.get("segmentation"), np.ndarray):  # SAM's automatic masks
        return f"torch.from_numpy(numpy.any([each['segmentation'] for each in {name}], axis=0))"
    if isinstance(first, Tensor):
        return f"torch.stack({name}).any(0)"
    if isinstance(first, np.ndarray):
        return f"torch.from_numpy(numpy.any({name}, axis=0))"
    if all(map(_numbers, value)):
        if len({len(row) for row in value}) == 1 and all(number in (0, 1) for row in value for number in row):
            return f"torch.tensor({name})"
        polygons = f"pycocotools.mask.frPyObjects({name}, height, width)"  # COCO's [[x, y, x, y, ...], ...]
        return f"torch.from_numpy(pycocotools.mask.decode({polygons}).any(-1))"
    return ""


def _numbers(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(each, Real) for each in value)


def _numpy_plane(array: np.ndarray, name: str) -> str:
    if array.ndim > 2 and array.shape[-1] == 1:
        return f"{name}[..., 0]"
    return f"{name}.any(0)" if array.ndim == 3 and name != "masks" and len(array) > 1 else name


def _from_pil(mask: Image.Image, label: str) -> Tensor:
    if "A" in mask.getbands():
        raise ValueError(
            f"{label} has PIL mode {mask.mode!r}; select the channel that is the mask: mask.getchannel('A') or "
            "mask.convert('L')"
        )
    if mask.mode in ("P", "RGB"):  # label colours would be read as brightness, mostly below the threshold
        channels = pil_to_array(mask, "RGB", label)
        if np.ptp(channels, axis=-1).max(initial=0) > _COLOUR_SPREAD:
            raise ValueError(
                f"{label} has PIL mode {mask.mode!r} and is coloured; give a black and white mask, such as "
                "torch.from_numpy(numpy.array(mask) == subject_id)"
            )
    return torch.from_numpy(pil_to_array(mask, "L", label))


_INVERTED_BORDER = 0.9


def looks_inverted(mask: Tensor) -> Tensor:
    """Whether a mask probably marks the background: most of the image and almost all of its border, but not all.

    Args:
        mask: (H, W) or (1, H, W), with any values that :func:`check_masks` accepts.

    Returns:
        A boolean scalar on the mask's device, which is not waited for.
    """
    levels_HW = mask.reshape(mask.shape[-2:])
    levels_HW = levels_HW if levels_HW.is_floating_point() else levels_HW.float()
    marked_HW = (levels_HW > 0) & (levels_HW >= levels_HW.amax() / 2)
    border = torch.cat([marked_HW[0], marked_HW[-1], marked_HW[:, 0], marked_HW[:, -1]])
    return (
        (marked_HW.float().mean() > 0.5) & (border.float().mean() > _INVERTED_BORDER) & ~(marked_HW.float().amin() > 0)
    )


def mask_planes(masks: object) -> list[Tensor]:
    """The masks of any accepted form, unchecked, as tensors; those that cannot be taken apart are left out."""
    if isinstance(masks, MaskBatch):
        masks = masks.masks
    if not isinstance(masks, Tensor) and not isinstance(masks, Sequence):
        return []
    if isinstance(masks, Tensor) and masks.ndim == 2:
        return [masks]
    if isinstance(masks, Tensor) and masks.ndim == 3 and masks.shape[0] == 1:
        return [masks[0]]
    if isinstance(masks, str):
        return []
    planes = []
    for mask in masks:
        if isinstance(mask, Image.Image):
            mask = torch.from_numpy(np.array(mask.convert("L")))
        planes += [mask] if isinstance(mask, Tensor) and mask.ndim == 2 else mask_planes(mask)
    return planes


def same_aspect(mask_size: tuple[int, int], image_size: tuple[int, int]) -> bool:
    """Whether both sizes have the same aspect ratio, up to rounding a mask side by one pixel."""
    (rows, columns), (height, width) = mask_size, image_size
    return abs(rows * width - columns * height) <= max(height, width)


def _to_unit_range(planes: Sequence[Tensor], labels: Sequence[str]) -> list[Tensor]:
    unit: list[Tensor] = []
    numbers = [plane for plane in planes if plane.dtype != torch.bool]
    bounds = iter(value_bounds(numbers))
    for plane, label in zip(planes, labels, strict=True):
        if plane.dtype == torch.bool:
            unit.append(plane)
            continue
        low, high = next(bounds)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{label} contains NaN or infinite values; check how it was produced")
        if plane.is_floating_point():
            if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
                remedy = (
                    "divide by 255" if low >= 0 and 2 < high <= MAX_UINT8 else "apply a sigmoid to logits, or clamp"
                )
                raise ValueError(
                    f"{label} is {plane.dtype} with values from {low:.3g} to {high:.3g}, outside [0, 1]; {remedy}"
                )
            unit.append(plane.float().clamp(0, 1))
        elif low < 0 or high > MAX_UINT8:
            raise ValueError(
                f"{label} is {plane.dtype} with values from {low:.0f} to {high:.0f}, outside 0..255; give a boolean "
                "mask: mask == subject_id"
            )
        else:
            if 1 < high <= MAX_UINT8 / 2:
                warnings.warn(
                    f"{label} holds integers up to {high:.0f}, which mark nothing as values in 0..255; if they are "
                    "labels, give a boolean mask: mask == subject_id",
                    stacklevel=2,
                )
            unit.append(plane.float() / MAX_UINT8 if high > 1 else plane.float())
    return unit


def grid_coverage(mask: Tensor, grid: Grid) -> Tensor:
    """Coverage of each patch by the mask.

    The mask is resized to the grid by bilinear interpolation without antialiasing, as in the paper: each patch samples
    the mask around its centre. The result is clamped to [0, 1].

    Args:
        mask: (H, W), bool or float32 in [0, 1].
        grid: patch rows and columns.

    Returns:
        (N,) float32 in [0, 1], in row-major order.
    """
    resized = F.interpolate(mask[None, None].float(), size=grid, mode="bilinear", align_corners=False)
    return resized.clamp(0, 1).reshape(-1)


PerturbationKind = Literal["dilation", "erosion", "jitter", "shift", "dropout", "bounding-box", "transferred"]
PIXEL_KINDS: tuple[PerturbationKind, ...] = ("dilation", "erosion", "jitter", "shift")
"""Kinds whose amount is a number of pixels."""

DEFAULT_BLOCK = 16


@dataclass(frozen=True, slots=True)
class Perturbation:
    """A way in which a mask is wrong.

    ============ ====================================================================================================
    dilation     marks every pixel within ``amount`` pixels of the subject, by Euclidean distance between centres
    erosion      unmarks every pixel within ``amount`` pixels of the background, likewise; the border of the image is
                 not background
    jitter       moves each place of the outline by up to ``amount`` pixels along each axis. The displacements are
                 uniform random numbers on a lattice of 2 ``amount`` pixels, interpolated bilinearly and rounded
    shift        moves the mask by ``amount`` pixels up, down, left or right, at random; what comes in is not marked
    dropout      unmarks the share ``amount`` of the subject's pixels, in whole square blocks the size of a patch. The
                 blocks are taken in random order, as many as come closest to the share
    bounding-box marks the smallest box around the subject
    transferred  the mask that :func:`masc_metrics.functional.transfer_masks` finds by the reference; only for
                 :func:`masc_metrics.functional.mask_sensitivity`
    ============ ====================================================================================================

    Attributes:
        kind: one of the above.
        amount: for the first four kinds, a whole number of pixels of the mask, at least 0; for "dropout", a number in
            [0, 1]; for the others 0.

    Raises:
        TypeError: if the amount is not a number of that kind.
        ValueError: if the kind is unknown or the amount is out of its range.
    """

    kind: PerturbationKind
    amount: float = 0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, get_args(PerturbationKind))
        if self.kind in PIXEL_KINDS:
            check_integer("amount", self.amount, least=0, hint=f", the pixels of {self.kind!r}")
            return
        check_number("amount", self.amount)
        if self.kind == "dropout" and not 0 <= self.amount <= 1:
            raise ValueError(f"amount is {self.amount}; give a share of the subject in [0, 1] for 'dropout'")
        if self.kind != "dropout" and self.amount != 0:
            raise ValueError(f"amount is {self.amount}, but {self.kind!r} has no amount; give 0")

    @property
    def name(self) -> str:
        """Kind and amount in words, such as "dilation 5 px" and "dropout 10 %"."""
        if self.kind in PIXEL_KINDS:
            return f"{self.kind} {self.amount} px"
        return f"dropout {100 * self.amount:g} %" if self.kind == "dropout" else self.kind.replace("-", " ")


def perturb(
    mask: Tensor, kind: PerturbationKind, amount: float = 0, seed: int = 0, *, block: int = DEFAULT_BLOCK
) -> Tensor:
    """Make masks wrong in a known way, see :class:`Perturbation`.

    Random kinds draw from the seed and the content of each mask. So a mask of a batch is changed as it would be alone,
    equal masks are changed equally, and the result is the same on every device.

    Args:
        mask: (H, W) or (B, H, W) bool, True on the subject.
        kind: kind of the perturbation, other than "transferred".
        amount: pixels of the mask, at least 0, or a share of the subject in [0, 1]; 0 for "bounding-box".
        seed: random seed, at least 0.
        block: side of the blocks of "dropout" in pixels of the mask. Blocks begin at the top left corner.

    Returns:
        Masks of the same shape, bool, on the same device. An empty mask stays empty.

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if the mask's shape, the kind or the amount is not accepted.
    """
    check_type("mask", mask, Tensor, "a tensor")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask is {mask.dtype}; give booleans, such as mask > 0.5")
    if mask.ndim not in (2, 3) or 0 in mask.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; give (H, W) or (B, H, W) with pixels")
    Perturbation(kind, amount)
    check_integer("seed", seed, least=0)
    check_positive("block", block)
    if kind == "transferred":
        raise ValueError("kind is 'transferred', which needs references; call functional.mask_sensitivity")
    mask_BHW = mask.reshape(-1, *mask.shape[-2:])
    if kind == "dilation":
        changed_BHW = _dilated(mask_BHW, int(amount))
    elif kind == "erosion":
        changed_BHW = ~_dilated(~mask_BHW, int(amount))
    elif kind == "bounding-box":
        changed_BHW = _within(mask_BHW.any(dim=2))[:, :, None] & _within(mask_BHW.any(dim=1))[:, None, :]
    else:
        random = [np.random.default_rng([seed, _content(mask_HW)]) for mask_HW in mask_BHW]
        if kind == "jitter":
            changed = [_jittered(*pair, int(amount)) for pair in zip(mask_BHW, random, strict=True)]
        elif kind == "shift":
            changed = [_shifted(*pair, int(amount)) for pair in zip(mask_BHW, random, strict=True)]
        else:
            changed = [_dropped(*pair, amount, block) for pair in zip(mask_BHW, random, strict=True)]
        changed_BHW = torch.stack(changed)
    return changed_BHW.reshape(mask.shape)


def _dilated(mask_BHW: Tensor, radius: int) -> Tensor:
    """Dilation by a disk, row by row of the disk: a window holds a marked pixel if its ends' running counts differ."""
    height, width = mask_BHW.shape[1:]
    pad = min(radius, width)
    counts_BHC = F.pad(mask_BHW.int(), (pad + 1, pad)).cumsum(dim=2, dtype=torch.int32)
    dilated_BHW = torch.zeros_like(mask_BHW)
    for rows in range(min(radius, height - 1) + 1):
        reach = min(math.isqrt(radius**2 - rows**2), pad)
        left, right = pad - reach, pad + reach + 1
        near_BHW = counts_BHC[:, :, left : left + width] != counts_BHC[:, :, right : right + width]
        dilated_BHW[:, rows:] |= near_BHW[:, : height - rows]
        dilated_BHW[:, : height - rows] |= near_BHW[:, rows:]
    return dilated_BHW


def _within(marked_BL: Tensor) -> Tensor:
    """Whether a place is between the first and the last marked one, both included."""
    return (marked_BL.cumsum(dim=1) > 0) & (marked_BL.flip(1).cumsum(dim=1).flip(1) > 0)


def _content(mask_HW: Tensor) -> int:
    return zlib.crc32(np.packbits(mask_HW.cpu().numpy()).tobytes())


def _jittered(mask_HW: Tensor, random: np.random.Generator, amount: int) -> Tensor:
    if not amount:
        return mask_HW
    height, width = mask_HW.shape
    spacing = 2 * amount  # displacements of neighbours differ by less than their distance: the outline does not fold
    lattice = random.uniform(-amount, amount, size=(1, 2, height // spacing + 2, width // spacing + 2))
    size = [spacing * (side - 1) + 1 for side in lattice.shape[2:]]
    # On the CPU, so that rounding is the same for every device.
    field_12HW = F.interpolate(torch.from_numpy(lattice), size=size, mode="bilinear", align_corners=True)
    rows_HW, columns_HW = field_12HW[0, :, :height, :width].round().long()
    rows_HW = (rows_HW + torch.arange(height, device="cpu")[:, None]).clamp(0, height - 1)
    columns_HW = (columns_HW + torch.arange(width, device="cpu")).clamp(0, width - 1)
    return mask_HW.reshape(-1)[(rows_HW * width + columns_HW).to(mask_HW.device)]


def _shifted(mask_HW: Tensor, random: np.random.Generator, amount: int) -> Tensor:
    axis, sign = divmod(int(random.integers(4)), 2)
    length = mask_HW.shape[axis]
    amount = min(amount, length)
    shifted_HW = torch.zeros_like(mask_HW)
    near, far = (0, amount) if sign else (amount, 0)
    shifted_HW.narrow(axis, near, length - amount).copy_(mask_HW.narrow(axis, far, length - amount))
    return shifted_HW


def _dropped(mask_HW: Tensor, random: np.random.Generator, share: float, block: int) -> Tensor:
    height, width = mask_HW.shape
    rows, columns = -(-height // block), -(-width // block)
    padded_HW = F.pad(mask_HW.int(), (0, columns * block - width, 0, rows * block - height))
    counts_K = padded_HW.reshape(rows, block, columns, block).sum(dim=(1, 3)).reshape(-1).cpu().numpy()
    order_K = random.permutation(len(counts_K))
    dropped_K = np.concatenate([[0], counts_K[order_K].cumsum()])
    number = int(np.abs(dropped_K - share * dropped_K[-1]).argmin())
    kept_K = np.ones(len(counts_K), dtype=np.bool_)
    kept_K[order_K[:number]] = False
    kept_RC = torch.from_numpy(kept_K.reshape(rows, columns)).to(mask_HW.device)
    kept_HW = kept_RC.repeat_interleave(block, dim=0).repeat_interleave(block, dim=1)
    return mask_HW & kept_HW[:height, :width]
