"""Files of images and masks: their formats, and the EXIF orientation of both."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from support.benchmark_trees import orida_tree
from support.sample_lists import rows, written

from masc_metrics import load_backbone
from masc_metrics.bench import loading
from masc_metrics.bench.datasets.orida import read_orida
from masc_metrics.bench.loading import (
    LONGEST_PROMPT,
    MAX_PIXELS,
    LoadedImage,
    LoadedSample,
    Loader,
    loaded_batches,
    open_image,
)
from masc_metrics.bench.run import Run
from masc_metrics.bench.sample import Sample
from masc_metrics.cli import main
from masc_metrics.images import PICTURE_SUFFIXES

QUARTER, HALF = 6, 3


def tag(file: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(file) as image:
        image.load()
    image.save(file, image.format, exif=exif)


def loaded(
    folder: Path, size: tuple[int, int], image_tag: int, mask: tuple[int, int], mask_tag: int, kind: str
) -> LoadedImage:
    """A reference of (height, width), with its left column marked, and a mask with its left column marked."""
    for name, (height, width), orientation in (("image", size, image_tag), ("mask", mask, mask_tag)):
        pixels = np.zeros((height, width), np.uint8)
        pixels[:, 0] = 255
        Image.fromarray(pixels).convert("RGB" if name == "image" else "L").save(folder / f"{name}.png", kind)
        if orientation > 1:
            tag(folder / f"{name}.png", orientation)
    image = str(folder / "image.png")
    return load(Sample(1, "1", image, None, image, str(folder / "mask.png"), None, None)).reference


def load(sample: Sample) -> LoadedSample:
    processing = load_backbone("tiny").checkpoint.processing
    found = Loader([sample], processing, Run(Path("out.csv"), scores=("cp",), max_num_patches=16)).load_all([0])[0]
    assert isinstance(found, LoadedSample), found
    return found


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])  # Pillow turns a TIFF when it decodes it
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
    kind: str,
) -> None:
    found = loaded(tmp_path, size, image_tag, mask, mask_tag, kind)
    assert found.mask is not None
    for plane, orientation in ((found.pixels[0] / 255, image_tag), (found.mask, mask_tag)):
        column = {1: plane[:, 0], QUARTER: plane[0], HALF: plane[:, -1]}[orientation if upright else 1]
        assert (column == 1).all()
        assert plane.sum() == len(column)
    assert found.noticed == (("orientation",) if undecided else ())


def test_image_without_mask_is_turned(tmp_path: Path) -> None:
    Image.new("RGB", (60, 30)).save(tmp_path / "image.png")
    tag(tmp_path / "image.png", QUARTER)
    image = str(tmp_path / "image.png")
    found = load(Sample(1, "1", image, None, image, None, None, None)).generated
    assert (tuple(found.pixels.shape), found.noticed) == ((3, 60, 30), ("one_colour",))


def test_both_images_of_an_orida_pair_are_taken_as_their_masks_fit(tmp_path: Path) -> None:
    root = orida_tree(tmp_path, subjects=1, backgrounds=2)
    samples = read_orida(root, subjects=1, backgrounds=2).samples
    for file in (samples[0].generated_image, samples[0].reference_image):
        tag(Path(file), QUARTER)
    found = load(samples[0])
    assert found.generated.pixels.shape == found.reference.pixels.shape == (3, 64, 75)
    assert found.generated.mask is None
    assert found.reference.mask is not None


def test_inverted_masks_and_images_of_one_colour_are_counted_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 4, concepts=2)
    for file in (tmp_path / "ref" / "1_mask.png", tmp_path / "out" / "3_mask.png"):
        with Image.open(file) as mask:
            inverted = mask.convert("L").point(lambda level: 255 - level)
        inverted.save(file)
    with Image.open(tmp_path / "out" / "2.png") as picture:
        size = picture.size
    Image.new("RGB", size).save(tmp_path / "out" / "2.png")
    arguments = ["--model", "tiny", "--max-num-patches", "16", "--device", "cpu", "--quiet", "--workers", "1"]
    assert main(["score", str(samples), "--out", str(tmp_path / "scores.csv"), *arguments]) == 0
    summary = json.loads((tmp_path / "scores.summary.json").read_text())
    assert (summary["one_colour"], summary["inverted_masks"], summary["orientation_undecided"]) == (1, 2, 0)
    error = capsys.readouterr().err
    assert "1 generated images have one colour, as a safety checker's black images do" in error
    assert f"the first is {tmp_path / 'out' / '2.png'}" in error
    assert "the masks of 2 images cover most of the image and almost all of its border, as inverted masks do" in error


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


# Formats

FRAMES = [Image.fromarray(np.full((20, 30, 3), level, np.uint8)) for level in (250, 120, 10)]


@pytest.mark.parametrize(
    ("kind", "several"),
    [("GIF", True), ("WEBP", True), ("PNG", True), ("TIFF", True), ("AVIF", True), ("MPO", False)],
)
def test_files_of_several_pictures_are_noticed_and_photographs_of_phones_are_not(
    kind: str, several: bool, tmp_path: Path
) -> None:
    file = tmp_path / "image"
    for frames, noticed in ((FRAMES, several), (FRAMES[:1], False)):
        frames[0].save(file, format=kind, save_all=True, append_images=frames[1:])
        found = load(Sample(1, "1", str(file), None, str(file), None, None, None))
        assert (found.generated.noticed, found.reference.noticed) == (
            (("one_colour", "several_pictures"), ("several_pictures",)) if noticed else (("one_colour",), ())
        )
        assert (found.generated.pixels.int() - 250).abs().max() <= 3, "the first picture is taken"


def test_animation_with_a_damaged_second_frame_is_taken_as_its_first(tmp_path: Path) -> None:
    FRAMES[0].save(tmp_path / "image.gif", save_all=True, append_images=FRAMES[1:])
    content = (tmp_path / "image.gif").read_bytes()
    first = len(content) // 2
    for end in range(first, len(content), 5):
        (tmp_path / "image.gif").write_bytes(content[:end])
        image = str(tmp_path / "image.gif")
        assert (load(Sample(1, "1", image, None, image, None, None, None)).generated.pixels == 250).all()


def test_files_of_several_pictures_are_counted_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = written(tmp_path, 4, concepts=1)
    with Image.open(tmp_path / "out" / "2_mask.png") as mask:
        mask.save(tmp_path / "out" / "2_mask.png", format="TIFF", save_all=True, append_images=[mask.copy()])
    arguments = ["--model", "tiny", "--max-num-patches", "16", "--device", "cpu", "--quiet", "--workers", "1"]
    assert main(["score", str(samples), "--out", str(tmp_path / "scores.csv"), *arguments]) == 0
    assert json.loads((tmp_path / "scores.summary.json").read_text())["several_pictures"] == 1
    error = capsys.readouterr().err
    assert "the files of 1 images, or of their masks, hold several pictures" in error
    assert f"the first is {tmp_path / 'out' / '2.png'}" in error


SAVED = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM")


def saved(kind: str, size: tuple[int, int] = (12, 10)) -> bytes:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    stream = io.BytesIO()
    picture.save(stream, format=kind)
    return stream.getvalue()


def test_formats_that_are_read_are_listed() -> None:
    assert set(SAVED) == set(PICTURE_SUFFIXES)


@pytest.mark.parametrize("kind", SAVED)
def test_picture_of_a_listed_format_is_read_whatever_its_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.png").write_bytes(saved(kind))
    assert open_image(tmp_path / "a.png", "image").size == (12, 10)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "PCX", "TGA", "SGI", "DDS", "MSP", "XBM", "SPIDER", "ICNS"])
def test_content_of_any_other_format_is_refused_under_every_name(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*arguments: object, **settings: object) -> None:
        raise AssertionError(f"a program was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    mode = {"MSP": "1", "XBM": "1", "SPIDER": "F"}.get(kind, "RGB")
    stream = io.BytesIO()
    Image.new(mode, (32, 32)).save(stream, format=kind)
    for ending in (".png", ".eps", ".jpg"):
        (tmp_path / f"a{ending}").write_bytes(stream.getvalue())
        with pytest.raises(
            OSError, match=r"cannot be read as an image .it is not a complete picture of the formats PNG, "
        ):
            open_image(tmp_path / f"a{ending}", "image")


def test_damaged_pictures_are_read_or_refused_with_their_name(tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    file = tmp_path / "a.png"
    texts: list[str] = []
    sizes: list[int] = []
    for kind in SAVED:
        original = np.frombuffer(saved(kind), np.uint8)
        for _ in range(40):
            damaged = original.copy()
            for position in generator.integers(0, min(len(damaged), 200), size=generator.integers(1, 5)):
                damaged[position] = generator.integers(256)
            cut = generator.integers(1, len(damaged) + 1) if generator.random() < 0.3 else len(damaged)
            file.write_bytes(damaged[:cut].tobytes())
            try:
                image = open_image(file, "generated_image")
            except OSError as error:
                texts.append(str(error))
            else:
                sizes.append(image.width * image.height)
                image.convert("RGB")
    assert all(text.startswith(f"generated_image {file}: cannot be read as an image (") for text in texts)
    assert max(len(text) for text in texts) < 300 + len(str(file))
    assert max(sizes) <= MAX_PIXELS
    assert min(len(texts), len(sizes)) > 20, "some bytes matter, and some do not"


def lacks(folder: Path) -> str:
    """Why the file mask.png cannot be the mask of image.png."""
    image = str(folder / "image.png")
    return load(Sample(1, "1", image, None, image, str(folder / "mask.png"), None, None)).lacks["reference_mask"]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_mask_that_cannot_be_read_is_refused_with_advice_for_files(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "image.png")
    Image.new(mode, (20, 20)).save(tmp_path / "mask.png")
    assert "mask.png has an alpha channel" in lacks(tmp_path)
    assert lacks(tmp_path).endswith("save it without, white on the subject and black elsewhere")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "mask.png")
    assert lacks(tmp_path).endswith("is coloured; give a black and white mask, white on the subject")
    Image.fromarray(np.full((20, 20), 3, np.uint8)).save(tmp_path / "mask.png")
    assert lacks(tmp_path).endswith("if they are labels, save a mask that is white on the subject")


def test_windows_path_of_no_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\\b\.png: no such file; write its path with / instead of"):
        open_image(tmp_path / "a\\b.png", "image")


# Memory


def of_sizes(folder: Path, sizes: Sequence[tuple[int, int]]) -> list[Sample]:
    """Samples whose generated images have these sizes, each with one reference of 10 x 10 for all."""
    Image.new("RGB", (10, 10)).save(folder / "reference.png")
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(folder / f"{number}.png")
    reference = str(folder / "reference.png")
    return [
        Sample(number + 1, str(number), str(folder / f"{number}.png"), None, reference, None, None, None)
        for number in range(len(sizes))
    ]


def batches(samples: Sequence[Sample], workers: int, batch_size: int) -> list[list[int]]:
    run = Run(Path("out.csv"), scores=("siglip2-i",), max_num_patches=16, workers=workers, batch_size=batch_size)
    processing = load_backbone("tiny").checkpoint.processing
    found = loaded_batches(samples, range(len(samples)), processing, run)
    return [[loaded.number for loaded in batch if isinstance(loaded, LoadedSample)] for batch in found]


def test_pictures_of_four_megapixels_with_masks_never_cut_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_pixels", lambda _: 2048 * 2048)
    samples = [
        Sample(number, str(number), f"o{number}.png", f"om{number}.png", f"r{number}.png", f"rm{number}.png", "p", "s")
        for number in range(40)
    ]
    for batch_size in (1, 16, 32):
        loader = Loader(samples, load_backbone("tiny").checkpoint.processing, Run(Path("o.csv"), batch_size=batch_size))
        cut = list(loader.batches(range(40)))
        assert [each.numbers for each in cut] == [
            list(range(40))[start : start + batch_size] for start in range(0, 40, batch_size)
        ]
        assert all(each.ahead for each in cut)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_cut_where_their_pictures_take_too_much_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    # 8 x 225 bytes a batch; a picture of 10 x 10 takes 300 bytes, and the reference is counted once in each batch.
    monkeypatch.setattr(loading, "BYTES_A_SAMPLE", 225)
    sizes = [(10, 10)] * 4 + [(10, 20)] * 3 + [(30, 30)] + [(10, 10)]
    assert batches(of_sizes(tmp_path, sizes), workers, 4) == [[0, 1, 2, 3], [4, 5], [6], [7], [8]]


def test_sample_that_is_too_large_for_a_batch_is_loaded_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = of_sizes(tmp_path, [(10, 10), (30, 30), (10, 10)])
    monkeypatch.setattr(loading, "BYTES_A_SAMPLE", 225)
    loader = Loader(samples, load_backbone("tiny").checkpoint.processing, Run(Path("o.csv"), batch_size=4))
    assert [(each.numbers, each.ahead) for each in loader.batches(range(3))] == [([0], True), ([1], False), ([2], True)]


def test_lack_of_memory_while_a_picture_is_decoded_is_no_error_of_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = of_sizes(tmp_path, [(10, 10)])

    def full(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", full)
    with pytest.raises(MemoryError):
        load(samples[0])


@pytest.mark.parametrize("column", ["prompt", "subject"])
def test_text_of_absurd_length_is_an_error_of_its_row_in_pf_only(
    tmp_path: Path, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [dict(row) for row in rows(written(tmp_path, 2))]
    listed[0][column] = "a" * (LONGEST_PROMPT + 1)
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, listed)))
    options = ("--model", "tiny", "--max-num-patches", "16", "--device", "cpu", "--workers", "0", "--quiet")
    assert main(["score", str(tmp_path / "long.jsonl"), "--out", str(tmp_path / "scores.csv"), *options]) == 3
    lines = (tmp_path / "scores.csv").read_bytes().decode().splitlines()
    assert f"aaa... has {LONGEST_PROMPT + 1} characters; give at most {LONGEST_PROMPT}" in lines[1]
    assert f"{column} 'aaa" in capsys.readouterr().err
    header, first, second = (line.split(",") for line in lines)
    cp, pf = header.index("cp"), header.index("pf")
    assert [bool(cell) for cell in (first[cp], first[pf], second[pf])] == [True, False, True]
