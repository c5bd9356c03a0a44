"""Masks that a segmenter makes within a run: --mask-source with a segmenter's name."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.benchmark_trees import COLLECTIONS, METHODS, dreambench_plus_tree, orida_tree
from support.processes import command
from support.sample_lists import rows, write_csv, written
from support.segmenter_checkpoints import BUILDERS, PARTS, THRESHOLDS, build_clipseg, build_sam3, requires

from masc_metrics.bench.scoring import Scorer
from masc_metrics.cli import main
from masc_metrics.segmenters import release_segmenters

OPTIONS = ("--model", "tiny", "--max-num-patches", "64", "--device", "cpu", "--quiet", "--workers", "0")


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield build_clipseg(tmp_path_factory.mktemp("masks") / "clipseg")
    release_segmenters()


def unmasked(folder: Path, count: int, **cells: str) -> Path:
    """A list of samples without masks, with further cells in every row."""
    listed = [row | {"reference_mask": "", "generated_mask": ""} | cells for row in rows(written(folder, count))]
    return write_csv(folder / "unmasked.csv", listed)


def score(samples: Path, clipseg: Path, *options: str, out: str = "scores.csv") -> int:
    segmenter = ("--mask-source", "clipseg", "--checkpoint", str(clipseg))
    return main(["score", str(samples), "--out", str(samples.parent / out), *OPTIONS, *segmenter, *options])


@pytest.mark.parametrize("name", PARTS)
def test_scores_are_those_of_the_masks_that_the_command_masks_makes(tmp_path: Path, name: str) -> None:
    requires(*PARTS[name])
    checkpoint, *mask = (str(BUILDERS[part](tmp_path / part)) for part in PARTS[name])
    networks = ["--checkpoint", checkpoint, *(["--mask-checkpoint", mask[0]] if mask else [])]
    if name in THRESHOLDS:
        networks += ["--threshold", str(THRESHOLDS[name])]
    samples, made = unmasked(tmp_path / "list", 4, noun="pig"), tmp_path / "made"
    out = (tmp_path / "direct.csv", tmp_path / "two_steps.csv")
    assert main(["masks", str(samples), "--out", str(made), "--segmenter", name, *networks, "--quiet"]) == 0
    records = {
        which: [json.loads(file.read_text()) for file in (made / which).glob("*.json")]
        for which in ("reference", "generated")
    }
    release_segmenters()
    assert main(["score", str(samples), "--out", str(out[0]), *OPTIONS, "--mask-source", name, *networks]) == 0
    assert main(["score", str(made / "samples.csv"), "--out", str(out[1]), *OPTIONS]) == 0
    direct, two_steps = map(rows, out)
    own = {"mask_source", "mask_confidence", "reference_mask_source", "reference_mask_confidence"}
    files = {"reference_mask", "generated_mask", "reference_image", "generated_image"}
    for row, expected in zip(direct, two_steps, strict=True):
        assert {key: row[key] for key in row.keys() - own - files} == {
            key: expected[key] for key in expected.keys() - own - files
        }
        assert (row["mask_source"], row["reference_mask_source"]) == (name, name)
        assert (row["reference_mask"], row["generated_mask"]) == ("", "")
        for which, column in (("reference", "reference_mask_confidence"), ("generated", "mask_confidence")):
            coverage = float(row[f"{which}_coverage"])
            assert (row[column] == "") == (coverage == 0)
            assert (
                any(
                    record["coverage"] == pytest.approx(coverage)
                    and record["score"] == pytest.approx(float(row[column]))
                    for record in records[which]
                    if coverage
                )
                or not coverage
            )
    assert any(float(row["generated_coverage"]) for row in direct), "something is marked"
    assert json.loads((tmp_path / "direct.summary.json").read_text())["settings"]["segmenter"][
        "checkpoints"
    ].keys() == {
        checkpoint,
        *mask,
    }
    release_segmenters()


def test_given_masks_are_used_and_only_the_others_made(
    clipseg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 4)
    listed = [
        row
        | {"concept": "one", "key": str(index // 2)}
        | ({"generated_mask": ""} if index > 0 else {})
        | ({"reference_mask": ""} if index == 3 else {})
        for index, row in enumerate(rows(samples))
    ]
    partial = write_csv(tmp_path / "partial.csv", listed)
    assert main(["score", str(samples), "--out", str(tmp_path / "given.csv"), *OPTIONS]) == 0
    assert score(partial, clipseg) == 0
    printed = capsys.readouterr().err
    assert "1 samples have reference masks made by clipseg, 3 have given ones; compare only samples of" in printed
    assert "3 samples have generated masks made by clipseg, 1 have given ones; compare only samples of" in printed
    found, given = rows(tmp_path / "scores.csv"), rows(tmp_path / "given.csv")
    assert [row["mask_source"] for row in found] == ["given", "clipseg", "clipseg", "clipseg"]
    assert [row["reference_mask_source"] for row in found] == ["given", "given", "given", "clipseg"]
    assert [row["cp"] for row in found[:3]] == [row["cp"] for row in given[:3]]
    assert found[0]["pf"] == given[0]["pf"]
    assert found[3]["cp"] != given[3]["cp"]
    summary = json.loads((tmp_path / "scores.summary.json").read_text())
    assert summary["masks"]["reference"] == {"clipseg": 1, "given": 3, "empty": 0}
    assert main(["compare", str(tmp_path / "scores.csv")]) == 0
    text = capsys.readouterr().out
    assert "CP uses masks of several sources (clipseg, given); compare samples of one reference_mask_source" in text
    assert "PF uses masks of several sources (clipseg, given); compare samples of one mask_source" in text


def test_no_column_of_masks_is_needed_and_the_column_noun_goes_before_the_subject(
    clipseg: Path, tmp_path: Path
) -> None:
    listed = [
        {name: cell for name, cell in row.items() if not name.endswith("_mask")} for row in rows(written(tmp_path, 2))
    ]
    subjects = write_csv(tmp_path / "subjects.csv", listed)
    nouns = write_csv(tmp_path / "nouns.csv", [row | {"noun": "a wall"} for row in listed])
    renamed = write_csv(tmp_path / "renamed.csv", [row | {"subject": "a wall"} for row in listed])
    options = ("--scores", "cp")
    assert score(subjects, clipseg, *options, out="a.csv") == 0
    assert score(nouns, clipseg, *options, out="b.csv") == 0
    assert score(renamed, clipseg, *options, out="c.csv") == 0
    a, b, c = ([row["reference_coverage"] for row in rows(tmp_path / f"{name}.csv")] for name in "abc")
    assert b == c != a
    assert {row["mask_source"] for row in rows(tmp_path / "a.csv")} == {""}, "CP needs no mask of the generated image"
    assert score(subjects, clipseg, *options, "--min-coverage", "0", out="d.csv") == 0
    assert {row["mask_source"] for row in rows(tmp_path / "d.csv")} == {"clipseg"}, "the filter looks at both masks"


def test_a_noun_that_is_too_long_or_empty_is_an_error_of_its_row(
    clipseg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = unmasked(tmp_path, 4, noun="toy")
    listed = rows(samples)
    listed[1]["noun"] = "x" * 90
    listed[2] |= {"noun": "", "subject": "nan"}
    assert score(write_csv(samples, listed), clipseg) == 3
    errors = capsys.readouterr().err
    assert "line 3 (sample s1): reference_image " in errors
    assert "of 92 tokens" in errors
    assert "line 4 (sample s2): noun and subject are empty; give what to mark in reference_image" in errors
    assert [bool(row["error"]) for row in rows(tmp_path / "scores.csv")] == [False, True, True, False]
    assert [bool(row["pf"]) for row in rows(tmp_path / "scores.csv")] == [True, False, False, True]


def test_empty_full_and_thin_masks_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requires("sam3")
    samples, sam3 = unmasked(tmp_path, 3, noun="pig"), build_sam3(tmp_path / "sam3")

    def score(*options: str, out: str = "scores.csv") -> int:
        segmenter = ("--mask-source", "sam3", "--checkpoint", str(sam3))
        return main(["score", str(samples), "--out", str(tmp_path / out), *OPTIONS, *segmenter, *options])

    assert score("--threshold", "0.9") == 0
    errors = capsys.readouterr().err
    assert "the reference masks of 3 samples mark nothing, so their CP is undefined; " in errors
    assert "the generated masks of 3 samples mark nothing, so their PF is that of " in errors
    found = rows(tmp_path / "scores.csv")
    assert {(row["mask_source"], row["mask_confidence"], row["cp"]) for row in found} == {("sam3", "", "nan")}
    summary = json.loads((tmp_path / "scores.summary.json").read_text())
    assert summary["masks"]["generated"] == {"sam3": 3, "empty": 3}
    assert score("--threshold", "0.9", "--min-coverage", "0.05", out="thin.csv") == 0
    assert "the generated masks of 3 samples mark nothing, so they are skipped" in capsys.readouterr().err
    thin = rows(tmp_path / "thin.csv")
    assert all("reference_mask marks 0.00 % of its pixels" in row["left_out"] and not row["cp"] for row in thin)
    assert {row["reference_mask_source"] for row in thin} == {"sam3"}
    monkeypatch.setattr("masc_metrics.bench.summary.ALMOST_FULL", 0.1)
    assert score(out="full.csv") == 0
    assert "3 of them have a mask over more than 10 % of the image" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_available_is_an_error_before_the_first_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = unmasked(tmp_path, 2)
    monkeypatch.setattr(Scorer, "score", lambda *_: pytest.fail("a picture was scored"))
    assert score(samples, tmp_path / "nowhere") == 1
    assert "no checkpoint folder at" in capsys.readouterr().err
    assert not (tmp_path / "scores.csv.run").exists()


def test_a_gated_segmenter_is_reported_with_its_page_and_open_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requires("sam3")
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_: object, **__: object) -> None:
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    arguments = ["score", str(unmasked(tmp_path, 2)), "--out", str(tmp_path / "scores.csv"), *OPTIONS]
    assert main([*arguments, "--mask-source", "sam3"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "'facebook/sam3' is gated" in error
    assert "load_segmenter('grounded_sam2')" in error


def test_the_segmenter_is_not_read_if_no_mask_is_missing(tmp_path: Path) -> None:
    samples = written(tmp_path, 2)
    assert score(samples, tmp_path / "nowhere") == 0
    assert {row["mask_source"] for row in rows(tmp_path / "scores.csv")} == {"given"}


def test_a_run_is_not_resumed_with_another_threshold_or_network(
    clipseg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = unmasked(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert score(samples, clipseg) == 130
    capsys.readouterr()
    assert score(samples, clipseg, "--threshold", "0.4") == 2
    assert "segmenter.threshold was 0.5 and is 0.4" in capsys.readouterr().err.replace('{"', "")
    other = shutil.copytree(clipseg, tmp_path / "other")
    assert score(samples, other) == 2
    assert str(other) in capsys.readouterr().err
    assert main(["score", str(samples), "--out", str(tmp_path / "scores.csv"), *OPTIONS, "--mask-source", "given"]) == 2
    assert score(samples, clipseg, "--threshold", "0.5", "--batch-size", "1") == 0


def test_options_of_a_segmenter_need_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["score", str(written(tmp_path, 1)), "--out", str(tmp_path / "scores.csv"), *OPTIONS]
    assert main([*arguments, "--threshold", "0.4"]) == 2
    assert "--threshold is 0.4, but --mask-source is given; leave --threshold out, or give" in capsys.readouterr().err
    assert main([*arguments, "--mask-source", "clipseg", "--mask-checkpoint", "x"]) == 2
    assert "segmenter 'clipseg' has no second network" in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text("threshold: 0.4\nmask_source: transfer\n")
    assert main([*arguments, "--config", str(tmp_path / "run.yaml")]) == 2
    assert "--threshold is 0.4, but --mask-source is transfer" in capsys.readouterr().err
    root = orida_tree(tmp_path / "orida", subjects=2, backgrounds=2)
    assert main(["orida", str(root), *arguments[2:], "--mask-source", "transfer"]) == 2
    assert "--mask-source is transfer, but ORIDa's pairs have their masks; leave it out" in capsys.readouterr().err


def test_dreambench_plus_is_scored_without_masks_on_disk(clipseg: Path, tmp_path: Path) -> None:
    root = dreambench_plus_tree(tmp_path / "tree", METHODS[:1], COLLECTIONS[2:], prompts=range(9))
    shutil.rmtree(root / "masks")
    out = tmp_path / "scores.csv"
    segmenter = ("--mask-source", "clipseg", "--checkpoint", str(clipseg))
    assert main(["dreambench-plus", str(root), "--out", str(out), *OPTIONS]) == 2
    assert main(["dreambench-plus", str(root), "--out", str(out), *OPTIONS, *segmenter]) == 0
    found = rows(out)
    assert len(found) == 18
    assert {(row["mask_source"], row["reference_mask_source"], row["error"]) for row in found} == {
        ("clipseg", "clipseg", "")
    }
    kept = [row for row in found if not row["left_out"]]
    assert kept
    assert all(row["cp"] and float(row["generated_coverage"]) > 0.05 for row in kept)
    assert all(bool(row["pf"]) == row["concept"].startswith("object") for row in kept)


@pytest.mark.timeout(120)
def test_two_processes_make_the_masks_of_one(clipseg: Path, tmp_path: Path) -> None:
    samples = unmasked(tmp_path, 6)
    assert score(samples, clipseg) == 0
    arguments = ["score", str(samples), "--out", str(tmp_path / "two.csv"), *OPTIONS, "--devices", "2"]
    segmenter = ["--mask-source", "clipseg", "--checkpoint", str(clipseg)]
    command([sys.executable, "-m", "masc_metrics", *arguments, *segmenter])
    for row, expected in zip(rows(tmp_path / "two.csv"), rows(tmp_path / "scores.csv"), strict=True):
        assert row.keys() == expected.keys()
        for name, cell in row.items():
            if name in ("cp", "pf", "mask_confidence", "reference_mask_confidence"):
                assert float(cell) == pytest.approx(float(expected[name]), abs=1e-5)
            else:
                assert cell == expected[name], name
