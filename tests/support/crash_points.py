"""End a run at each of its file operations in turn; print their number, or fail if one cannot be continued.

    python crash_points.py ENOSPC|EIO|SIGKILL[,...] SAMPLES.csv [parquet]

Several kinds of ends take turns. Half of the runs are continued with ``--restart``.

Every start is a fork of this process, which has imported everything, so that a start takes a fraction of a second. The
scores are made up: what is tested is the files.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from masc_metrics.backbone import load_backbone
from masc_metrics.bench.sample import SampleResult
from masc_metrics.bench.scoring import Scorer
from masc_metrics.cli import main

OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
"""Audit events of Python: every change to files but the writing, which counts too."""


TRACEBACK = 99
"""Exit code of a run that ends with a traceback."""


class Faults:
    """Counts the operations below a folder, and fails at one of them."""

    def __init__(self, folder: Path, crashes: str) -> None:
        self.folder, self.crashes, self.at, self.count = str(folder), crashes.split(","), -1, 0

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        # Files that are only read are opened with a mode that has no "w", "x" or "a", or with flags of 0.
        if event in OPERATIONS and str(arguments[0]).startswith(self.folder):
            reads = event == "open" and (arguments[1] in ("r", "rb") or not arguments[2] & (os.O_WRONLY | os.O_RDWR))
            if not reads:
                self.step()

    def step(self) -> None:
        self.count += 1
        if self.count - 1 == self.at:
            crash = self.crashes[self.at % len(self.crashes)]
            if crash == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            number = getattr(errno, crash)
            raise OSError(number, os.strerror(number))


def start(arguments: list[str], faults: Faults, at: int) -> tuple[int, int]:
    """Exit status and number of operations of a run that fails at an operation; -1 is none."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        faults.at, faults.count = at, 0
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                code = main(arguments)
            os.write(writer, str(faults.count).encode())
        except BaseException:
            traceback.print_exc()
            code = TRACEBACK
        os._exit(code)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    count = os.read(reader, 20)
    os.close(reader)
    return status, int(count or -1)


def made_up(_: Scorer, batch: Any) -> list[SampleResult]:
    """Scores that depend on the sample alone."""
    scores = [{"cp": loaded.number / 8, "pf": loaded.number / 16} for loaded in batch]
    return [SampleResult(loaded.number, each, {}) for loaded, each in zip(batch, scores, strict=True)]


def points(crash: str, samples: Path, suffix: str) -> int:
    """Number of the points at which a run was ended and continued."""
    warnings.simplefilter("ignore")  # of forks with threads
    torch.set_num_threads(1)
    load_backbone("tiny").load(text_tower=True)
    Scorer.score = made_up  # type: ignore[method-assign]
    out = samples.parent / f"scores.{suffix}"
    arguments = ["score", str(samples), "--out", str(out), "--model", "tiny", "--max-num-patches", "16"]
    arguments += ["--device", "cpu", "--quiet", "--workers", "0", "--batch-size", "2"]
    faults = Faults(samples.parent, crash)
    sys.addaudithook(faults.audit)
    real_write = os.fsync

    def fsync(descriptor: int) -> None:
        faults.step()
        real_write(descriptor)

    os.fsync = fsync
    status, count = start(arguments, faults, -1)
    assert status == 0, status
    expected, files = out.read_bytes(), sorted(samples.parent.rglob("*"))
    for at in range(count):
        restart = ["--restart"] * (at // len(faults.crashes) % 2)
        for file in (out, out.with_suffix(".summary.json")):
            file.unlink()
        status, _ = start(arguments, faults, at)
        assert os.waitstatus_to_exitcode(status) != TRACEBACK, f"operation {at} of {count}"
        status, _ = start([*arguments, *restart], faults, -1)
        assert status == 0, f"operation {at} of {count}: the next start ended with {status}"
        assert out.read_bytes() == expected, f"operation {at} of {count}: other scores"
        assert sorted(samples.parent.rglob("*")) == files, f"operation {at} of {count}: files are left"
    return count


if __name__ == "__main__":
    print(points(sys.argv[1], Path(sys.argv[2]), *(sys.argv[3:] or ["csv"])))
