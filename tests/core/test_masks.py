"""Accepted mask forms, and the coverage of a grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.batches import masks

from masc_metrics.masks import check_masks, grid_coverage

sides = st.integers(1, 60)


@given(height=sides, width=sides, count=st.integers(1, 4), seed=st.integers(0, 99))
def test_all_forms_of_a_mask_give_equal_values(height: int, width: int, count: int, seed: int) -> None:
    boolean = masks(count, height, width, seed)
    grey = boolean.to(torch.uint8) * 255
    pictures = [Image.fromarray(mask.numpy()) for mask in grey]
    forms = [
        boolean,
        boolean[:, None],
        list(boolean),
        [mask[None] for mask in boolean],
        boolean.long(),
        boolean.to(torch.uint8),
        grey,
        grey.to(torch.uint16),
        grey.int(),
        boolean.float(),
        boolean.to(torch.bfloat16),
        boolean.double()[:, None],
        pictures,
        [picture.convert("1") for picture in pictures],
        [picture.convert("RGB") for picture in pictures],
        [picture.convert("P") for picture in pictures],
    ]
    for form in forms:
        checked = check_masks(form, "masks", [(height, width)] * count)
        assert all(torch.equal(a, b.float()) for a, b in zip(checked.masks, boolean, strict=True))


@pytest.mark.filterwarnings("ignore:.*holds integers up to 51")
def test_integer_masks_are_divided_by_255_only_if_a_value_is_above_1() -> None:
    soft = torch.tensor([[0, 1], [0, 1]], dtype=torch.uint8)
    assert check_masks([soft, soft * 51], "masks", [(2, 2), (2, 2)]).masks[0].max() == 1
    assert check_masks([soft, soft * 51], "masks", [(2, 2), (2, 2)]).masks[1].max() == pytest.approx(0.2)


def test_coverage_is_bilinear_without_antialiasing() -> None:
    mask = torch.zeros(64, 64)
    mask[::4] = 1  # stripes, which antialiasing would average to a quarter
    coverage = grid_coverage(mask, (4, 4))
    plain = torch.nn.functional.interpolate(mask[None, None], size=(4, 4), mode="bilinear", align_corners=False)
    assert torch.equal(coverage, plain.reshape(-1))
    assert set(coverage.tolist()) == {0.5} or set(coverage.tolist()) == {0.0}


@given(height=sides, width=sides, rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 99))
def test_coverage_is_in_the_unit_range_and_exact_for_full_and_empty_masks(
    height: int, width: int, rows: int, columns: int, seed: int
) -> None:
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed))
    coverage = grid_coverage(mask, (rows, columns))
    assert coverage.shape == (rows * columns,)
    assert 0 <= coverage.min() <= coverage.max() <= 1
    assert torch.allclose(grid_coverage(torch.ones(height, width), (rows, columns)), torch.ones(rows * columns))
    assert torch.equal(grid_coverage(torch.zeros(height, width), (rows, columns)), torch.zeros(rows * columns))


@pytest.mark.parametrize(
    ("mask", "image", "fits"),
    [
        ((512, 768), (512, 768), True),
        ((64, 96), (512, 768), True),
        ((1024, 1536), (512, 768), True),
        ((43, 64), (427, 640), True),  # 42.7 rounded
        ((39, 26), (768, 512), True),
        ((64, 64), (512, 768), False),
        ((768, 512), (512, 768), False),
        ((512, 512), (512, 768), False),
        ((511, 768), (512, 768), True),
        ((500, 768), (512, 768), False),
    ],
)
def test_masks_must_have_the_aspect_ratio_of_their_image(
    mask: tuple[int, int], image: tuple[int, int], fits: bool
) -> None:
    if fits:
        check_masks(torch.zeros(1, *mask), "masks", [image])
        return
    with pytest.raises(ValueError, match=r"^masks\[0\] is .* but its image is .*; give masks the shape of their image"):
        check_masks(torch.zeros(1, *mask), "masks", [image])


def test_integer_labels_are_warned_about() -> None:
    labels = torch.tensor([[0, 2], [0, 2]])
    with pytest.warns(
        UserWarning, match=r"masks\[1\] holds integers up to 2, .*give a boolean mask: mask == subject_id"
    ):
        check_masks([labels == 2, labels], "masks", [(2, 2)] * 2)


WRONG: list[tuple[object, type[Exception], str]] = [
    (torch.zeros(8, 8), ValueError, r"masks has shape \(8, 8\); give \(B, H, W\) or \(B, 1, H, W\)"),
    (torch.zeros(3, 8, 8), ValueError, "masks holds 3 masks for 2 images; give one mask for each"),
    ([], ValueError, "masks holds 0 masks for 2 images"),
    (torch.zeros(2, 3, 8, 8), ValueError, r"masks\[0\] has shape \(3, 8, 8\); give \(H, W\) or \(1, H, W\)"),
    ([torch.zeros(8, 8), torch.zeros(8)], ValueError, r"masks\[1\] has shape \(8,\)"),
    (torch.zeros(2, 0, 8), ValueError, r"masks\[0\] has shape \(0, 8\), which has no pixels"),
    (
        torch.full((2, 8, 8), 1.5),
        ValueError,
        r"masks\[0\].*values from 1.5 to 1.5, outside \[0, 1\]; apply a sigmoid to logits, or clamp",
    ),
    (torch.full((2, 8, 8), -3.0), ValueError, r"masks\[0\].*outside \[0, 1\]; apply a sigmoid"),
    (torch.full((2, 8, 8), torch.nan), ValueError, r"masks\[0\] contains NaN or infinite values"),
    (torch.full((2, 8, 8), 256), ValueError, r"masks\[0\] is torch.int64 with values from 256 to 256, outside 0..255"),
    (torch.full((2, 8, 8), -1), ValueError, r"masks\[0\] is torch.int64 with values from -1"),
    (torch.zeros(2, 8, 8, dtype=torch.complex64), TypeError, r"masks\[0\] is torch.complex64"),
    (np.zeros((2, 8, 8)), TypeError, "masks is an ndarray"),
    ([np.zeros((8, 8))] * 2, TypeError, r"masks\[0\] is an ndarray.*torch.from_numpy\(mask\)"),
    (Image.new("L", (8, 8)), TypeError, "masks is a single PIL image"),
    ("mask.png", TypeError, r"masks is a str; .*; \[PIL.Image.open\(masks\)\] converts it"),
    (torch.zeros(2, 8, 8, 1), ValueError, r"masks\[0\] has shape \(8, 8, 1\); .*: mask\[..., 0\]"),
    (torch.zeros(2, 5, 8, 8), ValueError, r"masks\[0\] has shape \(5, 8, 8\); .*mask.any\(0\) if it holds instances"),
    (np.zeros((2, 8, 8, 1)), TypeError, r"masks is an ndarray; .*from_numpy\(masks\[..., 0\]\) converts it"),
    (None, TypeError, "masks is a NoneType"),
    (
        [Image.new("RGBA", (8, 8))] * 2,
        ValueError,
        r"masks\[0\] has PIL mode 'RGBA'; select the channel that is the mask",
    ),
    ([Image.new("I;16", (8, 8))] * 2, ValueError, r"masks\[0\] has PIL mode 'I;16'"),
    (torch.zeros(2, 8, 8, device="meta"), TypeError, r"masks\[0\] is on the meta device"),
    (torch.zeros(2, 8, 8).to(torch.float8_e5m2), TypeError, r"masks\[0\] is torch.float8_e5m2"),
    ([Image.new("RGB", (8, 8), "red")] * 2, ValueError, r"masks\[0\] has PIL mode 'RGB' and is coloured"),
]


_PLANE = np.array([[False, True], [False, True]])
_OTHER = np.array([[True, False], [False, False]])
_POLYGONS = [[0.0, 0.0, 4.0, 0.0, 4.0, 4.0]]
_TRUTH = torch.from_numpy(_PLANE | _OTHER)
_FORMS: dict[str, object] = {
    "array": _PLANE | _OTHER,
    "array (H, W, 1)": (_PLANE | _OTHER)[..., None],
    "array (N, H, W)": np.stack([_PLANE, _OTHER]),
    "numbers": [[1, 1], [0, 1]],
    "list of arrays": [_PLANE, _OTHER],
    "list of tensors": [torch.from_numpy(_PLANE), torch.from_numpy(_OTHER)],
    "SAM's dicts": [{"segmentation": _PLANE, "area": 2}, {"segmentation": _OTHER, "area": 1}],
    "SAM's dict": {"segmentation": _PLANE | _OTHER, "area": 3},
    "dict of instances": {"masks": torch.stack([torch.from_numpy(_PLANE), torch.from_numpy(_OTHER)])},
}


@pytest.mark.parametrize("form", _FORMS)
def test_errors_for_other_forms_of_masks_give_code_that_converts_them(form: str) -> None:
    value = _FORMS[form]
    with pytest.raises(TypeError, match=r"^masks\[0\] is an? ") as caught:
        check_masks([value], "masks", [(2, 2)])  # type: ignore[list-item]
    code = str(caught.value).partition("PIL image; ")[2].removesuffix(" converts it")
    converted = eval(code, {"torch": torch, "numpy": np, "mask": value})
    assert check_masks([converted], "masks", [(2, 2)])[0].bool().equal(_TRUTH)


@pytest.mark.parametrize("form", ["SAM's dicts", "list of arrays", "list of tensors", "stack"])
def test_errors_for_instances_instead_of_one_mask_give_code_that_joins_them(form: str) -> None:
    value = torch.stack([torch.from_numpy(_PLANE), torch.from_numpy(_OTHER)]) if form == "stack" else _FORMS[form]
    with pytest.raises(
        ValueError, match=r"^masks holds 2 masks for 1 images; give one mask for each, such as"
    ) as caught:
        check_masks(value, "masks", [(2, 2)])  # type: ignore[arg-type]
    code = str(caught.value).partition("such as ")[2].removesuffix(" for the instances of one subject")
    converted = eval(code, {"torch": torch, "numpy": np, "masks": value})
    assert check_masks(converted, "masks", [(2, 2)])[0].equal(_TRUTH)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ({"size": [2, 2], "counts": "01"}, "torch.from_numpy(pycocotools.mask.decode(mask))"),
        (
            {"size": [2, 2], "counts": [0, 1, 1, 2]},
            "torch.from_numpy(pycocotools.mask.decode(pycocotools.mask.frPyObjects(mask, *mask['size'])))",
        ),
        (
            _POLYGONS,
            "torch.from_numpy(pycocotools.mask.decode(pycocotools.mask.frPyObjects(mask, height, width)).any(-1))",
        ),
        (
            {"segmentation": _POLYGONS, "category_id": 1},
            "torch.from_numpy(pycocotools.mask.decode(pycocotools.mask.frPyObjects(mask['segmentation'], height, "
            "width)).any(-1))",
        ),
        (Path("mask.png"), "PIL.Image.open(mask)"),
    ],
)
def test_errors_for_coco_masks_and_files_name_the_function_that_reads_them(value: object, code: str) -> None:
    with pytest.raises(TypeError, match=r"^masks\[0\] is an? ") as caught:
        check_masks([value], "masks", [(2, 2)])  # type: ignore[list-item]
    assert str(caught.value).endswith(f"PIL image; {code} converts it")


@pytest.mark.parametrize(("value", "error", "message"), WRONG, ids=[message[:40] for *_, message in WRONG])
def test_errors_for_invalid_masks_name_argument_and_problem(
    value: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        check_masks(value, "masks", [(8, 8), (8, 8)])  # type: ignore[arg-type]
