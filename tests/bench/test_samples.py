"""Sample lists in every form say the same, and what is wrong in them is said by row."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.sample_lists import rows, written

from masc_metrics.bench.sample import Sample
from masc_metrics.bench.samples import read_samples
from masc_metrics.cli import main


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


@pytest.mark.parametrize("form", [as_json_lines, as_parquet])
def test_every_file_form_says_what_csv_says(listed: Path, form: object) -> None:
    assert callable(form)
    from_csv, other = read_samples(listed), read_samples(form(listed))
    assert without_lines(other.samples) == without_lines(from_csv.samples)
    assert [sample.line for sample in other.samples] == [1, 2, 3, 4, 5, 6]
    assert len(from_csv.samples) == 6
    assert from_csv.samples[1].category == "round"
    assert from_csv.samples[1].generated_mask == str(listed.parent / "out/1_mask.png")


def test_the_digest_is_of_what_a_list_says_not_of_where_it_lies(
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


def test_a_damaged_json_line_is_a_row_with_its_reason(listed: Path) -> None:
    file = as_json_lines(listed)
    lines = file.read_text().splitlines()
    del_prompt = {name: value for name, value in json.loads(lines[3]).items() if name != "prompt"}
    file.write_text("\n".join([lines[0], lines[1][:40], "[1]", json.dumps(del_prompt), "", lines[5]]))
    samples = read_samples(file).samples
    assert [sample.line for sample in samples] == [1, 2, 3, 4, 6]
    assert [bool(sample.error) for sample in samples] == [False, True, True, True, False]
    assert "it is no JSON" in samples[1].error
    assert "JSON list; give an object" in samples[2].error
    assert "it lacks prompt" in samples[3].error


def test_files_that_are_no_lists_are_refused_with_the_reason(tmp_path: Path) -> None:
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
    """The same samples by the folder convention."""
    root = tmp_path_factory.mktemp("folders")
    for row in rows(listed):
        concept = root / row["concept"]
        method = concept / row["method"]
        method.mkdir(parents=True, exist_ok=True)
        name = row["sample_id"]
        for column, place in (
            ("reference_image", concept / "reference.png"),
            ("reference_mask", concept / "reference_mask.png"),
            ("generated_image", method / f"{name}.png"),
            ("generated_mask", method / f"{name}_mask.png"),
        ):
            shutil.copy(listed.parent / row[column], place)
        (concept / "subject.txt").write_text(row["subject"] + "\n")
        (method / f"{name}.txt").write_text(row["prompt"])
    return root


def test_a_folder_gives_the_scores_of_a_list(listed: Path, folder: Path, tmp_path: Path) -> None:
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


def test_what_a_folder_lacks_is_said_of_the_sample(folder: Path) -> None:
    (folder / "star" / "reference_mask.png").unlink()
    (folder / "ball" / "B" / "s1_mask.png").unlink()
    (folder / "ball" / "A" / "s4.txt").unlink()
    (folder / "box" / "subject.txt").unlink()
    by_id = {sample.sample_id: sample for sample in read_samples(folder).samples}
    assert by_id["star/A/s0"].error == f"there is no {folder / 'star' / 'reference_mask.png'}"
    assert by_id["ball/B/s1"].error == f"there is no {folder / 'ball' / 'B' / 's1_mask.png'}"
    assert by_id["ball/A/s4"].error == f"there is no {folder / 'ball' / 'A' / 's4.txt'}"
    assert (by_id["box/A/s2"].error, by_id["box/A/s2"].subject) == ("", None)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match="holds no generated pictures; lay them out as"):
        read_samples(folder)
