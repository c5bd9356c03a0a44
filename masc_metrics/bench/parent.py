"""Ranks end with the process that started them, however it ends."""

from __future__ import annotations

import os
import threading
import time

_STARTER = "MASC_METRICS_STARTER"
_SECONDS_BETWEEN_LOOKS = 0.5


def name_starter() -> None:
    """Tell the ranks that this process is about to start who it is: it may be gone before they can ask."""
    os.environ[_STARTER] = str(os.getpid())


def end_with_starter() -> None:
    """If a launcher has started this process, end it within a second of the launcher, whatever it is doing then.

    Without this, a rank would load its networks and wait for the others for as long as the timeout of the process
    group, because a connection that does not exist yet cannot break.
    """
    if "LOCAL_RANK" in os.environ:  # Lightning, torchrun and fabric run set it for each process that they start
        starter = int(os.environ.get(_STARTER, os.getppid()))
        if starter == os.getpid():  # the first rank, in a second call of the command
            return
        threading.Thread(target=_watch, args=(starter,), name="end-with-starter", daemon=True).start()


def _watch(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    rank = os.environ["LOCAL_RANK"]
    os.write(2, f"masc-metrics: rank {rank} ends, because the process that started it has ended\n".encode())
    os._exit(1)
