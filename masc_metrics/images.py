"""Images: checks of all accepted forms, and preprocessing into normalised patches.

Shape suffixes: B images; H, W image sides in pixels; N patches; P values of one patch (row, column, channel).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from masc_metrics.arguments import check_sequence, check_type
from masc_metrics.grid import Grid, naflex_grid
from masc_metrics.precision import to_device

Images: TypeAlias = "Tensor | Sequence[Tensor | Image.Image] | ImageBatch"

# Rounding in half precision or in a resize leaves values slightly outside [0, 1], far less than a wrong range does.
RANGE_SLACK = 1e-3

# Upper bound of a decoder's values without clamping; an image in 0..255 without larger values would be black.
_UNCLAMPED = 2.0

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Modes whose conversion to RGB (or L) silently clips or reinterprets the values.
_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")

MAX_UINT8 = 255.0


PICTURE_SUFFIXES = MappingProxyType(
    {
        "PNG": (".png", ".apng"),
        "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
        "WEBP": (".webp",),
        "GIF": (".gif",),
        "TIFF": (".tif", ".tiff"),
        "BMP": (".bmp",),
        "AVIF": (".avif",),
        "JPEG2000": (".jp2", ".j2k", ".jpx"),
        "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
"""Formats of picture files that are opened, by Pillow's names, and the endings of such files.

Pillow knows many more, and a file's ending does not say which of them reads it. Some start other programs (EPS starts
Ghostscript), and the decoders of others are hardly tested.
"""


def open_picture(source: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Open a picture file of a format in ``PICTURE_SUFFIXES``, whatever its name; its pixels are not decoded yet.

    Raises:
        OSError: if it cannot be read, or has another format.
    """
    Image.init()  # Pillow registers its formats when they are first asked for
    formats = [name for name in PICTURE_SUFFIXES if name in Image.OPEN]
    try:
        picture = Image.open(source, formats=formats)
        if picture.format == "TIFF":
            # Otherwise new versions of Pillow map raw pixels into memory with the sides of the turned picture.
            picture.filename = ""
        return picture
    except UnidentifiedImageError as error:
        raise OSError(f"it is not a complete picture of the formats {', '.join(formats)}") from error


def holds_several(picture: Image.Image) -> bool:
    """Whether a picture file that was opened, but not decoded yet, is an animation or has several pages.

    Phones write JPEG files of several pictures (MPO), whose first is the photograph; they count as one picture.
    """
    if picture.format == "MPO":
        return False
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:  # decoders raise any exception for a damaged second frame
        return True


TO_STORED = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
)
"""From an upright image back to the stored one, by EXIF orientation."""


def exif_orientation(picture: Image.Image) -> int:
    """EXIF orientation of a picture, 1 to 8; 1 is upright."""
    value = picture.getexif().get(ExifTags.Base.Orientation)
    return value if isinstance(value, int) and value in TO_STORED else 1


def decode_picture(picture: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Decode a picture that :func:`open_picture` has opened.

    Returns:
        The picture as stored, and turned by its EXIF orientation; one object if it has none.
    """
    # Pillow turns TIFF files when it decodes them, and drops the orientation; it tells those of others afterwards.
    before = exif_orientation(picture) if picture.format == "TIFF" else 1
    picture.load()
    if exif_orientation(picture) > 1:
        return picture, ImageOps.exif_transpose(picture)
    return picture.transpose(TO_STORED[before]) if before > 1 else picture, picture


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Checked images of any sizes.

    Attributes:
        images: a (3, H, W) tensor for each image, uint8 in 0..255 or float32 in [0, 1].
    """

    images: tuple[Tensor, ...]

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each image, in pixels."""
        return tuple((image.shape[1], image.shape[2]) for image in self.images)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, slots=True)
class ImageProcessing:
    """Preprocessing of images for one checkpoint, read from its files.

    Attributes:
        patch_size: side of a patch, in pixels.
        mean: subtracted from each channel after scaling to [0, 1].
        std: divides each channel after that.
        resample: "bilinear" or "bicubic", both antialiased.
        fixed_size: side in pixels of the square that every image is resized to; None for NaFlex, which preserves the
            aspect ratio.
    """

    patch_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: str
    fixed_size: int | None

    def grid(self, height: int, width: int, max_num_patches: int) -> Grid:
        """Patch grid of an image; only NaFlex checkpoints use the budget."""
        if self.fixed_size is not None:
            side = self.fixed_size // self.patch_size
            return side, side
        return naflex_grid(height, width, max_num_patches=max_num_patches, patch_size=self.patch_size)


def check_images(images: Images, name: str) -> ImageBatch:
    """Check images and convert them to one form.

    Args:
        images: a (B, 3, H, W) tensor, or a sequence whose items are (3, H, W) tensors of any sizes or PIL images.
            Tensors are uint8 in 0..255 or floating point in [0, 1]. PIL images are read as RGB with their pixels as
            stored (no rotation by EXIF); transparency is dropped.
        name: name of the argument in error texts.

    Returns:
        The images as (3, H, W) tensors, in order, each on its original device.

    Raises:
        TypeError: if a form or dtype is not accepted.
        ValueError: for a wrong rank, channel count or value range, NaN, an empty batch, or an image without pixels.
    """
    if isinstance(images, ImageBatch):
        return images
    if isinstance(images, Tensor):
        if images.ndim == 3:
            raise ValueError(f"{name} is one tensor of shape {tuple(images.shape)}; add a batch dimension: image[None]")
        if images.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(images.shape)}; give (B, 3, H, W)")
    elif isinstance(images, Image.Image):
        raise TypeError(f"{name} is a single PIL image; put it into a list")
    else:
        give = f"a (B, 3, H, W) tensor, or a list of (3, H, W) tensors or PIL images{_conversion(images)}"
        check_sequence(name, images, give)
    if len(images) == 0:
        raise ValueError(f"{name} is empty; give at least one image")
    return ImageBatch(_checked(list(images), [f"{name}[{index}]" for index in range(len(images))]))


def check_image(image: Tensor | Image.Image, label: str) -> Tensor:
    """Check one image as :func:`check_images` does.

    Args:
        image: a (3, H, W) tensor, uint8 in 0..255 or floating point in [0, 1], or a PIL image.
        label: name of the image in error texts.

    Returns:
        (3, H, W), uint8 in 0..255 or float32 in [0, 1], on its original device.

    Raises:
        TypeError, ValueError: as for :func:`check_images`.
    """
    return _checked([image], [label])[0]


def _checked(images: Sequence[object], labels: Sequence[str]) -> tuple[Tensor, ...]:
    checked = [_check_form(image, label) for image, label in zip(images, labels, strict=True)]
    _check_range(checked, labels)
    return tuple(image.float().clamp(0, 1) if image.is_floating_point() else image for image in checked)


def _conversion(value: object) -> str:
    """End of an error text: how to convert another common form of an image, or of images; empty if it is not known."""
    if isinstance(value, np.ndarray):
        array, moved = "array", ""
        if value.ndim == 2:
            moved = "[None].expand(3, -1, -1)"
        elif value.ndim in (3, 4) and value.shape[-1] in (3, 4):
            array += "[..., :3]" if value.shape[-1] == 4 else ""
            moved = ".permute(2, 0, 1)" if value.ndim == 3 else ".permute(0, 3, 1, 2)"
        return f"; torch.from_numpy({array}){moved} converts one of shape {value.shape}"
    if isinstance(value, (str, os.PathLike)):
        return "; PIL.Image.open(path) reads a file"
    if isinstance(value, bytes):
        return "; PIL.Image.open(io.BytesIO(image)) reads encoded bytes"
    if isinstance(value, Mapping):
        key = next((key for key in ("image", "images", "pixel_values", "path") if key in value), None)
        return "" if key is None else f"; take its entry {key!r}"
    if isinstance(value, (list, tuple)) and value:
        if isinstance(value[0], (Tensor, Image.Image, np.ndarray)):
            return "; [image for each in images for image in each] makes one list of lists"
        return "; torch.tensor(image) converts lists of numbers"
    return "; take its attribute .images" if hasattr(value, "images") else ""


def _check_form(image: Any, label: str) -> Tensor:
    if isinstance(image, Image.Image):
        return _from_pil(image, label)
    check_type(label, image, Tensor, f"a (3, H, W) tensor or a PIL image{_conversion(image)}")
    shape = tuple(image.shape)
    if image.ndim != 3:
        raise ValueError(f"{label} has shape {shape}; give (3, H, W)")
    if shape[0] != 3:
        hint = "put channels first: image.permute(2, 0, 1)" if shape[2] == 3 else "convert it to RGB"
        raise ValueError(f"{label} has shape {shape}, so {shape[0]} channels instead of 3; {hint}")
    if 0 in shape:
        raise ValueError(f"{label} has shape {shape}, which has no pixels; give an image of at least 1 x 1")
    if image.dtype != torch.uint8 and image.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{label} is {image.dtype}; give torch.uint8 in 0..255 or floating point in [0, 1]")
    check_values(image, label)
    checked: Tensor = image
    return checked


_SMALLEST_SIDE = 16
"""Side of a patch of the real checkpoints; a smaller image may well have one colour."""


def is_one_colour(image: Tensor) -> Tensor:
    """Whether a checked image has one colour, to within a level, such as the black of a safety checker.

    Returns:
        A boolean scalar on the image's device, which is not waited for; False for an image that is smaller than
        a patch.
    """
    if min(image.shape[1:]) < _SMALLEST_SIDE:
        return torch.zeros((), dtype=torch.bool, device=image.device)
    low_C, high_C = image.flatten(1).amin(dim=1), image.flatten(1).amax(dim=1)
    return ((high_C - low_C) <= (1 / MAX_UINT8 if image.is_floating_point() else 1)).all()


def check_values(tensor: Tensor, label: str) -> None:
    """Raise TypeError for a tensor on the meta device, which has no values, and for a sparse tensor."""
    if tensor.is_meta or tensor.layout is not torch.strided:
        kind = "on the meta device" if tensor.is_meta else f"of layout {tensor.layout}"
        raise TypeError(f"{label} is {kind}; give a dense tensor with values")


def _from_pil(image: Image.Image, label: str) -> Tensor:
    if 0 in image.size:
        raise ValueError(f"{label} is {image.height} x {image.width} pixels; give an image of at least 1 x 1")
    return torch.from_numpy(pil_to_array(image, "RGB", label)).permute(2, 0, 1)


def pil_to_array(image: Image.Image, mode: str, label: str) -> np.ndarray:
    """Pixels of a PIL image as a new uint8 array, (H, W, 3) for mode "RGB" and (H, W) for "L".

    Raises:
        ValueError: if the image has more than 8 bits per channel, which PIL would clip, or cannot be decoded.
    """
    if image.mode in _WIDE_MODES:
        raise ValueError(
            f"{label} has PIL mode {image.mode!r}, more than 8 bits per channel; scale it to 0..255 and convert it to "
            f"{mode!r}"
        )
    try:
        image.load()
        return np.array(image if image.mode == mode else image.convert(mode))  # convert copies in any case
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{label} cannot be decoded: {error}; check that its file is complete and not closed"
        ) from error


def value_bounds(tensors: Sequence[Tensor]) -> list[tuple[float, float]]:
    """Minimum and maximum of each tensor, NaN if it contains NaN; synchronises with the device once."""
    bounds = [torch.stack(tensor.detach().aminmax()).float() for tensor in tensors]
    devices = {bound.device for bound in bounds}
    if len(devices) > 1:
        bounds = [bound.cpu() for bound in bounds]
    return [(low, high) for low, high in torch.stack(bounds).tolist()] if bounds else []


def _check_range(images: Sequence[Tensor], labels: Sequence[str]) -> None:
    positions = [index for index, image in enumerate(images) if image.is_floating_point()]
    for index, (low, high) in zip(positions, value_bounds([images[index] for index in positions]), strict=True):
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"{labels[index]} contains NaN or infinite values; check how it was produced")
        if low >= -RANGE_SLACK and high <= 1 + RANGE_SLACK:
            continue
        if -_UNCLAMPED <= low < -0.5 and high <= _UNCLAMPED:
            remedy = "convert diffusers' [-1, 1] by (image / 2 + 0.5).clamp(0, 1)"
        elif low >= -0.5 and high <= _UNCLAMPED:
            remedy = "clamp the output of a decoder by image.clamp(0, 1)"
        elif low >= 0 and high <= MAX_UINT8:
            remedy = "convert values in 0..255 by image / 255, or give torch.uint8"
        else:
            remedy = "rescale or clamp it"
        raise ValueError(
            f"{labels[index]} is {images[index].dtype} with values from {low:.3g} to {high:.3g}, outside [0, 1]; "
            f"{remedy}"
        )


def patchify(image: Tensor, grid: Grid, processing: ImageProcessing) -> Tensor:
    """Resize an image to its grid, normalise it and cut it into patches.

    Args:
        image: (3, H, W), uint8 in 0..255 or float32 in [0, 1].
        grid: patch rows and columns to resize to.
        processing: the checkpoint's patch size, resampling, mean and std.

    Returns:
        (N, P) float32, N = rows * columns in row-major order, P = (row, column, channel) inside a patch.
    """
    pixels_B3HW = resize(image, grid, processing)[None]
    return cut(normalise(pixels_B3HW, processing), processing.patch_size)[0]


def resize(image: Tensor, grid: Grid, processing: ImageProcessing) -> Tensor:
    """Resize an image to the pixels of its patch grid.

    uint8 images are resized by torch's uint8 kernel, as in the reference implementation. If a device has no such
    kernel, they are resized in float32 and rounded. Float images are resized in float32 without rounding, so that they
    stay differentiable.

    Args:
        image: (3, H, W), uint8 in 0..255 or float32 in [0, 1].
        grid: patch rows and columns.
        processing: the checkpoint's patch size and resampling.

    Returns:
        (3, rows * patch_size, columns * patch_size) in the dtype and on the device of the image.
    """
    size = (grid[0] * processing.patch_size, grid[1] * processing.patch_size)
    if (image.shape[1], image.shape[2]) == size:
        return image
    # Results depend on the memory layout, because torch chooses the kernel by it.
    pixels = image[None].contiguous()
    if pixels.device.type not in ("cpu", "cuda"):  # other devices may not have an antialiased kernel
        pixels = pixels.cpu()
    integers = not pixels.is_floating_point()
    if integers and not _has_uint8_kernel(pixels.device):
        pixels = pixels.float()
    resized = F.interpolate(pixels, size=size, mode=processing.resample, align_corners=False, antialias=True)[0]
    if resized.is_floating_point():  # bicubic interpolation overshoots; the uint8 kernel clamps
        resized = resized.round().clamp(0, MAX_UINT8) if integers else resized.clamp(0, 1)
    return resized.to(image.device, image.dtype)


def resize_all(images: Sequence[Tensor], grids: Sequence[Grid], processing: ImageProcessing) -> list[Tensor]:
    """:func:`resize` of each image to its grid, uint8 images in threads, because torch's uint8 kernel uses only one."""
    resized = list(images)
    side = processing.patch_size
    in_threads = [
        index
        for index, (image, (rows, columns)) in enumerate(zip(images, grids, strict=True))
        if image.dtype == torch.uint8
        and _has_uint8_kernel(image.device)
        and tuple(image.shape[1:]) != (rows * side, columns * side)
    ]
    threads = min(torch.get_num_threads(), len(in_threads))
    if threads > 1:
        with ThreadPoolExecutor(threads) as executor:
            found = executor.map(lambda index: resize(images[index], grids[index], processing), in_threads)
            for index, image in zip(in_threads, found, strict=True):
                resized[index] = image
    return [resize(image, grid, processing) for image, grid in zip(resized, grids, strict=True)]


def _has_uint8_kernel(device: torch.device) -> bool:
    return device.type == "cpu"


def normalise(pixels_B3HW: Tensor, processing: ImageProcessing) -> Tensor:
    """Scale pixels to [0, 1], subtract the mean and divide by the standard deviation, in float32."""
    if not pixels_B3HW.is_floating_point():
        pixels_B3HW = pixels_B3HW.float() / MAX_UINT8
    mean, std = (
        to_device(torch.tensor(values, dtype=torch.float32, device="cpu"), pixels_B3HW.device)[:, None, None]
        for values in (processing.mean, processing.std)
    )
    return (pixels_B3HW - mean) / std


def cut(pixels_B3HW: Tensor, side: int) -> Tensor:
    """Cut images whose sides are multiples of ``side`` into patches: (B, N, P), N in row-major order."""
    batch, channels, height, width = pixels_B3HW.shape
    rows, columns = height // side, width // side
    patches = pixels_B3HW.reshape(batch, channels, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
    return patches.reshape(batch, rows * columns, side * side * channels)
