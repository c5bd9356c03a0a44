"""End a run at each of its file operations in turn; print their number, or fail if one cannot be continued.

    python crash_points.py ENOSPC|EIO|SIGKILL[,...] SAMPLES.csv [--form parquet] [--ranks 2] [--points N]

Several kinds of ends take turns. With ``--ranks 2`` one rank at a time is ended at its operations. Half of the runs are
continued with ``--restart``, and every third run of two ranks by one. ``--points`` takes as many operations, evenly
spread.

Every start is a fork of this process, which has imported everything, so that a start takes a fraction of a second, and
the second rank is a fork of the first. The scores are made up: what is tested is the files, and that all processes end.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from masc_metrics.backbone import load_backbone
from masc_metrics.bench import parent
from masc_metrics.bench.distributed import end_connection
from masc_metrics.bench.sample import SampleResult
from masc_metrics.bench.scoring import Scorer
from masc_metrics.cli import main

OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
"""Audit events of Python: every change to files but the writing, which counts too."""


TRACEBACK = 99
"""Exit code of a run that ends with a traceback."""

LIMIT_S = 20
"""Every process of a run ends within it, whatever happens to one of them."""

Point = tuple[int, int]
"""Rank, and number of the operation in it."""


class Faults:
    """Counts the operations of this process below a folder, and fails at one of them."""

    def __init__(self, folder: Path, crashes: str) -> None:
        self.folder, self.crashes = str(folder), crashes.split(",")
        self.point: Point | None = None
        self.rank = self.count = 0

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        # Files that are only read are opened with a mode that has no "w", "x" or "a", or with flags of 0.
        if event in OPERATIONS and str(arguments[0]).startswith(self.folder):
            reads = event == "open" and (arguments[1] in ("r", "rb") or not arguments[2] & (os.O_WRONLY | os.O_RDWR))
            if not reads:
                self.step()

    def step(self) -> None:
        self.count += 1
        if (self.rank, self.count - 1) == self.point:
            crash = self.crashes[(self.count - 1) % len(self.crashes)]
            if crash == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            number = getattr(errno, crash)
            raise OSError(number, os.strerror(number))


class Start:
    """One start of the command, until all of its processes have ended.

    Attributes:
        status: exit code of the first rank, negative for a signal.
        counts: number of operations of each rank that came to its end.
        codes: exit code of each such rank.
        seconds: until the last process had ended.
    """

    def __init__(self, arguments: list[str], faults: Faults, point: Point | None) -> None:
        self.arguments, self.faults = arguments, faults
        reader, self.writer = os.pipe()  # its end is reached when no process holds the writer any more
        faults.point = point
        began = time.monotonic()
        first = os.fork()
        if first == 0:
            os.setpgid(0, 0)
            self.run_rank(0)
        os.close(self.writer)
        said = b""
        while select.select([reader], [], [], max(0.0, began + LIMIT_S - time.monotonic()))[0]:
            if not (part := os.read(reader, 100)):
                break
            said += part
        else:
            os.killpg(first, signal.SIGKILL)
            raise AssertionError(f"a process of {' '.join(arguments)} has not ended within {LIMIT_S} s, at {point}")
        os.close(reader)
        self.seconds = time.monotonic() - began
        self.status = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
        lines = [tuple(map(int, line.split())) for line in said.splitlines()]
        self.counts = {rank: count for rank, count, _ in lines}
        self.codes = {rank: code for rank, _, code in lines}

    def run_rank(self, rank: int) -> None:
        """Run the command in this process, which ends with it."""
        self.faults.rank, self.faults.count = rank, 0
        parent.subprocess = SimpleNamespace(Popen=self.forked, TimeoutExpired=TimeoutError)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                code = main(self.arguments)
                end_connection()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)  # that of a second rank is within the first one's redirection
            code = TRACEBACK
        os.write(self.writer, f"{rank} {self.faults.count} {code}\n".encode())
        os._exit(code)

    def forked(self, _: list[str], env: Mapping[str, str]) -> Forked:
        """What starts another rank."""
        process = Forked()
        if process.pid == 0:
            os.environ |= env
            self.run_rank(int(env["LOCAL_RANK"]))
        return process


class Forked:
    """What the first rank needs of ``subprocess.Popen``."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()

    def poll(self) -> int | None:
        self._look(os.WNOHANG)
        return self.returncode

    def wait(self, _: float | None = None) -> None:
        self._look(0)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _look(self, options: int) -> None:
        with contextlib.suppress(ChildProcessError):  # another thread has been faster
            pid, status = os.waitpid(self.pid, options) if self.returncode is None else (0, 0)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)


def made_up(_: Scorer, batch: Any) -> list[SampleResult]:
    """Scores that depend on the sample alone."""
    scores = [{"cp": loaded.number / 8, "pf": loaded.number / 16} for loaded in batch]
    return [SampleResult(loaded.number, each, {}) for loaded, each in zip(batch, scores, strict=True)]


def points(crash: str, samples: Path, form: str = "csv", ranks: int = 1, most: int | None = None) -> int:
    """Number of the points at which a run was ended and continued."""
    warnings.simplefilter("ignore")  # of forks with threads
    torch.set_num_threads(1)
    load_backbone("tiny").load(text_tower=True)
    if ranks > 1:
        import lightning.fabric.strategies  # noqa: F401  # once, not in each fork
    Scorer.score = made_up  # type: ignore[method-assign]
    folder = samples.parent / f"{form}-{ranks}"  # tables of one name and several forms would share a summary
    folder.mkdir(exist_ok=True)
    out = folder / f"scores.{form}"
    one = ["score", str(samples), "--out", str(out), "--model", "tiny", "--max-num-patches", "16"]
    one += ["--device", "cpu", "--quiet", "--workers", "0", "--batch-size", "2"]
    arguments = [*one, "--devices", str(ranks)]
    faults = Faults(folder, crash)
    sys.addaudithook(faults.audit)
    real_write = os.fsync

    def fsync(descriptor: int) -> None:
        faults.step()
        real_write(descriptor)

    os.fsync = fsync
    unbroken = Start(arguments, faults, None)
    assert unbroken.codes == dict.fromkeys(range(ranks), 0)
    expected, files = out.read_bytes(), sorted(folder.rglob("*"))
    chosen = [(rank, at) for rank in range(ranks) for at in range(unbroken.counts[rank])]
    if most is not None:
        chosen = [chosen[len(chosen) * number // most - 1] for number in range(1, most + 1)]  # with the last one
    for number, (rank, at) in enumerate(chosen):
        label = f"operation {at} of {unbroken.counts[rank]} of rank {rank}"
        restart = ["--restart"] * (at // len(faults.crashes) % 2)
        for file in (out, out.with_suffix(".summary.json")):
            file.unlink()
        ended = Start(arguments, faults, (rank, at))
        assert TRACEBACK not in (ended.status, *ended.codes.values()), label
        following = Start([*(one if number % 3 == 2 else arguments), *restart], faults, None)
        assert following.status == 0, f"{label}: the next start ended with {following.status}"
        assert out.read_bytes() == expected, f"{label}: other scores"
        assert sorted(folder.rglob("*")) == files, f"{label}: files are left"
        print(f"{label}: {ended.status}, {ended.codes}, {ended.seconds:.1f} s", file=sys.stderr)
    return len(chosen)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("crash")
    parser.add_argument("samples", type=Path)
    parser.add_argument("--form", default="csv", choices=["csv", "parquet"])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--points", type=int)
    given = parser.parse_args()
    print(points(given.crash, given.samples, given.form, given.ranks, given.points))
