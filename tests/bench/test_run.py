"""Runs that score a list: nothing is lost, nothing is scored twice, and what decides the scores is kept beside them."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.processes import command, started_command
from support.sample_lists import lines_in, rows, wait_for, written

from masc_metrics.bench import pictures
from masc_metrics.bench.outcome import Outcome
from masc_metrics.bench.ranks import share
from masc_metrics.bench.report import Summary
from masc_metrics.bench.run_folder import RunFolder
from masc_metrics.bench.sample import Sample
from masc_metrics.bench.scoring import Scoring
from masc_metrics.cli import main

TINY = ("--model", "tiny", "--max-num-patches", "16", "--device", "cpu", "--quiet")


def score(samples: Path, *options: str, out: str = "scores.csv") -> int:
    return main(["score", str(samples), "--out", str(samples.parent / out), *TINY, "--workers", "0", *options])


patched_workers = pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="only a forked worker has what the test has patched"
)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("list"), 24)


@pytest.fixture(scope="module")
def whole(listed: Path) -> list[dict[str, str]]:
    """What a run that nobody disturbs gives."""
    assert score(listed, out="whole.csv") == 0
    return rows(listed.parent / "whole.csv")


def summary_of(folder: Path, name: str = "scores") -> dict[str, Any]:
    said: dict[str, Any] = json.loads((folder / f"{name}.summary.json").read_text())
    return said


def same(one: list[dict[str, str]], other: list[dict[str, str]]) -> None:
    assert [row["sample_id"] for row in one] == [row["sample_id"] for row in other]
    for name in ("cp", "pf"):
        assert [float(row[name]) for row in one] == pytest.approx([float(row[name]) for row in other], abs=2e-6)


# Nothing lost


@pytest.mark.timeout(180)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_again_and_again_ends_with_every_sample_once(
    tmp_path: Path, processes: int, whole: list[dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 24)
    folder = tmp_path / "scores.csv.run"
    # By turns of one and of several processes: what is left belongs to whoever comes.
    for lines, count in ((1, processes), (9, 3 - processes), (16, processes)):
        arguments = ["score", str(samples), "--out", str(tmp_path / "scores.csv"), *TINY, "--batch-size", "1"]
        with started_command([*arguments, "--devices", str(count)], tmp_path) as process:
            wait_for(lines, folder, process)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
        assert not (tmp_path / "scores.csv").exists()
    assert 16 <= lines_in(folder) <= 24
    kept = lines_in(folder)
    assert score(samples) == 0
    assert f"{kept} samples are scored already" in capsys.readouterr().err
    same(rows(tmp_path / "scores.csv"), whole)
    assert not folder.exists()
    assert summary_of(tmp_path)["samples"] == 24


@pytest.mark.timeout(120)
def test_two_processes_score_what_one_scores(tmp_path: Path, whole: list[dict[str, str]]) -> None:
    samples = written(tmp_path, 24)
    arguments = [sys.executable, "-m", "masc_metrics", "score", str(samples), "--out", str(tmp_path / "scores.csv")]
    printed = command([*arguments, *TINY, "--devices", "2"])
    same(rows(tmp_path / "scores.csv"), whole)
    assert printed.count("mean of 24 samples") == 2, "CP and PF, once for all ranks"


@pytest.mark.timeout(120)
def test_torchrun_starts_the_ranks_as_well(tmp_path: Path, whole: list[dict[str, str]]) -> None:
    samples = written(tmp_path, 24)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command([*torchrun, "-m", "masc_metrics", "score", str(samples), "--out", str(tmp_path / "scores.csv"), *TINY])
    same(rows(tmp_path / "scores.csv"), whole)


@pytest.mark.timeout(120)
def test_a_rank_killed_alone_leaves_no_process_and_loses_nothing(tmp_path: Path, whole: list[dict[str, str]]) -> None:
    samples = written(tmp_path, 24, size=160)  # of pictures that no pipe holds
    arguments = ["score", str(samples), "--out", str(tmp_path / "scores.csv"), *TINY, "--batch-size", "1"]
    with started_command([*arguments, "--devices", "2"], tmp_path) as process:
        wait_for(4, tmp_path / "scores.csv.run", process)
        process.kill()  # the first rank; the second one and the four that open pictures are its children and theirs
        _, told = process.communicate(timeout=30)  # which ends when the last of them has closed its stderr
    assert "another rank ended before its part was done" in told.decode()
    kept = lines_in(tmp_path / "scores.csv.run")
    assert 12 <= kept < 24, "the second rank has done its part"
    assert score(samples) == 0
    assert len(rows(tmp_path / "scores.csv")) == 24


@patched_workers
def test_a_killed_worker_is_told_of_and_the_run_goes_on_later(
    tmp_path: Path, whole: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 24)
    real = pictures.Opening.open

    def killed_at_the_ninth(self: pictures.Opening, number: int, *arguments: Any) -> pictures.Opened:
        if number == 9:
            time.sleep(1)  # until what was opened before is scored
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, number, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pictures.Opening, "open", killed_at_the_ninth)
        assert score(samples, "--workers", "1", "--batch-size", "1") == 2
    told = capsys.readouterr().err
    assert "a process that opens pictures was ended from outside, as for want of memory; give fewer --workers" in told
    assert "what was scored is kept in" in told
    assert 0 < lines_in(tmp_path / "scores.csv.run") < 24
    assert score(samples) == 0
    same(rows(tmp_path / "scores.csv"), whole)


@patched_workers
def test_workers_leave_control_c_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ended by itself would wait for its last batch to be read, and the run some seconds for it."""
    monkeypatch.setattr(pictures.Opening, "open", lambda *_: signal.getsignal(signal.SIGINT))
    opening = pictures.Opening.__new__(pictures.Opening)
    samples: Any = [None]
    asked: Any = pictures.opened_batches(samples, [0], opening, batch_size=1, workers=1)
    assert list(asked) == [[signal.SIG_IGN]]


def test_a_device_without_memory_is_told_of_with_the_remedy(
    listed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> list[Outcome]:
        raise torch.cuda.OutOfMemoryError("Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Scoring, "score", full)
    assert score(listed, out="full.csv") == 2
    assert (
        "memory is full; give a smaller --batch-size or fewer --workers (Tried to allocate 2.0"
        in capsys.readouterr().err
    )


def interrupted(samples: Path, after: int, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """Ends a run after some batches of 4, as by Control-C."""
    scored = 0
    real = Scoring.score

    def limited(self: Scoring, *arguments: Any) -> list[Outcome]:
        nonlocal scored
        if scored == after:
            raise KeyboardInterrupt
        scored += 1
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Scoring, "score", limited)
        assert score(samples, "--batch-size", "4", *options) == 130


def test_a_line_cut_short_is_scored_again(
    tmp_path: Path, whole: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = written(tmp_path, 24)
    interrupted(samples, 3, monkeypatch)
    (shard,) = (tmp_path / "scores.csv.run").glob("*.jsonl")
    content = shard.read_bytes()
    assert content.count(b"\n") == 12
    shard.write_bytes(content[: content.rindex(b'"cp"')] + b"\0" * 50)
    assert score(samples) == 0
    same(rows(tmp_path / "scores.csv"), whole)


def test_other_settings_are_refused_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 8)
    interrupted(samples, 1, monkeypatch)
    capsys.readouterr()
    for options, named in (
        (("--max-num-patches", "25"), "max_num_patches was 16 and is 25"),
        (("--dtype", "bfloat16"), 'dtype was "float32" and is "bfloat16"'),
        (("--min-coverage", "0.1"), "min_coverage was null and is 0.1"),
        (("--scores", "cp"), 'scores was ["cp", "pf"] and is ["cp"]'),
    ):
        assert score(samples, *options) == 2
        error = capsys.readouterr().err
        assert named in error
        assert "--restart" in error
        assert error.count(" was ") == 3, "begun, scored, and one setting: nothing else is different"
    samples.write_text(samples.read_text().replace("s3,", "s33,"))
    assert score(samples) == 2
    assert "samples_sha256 was" in capsys.readouterr().err
    assert score(samples, "--restart", "--max-num-patches", "25") == 0
    assert "scored already" not in capsys.readouterr().err
    assert len(rows(tmp_path / "scores.csv")) == 8


def test_two_runs_of_one_file_do_not_disturb_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = written(tmp_path, 8)
    other = RunFolder(tmp_path / "scores.csv.run")
    other.begin({})
    assert score(samples) == 2
    assert "another process works in" in capsys.readouterr().err
    assert score(samples, "--restart") == 2, "nor is its work thrown away"
    other.release()
    assert score(samples, "--restart") == 0
    assert len(rows(tmp_path / "scores.csv")) == 8


def test_a_moved_list_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = written(tmp_path / "here", 8)
    interrupted(samples, 1, monkeypatch)
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert score(Path("samples.csv")) == 0
    assert len(rows(Path("scores.csv"))) == 8


def test_a_sample_that_failed_is_tried_again(
    tmp_path: Path, whole: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = written(tmp_path, 24)
    away = (tmp_path / "out" / "0.png").rename(tmp_path / "away.png")
    interrupted(samples, 3, monkeypatch)
    away.rename(tmp_path / "out" / "0.png")
    assert score(samples) == 0
    same(rows(tmp_path / "scores.csv"), whole)


def test_a_full_disk_keeps_what_was_scored(
    tmp_path: Path, whole: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 24)
    real, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("masc_metrics.bench.run_folder.SECONDS_BETWEEN_SYNCS", 0.0)
        patch.setattr(os, "fsync", full)
        assert score(samples, "--batch-size", "4") == 2
    assert "No space left on device" in (error := capsys.readouterr().err)
    assert "start again" in error
    assert lines_in(tmp_path / "scores.csv.run") == 8
    assert score(samples) == 0
    same(rows(tmp_path / "scores.csv"), whole)


def test_a_run_folder_with_a_gap_gives_no_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.begin({"a": 1}) == []
    with folder.shard(0) as shard:
        shard.write([Outcome(number, {"cp": 0.5}, {}) for number in (0, 2)])
    with pytest.raises(FileNotFoundError, match="1 of 3 samples are not scored, the first is number 1"):
        list(folder.outcomes(3))
    folder.release()
    assert sorted(folder.begin({"a": 1})) == [0, 2]
    folder.release()


# Bad samples


def test_each_bad_sample_has_its_reason_and_the_rest_is_scored(
    tmp_path: Path, whole: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 24)
    out = tmp_path / "out"
    (out / "0.png").write_bytes((out / "0.png").read_bytes()[:200])
    (out / "1.png").write_text("not a picture")
    Image.new("1", (12000, 10000)).save(out / "2.png")
    Image.new("L", (90, 30)).save(out / "3_mask.png")
    labels = np.zeros((48, 48), np.uint8)
    labels[10:30, 10:30] = 3
    Image.fromarray(labels).save(out / "4_mask.png")
    (out / "5_mask.png").unlink()
    assert score(samples, "--workers", "2") == 3
    written_rows = rows(tmp_path / "scores.csv")
    for row, reason in zip(
        written_rows,
        [
            "0.png: cannot be read as an image (",
            "1.png: cannot be read as an image (",
            "10000 x 12000 pixels are more than 100000000",
            "3_mask.png is (30, 90) but its image is (48, 48)",
            "4_mask.png holds integers up to 3",
            "5_mask.png: no such file",
        ],
        strict=False,
    ):
        assert reason in row["error"]
        assert row["cp"] == row["pf"] == ""
    same(written_rows[6:], whole[6:])
    printed = capsys.readouterr()
    assert "6 of 24 rows failed" in printed.err
    assert summary_of(tmp_path)["failed"] == 6
    monkeypatch.setattr(pictures, "MAX_PIXELS", 48 * 48 - 1)
    assert score(samples, "--workers", "0") == 3
    assert all(
        "2304" not in row["error"] and "are more than 2303" in row["error"] for row in rows(tmp_path / "scores.csv")[6:]
    )


def test_thin_masks_are_left_out_and_counted(tmp_path: Path, whole: list[dict[str, str]]) -> None:
    samples = written(tmp_path, 24)
    thin = np.zeros((40, 40), bool)
    thin[:2] = True  # 5 % of the pixels exactly
    Image.fromarray(thin).save(tmp_path / "out" / "1_mask.png")
    assert score(samples, "--min-coverage", "0.05") == 0
    found = rows(tmp_path / "scores.csv")
    assert found[1]["left_out"] == "generated_mask marks 5.00 % of its pixels, at most 5 %"
    assert (found[1]["cp"], found[1]["error"], float(found[1]["generated_coverage"])) == ("", "", pytest.approx(0.05))
    same([found[0], *found[2:]], [whole[0], *whole[2:]])
    summary = summary_of(tmp_path)
    assert (summary["left_out"], summary["failed"], summary["all"]["cp"]["n"]) == (1, 0, 23)
    assert score(samples, "--min-coverage", "0.049") == 0
    assert summary_of(tmp_path)["left_out"] == 0


# What is written


def test_rows_say_what_was_measured(listed: Path, whole: list[dict[str, str]]) -> None:
    for number, row in enumerate(whole):
        for which, file in (("generated", f"out/{number}"), ("reference", f"ref/{number % 3}")):
            mask = np.array(Image.open(listed.parent / f"{file}_mask.png"))
            assert float(row[f"{which}_coverage"]) == pytest.approx(mask.mean(), abs=1e-6)
            assert int(row[f"{which}_patches"]) == 16
            assert 0 < int(row[f"{which}_subject_patches"]) < 16
        assert row["stripped_prompt"]
        assert row["method"] == "AB"[number % 2]


def test_parquet_holds_what_csv_holds(listed: Path, whole: list[dict[str, str]]) -> None:
    import pyarrow.parquet

    assert score(listed, out="scores.parquet") == 0
    table = pyarrow.parquet.read_table(listed.parent / "scores.parquet").to_pylist()
    same([{name: str(value) for name, value in row.items()} for row in table], whole)
    assert list(table[0]) == list(whole[0])
    assert isinstance(table[0]["cp"], float)
    assert isinstance(table[0]["reference_patches"], float)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_standard_output_gets_the_rows(
    listed: Path, whole: list[dict[str, str]], tmp_path: Path, processes: str
) -> None:
    arguments = [sys.executable, "-m", "masc_metrics", "score", str(listed.resolve()), "--out", "/dev/stdout", *TINY]
    arguments += ["--devices", processes]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=True)
    same(list(csv.DictReader(done.stdout.splitlines())), whole)
    assert "mean of 24 samples" in done.stderr
    assert not list(tmp_path.iterdir())


def test_standard_output_is_written_to_where_it_is_a_file_too(tmp_path: Path) -> None:
    from masc_metrics.bench.score_file import ScoreFile, is_device

    assert is_device(Path("/dev/null"))
    assert not is_device(tmp_path / "new.csv")
    (tmp_path / "real.csv").write_text("earlier")
    with (tmp_path / "real.csv").open() as stream:
        assert is_device(Path(f"/proc/self/fd/{stream.fileno()}"))
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "real.csv")
    with ScoreFile(link, ("a",), ()) as file:
        file.write({"a": "half \ud800 of a pair"})
    assert link.is_symlink()
    assert (tmp_path / "real.csv").read_text().splitlines() == ["a", "half \\ud800 of a pair"]


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = written(tmp_path, 4)
    (tmp_path / "scores.csv.run").mkdir()
    mine = tmp_path / "scores.csv.run" / "notes.txt"
    mine.write_text("mine")
    for options in ((), ("--restart",)):
        assert score(samples, *options) == 2
        assert "holds 'notes.txt', but no settings of a run; remove it" in capsys.readouterr().err
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("line", ['{"number":0,"error":""}', '{"number":Infinity,"error":""}', "null", "[0]"])
def test_a_line_that_is_no_outcome_is_scored_again(tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = written(tmp_path, 8)
    interrupted(samples, 1, monkeypatch)
    (tmp_path / "scores.csv.run" / "00000-a.jsonl").write_text(line + "\n")
    assert score(samples) == 0
    assert len(rows(tmp_path / "scores.csv")) == 8


def test_rows_that_cannot_be_read_fail_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = written(tmp_path, 4)
    os.mkfifo(tmp_path / "out" / "pipe.png")
    text = samples.read_text().replace("out/1.png", "out/pipe.png").rstrip() + "\nout/2.png,out\n"
    samples.write_text(text)
    assert score(samples) == 3
    errors = [row["error"] for row in rows(tmp_path / "scores.csv")]
    assert [bool(error) for error in errors] == [False, True, False, False, True]
    assert "it is no regular file" in errors[1]
    assert "fewer cells" in errors[4]


def test_a_checkpoint_of_a_baseline_that_is_not_asked_for_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 2)
    assert score(samples, "--baseline-model", "clip-i=somewhere") == 2
    assert "--baseline-model names clip-i, but --scores does not" in capsys.readouterr().err


def test_scores_of_one_kind_need_the_files_of_one_kind(tmp_path: Path, whole: list[dict[str, str]]) -> None:
    samples = written(tmp_path, 24)
    for file in (tmp_path / "out").glob("*_mask.png"):
        file.unlink()
    lines = [line.split(",") for line in samples.read_text().splitlines()]
    kept = [place for place, name in enumerate(lines[0]) if name not in ("generated_mask", "prompt", "subject")]
    samples.write_text("\n".join(",".join(line[place] for place in kept) for line in lines))
    assert score(samples, "--scores", "cp") == 0
    found = rows(tmp_path / "scores.csv")
    assert [float(row["cp"]) for row in found] == pytest.approx([float(row["cp"]) for row in whole], abs=2e-6)
    assert "pf" not in found[0]


def test_a_baseline_stands_beside_masc_in_one_table(listed: Path, whole: list[dict[str, str]]) -> None:
    from masc_metrics import load_backbone
    from masc_metrics.bench.baselines.registry import load_baseline

    assert score(listed, "--scores", "siglip2-t,cp,siglip2-i", out="both.csv") == 0
    found = rows(listed.parent / "both.csv")
    assert [name for name in found[0] if name in ("siglip2-t", "cp", "pf", "siglip2-i")] == [
        "siglip2-t",
        "cp",
        "siglip2-i",
    ]
    backbone = load_backbone("tiny")
    opened = [np.array(Image.open(listed.parent / file)) for file in ("out/5.png", "ref/2.png")]
    image, text = (
        load_baseline(name, device="cpu", backbone=backbone, max_num_patches=16) for name in ("siglip2-i", "siglip2-t")
    )
    assert float(found[5]["siglip2-i"]) == pytest.approx(image.score(opened[:1], opened[1:])[0], abs=2e-6)
    prompt = rows(listed)[5]["prompt"]
    assert float(found[5]["siglip2-t"]) == pytest.approx(text.score_texts(opened[:1], [prompt])[0], abs=2e-6)
    assert [float(row["cp"]) for row in found] == pytest.approx([float(row["cp"]) for row in whole], abs=2e-6)


def test_the_summary_gives_means_by_group(listed: Path, whole: list[dict[str, str]]) -> None:
    summary = summary_of(listed.parent, "whole")
    cp = np.array([float(row["cp"]) for row in whole])
    pf = np.array([float(row["pf"]) for row in whole])
    everything = summary["all"]
    assert everything["cp"]["mean"] == pytest.approx(cp.mean(), abs=1e-7)
    assert everything["cp"]["standard_error"] == pytest.approx(cp.std(ddof=1) / math.sqrt(24), abs=1e-7)
    assert everything["cp_times_pf"]["mean"] == pytest.approx(cp.mean() * pf.mean(), abs=1e-7)
    assert everything["pf"]["concepts"] == 3
    assert set(summary["by"]) == {"method", "category", "concept", "method / category"}
    b_round = [row["method"] == "B" and row["category"] == "round" for row in whole]
    assert summary["by"]["method / category"]["B / round"]["cp"]["mean"] == pytest.approx(cp[b_round].mean(), abs=1e-7)
    assert summary["settings"]["max_num_patches"] == 16
    assert summary["settings"]["checkpoint"].startswith("sha256:")


def added(summary: Summary, concept: str, cp: float, pf: float | None = None) -> None:
    sample = Sample(1, "1", "", None, "", None, None, None, concept=concept)
    summary.add(sample, Outcome(0, {"cp": cp, "pf": pf}, {}))


def test_intervals_are_of_concepts_not_of_samples() -> None:
    dice = np.random.default_rng(1)
    few, many = Summary(("cp", "pf")), Summary(("cp", "pf"))
    effects = dice.normal(0.5, 0.1, size=40)
    for concept, effect in enumerate(effects):
        added(few, str(concept), effect)
        for _ in range(50):  # repeating a concept's samples tells nothing new about concepts
            added(many, str(concept), effect)
    one, other = (summary.as_dict()["all"]["cp"] for summary in (few, many))
    assert one["interval_95"] == pytest.approx(other["interval_95"])
    low, high = one["interval_95"]
    expected = 1.96 * effects.std() / math.sqrt(40)
    assert (high - low) / 2 == pytest.approx(expected, rel=0.1)
    assert other["standard_error"] < one["standard_error"] / 6


def test_what_is_not_defined_is_null() -> None:
    summary = Summary(("cp", "pf"))
    assert summary.as_dict()["all"]["cp"] == {
        "n": 0,
        "mean": None,
        "standard_error": None,
        "concepts": 0,
        "interval_95": None,
    }
    added(summary, "a", 0.25, None)
    added(summary, "a", math.nan, None)
    figures = summary.as_dict()
    assert figures["all"]["cp"]["mean"] == 0.25
    assert figures["all"]["cp"]["standard_error"] is None
    assert figures["all"]["cp"]["interval_95"] is None, "one concept has no spread"
    assert figures["all"]["cp_times_pf"]["mean"] is None
    assert figures["undefined"] == {"cp": 1, "pf": 0}
    json.dumps(figures, allow_nan=False)


# Shares


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_ranks_share_without_repeats_and_keep_references_together(world: int) -> None:
    dice = np.random.default_rng(world)
    references = [f"r{number}" for number in dice.integers(0, 40, size=400)]
    parts = [share(references, rank, world) for rank in range(world)]
    assert sorted(place for part in parts for place in part) == list(range(400))
    assert all(abs(len(part) - 400 / world) <= 2 * (400 / world / 10 + 1) for part in parts)
    owners = {
        reference: {rank for rank, part in enumerate(parts) for p in part if references[p] == reference}
        for reference in references
    }
    assert sum(len(ranks) > 1 for ranks in owners.values()) <= world - 1


def test_few_references_are_not_split_where_a_cut_is_near() -> None:
    references = ["a"] * 11 + ["b"] * 9
    assert [len(share(references, rank, 2)) for rank in range(2)] == [11, 9]
    one_reference = ["a"] * 20
    assert [len(share(one_reference, rank, 2)) for rank in range(2)] == [10, 10]
    assert [share(["a"], rank, 3) for rank in range(3)].count([0]) == 1
    assert share([], 0, 2) == []
