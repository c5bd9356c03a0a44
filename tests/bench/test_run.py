"""Runs that score a list: no result is lost, no sample is scored twice, and the settings are stored with the scores."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.checkpoints import build_checkpoint
from support.processes import command, started_command
from support.sample_lists import lines_in, rows, wait_for, write_csv, written
from support.segmenter_checkpoints import build_clipseg

from masc_metrics.bench import loading
from masc_metrics.bench.distributed import Ranks, rank_share
from masc_metrics.bench.parent import end_with_starter
from masc_metrics.bench.run import Run
from masc_metrics.bench.run_folder import RunFolder
from masc_metrics.bench.sample import Sample, SampleResult
from masc_metrics.bench.scoring import Scorer
from masc_metrics.bench.summary import summarize, summary_lines
from masc_metrics.bench.tables import write_table
from masc_metrics.cli import main
from masc_metrics.reading import NotFiniteError

TINY = ("--model", "tiny", "--max-num-patches", "16", "--device", "cpu", "--quiet")


def score(samples: Path, *options: str, out: str = "scores.csv") -> int:
    return main(["score", str(samples), "--out", str(samples.parent / out), *TINY, "--workers", "0", *options])


patched_workers = pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="only forked workers inherit a patch"
)


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("list"), 24)


@pytest.fixture(scope="module")
def expected(listed: Path) -> list[dict[str, str]]:
    """Rows of an uninterrupted run."""
    assert score(listed, out="expected.csv") == 0
    return rows(listed.parent / "expected.csv")


def summary_of(folder: Path, name: str = "scores") -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / f"{name}.summary.json").read_text())
    return summary


def assert_same(found: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    assert [row["sample_id"] for row in found] == [row["sample_id"] for row in expected]
    for name in ("cp", "pf"):
        assert [float(row[name]) for row in found] == pytest.approx([float(row[name]) for row in expected], abs=2e-6)


# Interrupted runs


@pytest.mark.timeout(180)
def test_run_killed_repeatedly_scores_every_sample_once(
    tmp_path: Path, expected: list[dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 24)
    folder = tmp_path / "scores.csv.run"
    # Alternately one and several processes: unfinished samples are shared anew at each start.
    for lines, count in ((1, 2), (9, 1), (16, 2)):
        arguments = ["score", str(samples), "--out", str(tmp_path / "scores.csv"), *TINY, "--batch-size", "1"]
        with started_command([*arguments, "--devices", str(count)], tmp_path) as process:
            wait_for(lines, folder, process)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
        assert not (tmp_path / "scores.csv").exists()
    assert 16 <= lines_in(folder) <= 24
    kept = lines_in(folder)
    assert score(samples) == 0
    assert f"resuming: {kept} samples have scores in" in capsys.readouterr().err
    assert_same(rows(tmp_path / "scores.csv"), expected)
    assert not folder.exists()
    assert summary_of(tmp_path)["samples"] == 24


@pytest.mark.timeout(120)
def test_two_processes_give_the_scores_of_one(tmp_path: Path, expected: list[dict[str, str]]) -> None:
    samples = written(tmp_path, 24)
    arguments = [sys.executable, "-m", "masc_metrics", "score", str(samples), "--out", str(tmp_path / "scores.csv")]
    printed = command([*arguments, *TINY, "--devices", "2"])
    assert_same(rows(tmp_path / "scores.csv"), expected)
    assert printed.count("24 samples of 3 concepts") == 2, "CP and PF, printed by one rank"


@pytest.mark.timeout(120)
def test_torchrun_can_start_the_ranks(tmp_path: Path, expected: list[dict[str, str]]) -> None:
    samples = written(tmp_path, 24)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command([*torchrun, "-m", "masc_metrics", "score", str(samples), "--out", str(tmp_path / "scores.csv"), *TINY])
    assert_same(rows(tmp_path / "scores.csv"), expected)


@pytest.mark.timeout(120)
def test_killed_rank_leaves_no_process_and_loses_no_result(tmp_path: Path, expected: list[dict[str, str]]) -> None:
    samples = written(tmp_path, 24, size=160)  # a batch exceeds the buffer of a pipe
    arguments = ["score", str(samples), "--out", str(tmp_path / "scores.csv"), *TINY, "--batch-size", "1"]
    with started_command([*arguments, "--devices", "2"], tmp_path) as process:
        wait_for(4, tmp_path / "scores.csv.run", process)
        process.kill()  # the first rank; the second rank and the four workers are its descendants
        _, error = process.communicate(timeout=30)  # returns when the last of them has closed its stderr
    assert "rank 1 ends, because the process that started it has ended" in error.decode()
    assert 4 <= lines_in(tmp_path / "scores.csv.run") < 24
    assert score(samples) == 0
    assert len(rows(tmp_path / "scores.csv")) == 24


@contextlib.contextmanager
def two_ranks(samples: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A command with ``--devices 2``, and the id of its second rank, which has just been started."""
    arguments = ["score", str(samples), "--out", str(samples.parent / "scores.csv"), *TINY, "--devices", "2"]
    with started_command(arguments, samples.parent) as process:
        while not (started := [child for child in children_of(process) if is_second_rank(child)]):
            assert process.poll() is None
            time.sleep(0.02)
        yield process, started[0]


def children_of(process: subprocess.Popen[bytes]) -> list[int]:
    return list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


def is_second_rank(process: int) -> bool:
    try:
        return b"LOCAL_RANK=1" in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:  # a program that a package runs while it is imported, and that has ended
        return False


has_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="child processes are found in /proc")


@pytest.mark.timeout(120)
@has_proc
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_rank_ends_within_five_seconds_of_the_first_also_while_it_starts(tmp_path: Path, end: signal.Signals) -> None:
    samples = written(tmp_path, 24)
    with two_ranks(samples) as (process, _):
        process.send_signal(end)
        process.communicate(timeout=5)  # returns when the second rank has closed its stderr
    assert score(samples) == 0


@pytest.mark.timeout(120)
@has_proc
def test_control_c_while_two_ranks_load_ends_both_in_one_line_with_130(tmp_path: Path) -> None:
    with two_ranks(written(tmp_path, 8)) as (process, _):
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
        _, error = process.communicate(timeout=30)  # returns when both have closed their stderr
    assert process.returncode == 130
    said = [line for line in error.decode().splitlines() if "rocess" not in line and not line.startswith(("-", "dist"))]
    assert list(filter(None, said)) == ["masc-metrics: interrupted"], "besides Lightning's greeting"


def test_control_c_in_code_that_is_run_from_text_ends_with_130(tmp_path: Path) -> None:
    """``python -m`` would end by a signal."""
    code = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)"
    (tmp_path / "own_scores.py").write_text(f"exec({code!r})")
    arguments = ["score", str(written(tmp_path, 2)), "--out", str(tmp_path / "s.csv"), *TINY]
    with started_command([*arguments, "--scores", "own=own_scores:score"], tmp_path) as process:
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, b"masc-metrics: interrupted\n")


@pytest.mark.timeout(120)
@has_proc
def test_a_rank_that_is_killed_is_named_with_its_signal_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    samples = written(tmp_path, 8)
    with two_ranks(samples) as (process, rank):
        os.kill(rank, signal.SIGKILL)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 2
    line = "masc-metrics: rank 1 was ended by SIGKILL, probably for lack of memory; start again to continue"
    assert [each for each in error.decode().splitlines() if "masc-metrics" in each] == [line]
    assert score(samples) == 0


def test_only_a_rank_that_was_started_by_another_ends_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    names = []
    for starter in ("", str(os.getppid())):
        if starter:
            monkeypatch.setenv("MASC_METRICS_STARTER", starter)
        monkeypatch.setattr(
            "masc_metrics.bench.parent.threading.Thread",
            lambda name, **_: names.append(name) or SimpleNamespace(start=lambda: None),
        )
        end_with_starter()
        assert names == ["end-with-starter"] * bool(starter)
    assert "MASC_METRICS_STARTER" not in os.environ


@pytest.mark.timeout(180)
def test_a_run_that_ends_at_any_file_operation_can_go_on(tmp_path: Path) -> None:
    program = Path(__file__).parents[1] / "support" / "crash_points.py"
    result = subprocess.run(
        [sys.executable, str(program), "ENOSPC,SIGKILL", str(written(tmp_path, 6)), "--points", "12"],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "12", "points"


def test_a_rank_that_loses_the_first_ends_with_an_error_of_the_machine() -> None:
    class Disconnected:
        def broadcast(self, value: Any, src: int) -> Any:
            raise RuntimeError("Connection closed by peer")

        def barrier(self) -> None:
            raise RuntimeError("Connection closed by peer")

    ranks = Ranks(1, 2, torch.device("cpu"), Disconnected())  # type: ignore[arg-type]  # in place of Fabric
    for call in (lambda: ranks.from_first(None), ranks.wait):
        with pytest.raises(ConnectionError, match="another rank ended before its part was done"):
            call()


@pytest.mark.timeout(120)
def test_a_run_of_two_ranks_that_ends_at_any_file_operation_of_one_can_go_on(tmp_path: Path) -> None:
    program = Path(__file__).parents[1] / "support" / "crash_points.py"
    result = subprocess.run(
        [
            sys.executable,
            str(program),
            "ENOSPC,EIO,SIGKILL",
            str(written(tmp_path, 6)),
            "--ranks",
            "2",
            "--points",
            "2",
        ],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "2", "points"
    assert result.stderr.count("of rank 1:") == 1


def test_a_folder_that_is_removed_during_the_run_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, folder, real = written(tmp_path, 8), tmp_path / "scores.csv.run", Scorer.score

    def removed(self: Scorer, batch: Any) -> Any:
        shutil.rmtree(folder)
        return real(self, batch)

    monkeypatch.setattr(Scorer, "score", removed)
    assert score(samples, "--batch-size", "4") == 2
    printed = capsys.readouterr().err
    assert f"{folder}, the folder of this unfinished run, was removed or replaced\n" in printed
    assert "kept" not in printed


def test_results_are_not_said_to_be_kept_in_a_folder_that_has_replaced_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, folder, real = written(tmp_path, 8), tmp_path / "scores.csv.run", Scorer.score

    def replaced(self: Scorer, batch: Any) -> Any:
        folder.rename(tmp_path / "elsewhere")
        folder.mkdir()
        return real(self, batch)

    monkeypatch.setattr(Scorer, "score", replaced)
    assert score(samples) == 2
    expected = f"masc-metrics: {folder}, the folder of this unfinished run, was removed or replaced"
    assert capsys.readouterr().err.splitlines() == [expected]


@pytest.mark.parametrize("name", ["scores.csv.part", "scores.summary.json", "scores.summary.json.part"])
def test_out_that_cannot_be_written_is_an_error_before_anything_is_scored(
    listed: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir()
    out = tmp_path / "scores.csv"
    assert main(["score", str(listed), "--out", str(out), *TINY]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"masc-metrics: --out is {out}, but {tmp_path / name}, which it would write, is a folder; give another name"
    ]


def test_out_that_is_a_looping_link_is_an_error_before_anything_is_scored(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.csv"
    out.symlink_to(out)
    assert main(["score", str(listed), "--out", str(out), *TINY]) == 2
    assert capsys.readouterr().err.startswith(f"masc-metrics: --out is {out}, which cannot be written: Too many levels")


def test_a_table_does_not_replace_the_summary_of_another_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 4)
    assert score(samples, out="s.csv") == 0
    summary = (tmp_path / "s.summary.json").read_text()
    capsys.readouterr()
    assert score(samples, out="s.jsonl") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        f"whose summary would replace {tmp_path / 's.summary.json'}, that of {tmp_path / 's.csv'}; give a name" in line
    )
    assert (tmp_path / "s.summary.json").read_text() == summary
    assert score(samples, out="s.csv") == 0, "its own"
    (tmp_path / "s.csv").unlink()
    assert score(samples, out="s.jsonl") == 0


@pytest.mark.parametrize("cell", ["a\0b.png", "a\ud800b.png"])
def test_a_cell_that_can_name_no_file_is_an_error_of_its_row_also_if_out_exists(tmp_path: Path, cell: str) -> None:
    samples = tmp_path / "samples.jsonl"
    listed = rows(written(tmp_path, 4))
    listed[1]["generated_image"] = cell
    samples.write_text("\n".join(map(json.dumps, listed)))
    (tmp_path / "scores.csv").touch()
    assert score(samples) == 3
    assert [bool(row["error"]) for row in rows(tmp_path / "scores.csv")] == [False, True, False, False]


def test_settings_that_are_nested_too_deeply_are_an_error_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 4)
    folder = tmp_path / "scores.csv.run"
    folder.mkdir()
    (folder / "settings.json").write_text("[" * 100_000)
    assert score(samples) == 2
    assert "settings.json cannot be read" in capsys.readouterr().err


@patched_workers
def test_killed_worker_is_reported_and_the_run_can_be_resumed(
    tmp_path: Path, expected: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 24)
    real = loading.Loader.load

    def killed_at_the_ninth(self: loading.Loader, number: int, references: Any) -> loading.Loaded:
        if number == 9:
            time.sleep(1)  # until the samples before it are scored
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, number, references)

    with monkeypatch.context() as patch:
        patch.setattr(loading.Loader, "load", killed_at_the_ninth)
        assert score(samples, "--workers", "1", "--batch-size", "1") == 2
    error = capsys.readouterr().err
    assert "an image-loading worker process was killed, probably for lack of memory; give fewer --workers" in error
    assert "results are kept in" in error
    assert 0 < lines_in(tmp_path / "scores.csv.run") < 24
    assert score(samples) == 0
    assert_same(rows(tmp_path / "scores.csv"), expected)


@patched_workers
def test_workers_ignore_control_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that ends by itself waits for its last batch to be read, and the run waits for the worker."""
    monkeypatch.setattr(loading.Loader, "load", lambda *_: signal.getsignal(signal.SIGINT))
    processing: Any = None
    batches: Any = loading.loaded_batches(
        [Sample(1, "1", "a", None, "", None, None, None)], [0], processing, Run(Path(), workers=1)
    )
    assert list(batches) == [[signal.SIG_IGN]]


def test_full_device_memory_is_reported_with_the_remedy(
    listed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> list[SampleResult]:
        raise torch.cuda.OutOfMemoryError("Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Scorer, "score", full)
    assert score(listed, out="full.csv") == 2
    expected = "out of memory; give a smaller --batch-size or fewer --workers (Tried to allocate 2.0"
    assert expected in capsys.readouterr().err


NO_MEMORY = "out of memory; give a smaller --batch-size or fewer --workers"


def test_allocation_that_fails_is_reported_in_one_line_with_the_remedy(
    listed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> list[SampleResult]:
        torch.empty(2**60, dtype=torch.uint8)  # torch's error for a CPU is a RuntimeError
        raise AssertionError

    monkeypatch.setattr(Scorer, "score", full)
    assert score(listed, out="full_cpu.csv") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"masc-metrics: {NO_MEMORY} (")
    assert "you tried to allocate 1152921504606846976 bytes" in line


@patched_workers
@pytest.mark.parametrize("allocate", [lambda *_: np.empty(2**60, np.uint8), lambda *_: torch.empty(2**60)])
def test_allocation_that_fails_in_a_worker_is_reported_in_one_line_with_the_remedy(
    listed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], allocate: Any
) -> None:
    monkeypatch.setattr(loading.Loader, "load", allocate)
    assert score(listed, "--workers", "1", out="full_worker.csv") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"masc-metrics: {NO_MEMORY} (")
    assert "allocate" in line


def test_lack_of_memory_elsewhere_in_a_command_is_reported_in_one_line(
    listed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("masc_metrics.bench.score_command.read_samples", full)
    assert score(listed, out="full_list.csv") == 2
    expected = "masc-metrics: out of memory; close other programs, or give less at a time (MemoryError)"
    assert capsys.readouterr().err.splitlines() == [expected]


def without_masks(samples: Path) -> Path:
    return write_csv(samples, [row | {"generated_mask": "", "reference_mask": ""} for row in rows(samples)])


def build_dino(folder: Path) -> Path:
    """A DINO of one small layer."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=32)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    values = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return folder


def interrupted(samples: Path, after: int, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """Interrupt a run after some batches of 4, as Ctrl-C does."""
    scored = 0
    real = Scorer.score

    def limited(self: Scorer, *arguments: Any) -> list[SampleResult]:
        nonlocal scored
        if scored == after:
            raise KeyboardInterrupt
        scored += 1
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", limited)
        assert score(samples, "--batch-size", "4", *options) == 130


def test_sample_of_a_truncated_line_is_scored_again(
    tmp_path: Path, expected: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = written(tmp_path, 24)
    interrupted(samples, 3, monkeypatch)
    (shard,) = (tmp_path / "scores.csv.run").glob("*.jsonl")
    content = shard.read_bytes()
    assert content.count(b"\n") == 12
    shard.write_bytes(content[: content.rindex(b'"cp"')] + b"\0" * 50)
    assert score(samples) == 0
    assert_same(rows(tmp_path / "scores.csv"), expected)


def test_resuming_with_other_settings_is_refused_and_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 8)
    interrupted(samples, 1, monkeypatch)
    capsys.readouterr()
    for options, named in (
        (("--max-num-patches", "25"), "max_num_patches was 16 and is 25"),
        (("--dtype", "bf16"), 'dtype was "float32" and is "bfloat16"'),
        (("--min-coverage", "0.1"), "min_coverage was null and is 0.1"),
        (("--scores", "cp"), 'scores was ["cp", "pf"] and is ["cp"]'),
    ):
        assert score(samples, *options) == 2
        error = capsys.readouterr().err
        assert named in error
        assert "--restart" in error
        assert error.count(" was ") == 2, "was started, and one setting: no other differs"
    for options in (("--batch-size", "2", "--dtype", "fp32"), ("--workers", "1", "--quiet")):
        with monkeypatch.context() as patch:
            patch.setattr(Scorer, "score", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            assert score(samples, *options) == 130, "settings that do not affect scores may differ"
    samples.write_text(samples.read_text().replace("s3,", "s33,"))
    assert score(samples) == 2
    assert "samples_sha256 was" in capsys.readouterr().err
    assert score(samples, "--restart", "--max-num-patches", "25") == 0
    assert "resuming" not in capsys.readouterr().err
    assert len(rows(tmp_path / "scores.csv")) == 8


def test_resuming_with_other_weights_of_any_checkpoint_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = without_masks(written(tmp_path / "list", 8))
    siglip2 = build_checkpoint(tmp_path / "siglip2", layers=1)
    dino, clipseg = build_dino(tmp_path / "dino"), build_clipseg(tmp_path / "clipseg")
    options = ("--model", str(siglip2), "--scores", "cp,pf,dino-i", "--baseline-model", f"dino-i={dino}")
    options += ("--mask-source", "clipseg", "--checkpoint", str(clipseg))
    interrupted(samples, 1, monkeypatch, *options)
    for folder, named in (
        (siglip2, 'checkpoint was "sha256:'),
        (dino, 'baselines.dino-i.version was "sha256:'),
        (clipseg, f'segmenter.checkpoints.{clipseg} was "sha256:'),
    ):
        weights = folder / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
        capsys.readouterr()
        assert score(samples, *options) == 2
        error = capsys.readouterr().err
        assert named in error
        assert error.count(" was ") == 2, "was started, and one checkpoint: no other differs"
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    assert score(samples, *options) == 0
    assert "resuming: 4 samples" in capsys.readouterr().err


def test_resuming_with_other_pictures_in_parquet_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = rows(written(tmp_path, 8))
    table = {name: [row[name] for row in listed] for name in listed[0]}
    for name in ("generated_image", "generated_mask", "reference_image", "reference_mask"):
        table[name] = [(tmp_path / file).read_bytes() for file in table[name]]
    file = tmp_path / "samples.parquet"
    pq.write_table(pa.table(table), file)
    interrupted(file, 1, monkeypatch)
    pq.write_table(pa.table(table | {"prompt": table["prompt"]}), file, compression="gzip")
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert score(file) == 130, "the pictures are the same"
    pq.write_table(pa.table(table | {"generated_image": table["generated_image"][::-1]}), file)
    capsys.readouterr()
    assert score(file) == 2
    assert "samples_sha256 was" in capsys.readouterr().err


def overflowing(folder: Path) -> Path:
    """A checkpoint whose weights are finite in float16, but not its features."""
    build_checkpoint(folder, layers=1)
    weights = load_file(folder / "model.safetensors")
    name = "vision_model.encoder.layers.0.layer_norm2.weight"
    save_file(weights | {name: weights[name] * 6e4}, folder / "model.safetensors", {"format": "pt"})
    return folder


def foreign_tokenizer(folder: Path) -> Path:
    """A checkpoint whose tokenizer has words beyond its vocabulary."""
    return build_checkpoint(folder, layers=1, vocab_size=8)


@pytest.mark.parametrize(
    ("build", "options", "reason"),
    [
        (overflowing, ("--dtype", "float16"), "features that are not finite; run it in torch.bfloat16"),
        (foreign_tokenizer, (), "but its network has 8 embeddings; use the tokenizer of this checkpoint"),
    ],
)
@pytest.mark.parametrize("command", ["score", "sensitivity"])
def test_checkpoint_that_proves_unusable_while_scoring_is_one_line_and_code_1(
    tmp_path: Path,
    build: Callable[[Path], Path],
    options: tuple[str, ...],
    reason: str,
    command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples, out = written(tmp_path, 2), tmp_path / ("out.csv" if command == "score" else "out.json")
    model = str(build(tmp_path / "model"))
    settings = ["--out", str(out), "--model", model, "--max-num-patches", "4", "--device", "cpu", "--quiet", *options]
    assert main([command, str(samples), *settings]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("masc-metrics: ")
    assert error.endswith(reason) or f"{reason} or torch.float32" in error
    assert not list(tmp_path.glob("out.*")), "and nothing is left that another checkpoint would not go with"


def test_results_before_an_overflow_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 8)
    real, calls = Scorer.score, iter(range(9))

    def overflow(self: Scorer, batch: Any) -> list[SampleResult]:
        if next(calls):
            raise NotFiniteError("features are not finite")
        return real(self, batch)

    monkeypatch.setattr(Scorer, "score", overflow)
    assert score(samples, "--batch-size", "4") == 1
    folder = tmp_path / "scores.csv.run"
    kept = f"earlier results are kept in {folder}: another checkpoint or dtype needs --restart"
    assert capsys.readouterr().err == f"masc-metrics: features are not finite; {kept}\n"
    assert lines_in(folder) == 4


def test_second_run_of_one_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = written(tmp_path, 8)
    other = RunFolder(tmp_path / "scores.csv.run")
    other.begin({})
    assert score(samples) == 2
    assert "is used by another process" in capsys.readouterr().err
    assert score(samples, "--restart") == 2, "--restart does not discard its results"
    other.release()
    assert score(samples, "--restart") == 0
    assert len(rows(tmp_path / "scores.csv")) == 8


def test_run_resumes_after_its_folder_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = written(tmp_path / "here", 8)
    interrupted(samples, 1, monkeypatch)
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert score(Path("samples.csv")) == 0
    assert len(rows(Path("scores.csv"))) == 8


def test_failed_sample_is_scored_again_when_a_run_resumes(
    tmp_path: Path, expected: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = written(tmp_path, 24)
    away = (tmp_path / "out" / "0.png").rename(tmp_path / "away.png")
    interrupted(samples, 3, monkeypatch)
    away.rename(tmp_path / "out" / "0.png")
    assert score(samples) == 0
    assert_same(rows(tmp_path / "scores.csv"), expected)


def test_full_disk_keeps_earlier_results(
    tmp_path: Path, expected: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    assert "start again to continue" in error
    assert lines_in(tmp_path / "scores.csv.run") == 8
    assert score(samples) == 0
    assert_same(rows(tmp_path / "scores.csv"), expected)


def test_missing_results_are_an_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.begin({"a": 1}) == []
    with folder.result_file(0) as file:
        file.write([SampleResult(number, {"cp": 0.5}, {}) for number in (0, 2)])
    with pytest.raises(FileNotFoundError, match="1 of 3 samples have no result, the first is number 1"):
        folder.results(3)
    folder.release()
    assert sorted(folder.begin({"a": 1})) == [0, 2]
    folder.release()


# Bad samples


def test_bad_samples_have_a_reason_and_the_others_scores(
    tmp_path: Path, expected: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
        assert row["pf"] == ""
    assert [row["cp"] for row in written_rows[:3]] == [""] * 3, "without a generated image"
    for row, before in zip(written_rows[3:6], expected[3:6], strict=True):
        assert float(row["cp"]) == pytest.approx(float(before["cp"]), abs=2e-6), "a bad generated mask costs no CP"
    assert_same(written_rows[6:], expected[6:])
    printed = capsys.readouterr()
    assert "6 of 24 rows failed, 3 of them only in some scores" in printed.err
    assert [summary_of(tmp_path)[name] for name in ("failed", "failed_in_part")] == [6, 3]
    assert summary_of(tmp_path)["all"]["cp"]["n"] == 21
    monkeypatch.setattr(loading, "MAX_PIXELS", 48 * 48 - 1)
    assert score(samples, "--workers", "0") == 3
    assert all(
        "2304" not in row["error"] and "are more than 2303" in row["error"] for row in rows(tmp_path / "scores.csv")[6:]
    )


def test_small_masks_are_left_out_and_counted(tmp_path: Path, expected: list[dict[str, str]]) -> None:
    samples = written(tmp_path, 24)
    thin = np.zeros((40, 40), bool)
    thin[:2] = True  # 5 % of the pixels exactly
    Image.fromarray(thin).save(tmp_path / "out" / "1_mask.png")
    assert score(samples, "--min-coverage", "0.05") == 0
    found = rows(tmp_path / "scores.csv")
    assert found[1]["left_out"] == "generated_mask marks 5.00 % of its pixels, at most 5 %"
    assert (found[1]["cp"], found[1]["error"], float(found[1]["generated_coverage"])) == ("", "", pytest.approx(0.05))
    assert_same([found[0], *found[2:]], [expected[0], *expected[2:]])
    figures = summary_of(tmp_path)
    assert (figures["left_out"], figures["failed"], figures["all"]["cp"]["n"]) == (1, 0, 23)
    assert score(samples, "--min-coverage", "0.049") == 0
    assert summary_of(tmp_path)["left_out"] == 0


# Output


def test_rows_hold_coverage_and_patch_counts(listed: Path, expected: list[dict[str, str]]) -> None:
    for number, row in enumerate(expected):
        for which, file in (("generated", f"out/{number}"), ("reference", f"ref/{number % 3}")):
            mask = np.array(Image.open(listed.parent / f"{file}_mask.png"))
            assert float(row[f"{which}_coverage"]) == pytest.approx(mask.mean(), abs=1e-6)
            assert int(row[f"{which}_patches"]) == 16
            assert 0 < int(row[f"{which}_subject_patches"]) < 16
        assert row["stripped_prompt"]
        assert row["method"] == "AB"[number % 2]


def test_parquet_equals_csv(listed: Path, expected: list[dict[str, str]]) -> None:
    import pyarrow.parquet

    assert score(listed, out="scores.parquet") == 0
    table = pyarrow.parquet.read_table(listed.parent / "scores.parquet").to_pylist()
    assert_same([{name: str(value) for name, value in row.items()} for row in table], expected)
    assert list(table[0]) == list(expected[0])
    assert isinstance(table[0]["cp"], float)
    assert isinstance(table[0]["reference_patches"], float)


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
def test_table_replaces_the_target_of_a_link_and_holds_any_text(tmp_path: Path, name: str) -> None:
    target, link = tmp_path / name, tmp_path / f"link-{name}"
    target.write_text("earlier")
    link.symlink_to(target)
    other = tmp_path / "other"
    other.write_text("kept")
    (tmp_path / f"{name}.part").symlink_to(other)  # half of an earlier file; what it may point to is not overwritten
    cells = [{"a": "half \ud800 of a pair", "b": math.nan}, {"a": None, "b": None}]
    write_table(link, cells, ("a", "b"), ("b",))
    assert link.is_symlink()
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, link.name, "other"])
    assert other.read_text() == "kept"
    if name.endswith(".csv"):
        assert target.read_text().splitlines() == ["a,b", "half \\ud800 of a pair,nan", ","]
    else:
        import pyarrow.parquet

        first, second = pyarrow.parquet.read_table(target).to_pylist()
        assert (first["a"], math.isnan(first["b"])) == ("half \\ud800 of a pair", True)
        assert second == {"a": None, "b": None}


@pytest.mark.parametrize("out", ["/dev/stdout", "/dev/null", "."])
def test_out_must_be_a_regular_file(listed: Path, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(listed), "--out", out, *TINY]) == 2
    assert f"--out is {out}, which is not a regular file; give the name of a file" in capsys.readouterr().err


def test_folder_of_other_files_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = written(tmp_path, 4)
    (tmp_path / "scores.csv.run").mkdir()
    mine = tmp_path / "scores.csv.run" / "notes.txt"
    mine.write_text("mine")
    for options in ((), ("--restart",)):
        assert score(samples, *options) == 2
        assert "holds 'notes.txt' but is not the folder of a run; remove it" in capsys.readouterr().err
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("line", ['{"number":0,"error":""}', '{"number":Infinity,"error":""}', "null", "[0]"])
def test_invalid_result_line_is_ignored(tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = written(tmp_path, 8)
    interrupted(samples, 1, monkeypatch)
    (tmp_path / "scores.csv.run" / "00000-a.jsonl").write_text(line + "\n")
    assert score(samples) == 0
    assert len(rows(tmp_path / "scores.csv")) == 8


def test_pipe_is_an_error_of_its_row(tmp_path: Path) -> None:
    samples = written(tmp_path, 4)
    os.mkfifo(tmp_path / "out" / "pipe.png")
    samples.write_text(samples.read_text().replace("out/1.png", "out/pipe.png"))
    assert score(samples) == 3
    errors = [row["error"] for row in rows(tmp_path / "scores.csv")]
    assert [bool(error) for error in errors] == [False, True, False, False]
    assert "it is not a regular file" in errors[1]


def test_broken_prompt_is_an_error_of_its_row(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in rows(written(tmp_path, 3))]
    lines[1] = json.dumps(json.loads(lines[1]) | {"prompt": "half \ud800 of a pair"})
    samples = tmp_path / "samples.jsonl"
    samples.write_text("\n".join(lines))
    assert score(samples) == 3
    errors = [row["error"] for row in rows(tmp_path / "scores.csv")]
    assert errors == ["", "prompt 'half \\ud800 of a pair' contains half of a surrogate pair; repair its encoding", ""]


def test_checkpoint_of_an_unused_baseline_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = written(tmp_path, 2)
    assert score(samples, "--baseline-model", "clip-i=somewhere") == 2
    assert "--baseline-model names clip-i, which --scores does not; add it there" in capsys.readouterr().err


def without_cells(samples: Path, names: tuple[str, ...], rows_without: slice) -> list[dict[str, str]]:
    """The list's rows, some with empty cells."""
    listed = rows(samples)
    for row in listed[rows_without]:
        row |= dict.fromkeys(names, "")
    return listed


@pytest.mark.parametrize(
    ("scores", "needed"),
    [
        ("cp", {"reference_image", "reference_mask"}),
        ("pf", {"generated_mask", "prompt", "subject"}),
        ("siglip2-i", {"reference_image"}),
        ("siglip2-t", {"prompt"}),
        ("pf --pooling full --prompts full", {"prompt"}),
        ("cp --aggregation global", {"reference_image"}),
        ("pf --mask-source transfer", {"reference_image", "reference_mask", "prompt", "subject"}),
    ],
)
def test_score_needs_only_its_inputs_and_an_absent_one_is_an_error_before_the_run(
    scores: str, needed: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = rows(written(tmp_path, 2))
    column, options = scores.split()[0], scores.split()[1:]
    alone = write_csv(tmp_path / "alone.csv", [{n: row[n] for n in ("generated_image", *needed)} for row in listed])
    everything = write_csv(tmp_path / "everything.csv", listed)
    for file in (alone, everything):
        assert score(file, "--scores", column, *options, out=f"{file.stem}_scores.csv") == 0
    found, full = (rows(tmp_path / f"{name}_scores.csv") for name in ("alone", "everything"))
    (name,) = (name for name in found[0] if name.split("_")[0] == column and found[0][name])
    if "transfer" not in options:  # a given mask wins over a transferred one
        assert [row[name] for row in found] == [row[name] for row in full]
    for missing in needed:
        kept = [{n: row[n] for n in ("generated_image", *(needed - {missing}))} for row in listed]
        assert score(write_csv(tmp_path / "less.csv", kept), "--scores", column, *options, out="less_scores.csv") == 2
        assert f"less.csv lacks the column {missing}; give" in capsys.readouterr().err
        assert not (tmp_path / "less_scores.csv").exists()


@pytest.mark.parametrize(
    ("name", "lost", "reason"),
    [
        ("generated_mask", "pf", "generated_mask is empty; give a file, or --mask-source transfer"),
        ("prompt", "pf", "prompt is empty; give the text that generated_image "),
        ("reference_mask", "cp", "reference_mask is empty; give a file"),
        ("reference_image", "cp", "reference_image is empty; give a file"),
    ],
)
def test_empty_cell_costs_only_the_score_that_needs_it(
    name: str, lost: str, reason: str, tmp_path: Path, listed: Path, expected: list[dict[str, str]]
) -> None:
    samples = written(tmp_path, 24)
    write_csv(samples, without_cells(samples, (name,), slice(1, 3)))
    assert score(samples) == 3
    found = rows(tmp_path / "scores.csv")
    kept = "cp" if lost == "pf" else "pf"
    assert [float(row[kept]) for row in found] == pytest.approx([float(row[kept]) for row in expected], abs=2e-6)
    assert [index for index, row in enumerate(found) if not row[lost]] == [1, 2]
    assert [reason in row["error"] for row in found[:4]] == [False, True, True, False]
    write_csv(samples, without_cells(samples, (name,), slice(None)))
    assert score(samples) == (3 if name == "prompt" else 2), "a column that is empty in all rows is an absent one"


def test_unreadable_inputs_that_no_score_needs_are_no_error(tmp_path: Path, expected: list[dict[str, str]]) -> None:
    samples = written(tmp_path, 24)
    for row in (listed := rows(samples)):
        row |= {"generated_mask": "nowhere.png", "prompt": "", "subject": ""}
    assert score(write_csv(samples, listed), "--scores", "cp") == 0
    assert_same_column("cp", rows(tmp_path / "scores.csv"), expected)
    samples = written(tmp_path, 24)
    for row in (listed := rows(samples)):
        row |= {"reference_image": "nowhere.png", "reference_mask": "nowhere.png"}
    assert score(write_csv(samples, listed), "--scores", "pf") == 0
    assert_same_column("pf", rows(tmp_path / "scores.csv"), expected)


def test_filter_by_coverage_needs_the_masks_that_are_named(tmp_path: Path) -> None:
    samples = written(tmp_path, 3)
    (tmp_path / "out" / "1_mask.png").unlink()
    assert score(samples, "--scores", "cp", "--min-coverage", "0.01") == 3
    assert [bool(row["cp"]) for row in rows(tmp_path / "scores.csv")] == [True, False, True]


def assert_same_column(name: str, found: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    assert [float(row[name]) for row in found] == pytest.approx([float(row[name]) for row in expected], abs=2e-6)
    assert not any(row["error"] for row in found)


def test_cp_needs_neither_generated_masks_nor_prompts(tmp_path: Path, expected: list[dict[str, str]]) -> None:
    samples = written(tmp_path, 24)
    for file in (tmp_path / "out").glob("*_mask.png"):
        file.unlink()
    lines = [line.split(",") for line in samples.read_text().splitlines()]
    kept = [index for index, name in enumerate(lines[0]) if name not in ("generated_mask", "prompt", "subject")]
    samples.write_text("\n".join(",".join(line[index] for index in kept) for line in lines))
    assert score(samples, "--scores", "cp") == 0
    found = rows(tmp_path / "scores.csv")
    assert [float(row["cp"]) for row in found] == pytest.approx([float(row["cp"]) for row in expected], abs=2e-6)
    assert "pf" not in found[0]


def test_baselines_and_masc_share_one_table(listed: Path, expected: list[dict[str, str]]) -> None:
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
    generated, reference = ([Image.open(listed.parent / file)] for file in ("out/5.png", "ref/2.png"))
    run = Run(Path("scores.csv"), max_num_patches=16)
    image, text = (load_baseline(name, run, device="cpu", backbone=backbone) for name in ("siglip2-i", "siglip2-t"))
    assert float(found[5]["siglip2-i"]) == pytest.approx(image.score(generated, reference)[0], abs=2e-6)
    prompt = rows(listed)[5]["prompt"]
    assert float(found[5]["siglip2-t"]) == pytest.approx(text.score_texts(generated, [prompt])[0], abs=2e-6)
    assert [float(row["cp"]) for row in found] == pytest.approx([float(row["cp"]) for row in expected], abs=2e-6)


def test_summary_has_means_by_group(listed: Path, expected: list[dict[str, str]]) -> None:
    figures = summary_of(listed.parent, "expected")
    cp = np.array([float(row["cp"]) for row in expected])
    pf = np.array([float(row["pf"]) for row in expected])
    everything = figures["all"]
    assert everything["cp"]["mean"] == pytest.approx(cp.mean(), abs=1e-7)
    concepts = [
        cp[[row["concept"] == concept for row in expected]].mean() for concept in {row["concept"] for row in expected}
    ]
    assert everything["cp"]["standard_error"] == pytest.approx(np.std(concepts, ddof=1) / math.sqrt(3), abs=1e-7)
    low, high = everything["cp"]["interval_95"]
    half_width = 4.302653 * everything["cp"]["standard_error"]  # Student's t with two degrees of freedom
    assert (low, high) == pytest.approx((cp.mean() - half_width, cp.mean() + half_width), abs=1e-6)
    assert everything["cp_times_pf"]["mean"] == pytest.approx(cp.mean() * pf.mean(), abs=1e-7)
    assert everything["pf"]["concepts"] == 3
    assert set(figures["by"]) == {"method", "category", "concept", "method / category"}
    b_round = [row["method"] == "B" and row["category"] == "round" for row in expected]
    assert figures["by"]["method / category"]["B / round"]["cp"]["mean"] == pytest.approx(cp[b_round].mean(), abs=1e-7)
    assert figures["settings"]["max_num_patches"] == 16
    assert figures["settings"]["checkpoint"].startswith("sha256:")


def summary(scores: list[tuple[str, float, float | None]]) -> dict[str, Any]:
    """Summary of samples given as concept, CP and PF."""
    samples = [Sample(1, "1", "", None, "", None, None, None, concept=concept) for concept, _, _ in scores]
    results = [SampleResult(0, {"cp": cp, "pf": pf}, {}) for _, cp, pf in scores]
    return summarize(samples, results, ("cp", "pf"))


def test_intervals_are_over_concepts_not_samples() -> None:
    effects = np.random.default_rng(1).normal(0.5, 0.1, size=40)
    single = [(str(concept), effect, None) for concept, effect in enumerate(effects)]
    one, other = (summary(scores)["all"]["cp"] for scores in (single, single * 50))
    assert one["interval_95"] == pytest.approx(other["interval_95"])
    assert one["standard_error"] == pytest.approx(other["standard_error"])
    assert (one["n"], other["n"]) == (40, 2000)


def test_every_concept_counts_equally_in_the_mean() -> None:
    figures = summary([("a", 0.2, 0.5), *[("b", 0.8, 0.1)] * 9])["all"]
    assert figures["cp"]["mean"] == pytest.approx(0.5)
    assert figures["cp_times_pf"]["mean"] == pytest.approx(0.5 * 0.3)


def test_interval_of_one_concept_is_over_its_samples_and_says_so() -> None:
    figures = summary([("a", value, None) for value in (0.1, 0.2, 0.3)])["all"]["cp"]
    assert figures["interval_over"] == "this concept only"
    assert figures["interval_95"] == pytest.approx((0.2 - 4.302653 * 0.1 / 3**0.5, 0.2 + 4.302653 * 0.1 / 3**0.5))
    (line, _) = summary_lines(summary([("a", value, None) for value in (0.1, 0.2, 0.3)]), ("cp", "pf"))
    assert line == "CP  0.2000 ±0.2484  3 samples of 1 concept; the interval holds for this concept only"


def test_terminal_shows_both_ends_of_an_interval_that_ends_at_a_limit() -> None:
    figures = summary([(name, value, value) for name, value in (("a", 0.7), ("b", 0.8), ("c", 0.9))])
    lines = summary_lines(figures, ("cp", "pf"))
    assert lines[0] == "CP  0.8000 [0.5516, 1.0000]  3 samples of 3 concepts"
    assert figures["all"]["cp_times_pf"]["interval_95"][1] == 1
    equal = summary([(name, 1.0, 0.5) for name in "abc"])
    assert summary_lines(equal, ("cp", "pf"))[0] == "CP  1.0000  3 samples of 3 concepts"


def test_undefined_figures_are_null() -> None:
    assert summary([])["all"]["cp"] == {
        "n": 0,
        "mean": None,
        "standard_error": None,
        "concepts": 0,
        "interval_95": None,
        "interval_over": "this concept only",
    }
    figures = summary([("a", 0.25, None), ("a", math.nan, None)])
    assert figures["all"]["cp"]["mean"] == 0.25
    assert figures["all"]["cp"]["standard_error"] is None
    assert figures["all"]["cp"]["interval_95"] is None, "one sample has no interval"
    assert figures["all"]["cp_times_pf"]["mean"] is None
    assert figures["undefined"] == {"cp": 1, "pf": 0}
    json.dumps(figures, allow_nan=False)


# Shares


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_have_equal_disjoint_shares_with_references_together(world_size: int) -> None:
    rng = np.random.default_rng(world_size)
    references = [f"r{number}" for number in rng.integers(0, 40, size=400)]
    parts = [rank_share(references, rank, world_size) for rank in range(world_size)]
    assert sorted(position for part in parts for position in part) == list(range(400))
    assert all(abs(len(part) - 400 / world_size) < 1 for part in parts)
    owners = {
        reference: {rank for rank, part in enumerate(parts) for p in part if references[p] == reference}
        for reference in references
    }
    assert sum(len(ranks) > 1 for ranks in owners.values()) <= world_size - 1


def test_few_samples_leave_ranks_without_work() -> None:
    assert sorted(len(rank_share(["a"], rank, 3)) for rank in range(3)) == [0, 0, 1]
    assert rank_share([], 0, 2) == []
