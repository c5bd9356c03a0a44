"""Ranks and the process that starts them: they end with it, however it ends, and it ends if one of them dies."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from masc_metrics.bench.terminal import UNUSABLE

_STARTER = "MASC_METRICS_STARTER"
"""In the environment of the ranks: id of the process that started them. LOCAL_RANK may be any shell's."""

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_FOR_THE_REASON = 5.0
_SECONDS_TO_END = 20.0

_ranks: list[subprocess.Popen[bytes]] = []
_watching = threading.Event()
_reporting = threading.Lock()


def start_other_ranks(count: int) -> None:
    """Start ranks 1 to ``count - 1`` as this process was started; the environment says how they connect.

    Only this process answers Ctrl-C, which a terminal sends to all of them: they ignore it, and end with this one.
    """
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited; set by the rank itself, it would come late
    try:
        for rank in range(1, count):
            environment = {**os.environ, "LOCAL_RANK": str(rank), _STARTER: str(os.getpid())}
            _ranks.append(subprocess.Popen(_own_command(), env=environment))
    finally:
        signal.signal(signal.SIGINT, handler)
    atexit.register(end_other_ranks)
    _watching.set()
    threading.Thread(target=_watch_ranks, name="watch-ranks", daemon=True).start()


def _own_command() -> Sequence[str]:
    specification = sys.modules["__main__"].__spec__
    program = [os.path.abspath(sys.argv[0])] if specification is None else ["-m", specification.name]
    return [sys.executable, *program, *sys.argv[1:]]


def wait_for_other_ranks() -> None:
    """Wait until the ranks that this process has started end by themselves, which they are about to do."""
    for process in _ranks:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_END)


def end_other_ranks() -> None:
    """End the ranks that this process has started, without a word; what they have scored is in their files."""
    _watching.clear()
    for process in _ranks:
        process.kill()
    for process in _ranks:
        process.wait()
    _ranks.clear()


def end_with_the_dead(seconds: float = _SECONDS_FOR_THE_REASON) -> None:
    """If a rank that this process has started dies within a time, name it and end this process."""
    deadline = time.monotonic() + seconds
    while _ranks and time.monotonic() < deadline:
        for rank, process in enumerate(_ranks, start=1):
            if process.poll():
                _end_with(rank, process.returncode)
        time.sleep(_SECONDS_BETWEEN_LOOKS / 5)


def _watch_ranks() -> None:
    while _watching.is_set():
        for rank, process in enumerate(_ranks, start=1):
            code = process.poll()
            if code is not None and code > 0:  # this process has probably met the same error, and says it
                time.sleep(_SECONDS_FOR_THE_REASON)
            if code and _watching.is_set():
                _end_with(rank, code)
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _end_with(rank: int, code: int) -> None:
    _reporting.acquire()  # for good: one line, whoever comes first
    for process in _ranks:
        process.kill()
    if code > 0:
        end = f"ended with exit code {code}"
    else:
        cause = ", probably for lack of memory" if -code == signal.SIGKILL else ""
        end = f"was ended by {signal.Signals(-code).name}{cause}"
    line = f"masc-metrics: rank {rank} {end}; start again to continue\n"
    with suppress(OSError):
        os.write(2, f"{os.linesep if os.isatty(2) else ''}{line}".encode())  # after a progress bar
    os._exit(UNUSABLE)


def end_with_starter() -> None:
    """If another rank has started this process, end within a second of it, whatever this process is doing then.

    Without this, a rank would load its networks and wait for the others for as long as the timeout of the process
    group, because a connection that does not exist yet cannot break.
    """
    starter = os.environ.pop(_STARTER, "")  # not for the processes that this one starts
    if starter.isdecimal():
        threading.Thread(target=_watch_starter, args=(int(starter),), name="end-with-starter", daemon=True).start()


def _watch_starter(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    rank = os.environ["LOCAL_RANK"]
    with suppress(OSError):
        os.write(2, f"masc-metrics: rank {rank} ends, because the process that started it has ended\n".encode())
    os._exit(1)
