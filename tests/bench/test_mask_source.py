"""Masks transferred from the references in a run: --mask-source transfer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.sample_lists import rows, write_csv, written

from masc_metrics import load_backbone
from masc_metrics.cli import main
from masc_metrics.functional import check_transfer, prompt_following, transfer_masks

PATCHES = 64
OPTIONS = ("--model", "tiny", "--max-num-patches", str(PATCHES), "--device", "cpu", "--quiet", "--workers", "0")


def score(samples: Path, *options: str, out: str = "scores.csv") -> int:
    return main(["score", str(samples), "--out", str(samples.parent / out), *OPTIONS, *options])


def pixels(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)


def plane(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(file).convert("L")))


def test_rows_without_a_mask_get_one_from_their_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = written(tmp_path, 4)
    given = rows(samples)
    listed = [row | ({"generated_mask": ""} if index != 2 else {}) for index, row in enumerate(given)]
    partial = write_csv(tmp_path / "partial.csv", listed)
    assert score(samples, out="given.csv") == 0
    assert score(partial, "--mask-source", "transfer") == 0
    captured = capsys.readouterr()
    assert (
        "3 samples have masks transferred from their references, which is not the paper's protocol, 1 have given"
        in (captured.err)
    )
    found, with_given = rows(tmp_path / "scores.csv"), rows(tmp_path / "given.csv")
    assert [row["mask_source"] for row in found] == ["transferred", "transferred", "given", "transferred"]
    assert found[2]["pf"] == with_given[2]["pf"], "a given mask wins"
    assert [row["cp"] for row in found] == [row["cp"] for row in with_given]
    assert [row["mask_source"] for row in with_given] == ["given"] * 4
    encoder = {"backbone": load_backbone("tiny"), "max_num_patches": PATCHES}
    for row, sample in zip(found, given, strict=True):
        if row["mask_source"] == "given":
            assert (row["mask_confidence"], row["mask_check"]) == ("", "")
            continue
        image, reference = (pixels(tmp_path / sample[f"{which}_image"])[None] for which in ("generated", "reference"))
        mask = plane(tmp_path / sample["reference_mask"])[None]
        transferred = transfer_masks(image, reference, mask, **encoder)
        expected = prompt_following(image, transferred, [sample["prompt"]], [sample["subject"]], **encoder)
        assert float(row["pf"]) == pytest.approx(expected.item(), abs=1e-6)
        assert float(row["mask_confidence"]) == pytest.approx(transferred.confidence_B.item(), abs=1e-5)
        assert float(row["mask_check"]) == pytest.approx(check_transfer(reference, mask, **encoder).item(), abs=1e-6)
        assert float(row["generated_coverage"]) == pytest.approx(transferred[0].float().mean().item(), abs=1e-6)
    summary = json.loads((tmp_path / "scores.summary.json").read_text())
    assert summary["masks"] == {
        "reference": {"given": 4, "empty": 0},
        "generated": {"given": 1, "transferred": 3, "empty": 0},
    }


def test_no_column_of_masks_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = [
        {name: cell for name, cell in row.items() if name != "generated_mask"} for row in rows(written(tmp_path, 2))
    ]
    samples = write_csv(tmp_path / "unmasked.csv", listed)
    assert score(samples, "--scores", "pf") == 2
    assert "generated_mask" in capsys.readouterr().err
    assert score(samples, "--scores", "pf", "--mask-source", "transfer") == 0
    assert all(row["pf"] for row in rows(tmp_path / "scores.csv"))


def test_where_nothing_is_found_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = [row | {"generated_mask": ""} for row in rows(written(tmp_path, 2))]
    with Image.open(tmp_path / listed[0]["reference_mask"]) as mask:
        blank = Image.new("L", mask.size)
    blank.save(tmp_path / "blank.png")
    listed[0]["reference_mask"] = "blank.png"
    assert score(write_csv(tmp_path / "blank.csv", listed), "--mask-source", "transfer") == 0
    text = capsys.readouterr().err
    assert "the generated masks of 1 samples mark nothing, so their PF is that of" in text
    assert "blank.csv: masks transferred from 1 references are unreliable (mask_check below 0.6); give masks" in text
    row = rows(tmp_path / "scores.csv")[0]
    assert (row["mask_source"], row["mask_confidence"]) == ("transferred", "")


def test_missing_masks_without_the_option_are_an_error_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [row | {"generated_mask": ""} for row in rows(written(tmp_path, 2))]
    assert score(write_csv(tmp_path / "unmasked.csv", listed)) == 2
    assert "line 2: generated_mask is empty; give a file, or --mask-source transfer" in capsys.readouterr().err


def test_thin_transferred_masks_are_left_out_too(tmp_path: Path) -> None:
    listed = [row | {"generated_mask": ""} for row in rows(written(tmp_path, 2))]
    samples = write_csv(tmp_path / "unmasked.csv", listed)
    assert score(samples, "--mask-source", "transfer", "--min-coverage", "0.9") == 0
    assert all("marks" in row["left_out"] and not row["pf"] for row in rows(tmp_path / "scores.csv"))
    assert score(samples, "--mask-source", "transfer", "--min-coverage", "0.001", out="kept.csv") == 0
    kept = rows(tmp_path / "kept.csv")
    assert [bool(row["left_out"]) for row in kept] == [float(row["generated_coverage"]) <= 0.001 for row in kept]


def test_comparisons_say_when_masks_are_of_several_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = [
        row | {"method": "a", "concept": "c", "key": str(index)} for index, row in enumerate(rows(written(tmp_path, 3)))
    ]
    assert score(write_csv(tmp_path / "given.csv", listed), out="a.csv") == 0
    others = [row | {"method": "b", "generated_mask": ""} for row in listed]
    assert score(write_csv(tmp_path / "none.csv", others), "--mask-source", "transfer", out="b.csv") == 0
    assert score(write_csv(tmp_path / "none.csv", others), "--scores", "cp", out="c.csv") == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]) == 0
    assert "PF uses masks of several sources (given, transferred)" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "a.csv"), str(tmp_path / "c.csv")]) == 0
    text = capsys.readouterr().out
    assert "Not compared, because a table lacks it: pf." in text
    assert "several sources" not in text


def test_nan_as_text_is_an_empty_cell(tmp_path: Path) -> None:
    listed = [row | {"subject": "nan", "concept": "NaN", "method": "nan"} for row in rows(written(tmp_path, 2))]
    blank = [row | {"subject": "", "concept": "", "method": ""} for row in listed]
    assert score(write_csv(tmp_path / "nan.csv", listed), out="nan_scores.csv") == 0
    assert score(write_csv(tmp_path / "blank.csv", blank), out="blank_scores.csv") == 0
    for found, expected in zip(rows(tmp_path / "nan_scores.csv"), rows(tmp_path / "blank_scores.csv"), strict=True):
        assert found == expected
