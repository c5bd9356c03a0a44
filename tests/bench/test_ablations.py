"""The paper's ablations as further columns of one run: --pooling, --prompts and --aggregation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.batches import counted_encodings
from support.sample_lists import rows, write_csv, written

from masc_metrics.bench.agreement.ratings import read_scores
from masc_metrics.bench.compare import compare_all, read_methods
from masc_metrics.bench.run import CP_COLUMNS, PF_COLUMNS, Run
from masc_metrics.bench.scoring import Scorer
from masc_metrics.cli import main

TINY = ("--model", "tiny", "--max-num-patches", "16", "--device", "cpu", "--quiet", "--workers", "0")
GRID = ("--pooling", "background,full,foreground", "--prompts", "stripped,full")
AGGREGATIONS = ("--aggregation", "masked,weighted,global,mutual-recall")


def score(samples: Path, *options: str, out: str = "scores.csv") -> int:
    return main(["score", str(samples), "--out", str(samples.parent / out), *TINY, *options])


def test_grid_adds_columns_without_encoding_an_image_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = written(tmp_path, 6)
    with counted_encodings() as counts:
        assert score(samples, out="plain.csv") == 0
    images = counts["images"]
    from masc_metrics import release_backbones

    release_backbones()
    with counted_encodings() as counts:
        assert score(samples, *GRID, *AGGREGATIONS) == 0
    assert counts["images"] == images
    plain, found = rows(tmp_path / "plain.csv"), rows(tmp_path / "scores.csv")
    columns = [*CP_COLUMNS, *PF_COLUMNS]
    assert [name for name in found[0] if name in columns] == columns
    assert columns == [
        *("cp", "cp_weighted", "cp_global", "cp_mutual_recall", "pf", "pf_background_full"),
        *("pf_full_stripped", "pf_full_full", "pf_foreground_stripped", "pf_foreground_full"),
    ]
    assert [{name: row[name] for name in plain[0]} for row in found] == plain, "the default columns are unchanged"
    assert all(row[name] for row in found for name in columns)
    summary = json.loads((tmp_path / "scores.summary.json").read_text())
    assert summary["all"]["pf_full_full"]["mean"] == pytest.approx(
        sum(float(row["pf_full_full"]) for row in found) / 6, abs=1e-6
    )
    assert "CP_MUTUAL_RECALL  " in capsys.readouterr().out


def test_columns_follow_the_order_of_the_options() -> None:
    assert Run(Path()).columns == ("cp", "pf")
    run = Run(Path(), scores=("pf", "cp"), pooling=("full", "background"), aggregation=("global", "masked"))
    assert run.columns == ("pf_full_stripped", "pf", "cp_global", "cp")


def test_columns_need_only_their_own_input(tmp_path: Path) -> None:
    samples = written(tmp_path, 2)
    for file in tmp_path.glob("*/*_mask.png"):
        file.unlink()
    unmasked = [{k: v for k, v in row.items() if not k.endswith("_mask")} for row in rows(samples)]
    write_csv(samples, unmasked)
    assert score(samples, "--pooling", "full", "--aggregation", "global") == 0
    found = rows(tmp_path / "scores.csv")
    assert all(row["cp_global"] and row["pf_full_stripped"] for row in found)
    assert not {"cp", "pf"} & found[0].keys()
    assert found[0]["stripped_prompt"]
    write_csv(samples, [{k: v for k, v in row.items() if k != "subject"} for row in unmasked])
    assert score(samples, "--scores", "pf", "--pooling", "full", "--prompts", "full") == 0
    assert rows(tmp_path / "scores.csv")[0]["stripped_prompt"] == ""
    assert score(samples, "--scores", "cp", "--aggregation", "mutual-recall") == 2, "it needs both masks"


def test_sample_without_a_mask_that_a_column_needs_is_a_failed_row(tmp_path: Path) -> None:
    folder = tmp_path / "root"
    samples = rows(written(tmp_path, 2))
    for number, row in enumerate(samples):
        target = folder / "star" / "A"
        target.mkdir(parents=True, exist_ok=True)
        for name, file in (("../reference", "reference_image"), ("../reference_mask", "reference_mask")):
            Image.open(tmp_path / samples[0][file]).save(target / f"{name}.png")
        Image.open(tmp_path / row["generated_image"]).save(target / f"{number}.png")
        (target / f"{number}.txt").write_text(row["prompt"])
    Image.open(tmp_path / samples[1]["generated_mask"]).save(folder / "star" / "A" / "1_mask.png")
    assert (
        main(["score", str(folder), "--out", str(tmp_path / "f.csv"), *TINY, "--pooling", "full", *AGGREGATIONS]) == 3
    )
    found = rows(tmp_path / "f.csv")
    assert "missing" in found[0]["error"], "mutual recall needs the mask"
    assert all(found[1][name] for name in ("cp", "cp_global", "cp_mutual_recall", "pf_full_stripped"))


def test_undefined_columns_are_counted_with_their_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = written(tmp_path, 1)
    Image.new("L", (48, 48), 0).save(tmp_path / "ref/0_mask.png")
    Image.new("L", (48, 48), 0).save(tmp_path / "out/0_mask.png")
    assert score(samples, *GRID, *AGGREGATIONS) == 0
    (row,) = rows(tmp_path / "scores.csv")
    undefined = {name for name in (*CP_COLUMNS, *PF_COLUMNS) if row[name] == "nan"}
    assert undefined == {"cp", "cp_weighted", "cp_mutual_recall", "pf_foreground_stripped", "pf_foreground_full"}
    printed = capsys.readouterr().err
    assert "CP_WEIGHTED is undefined, because reference_mask covers no reference patch\n" in printed
    assert "CP_MUTUAL_RECALL is undefined, because no mutual pair of nearest patches begins in the" in printed
    assert "PF_FOREGROUND_FULL is undefined, because generated_mask covers no patch by at least half" in printed


def test_compare_and_agreement_take_further_columns_by_name(tmp_path: Path) -> None:
    samples = written(tmp_path, 4, concepts=1)
    assert score(samples, *GRID, *AGGREGATIONS) == 0
    table = tmp_path / "scores.csv"
    methods, names = read_methods([table], ["pf_full_full", "cp_weighted"])
    assert names == ["pf_full_full", "cp_weighted"]
    assert [comparison.score for comparison in compare_all(methods, names)] == names
    assert read_methods([table])[1] == ["cp", "pf"]
    scorers = read_scores(table, "cp", columns=["cp", "cp_global"])
    assert [scorer.column for scorer in scorers] == ["cp", "cp_global"]


def test_resuming_with_another_grid_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 1)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", interrupt)
        assert score(samples) == 130
    assert score(samples, "--prompts", "full") == 2
    assert 'prompts was ["stripped"] and is ["full"]' in capsys.readouterr().err


def test_options_without_their_score_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = written(tmp_path, 1)
    assert score(samples, "--scores", "cp", "--pooling", "full") == 2
    assert "--pooling is full, but --scores lacks pf; add it there" in capsys.readouterr().err
    assert score(samples, "--scores", "pf", "--aggregation", "masked,global") == 2
    assert "--aggregation is masked,global, but --scores lacks cp" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        score(samples, "--prompts", "bare")
    assert "'bare' is not one of stripped, full" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        score(samples, "--scores", "cp_global=own:f")
    assert "has the name of the score cp_global" in capsys.readouterr().err


def test_orida_refuses_mutual_recall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "scores.csv")
    assert main(["orida", str(tmp_path), "--out", out, *TINY, "--aggregation", "mutual-recall"]) == 2
    assert "mutual-recall, which needs two masks; ORIDa's pairs have one, leave it out" in capsys.readouterr().err
