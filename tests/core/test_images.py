"""Accepted image forms, and patches."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from support.batches import images
from torch import Tensor

from masc_metrics import images as images_module
from masc_metrics.images import (
    ImageProcessing,
    check_images,
    decode_picture,
    exif_orientation,
    open_picture,
    patchify,
    resize,
    resize_all,
)

HALF = (0.5, 0.5, 0.5)
NAFLEX = ImageProcessing(patch_size=16, mean=HALF, std=HALF, resample="bilinear", fixed_size=None)

sides = st.integers(1, 70)


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


@given(height=sides, width=sides, count=st.integers(1, 4), seed=st.integers(0, 99))
def test_all_forms_of_an_image_give_equal_values(height: int, width: int, count: int, seed: int) -> None:
    batch = images(count, height, width, seed)
    forms = [batch, list(batch), tuple(batch), [to_pil(image) for image in batch], check_images(batch, "images")]
    for form in forms:
        checked = check_images(form, "images")
        assert all(torch.equal(a, b) for a, b in zip(checked.images, batch, strict=True))
        assert checked.sizes == ((height, width),) * count


def test_floating_point_images_become_float32_in_the_unit_range() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        values = torch.rand(2, 3, 8, 8).to(dtype)
        for image in check_images(values, "images").images:
            assert image.dtype == torch.float32
    slack = check_images(torch.full((1, 3, 4, 4), 1.0005), "images").images[0]
    assert slack.max() == 1


def test_pil_images_of_other_modes_are_read_as_rgb() -> None:
    rgb = to_pil(images(1)[0])
    for mode in ("P", "L", "RGBA", "CMYK", "1"):
        assert check_images([rgb.convert(mode)], "images").images[0].shape == (3, 96, 128)


def test_patches_are_in_row_major_order_with_rows_columns_channels() -> None:
    rows, columns = 2, 3
    image = torch.arange(3 * 32 * 48).reshape(3, 32, 48).remainder(251).to(torch.uint8)
    patches = patchify(image, (rows, columns), NAFLEX)
    assert patches.shape == (6, 768)
    for row in range(rows):
        for column in range(columns):
            cut = image[:, row * 16 : (row + 1) * 16, column * 16 : (column + 1) * 16].permute(1, 2, 0)
            assert torch.allclose(patches[row * columns + column], (cut.reshape(-1) / 255 - 0.5) / 0.5, atol=1e-7)


def test_patches_are_normalised_with_the_checkpoints_mean_and_std() -> None:
    processing = ImageProcessing(16, (0.1, 0.2, 0.3), (0.5, 0.25, 1.0), "bilinear", None)
    patches = patchify(torch.full((3, 16, 16), 255, dtype=torch.uint8), (1, 1), processing)
    assert torch.allclose(patches.reshape(256, 3)[0], torch.tensor([0.9 / 0.5, 0.8 / 0.25, 0.7]))


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_uint8_images_are_resized_by_torchs_uint8_kernel(resample: str) -> None:
    image = images(1, 90, 61)[0]
    processing = ImageProcessing(16, HALF, HALF, resample, None)
    patches = patchify(image, (3, 2), processing)
    kernel = torch.nn.functional.interpolate(image[None], size=(48, 32), mode=resample, antialias=True)
    assert torch.equal(patches, patchify(kernel[0], (3, 2), processing))


def test_devices_without_the_uint8_kernel_differ_by_at_most_one_grey_level(monkeypatch: pytest.MonkeyPatch) -> None:
    image = images(1, 90, 61)[0]
    kernel = patchify(image, (3, 2), NAFLEX)
    monkeypatch.setattr(images_module, "_has_uint8_kernel", lambda device: False)
    rounded = patchify(image, (3, 2), NAFLEX)
    levels = (rounded + 1) / 2 * 255
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert (rounded - kernel).abs().max() <= 2 / 255 + 1e-6


def test_float_images_differ_from_uint8_by_at_most_one_grey_level() -> None:
    image = images(1, 90, 61)[0]
    difference = patchify(image, (3, 2), NAFLEX) - patchify(image / 255, (3, 2), NAFLEX)
    assert 0 < difference.abs().max() <= 2 / 255


def test_patches_do_not_depend_on_memory_layout() -> None:
    image = images(1, 90, 61)[0]
    strided = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    batched = images(3, 90, 61)[0:1].contiguous(memory_format=torch.channels_last)[0]
    for layout in (strided, batched):
        assert torch.equal(patchify(layout, (4, 3), NAFLEX), patchify(image, (4, 3), NAFLEX))


def test_gradients_flow_through_float_images() -> None:
    image = torch.rand(3, 40, 24, requires_grad=True)
    patchify(check_images([image], "images").images[0], (2, 2), NAFLEX).square().sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_images_resized_in_threads_equal_those_resized_singly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    uint8 = [images(1, 40 + 7 * index, 90 - 5 * index, seed=index)[0] for index in range(9)]
    given = [*uint8, uint8[0] / 255, images(1, 64, 64)[0]]  # a float image, and one that needs no resize
    grids = [NAFLEX.grid(image.shape[1], image.shape[2], 16) for image in given]
    resized = resize_all(given, grids, NAFLEX)
    for image, grid, ours in zip(given, grids, resized, strict=True):
        assert torch.equal(ours, resize(image, grid, NAFLEX))
    assert resized[-1] is given[-1]


def test_fixed_resolution_resizes_every_image_to_a_square() -> None:
    processing = ImageProcessing(16, HALF, HALF, "bilinear", 64)
    assert processing.grid(100, 10, 1024) == (4, 4)
    assert patchify(images(1, 100, 10)[0], (4, 4), processing).shape == (16, 768)


WRONG: list[tuple[object, type[Exception], str]] = [
    (torch.zeros(3, 8, 8), ValueError, r"images is one tensor of shape \(3, 8, 8\); add a batch dimension"),
    (torch.zeros(8, 8), ValueError, r"images has shape \(8, 8\); give \(B, 3, H, W\)"),
    (torch.zeros(0, 3, 8, 8), ValueError, "images is empty; give at least one image"),
    ([], ValueError, "images is empty"),
    (torch.zeros(2, 1, 8, 8), ValueError, r"images\[0\] has shape \(1, 8, 8\), so 1 channels instead of 3; convert it"),
    (torch.zeros(2, 8, 8, 3), ValueError, r"images\[0\] has shape \(8, 8, 3\).*image.permute\(2, 0, 1\)"),
    ([torch.zeros(3, 8, 8), torch.zeros(4, 8, 8)], ValueError, r"images\[1\] has shape \(4, 8, 8\), so 4 channels"),
    ([torch.zeros(1, 3, 8, 8)], ValueError, r"images\[0\] has shape \(1, 3, 8, 8\); give \(3, H, W\)"),
    (torch.zeros(1, 3, 0, 8), ValueError, r"images\[0\] has shape \(3, 0, 8\), which has no pixels"),
    ([Image.new("RGB", (0, 5))], ValueError, r"images\[0\] is 5 x 0 pixels; give an image of at least 1 x 1"),
    (torch.zeros(1, 3, 8, 8, dtype=torch.int64), TypeError, r"images\[0\] is torch.int64; give torch.uint8"),
    (torch.zeros(1, 3, 8, 8, dtype=torch.bool), TypeError, r"images\[0\] is torch.bool"),
    (torch.zeros(1, 3, 8, 8, dtype=torch.complex64), TypeError, r"images\[0\] is torch.complex64"),
    (torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8), ValueError, r"images\[0\].*from -1 to 1, .*diffusers' \[-1, 1\]"),
    (
        torch.full((1, 3, 8, 8), 200.0),
        ValueError,
        r"images\[0\].*values from 200 to 200, outside \[0, 1\].*image / 255",
    ),
    (
        torch.full((1, 3, 8, 8), 1.02),
        ValueError,
        r"images\[0\].*values from 1.02 to 1.02, outside \[0, 1\]; clamp the output .* by image.clamp\(0, 1\)",
    ),
    (
        torch.linspace(-1.02, 1.01, 192).reshape(1, 3, 8, 8),
        ValueError,
        r"images\[0\].*values from -1.02 to 1.01.*\(image / 2 \+ 0.5\).clamp\(0, 1\)",
    ),
    (torch.full((1, 3, 8, 8), 1e6), ValueError, r"images\[0\].*outside \[0, 1\]; rescale or clamp"),
    (torch.full((1, 3, 8, 8), torch.nan), ValueError, r"images\[0\] contains NaN or infinite values"),
    (torch.full((1, 3, 8, 8), torch.inf), ValueError, r"images\[0\] contains NaN or infinite values"),
    (Image.new("RGB", (8, 8)), TypeError, "images is a single PIL image; put it into a list"),
    ("cat.png", TypeError, r"images is a str; give .*; PIL.Image.open\(path\) reads a file"),
    (["cat.png"], TypeError, r"images\[0\] is a str; give a \(3, H, W\) tensor or a PIL image; PIL.Image.open\(path\)"),
    ([b"\x89PNG"], TypeError, r"images\[0\] is a bytes.*PIL.Image.open\(io.BytesIO\(image\)\)"),
    (SimpleNamespace(images=[]), TypeError, r"images is a SimpleNamespace.*; take its attribute .images"),
    ({"images": []}, TypeError, "images is a dict.*; take its entry 'images'"),
    ([{"image": None}], TypeError, r"images\[0\] is a dict.*; take its entry 'image'"),
    ([[torch.zeros(3, 8, 8)]], TypeError, r"images\[0\] is a list.*\[image for each in images for image in each\]"),
    ([[[0, 1], [1, 0]]], TypeError, r"images\[0\] is a list.*torch.tensor\(image\)"),
    (np.zeros((1, 8, 8, 4)), TypeError, r"images is an ndarray.*\(array\[..., :3\]\).permute\(0, 3, 1, 2\)"),
    ([np.zeros((8, 8))], TypeError, r"images\[0\] is an ndarray.*\(array\)\[None\].expand\(3, -1, -1\)"),
    (np.zeros((1, 8, 8, 3)), TypeError, r"images is an ndarray.*from_numpy\(array\).permute\(0, 3, 1, 2\)"),
    (np.zeros((1, 3, 8, 8)), TypeError, r"images is an ndarray.*from_numpy\(array\) converts"),
    ([np.zeros((8, 8, 3))], TypeError, r"images\[0\] is an ndarray.*from_numpy\(array\).permute\(2, 0, 1\)"),
    ([np.zeros((3, 8, 8))], TypeError, r"images\[0\] is an ndarray.*from_numpy\(array\) converts"),
    (None, TypeError, "images is a NoneType"),
    ([Image.new("I;16", (8, 8))], ValueError, r"images\[0\] has PIL mode 'I;16', more than 8 bits"),
    ([Image.new("F", (8, 8))], ValueError, r"images\[0\] has PIL mode 'F'"),
    (torch.zeros(1, 3, 8, 8, device="meta"), TypeError, r"images\[0\] is on the meta device; give a dense tensor"),
    ([torch.zeros(3, 8, 8).to_sparse()], TypeError, r"images\[0\] is of layout torch.sparse_coo"),
    (torch.zeros(1, 3, 8, 8).to(torch.float8_e4m3fn), TypeError, r"images\[0\] is torch.float8_e4m3fn"),
]


@pytest.mark.parametrize(("value", "error", "message"), WRONG, ids=[message[:40] for *_, message in WRONG])
def test_errors_for_invalid_images_name_argument_and_problem(
    value: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        check_images(value, "images")  # type: ignore[arg-type]


def test_errors_for_one_image_of_a_batch_name_its_index() -> None:
    batch = torch.rand(5, 3, 8, 8)
    batch[3, 1, 2, 2] = torch.nan
    with pytest.raises(ValueError, match=r"^images\[3\] contains NaN"):
        check_images(batch, "images")


def test_errors_for_truncated_images_name_the_image() -> None:
    stream = io.BytesIO()
    to_pil(images(1)[0]).save(stream, "png")
    picture = Image.open(io.BytesIO(stream.getvalue()[:500]))
    with pytest.raises(ValueError, match=r"^images\[0\] cannot be decoded"):
        check_images([picture], "images")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pictures_are_decoded_as_stored_and_turned(tmp_path: Path, mode: str, kind: str) -> None:
    """Pillow turns TIFF files itself, and new versions garble those of raw grey pixels."""
    stored = Image.fromarray(np.arange(15, dtype=np.uint8).reshape(3, 5)).convert(mode)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        stored.save(tmp_path / "picture", kind, exif=exif)
        with open_picture(tmp_path / "picture") as picture:
            assert exif_orientation(picture) == orientation
            found, turned = decode_picture(picture)
        assert np.array_equal(found, stored)
        corners = np.asarray(turned.convert("L"))[[0, 0, -1, -1], [0, -1, 0, -1]].tolist()
        assert (
            corners
            == {
                1: [0, 4, 10, 14],
                2: [4, 0, 14, 10],
                3: [14, 10, 4, 0],
                4: [10, 14, 0, 4],
                5: [0, 10, 4, 14],
                6: [10, 0, 14, 4],
                7: [14, 4, 10, 0],
                8: [4, 14, 0, 10],
            }[orientation]
        )
        assert (turned is found) == (orientation == 1)
