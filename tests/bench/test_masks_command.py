"""The command masks: masks that a list lacks, resumed, with records, and errors."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from support.sample_lists import write_csv, written
from support.segmenter_checkpoints import build_clipseg

from masc_metrics import load_backbone
from masc_metrics.bench import masks_command
from masc_metrics.bench.loading import LoadedSample, Loader, open_image
from masc_metrics.bench.run import Run
from masc_metrics.bench.sample_list import read_samples
from masc_metrics.cli import main
from masc_metrics.plots import Tile
from masc_metrics.reading import checkpoint_version
from masc_metrics.segmenters import load_segmenter, release_segmenters

IMAGES = ("generated_image", "reference_image")


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield build_clipseg(tmp_path_factory.mktemp("masks") / "clipseg")
    release_segmenters()


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def without_masks(folder: Path, count: int, keep: int = 0) -> Path:
    """A list of ``count`` samples, of which the first ``keep`` have masks of the generated image."""
    rows = read(written(folder, count, concepts=2))
    for number, row in enumerate(rows):
        del row["reference_mask"]
        row["generated_mask"] = row["generated_mask"] if number < keep else ""
    return write_csv(folder / "samples.csv", rows)


def run(samples: Path, out: Path, clipseg: Path, *options: str) -> int:
    arguments = ["masks", samples, "--out", out, "--segmenter", "clipseg", "--checkpoint", clipseg, "--device", "cpu"]
    return main([*map(str, arguments), "--quiet", *options])


def test_missing_masks_are_made_and_listed(clipseg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples, out = without_masks(tmp_path / "list", 5, keep=1), tmp_path / "made"
    assert run(samples, out, clipseg) == 0
    assert "6 masks made, 0 kept from an earlier run, 0 failed" in capsys.readouterr().out
    assert len(list(out.glob("*/*.png"))) == len(list(out.glob("*/*.json"))) == 6
    given, completed = read_samples(samples.parent / "samples.csv", ("clip-i",)), read_samples(out / "samples.csv")
    assert [sample.sample_id for sample in completed.samples] == [f"s{number}" for number in range(5)]
    segment = load_segmenter("clipseg", checkpoint=clipseg, device="cpu")
    for before, after in zip(given.samples, completed.samples, strict=True):
        assert (after.prompt, after.subject, after.concept) == (before.prompt, before.subject, before.concept)
        assert Path(after.generated_image).samefile(before.generated_image)
        for which in ("reference", "generated"):
            if which == "generated" and before.generated_mask:
                assert Path(after.generated_mask or "").samefile(before.generated_mask)
                continue
            mask = Path(getattr(after, f"{which}_mask"))
            image = open_image(Path(getattr(after, f"{which}_image")), which)
            (expected,) = segment.details([image], [after.subject or ""])
            with Image.open(mask) as stored:
                assert stored.mode == "L"
                pixels = torch.from_numpy(np.array(stored))
            assert torch.equal(pixels, expected.mask.to(torch.uint8) * 255)
            record = json.loads(mask.with_suffix(".json").read_text())
            assert record["noun"] == after.subject
            assert (record["score"], record["instances"], record["coverage"]) == (
                expected.score,
                expected.instances,
                expected.coverage,
            )
            assert (record["segmenter"], record["checkpoint"], record["threshold"]) == ("clipseg", str(clipseg), 0.5)
            assert record["versions"] == {str(clipseg): checkpoint_version(clipseg, None)}


def test_files_of_several_pictures_are_counted(
    clipseg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = without_masks(tmp_path / "list", 2)
    animation = tmp_path / "list" / "out" / "1.png"
    with Image.open(animation) as picture:
        picture.save(animation, format="GIF", save_all=True, append_images=[Image.new("RGB", picture.size)])
    assert run(samples, tmp_path / "made", clipseg) == 0
    text = f"1 images are files of several pictures, of which the first was taken, such as {animation}"
    assert text in capsys.readouterr().out


def test_pictures_in_parquet_are_masked_as_files_are(clipseg: Path, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    samples = without_masks(tmp_path / "list", 3)
    rows = [
        row | {name: {"bytes": (samples.parent / row[name]).read_bytes(), "path": None} for name in IMAGES}
        for row in read(samples)
    ]
    stored = samples.with_name("stored.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stored)
    for file, out in ((samples, tmp_path / "of_files"), (stored, tmp_path / "of_pictures")):
        assert run(file, out, clipseg) == 0
    of_files = read_samples(tmp_path / "of_files" / "samples.csv").samples
    of_pictures = read_samples(tmp_path / "of_pictures" / "samples.parquet").samples
    assert [Path(sample.generated_image).name for sample in of_pictures] == [
        f"stored.parquet#generated_image:{row}" for row in range(3)
    ]
    for one, other in zip(of_files, of_pictures, strict=True):
        for which in ("reference", "generated"):
            masks = [open_image(Path(getattr(sample, f"{which}_mask")), which) for sample in (one, other)]
            assert masks[0].tobytes() == masks[1].tobytes()
            records = [
                json.loads(Path(getattr(sample, f"{which}_mask")).with_suffix(".json").read_text())
                for sample in (one, other)
            ]
            assert records[0]["image_sha256"] == records[1]["image_sha256"] is not None


def test_existing_masks_with_the_same_settings_are_kept(
    clipseg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, out = without_masks(tmp_path / "list", 2), tmp_path / "made"

    def counts(*options: str) -> tuple[int, int]:
        assert run(samples, out, clipseg, *options) == 0
        words = capsys.readouterr().out.split()
        return int(words[0]), int(words[3])

    assert counts() == (4, 0)
    assert counts() == (0, 4)
    next((out / "reference").glob("*.json")).unlink()
    next((out / "generated").glob("*.png")).unlink()
    assert counts() == (2, 2)
    assert counts("--threshold", "0.4") == (4, 0)
    assert counts("--threshold", "0.4") == (0, 4)
    with Image.open(samples.parent / "out" / "0.png") as image:
        flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    flipped.save(samples.parent / "out" / "0.png")
    assert counts("--threshold", "0.4") == (1, 3)
    assert not list(out.rglob("*.part"))


def test_masks_of_a_folder_whose_weights_have_changed_are_made_again(
    clipseg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, out = without_masks(tmp_path / "list", 1), tmp_path / "made"
    folder = Path(shutil.copytree(clipseg, tmp_path / "clipseg"))
    assert run(samples, out, folder) == 0
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    release_segmenters()
    for made in ("2 masks made, 0 kept", "0 masks made, 2 kept"):
        capsys.readouterr()
        assert run(samples, out, folder) == 0
        assert capsys.readouterr().out.startswith(made)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])  # Pillow turns a TIFF when it decodes it
@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_are_stored_as_their_images_are(clipseg: Path, tmp_path: Path, orientation: int, kind: str) -> None:
    samples, out = without_masks(tmp_path / "list", 1), tmp_path / "made"
    file = samples.parent / "out" / "0.png"
    with Image.open(file) as image:
        assert image.width == image.height, "the shapes do not tell how it is turned"
        turned = image.copy()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    turned.save(file, kind, exif=exif)
    assert run(samples, out, clipseg) == 0
    (sample,) = read_samples(out / "samples.csv").samples
    upright = ImageOps.exif_transpose(Image.open(file))
    (expected,) = load_segmenter("clipseg", checkpoint=clipseg, device="cpu")([upright], [sample.subject or ""])
    with Image.open(sample.generated_mask or "") as mask:
        marked = torch.from_numpy(np.array(ImageOps.exif_transpose(mask))) > 0
    assert torch.equal(marked, expected)
    scored = Loader([sample], load_backbone("tiny").checkpoint.processing, Run(out / "scores.csv")).load_all([0])[0]
    assert isinstance(scored, LoadedSample)
    assert scored.generated.mask is not None
    assert torch.equal(scored.generated.mask > 0, expected), "and scored so"
    pixels = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    assert torch.equal(scored.generated.pixels, pixels)
    assert not scored.generated.noticed


def test_each_image_is_hashed_once(clipseg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, out = without_masks(tmp_path / "list", 2), tmp_path / "made"
    hashed: list[str] = []
    read_bytes = Path.read_bytes

    def recorded(file: Path) -> bytes:
        if file.suffix == ".png":
            hashed.append(f"{file.parent.name}/{file.name}")
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", recorded)
    assert run(samples, out, clipseg) == 0
    assert sorted(hashed) == ["out/0.png", "out/1.png", "ref/0.png", "ref/1.png"]


def test_the_column_noun_goes_before_the_subject(clipseg: Path, tmp_path: Path) -> None:
    samples, out = without_masks(tmp_path / "list", 2), tmp_path / "made"
    rows = read(samples)
    rows[0]["noun"], rows[1]["noun"] = "toy", ""
    write_csv(samples, rows)
    assert run(samples, out, clipseg) == 0
    nouns = sorted(json.loads(file.read_text())["noun"] for file in out.rglob("*.json"))
    assert nouns == sorted(["toy", "toy", rows[1]["subject"], rows[1]["subject"]])


def test_a_cell_nan_is_empty_as_it_is_when_the_list_is_scored(clipseg: Path, tmp_path: Path) -> None:
    samples, out = without_masks(tmp_path / "list", 2), tmp_path / "made"
    write_csv(samples, [{**row, "generated_mask": "nan"} for row in read(samples)])
    assert run(samples, out, clipseg) == 0
    assert [Path(out / row["generated_mask"]).is_file() for row in read(out / "samples.csv")] == [True, True]


def test_a_failed_mask_leaves_its_cell_empty_and_the_others_made(
    clipseg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, out = without_masks(tmp_path / "list", 4), tmp_path / "made"
    (samples.parent / "out" / "2.png").unlink()
    rows = read(samples)
    rows[3]["subject"] = "x" * 90
    write_csv(samples, rows)
    assert run(samples, out, clipseg) == 3
    printed = capsys.readouterr()
    assert "generated_image out/2.png (line 4) " in printed.err
    assert "no such file" in printed.err
    assert "generated_image out/3.png (line 5): nouns[0]" in printed.err
    assert "of 92 tokens" in printed.err
    assert "3 failed" in printed.out
    completed = read(out / "samples.csv")
    assert [bool(row["generated_mask"]) for row in completed] == [True, True, False, False]
    assert [bool(row["reference_mask"]) for row in completed] == [True, True, True, False]


def test_unusable_input_is_an_error_in_one_line(
    clipseg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(samples: Path, out: Path, code: int = 2, checkpoint: Path = clipseg) -> str:
        assert run(samples, out, checkpoint) == code
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    samples = without_masks(tmp_path / "list", 2)
    assert "whose samples.csv is the sample list; give another folder" in error(samples, samples.parent)
    assert "which is not a folder" in error(samples, samples)
    assert "no such file" in error(tmp_path / "missing.csv", tmp_path / "made")
    rows = read(samples)
    nameless = write_csv(tmp_path / "list" / "nameless.csv", [{**rows[0], "subject": " "}])
    assert "nameless.csv, line 2: noun and subject are empty; give what to mark in" in error(nameless, tmp_path / "n")
    other = write_csv(tmp_path / "list" / "other.csv", [{"image": "a.png"}])
    assert "has neither a column reference_image nor generated_image" in error(other, tmp_path / "n")
    assert not (tmp_path / "n").exists()
    (tmp_path / "f" / "samples.csv.part").mkdir(parents=True)
    assert "samples.csv.part, which it would write, is a folder; give another" in error(samples, tmp_path / "f")
    assert "no checkpoint folder at" in error(samples, tmp_path / "made", 1, tmp_path / "nowhere")


def test_contact_sheets_show_the_most_doubtful_masks_first(
    clipseg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, out = without_masks(tmp_path / "list", 5), tmp_path / "made"
    assert run(samples, out, clipseg) == 0
    assert f"look at all 7 masks: {out / 'contact_sheet.png'}" in capsys.readouterr().out
    files = sorted((out / "generated").glob("*.json"))
    for file, (coverage, score) in zip(
        files, [(0.3, 0.9), (0.99, 0.8), (0.5, 0.6), (0.0, 0.2), (0.0, 0.1)], strict=True
    ):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"coverage": coverage, "score": score}))
    for file in (out / "reference").glob("*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"coverage": 0.4, "score": 0.95}))
    sheets: list[list[tuple[list[str], bool]]] = []
    draw = masks_command.mask_sheet

    def recorded(tiles: Iterator[Tile]) -> Image.Image:
        assert not isinstance(tiles, list), "images are read one at a time"
        shown = list(tiles)
        sheets.append([([*tile.lines], tile.suspect) for tile in shown])
        return draw(shown)

    monkeypatch.setattr(masks_command, "mask_sheet", recorded)
    monkeypatch.setattr(masks_command, "_TILES", 3)
    monkeypatch.setattr(masks_command, "_SHEETS", 2)
    (out / "contact_sheet_9.png").touch()
    assert run(samples, out, clipseg) == 0
    assert "look at the 6 most doubtful of 7 masks" in capsys.readouterr().out
    assert sorted(file.name for file in out.glob("contact*")) == ["contact_sheet.png", "contact_sheet_2.png"]
    assert [lines[2] for sheet in sheets for lines, _ in sheet] == [
        "score 0.10, empty",
        "score 0.20, empty",
        "score 0.80, 99.0 %",
        "score 0.60, 50.0 %",
        "score 0.90, 30.0 %",
        "score 0.95, 40.0 %",
    ]
    assert [suspect for sheet in sheets for _, suspect in sheet] == [True, True, True, False, False, False]
    assert sheets[0][0][0][:2] == [read(samples)[4]["subject"], "line 6, generated"]


def test_completed_list_with_escaped_formulas_gives_the_samples_without(clipseg: Path, tmp_path: Path) -> None:
    samples = without_masks(tmp_path / "list", 2)
    write_csv(samples, [row | {"method": "=1+1", "subject": f"-{row['subject']}"} for row in read(samples)])
    found = {}
    for name, options in (("plain", ()), ("escaped", ("--escape-formulas",))):
        assert run(samples, tmp_path / name, clipseg, *options) == 0
        found[name] = read_samples(tmp_path / name / "samples.csv")
    assert [sample.method for sample in found["escaped"].samples] == ["=1+1", "=1+1"]
    assert found["plain"].sha256 == found["escaped"].sha256
    assert {row["method"] for row in read(tmp_path / "escaped" / "samples.csv")} == {"'=1+1"}
    subjects = {row["subject"][:2] for row in read(tmp_path / "escaped" / "samples.csv")}
    assert subjects == {"'-"}
