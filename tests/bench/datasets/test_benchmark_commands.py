"""The benchmark commands, from folders in their layouts to agreement with raters of known agreement."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.benchmark_trees import dreambench_plus_tree, orida_tree
from support.processes import started_command
from support.sample_lists import rows, wait_for

from masc_metrics import load_backbone
from masc_metrics.bench.loading import open_image
from masc_metrics.cli import main
from masc_metrics.functional import concept_preservation

TINY = ("--model", "tiny", "--max-num-patches", "16", "--device", "cpu", "--quiet")
METHODS = ("dreambooth_sd_gs7_5_step100_seed42_torch_float16", "emu2_gs3_step50_seed42_torch_bfloat16")
COLLECTIONS = ("live_subject_animal_00_kitten", "object_00_motorcycle", "object_01_hair_style_toy", "style_03_sketch")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dreambench")
    return dreambench_plus_tree(root, methods=METHODS, collections=COLLECTIONS)


@pytest.fixture(scope="module")
def scored(tree: Path) -> list[dict[str, str]]:
    out = tree / "scores.csv"
    assert main(["dreambench-plus", str(tree), "--out", str(out), *TINY]) == 0
    return rows(out)


def test_dreambench_plus_folders_become_a_table(
    tree: Path, scored: list[dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(scored) == len(METHODS) * len(COLLECTIONS) * 9
    assert {row["method"] for row in scored} == {"dreambooth_sd", "emu2"}
    assert {row["category"] for row in scored} == {"animal", "object", "style"}
    style_rows = [row for row in scored if row["concept"].startswith("style_")]
    assert len(style_rows) == 18
    assert all(row["pf"] == "" and row["cp"] for row in style_rows if not row["left_out"])
    assert all(row["pf"] and row["stripped_prompt"] for row in scored if row not in style_rows and not row["left_out"])
    summary = json.loads((tree / "scores.summary.json").read_text())
    kept = [float(row["cp"]) for row in scored if row["method"] == "emu2" and row["category"] == "object"]
    assert summary["by"]["method / category"]["emu2 / object"]["cp"]["mean"] == pytest.approx(np.mean(kept), abs=1e-6)
    one = next(row for row in scored if row["sample_id"] == "emu2/object_00_motorcycle/3_0")
    generated = tree / "samples" / METHODS[1] / "tgt_image" / "object_00_motorcycle" / "3_0.jpg"
    expected = concept_preservation(
        [open_image(generated, "image")],
        [open_image(tree / "images" / "object" / "00.jpg", "image")],
        [open_image(tree / "masks" / "refs" / "object" / "00.png", "mask")],
        backbone=load_backbone("tiny"),
        max_num_patches=16,
    )
    assert float(one["cp"]) == pytest.approx(float(expected), abs=2e-6)
    assert main(["dreambench-plus", str(tree), "--out", str(tree / "again.csv"), "--method", "emu2", *TINY]) == 0
    assert "method" not in capsys.readouterr().out, "a single method has no table"
    assert len(rows(tree / "again.csv")) == len(COLLECTIONS) * 9


def test_incomplete_tree_lists_missing_files(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(shutil.copytree(tree, tmp_path / "tree"))
    gone = root / "masks" / "samples" / METHODS[0] / "object_00_motorcycle" / "4_0.png"
    gone.unlink()
    shutil.rmtree(root / "captions" / "style")
    arguments = ["dreambench-plus", str(root), "--out", str(tmp_path / "out.csv"), *TINY]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"missing: {gone}" in error
    assert "is incomplete; complete it, or give --allow-missing" in error
    assert error.count("missing: ") <= 5
    assert not (tmp_path / "out.csv").exists()
    assert main([*arguments, "--allow-missing"]) == 3
    failed = [row for row in rows(tmp_path / "out.csv") if row["error"]]
    assert [row["sample_id"] for row in failed] == ["dreambooth_sd/object_00_motorcycle/4_0"]
    assert str(gone) in failed[0]["error"]


def test_sample_without_a_prompt_keeps_cp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kitten, motorcycle = COLLECTIONS[:2]
    root = dreambench_plus_tree(tmp_path, METHODS[:1], [kitten, motorcycle], [0])
    text = root / "samples" / METHODS[0] / "text"
    shutil.rmtree(text)
    (root / "captions" / "object" / "00.txt").unlink()
    arguments = ["dreambench-plus", str(root), "--out", str(tmp_path / "out.csv"), *TINY, "--allow-missing"]
    assert main(arguments) == 0
    found = {row["concept"]: row for row in rows(tmp_path / "out.csv")}
    assert all(row["cp"] for row in found.values())
    assert (found[motorcycle]["pf"], found[motorcycle]["subject"]) == ("", "motorcycle")
    assert found[kitten]["pf"]
    note = "the prompts of 1 generated images are those of the caption files, because text lacks them; the first is"
    assert f"{root}: {note} {text / kitten / '0_0.txt'}" in capsys.readouterr().err


def test_small_masks_are_left_out_as_in_the_paper(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(tree, tmp_path / "tree"))
    mask = root / "masks" / "refs" / "object" / "00.png"
    thin = np.zeros((100, 100), np.uint8)
    thin[:5] = 255
    with Image.open(mask) as picture:
        size = picture.size
    Image.fromarray(thin).resize(size, Image.Resampling.NEAREST).save(mask)
    assert main(["dreambench-plus", str(root), "--out", str(tmp_path / "out.csv"), *TINY]) == 0
    left_out = {row["concept"] for row in rows(tmp_path / "out.csv") if row["left_out"].startswith("reference_mask")}
    assert "object_00_motorcycle" in left_out


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("processes", "lines"), [(1, 5), (2, 40)])
def test_killed_benchmark_resumes(
    tree: Path, scored: list[dict[str, str]], tmp_path: Path, processes: int, lines: int
) -> None:
    arguments = ["dreambench-plus", str(tree), "--out", str(tmp_path / "scores.csv"), *TINY]
    with started_command([*arguments, "--batch-size", "1", "--devices", str(processes)], tmp_path) as process:
        wait_for(lines, tmp_path / "scores.csv.run", process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
    assert main(arguments) == 0
    found = rows(tmp_path / "scores.csv")
    assert [row["sample_id"] for row in found] == [row["sample_id"] for row in scored]
    assert [row["pf"] for row in found if not row["pf"]] == [row["pf"] for row in scored if not row["pf"]]
    assert [float(row["cp"]) for row in found if row["cp"]] == pytest.approx(
        [float(row["cp"]) for row in scored if row["cp"]], abs=2e-6
    )


def rated(tree: Path, scored: list[dict[str, str]], noise: float) -> Path:
    """Two groups whose ratings are our scores scaled to 0..4, with independent noise."""
    kept = [row for row in scored if row["cp"]]
    values = np.array([float(row["cp"]) for row in kept])
    unit = (values - values.min()) / (values.max() - values.min())
    rng = np.random.default_rng(0)
    file = tree / f"people-{noise}.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["method", "key", "group1", "group2"])
        for row, value in zip(kept, unit, strict=True):
            people = np.clip(4 * (value + noise * rng.normal(size=2)), 0, 4)
            writer.writerow([row["method"], row["key"], *people])
    return file


def test_raters_of_known_agreement_have_that_agreement(
    tree: Path, scored: list[dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    def agreement(ratings: Path) -> dict[str, Any]:
        out = tree / "agreement.json"
        arguments = ["agreement", str(tree / "scores.csv"), str(ratings), "--score", "cp", "--out", str(out)]
        assert main([*arguments, "--replicates", "50"]) == 0
        report: dict[str, Any] = json.loads(out.read_text())
        return report

    exact, loose = (agreement(rated(tree, scored, noise)) for noise in (0.0, 0.3))
    (scorer,), (other,) = exact["scorers"], loose["scorers"]
    assert scorer["alpha"]["value"] == pytest.approx(1.0, abs=1e-3)
    assert scorer["rho"]["value"] == pytest.approx(1.0, abs=1e-6)
    assert 0 < other["alpha"]["value"] < 0.9
    assert "cp" in capsys.readouterr().out


def test_orida_separates_same_from_different_subjects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = orida_tree(tmp_path / "orida", subjects=3, backgrounds=4)
    arguments = ["orida", str(root), "--out", str(tmp_path / "scores.csv"), "--subjects", "3", "--backgrounds", "4"]
    assert main([*arguments, "--cross-pairs", "20", *TINY]) == 0
    found = rows(tmp_path / "scores.csv")
    same = [float(row["cp"]) for row in found if row["category"] == "same"]
    cross = [float(row["cp"]) for row in found if row["category"] == "cross"]
    assert (len(same), len(cross)) == (18, 20)
    wins = np.mean([(a > b) + 0.5 * (a == b) for a in same for b in cross])
    result = json.loads((tmp_path / "scores.auc.json").read_text())["cp"]
    assert result["auc"] == pytest.approx(wins, abs=1e-9)
    assert f"AUC {wins:.4f}  18 pairs of one subject against 20 of two" in capsys.readouterr().out
    for score in ("pf", "clip-t", "siglip2-t"):
        assert main([*arguments, "--scores", f"cp,{score}", *TINY]) == 2
        assert f"--scores names {score}, but ORIDa has no prompts; leave it out" in capsys.readouterr().err


def test_concept_preservation_alone_needs_no_captions(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(tree, tmp_path / "tree"))
    shutil.rmtree(root / "captions")
    for folder in METHODS:
        shutil.rmtree(root / "samples" / folder / "text")
    out = tmp_path / "scores.csv"
    assert main(["dreambench-plus", str(root), "--out", str(out), "--method", "emu2", "--scores", "cp", *TINY]) == 0
    assert "missing" not in capsys.readouterr().err
    assert all(row["cp"] or row["left_out"] for row in rows(out))


def test_undefined_auc_of_orida_has_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = orida_tree(tmp_path / "orida", subjects=1, backgrounds=3)
    main(["orida", str(root), "--out", str(tmp_path / "scores.csv"), "--subjects", "1", "--backgrounds", "3", *TINY])
    assert (
        "AUC nan  3 pairs of one subject against 0 of two; an AUC needs at least two of each" in capsys.readouterr().out
    )
