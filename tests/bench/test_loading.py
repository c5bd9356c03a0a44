"""The EXIF orientation of images and of their masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.benchmark_trees import orida_tree
from support.sample_lists import rows, written

from masc_metrics import load_backbone
from masc_metrics.bench.datasets.orida import read_orida
from masc_metrics.bench.loading import LoadedImage, LoadedSample, Loader
from masc_metrics.bench.run import Run
from masc_metrics.bench.sample import Sample
from masc_metrics.cli import main

QUARTER, HALF = 6, 3


def tag(file: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(file) as image:
        image.load()
    image.save(file, exif=exif)


def loaded(folder: Path, size: tuple[int, int], image_tag: int, mask: tuple[int, int], mask_tag: int) -> LoadedImage:
    """A reference of (height, width), with its left column marked, and a mask with its left column marked."""
    for name, (height, width), orientation in (("image", size, image_tag), ("mask", mask, mask_tag)):
        pixels = np.zeros((height, width), np.uint8)
        pixels[:, 0] = 255
        Image.fromarray(pixels).convert("RGB" if name == "image" else "L").save(folder / f"{name}.png")
        if orientation > 1:
            tag(folder / f"{name}.png", orientation)
    image = str(folder / "image.png")
    return load(Sample(1, "1", image, None, image, str(folder / "mask.png"), None, None)).reference


def load(sample: Sample) -> LoadedSample:
    processing = load_backbone("tiny").checkpoint.processing
    found = Loader([sample], processing, Run(Path("out.csv"), scores=("cp",), max_num_patches=16), [[0]])[0][0]
    assert isinstance(found, LoadedSample), found
    return found


@pytest.mark.parametrize(
    ("size", "image_tag", "mask", "mask_tag", "upright", "undecided"),
    [
        ((30, 60), QUARTER, (30, 60), 1, False, False),  # the mask fits the stored image only
        ((30, 60), QUARTER, (15, 30), 1, False, False),
        ((30, 60), 1, (30, 60), QUARTER, False, False),
        ((30, 60), QUARTER, (60, 30), 1, True, False),  # the mask fits the turned image only
        ((30, 60), 1, (60, 30), QUARTER, True, False),
        ((30, 60), QUARTER, (30, 60), QUARTER, True, False),
        ((40, 40), QUARTER, (40, 40), QUARTER, True, False),
        ((40, 40), QUARTER, (40, 40), 1, False, True),
        ((40, 40), 1, (40, 40), QUARTER, False, True),
        ((30, 60), HALF, (30, 60), 1, False, True),  # a half turn keeps the shape
        ((30, 60), 1, (30, 60), 1, True, False),
    ],
)
def test_image_with_one_orientation_is_taken_as_its_mask_fits(
    tmp_path: Path,
    size: tuple[int, int],
    image_tag: int,
    mask: tuple[int, int],
    mask_tag: int,
    upright: bool,
    undecided: bool,
) -> None:
    found = loaded(tmp_path, size, image_tag, mask, mask_tag)
    assert found.mask is not None
    for plane, orientation in ((found.pixels[0] / 255, image_tag), (found.mask, mask_tag)):
        column = {1: plane[:, 0], QUARTER: plane[0], HALF: plane[:, -1]}[orientation if upright else 1]
        assert (column == 1).all()
        assert plane.sum() == len(column)
    assert found.orientation_undecided is undecided


def test_image_without_mask_is_turned(tmp_path: Path) -> None:
    Image.new("RGB", (60, 30)).save(tmp_path / "image.png")
    tag(tmp_path / "image.png", QUARTER)
    image = str(tmp_path / "image.png")
    found = load(Sample(1, "1", image, None, image, None, None, None)).generated
    assert (tuple(found.pixels.shape), found.orientation_undecided) == ((3, 60, 30), False)


def test_both_images_of_an_orida_pair_are_taken_as_their_masks_fit(tmp_path: Path) -> None:
    root = orida_tree(tmp_path, subjects=1, backgrounds=2)
    samples = read_orida(root, subjects=1, backgrounds=2).samples
    for file in (samples[0].generated_image, samples[0].reference_image):
        tag(Path(file), QUARTER)
    found = load(samples[0])
    assert found.generated.pixels.shape == found.reference.pixels.shape == (3, 64, 75)
    assert found.generated.mask is None
    assert found.reference.mask is not None


def test_undecided_orientations_are_counted_and_printed_and_lose_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 4, concepts=1)
    tag(tmp_path / "ref" / "0.png", QUARTER)
    tag(tmp_path / "out" / "2_mask.png", QUARTER)
    arguments = ["--model", "tiny", "--max-num-patches", "16", "--device", "cpu", "--quiet", "--workers", "1"]
    assert main(["score", str(samples), "--out", str(tmp_path / "scores.csv"), *arguments]) == 0
    assert all(row["cp"] and row["pf"] for row in rows(tmp_path / "scores.csv"))
    assert json.loads((tmp_path / "scores.summary.json").read_text())["orientation_undecided"] == 2
    error = capsys.readouterr().err
    assert f"{samples}: images of uncertain orientation: 2; only one" in error
    assert f"the first is {tmp_path / 'ref' / '0.png'}" in error


def test_transparent_pixels_keep_their_colours(tmp_path: Path) -> None:
    Image.new("RGBA", (48, 48), (10, 20, 30, 0)).save(tmp_path / "image.png")
    image = str(tmp_path / "image.png")
    pixels = load(Sample(1, "1", image, None, image, None, None, None)).generated.pixels
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]
