"""Sample lists in every format give the same samples, and malformed ones are refused with file and line."""

from __future__ import annotations

import gc
import json
import os
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from support.sample_lists import rows, write_csv, written

from masc_metrics.bench.sample import Sample
from masc_metrics.bench.sample_list import read_samples
from masc_metrics.cli import main
from masc_metrics.images import PICTURE_SUFFIXES


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    return written(tmp_path, 6)


def without_lines(samples: tuple[Sample, ...]) -> list[Sample]:
    return [replace(sample, line=0) for sample in samples]


def as_json_lines(file: Path) -> Path:
    out = file.with_suffix(".jsonl")
    out.write_text("\n".join(json.dumps(row) for row in rows(file)), encoding="utf-8")
    return out


def as_parquet(file: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    out = file.with_suffix(".parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(file)), out)
    return out


def test_folder_names_do_not_add_columns_to_parquet(listed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "category=flat"
    folder.mkdir()
    file = as_parquet(listed).rename(folder / "samples.parquet")
    assert [sample.category for sample in read_samples(file).samples][:2] == ["angular", "round"]


@pytest.mark.parametrize("form", [as_json_lines, as_parquet])
def test_json_lines_and_parquet_give_the_samples_of_csv(listed: Path, form: object) -> None:
    assert callable(form)
    from_csv, other = read_samples(listed), read_samples(form(listed))
    assert without_lines(other.samples) == without_lines(from_csv.samples)
    assert [sample.line for sample in other.samples] == [1, 2, 3, 4, 5, 6]
    assert len(from_csv.samples) == 6
    assert from_csv.samples[1].category == "round"
    assert from_csv.samples[1].generated_mask == str(listed.parent / "out/1_mask.png")


def test_digest_depends_on_content_not_on_location(
    listed: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = read_samples(listed).sha256
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "samples.csv"
    shutil.copy(listed, elsewhere)
    assert read_samples(elsewhere).sha256 == digest
    monkeypatch.chdir(listed.parent)
    assert read_samples(Path("samples.csv")).sha256 == digest
    text = listed.read_text()
    for old, new in (("s2,", "s9,"), ("out/3.png", "out/2.png"), ("round", "flat")):
        assert old in text
        elsewhere.write_text(text.replace(old, new))
        assert read_samples(elsewhere).sha256 != digest, (old, new)


def test_malformed_json_line_is_refused_with_its_number(listed: Path) -> None:
    file = as_json_lines(listed)
    lines = file.read_text().splitlines()
    without_prompt = json.dumps({name: value for name, value in json.loads(lines[3]).items() if name != "prompt"})
    for line, text in (
        (lines[1][:40], r"samples.jsonl, line 3 is not valid JSON: .*; give one object per line"),
        ("[1]", r"samples.jsonl, line 3 holds an array; give one object per line"),
        (without_prompt, r"samples.jsonl, line 3 lacks prompt; give null for an empty cell"),
    ):
        file.write_text("\n".join([lines[0], "", line, *lines[4:]]))
        with pytest.raises(ValueError, match=text):
            read_samples(file)


def test_malformed_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet"):
        read_samples(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet lacks the columns generated_image, "):
        read_samples(tmp_path / "b.parquet")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.parquet"):
        read_samples(tmp_path / "nowhere.parquet")
    (tmp_path / "c.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    with pytest.raises(ValueError, match="JSON Lines in UTF-8"):
        read_samples(tmp_path / "c.jsonl")
    (tmp_path / "d.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="lists no samples"):
        read_samples(tmp_path / "d.jsonl")


@pytest.fixture
def folder(listed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same samples in the folder layout."""
    root = tmp_path_factory.mktemp("folders")
    for row in rows(listed):
        concept = root / row["concept"]
        method = concept / row["method"]
        method.mkdir(parents=True, exist_ok=True)
        name = row["sample_id"]
        for column, file in (
            ("reference_image", concept / "reference.png"),
            ("reference_mask", concept / "reference_mask.png"),
            ("generated_image", method / f"{name}.png"),
            ("generated_mask", method / f"{name}_mask.png"),
        ):
            shutil.copy(listed.parent / row[column], file)
        (concept / "subject.txt").write_text(row["subject"] + "\n")
        (method / f"{name}.txt").write_text(row["prompt"])
    return root


def test_folder_gives_the_scores_of_a_list(listed: Path, folder: Path, tmp_path: Path) -> None:
    options = ("--model", "tiny", "--max-num-patches", "16", "--device", "cpu", "--quiet", "--workers", "0")
    assert main(["score", str(listed), "--out", str(tmp_path / "list.csv"), *options]) == 0
    assert main(["score", str(folder), "--out", str(tmp_path / "folder.csv"), *options]) == 0
    by_id = {row["sample_id"].split("/")[-1]: row for row in rows(tmp_path / "folder.csv")}
    assert len(by_id) == 6
    for row in rows(tmp_path / "list.csv"):
        found = by_id[row["sample_id"]]
        assert found["sample_id"] == f"{row['concept']}/{row['method']}/{row['sample_id']}"
        for name in ("cp", "pf"):
            assert float(found[name]) == pytest.approx(float(row[name]), abs=2e-6)
        assert (found["method"], found["concept"]) == (row["method"], row["concept"])
        assert found["stripped_prompt"] == row["stripped_prompt"]


def test_samples_lack_files_that_are_missing_in_a_folder(folder: Path) -> None:
    (folder / "star" / "reference_mask.png").unlink()
    (folder / "ball" / "B" / "s1_mask.png").unlink()
    (folder / "ball" / "A" / "s4.txt").unlink()
    (folder / "box" / "subject.txt").unlink()
    by_id = {sample.sample_id: sample for sample in read_samples(folder).samples}
    for sample_id, column, file in (
        ("star/A/s0", "reference_mask", folder / "star" / "reference_mask.png"),
        ("ball/B/s1", "generated_mask", folder / "ball" / "B" / "s1_mask.png"),
        ("ball/A/s4", "prompt", folder / "ball" / "A" / "s4.txt"),
    ):
        assert by_id[sample_id].lacks == {column: f"{column} is missing: {file}"}
    assert (by_id["box/A/s2"].lacks, by_id["box/A/s2"].subject) == ({}, None)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match="holds no generated images; the layout is"):
        read_samples(folder)


def test_other_columns_paths_prompt_and_subject_are_copied_into_the_table(listed: Path, tmp_path: Path) -> None:
    cells = [row | {"seed": str(index % 2), "note": "a, b"} for index, row in enumerate(rows(listed))]
    file = listed.with_name("noted.jsonl")
    file.write_text("\n".join(json.dumps(row) for row in (cells[0] | {"late": "x"}, *cells[1:])), encoding="utf-8")
    (tmp_path / "out").mkdir(exist_ok=True)
    out = tmp_path / "out" / "scores.csv"
    options = ("--model", "tiny", "--max-num-patches", "16", "--device", "cpu", "--workers", "0", "--quiet")
    assert main(["score", str(file), "--out", str(out), *options]) == 0
    for before, after in zip(cells, rows(out), strict=True):
        assert {name: after[name] for name in ("seed", "note", "prompt", "subject")} == {
            name: before[name] for name in ("seed", "note", "prompt", "subject")
        }
        for name in ("generated_image", "generated_mask", "reference_image", "reference_mask"):
            assert (out.parent / after[name]).samefile(file.parent / before[name])
    assert [row["late"] for row in rows(out)] == ["x", *[""] * (len(cells) - 1)]


def test_column_with_the_name_of_a_score_is_refused(listed: Path) -> None:
    file = listed.with_name("scored.jsonl")
    file.write_text("\n".join(json.dumps(row | {"cp": "0.5"}) for row in rows(listed)), encoding="utf-8")
    with pytest.raises(ValueError, match="has a column 'cp', which the table of scores has too; rename or remove it"):
        read_samples(file)
    assert read_samples(file, ("pf",)).samples[0].extra == {"cp": "0.5"}


def test_image_of_a_sample_is_never_overwritten(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = listed.parent / "out" / "0.csv"  # an image with a misleading name
    shutil.copy(listed.parent / "out" / "0.png", copy)
    cells = [row | {"generated_image": "out/0.csv"} for row in rows(listed)[:1]]
    file = listed.with_name("misnamed.jsonl")
    file.write_text(json.dumps(cells[0]), encoding="utf-8")
    before = copy.read_bytes()
    assert main(["score", str(file), "--out", str(copy), "--model", "tiny"]) == 2
    assert "which is a file of a sample; give another file" in capsys.readouterr().err
    assert copy.read_bytes() == before


def test_folder_needs_only_what_the_scores_need(folder: Path) -> None:
    for file in [*folder.glob("*/*/*_mask.png"), *folder.glob("*/*/*.txt")]:
        file.unlink()
    assert not any(sample.lacks for sample in read_samples(folder, ("cp",)).samples)
    assert all({*sample.lacks} == {"generated_mask", "prompt"} for sample in read_samples(folder, ("pf",)).samples)


def test_two_images_of_one_name_in_a_folder_are_refused(folder: Path) -> None:
    image = next(path for path in sorted(folder.glob("*/*/*.png")) if not path.stem.endswith("_mask"))
    shutil.copy(image, image.with_suffix(".jpg"))
    with pytest.raises(ValueError, match="have one name; rename or remove one"):
        read_samples(folder)


def test_folder_takes_every_picture_format_that_is_read(folder: Path) -> None:
    method = folder / "ball" / "A"
    with Image.open(method / "s4.png") as image:
        picture = image.convert("RGB")
    expected = len(read_samples(folder).samples)
    endings = [ending for endings in PICTURE_SUFFIXES.values() for ending in endings]
    for ending in endings:
        name = f"{ending[1:]}_picture"
        kind = {".apng": "PNG", ".j2k": "JPEG2000", ".jpx": "JPEG2000", ".jpe": "JPEG"}.get(ending)
        picture.save(method / f"{name}{ending.upper()}", format=kind)
        shutil.copy(method / "s4_mask.png", method / f"{name}_mask.png")
        (method / f"{name}.txt").write_text("a ball")
    read = read_samples(folder)
    assert len(read.samples) == expected + len(endings)
    assert not any(sample.lacks or sample.sample_id.endswith("_mask") for sample in read.samples)
    assert read.notes == ()
    out = folder / "scores.csv"
    options = ("--model", "tiny", "--max-num-patches", "16", "--device", "cpu", "--quiet", "--workers", "0")
    assert main(["score", str(folder), "--out", str(out), *options]) == 0
    assert all(row["cp"] and row["pf"] for row in rows(out))


def test_what_a_folder_leaves_out_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = folder / "ball" / "A"
    for name in ("1.heic", "2.psd", "readme.md", ".hidden.heic"):
        (method / name).write_bytes(b"")
    for name in ("1_mask.png", "2_mask.png"):
        shutil.copy(method / "s4_mask.png", method / name)
    read = read_samples(folder)
    assert not any("_mask" in sample.sample_id for sample in read.samples)
    pictures, masks = read.notes
    assert pictures.startswith(f"{folder}: left out 3 files, the first is: {method / '1.heic'}; images are read from ")
    assert ".avif, .bmp, .gif" in pictures
    assert (
        masks
        == f"{folder}: left out 2 files, the first is: {method / '1_mask.png'}; it is the mask of no image beside it"
    )
    options = ("--model", "tiny", "--max-num-patches", "16", "--device", "cpu", "--quiet", "--workers", "0")
    assert main(["score", str(folder), "--out", str(folder / "scores.csv"), *options]) == 0
    assert set(read.notes) <= set(capsys.readouterr().err.splitlines())


def test_reading_a_list_takes_little_more_memory_than_what_differs_between_its_rows(tmp_path: Path) -> None:
    count, prompt = 4000, "a photo of a backpack on the beach " * 3
    header = "generated_image,generated_mask,reference_image,reference_mask,prompt,subject,method,concept,seed\n"
    row = "out/{0:08}.png,out/{0:08}_mask.png,ref/backpack.png,ref/backpack_mask.png,{1},backpack,A,backpack,{2}\n"
    lines = (row.format(number, prompt, number % 10) for number in range(count))
    (tmp_path / "samples.csv").write_text(header + "".join(lines))
    read_samples(tmp_path / "samples.csv")  # what is imported does not count
    tracemalloc.start()
    read = read_samples(tmp_path / "samples.csv")
    kept, peak = (size / count for size in tracemalloc.get_traced_memory())
    tracemalloc.stop()
    paths = sum(len(path) + 49 for path in (read.samples[0].generated_image, read.samples[0].generated_mask or ""))
    assert kept < paths + 600
    assert peak < kept + 100


def test_digest_of_a_list_does_not_depend_on_its_folder_or_on_the_form_of_paths(tmp_path: Path, listed: Path) -> None:
    shutil.copytree(listed.parent, tmp_path / "elsewhere" / "deep")
    moved = tmp_path / "elsewhere" / "deep" / "samples.csv"
    assert read_samples(moved).sha256 == read_samples(listed).sha256
    moved.write_text(moved.read_text().replace("out/0.png", "out/../out/./0.png"))
    assert read_samples(moved).sha256 == read_samples(listed).sha256
    moved.write_text(moved.read_text().replace("ref/1.png", "ref/2.png"))
    assert read_samples(moved).sha256 != read_samples(listed).sha256


def test_each_json_line_may_name_its_own_columns(tmp_path: Path) -> None:
    lines = [
        {"generated_image": "a.png", "reference_image": "r.png", "reference_mask": "m.png", "seed": 3},
        {
            "generated_image": "b.png",
            "reference_image": "r.png",
            "reference_mask": "m.png",
            "method": "x",
            "note": None,
        },
        {"generated_image": "c.png", "reference_image": "r.png", "reference_mask": "", "seed": 4, "noun": "cat"},
    ]
    file = tmp_path / "list.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    first, second, third = read_samples(file, ["cp"]).samples
    assert [first.extra, second.extra, third.extra] == [{"seed": "3"}, {"note": None}, {"seed": "4", "noun": "cat"}]
    assert [first.method, second.method, third.method] == ["", "x", ""]
    assert third.reference_noun == "cat"
    assert (first.lacks, set(third.lacks)) == ({}, {"reference_mask"})
    assert first.references == second.references
    lines[2]["cp"] = 0.5
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="has a column 'cp', which the table of scores has too"):
        read_samples(file, ["cp"])
    assert gc.isenabled()


def test_line_of_a_sample_is_the_one_on_which_it_begins(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    cells = ["a.png", "r.png", "m.png"]
    note = ["plain", '"two\nlines"', '"old\rend"', '"dos\r\nend"', "last"]
    records = [",".join([*cells, each]) for each in note]
    records.insert(3, "")
    file.write_bytes("\n".join(["generated_image,reference_image,reference_mask,note", *records]).encode())
    samples = read_samples(file, ["cp"]).samples
    assert [sample.line for sample in samples] == [2, 3, 5, 8, 10]
    assert [sample.extra["note"] for sample in samples] == [each.strip('"') for each in note]


@pytest.mark.timeout(20)
def test_a_pipe_is_refused_and_nothing_is_read_from_it(tmp_path: Path) -> None:
    fifo = tmp_path / "samples.csv"
    os.mkfifo(fifo)
    with pytest.raises(ValueError, match=r"samples\.csv is not a regular file; save the table as a file"):
        read_samples(fifo)
    reader, writer = os.pipe()
    os.write(writer, b"generated_image")
    with pytest.raises(ValueError, match=r"is not a regular file"):
        read_samples(Path(f"/dev/fd/{reader}"))
    assert os.read(reader, 100) == b"generated_image"
    os.close(reader)
    os.close(writer)


def test_a_cell_of_deeply_nested_json_is_an_error_with_its_line(listed: Path) -> None:
    listing = rows(listed)
    listing[1]["reference_image"] = "[" * 100_000
    write_csv(listed, listing)
    with pytest.raises(ValueError, match=r"line 3: reference_image is '\[+\.\.\., not a JSON list \(.*recursion"):
        read_samples(listed)
