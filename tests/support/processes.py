"""Run functions in several gloo processes, and commands, with a time limit; no process is left running."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from masc_metrics.bench.distributed import end_connection

EVERY_COMMAND = Path(__file__).parent / "every_command"


def _enter(
    function: Callable[..., Any], rank: int, world: int, port: int, folder: Path, backend: str, arguments: Any
) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
    }
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group(backend, rank=rank, world_size=world)
        torch.save(function(rank, world, *arguments), folder / f"{rank}.pt")
        end_connection()
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        raise


def run(
    function: Callable[..., Any],
    world: int,
    folder: Path,
    *arguments: Any,
    limit_s: float = 90,
    backend: str = "gloo",
) -> list[Any]:
    """Return the results of ``function(rank, world, *arguments)`` in each process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_enter, args=(function, rank, world, port, folder, backend, arguments))
        for rank in range(world)
    ]
    deadline = time.monotonic() + limit_s
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        hung = [rank for rank, worker in enumerate(workers) if worker.is_alive()]
        errors = "\n".join(file.read_text() for file in sorted(folder.glob("*.txt")))
        assert not hung, f"processes {hung} did not end within {limit_s} s\n{errors}"
        assert not errors, errors
        failed = {rank: worker.exitcode for rank, worker in enumerate(workers) if worker.exitcode}
        assert not failed, f"processes ended with exit codes {failed}"
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.kill()
                worker.join(10)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def command(arguments: Sequence[str], *, limit_s: float = 90) -> str:
    """Return the output of a command; its child processes are ended, and each must have closed its process group."""
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(EVERY_COMMAND), os.environ.get("PYTHONPATH", "")])},
    )
    try:
        printed, _ = process.communicate(timeout=limit_s)
    finally:
        # torchrun ends its workers on SIGTERM; they are in separate sessions, so killpg does not reach them.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, printed
    assert "a process group is open" not in printed  # printed by ranks whose exit code no launcher checks
    return printed


@contextlib.contextmanager
def started_command(arguments: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a new process group, and end all its processes afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "masc_metrics", *arguments], cwd=folder, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=20)
