"""The commands at the terminal: exit codes, errors in one line, output that may fail, and Ctrl-C. Imports no torch."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from masc_metrics.bench.tables import printable

NO_CHECKPOINT, UNUSABLE, ROWS_FAILED, INTERRUPTED = 1, 2, 3, 130

INTERRUPTED_LINE = "masc-metrics: interrupted"


def fail(code: int, error: Exception, rank: int = 0) -> int:
    """Print an error, on the first rank only, and return its exit code.

    Raises:
        KeyboardInterrupt: after Ctrl-C, which compiled modules turn into errors of other types while they are imported.
    """
    if control_c.received:
        raise KeyboardInterrupt from error
    if rank == 0:
        print(f"masc-metrics: {printable(str(error))}", file=sys.stderr)
    return code


class ControlC:
    """How a command ends at Ctrl-C.

    Attributes:
        received: whether Ctrl-C was pressed.
        at_once: whether the process then ends without any exception, as while modules are imported: an import turns
            the exception into another one, or leaves a module behind that cannot be imported again.
    """

    def __init__(self) -> None:
        self.received = self.at_once = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle Ctrl-C in the block, unless it is ignored, as by a rank, or another program handles it."""
        is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        handles = is_default and threading.current_thread() is threading.main_thread()
        self.received, self.at_once = False, True
        if handles:
            signal.signal(signal.SIGINT, self._receive)
        try:
            yield
        finally:
            if handles:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            self.received = self.at_once = False

    def _receive(self, *_: object) -> None:
        self.received = True
        if self.at_once:
            with suppress(OSError):
                os.write(2, f"{INTERRUPTED_LINE}\n".encode())
            os._exit(INTERRUPTED)
        raise KeyboardInterrupt


control_c = ControlC()
"""That of this process."""


@contextmanager
def lasting_output() -> Iterator[None]:
    """In the block, output that cannot be written is lost, and raises nothing: a command's work is done by then.

    A reader that has closed its pipe, such as ``head``, is no error; of a full disk, one line tells on stderr.
    Characters that the terminal cannot encode are escaped.
    """
    before = sys.stdout, sys.stderr
    lasting = [None if stream is None else _LastingStream(stream) for stream in before]  # None if it was closed
    sys.stdout, sys.stderr = cast("tuple[TextIO, TextIO]", tuple(lasting))
    try:
        yield
    finally:
        for stream in lasting:
            if stream is not None:
                stream.end()
        sys.stdout, sys.stderr = before


class _LastingStream:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_lost = False
        self._errors = stream.errors
        self._handle_unencodable("backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if not self._is_lost:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        if not self._is_lost:
            try:
                self._stream.flush()
            except OSError as error:
                self._lose(error)

    def end(self) -> None:
        self.flush()
        self._handle_unencodable(self._errors)

    def _handle_unencodable(self, errors: str | None) -> None:
        with suppress(AttributeError, OSError):  # of streams in memory
            cast(Any, self._stream).reconfigure(errors=errors)

    def _lose(self, error: OSError) -> None:
        self._is_lost = True
        with suppress(OSError):  # Python writes what the buffer still holds when it ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if not isinstance(error, BrokenPipeError) and sys.stderr is not self:
            print(f"masc-metrics: the rest of the output cannot be written: {error.strerror}", file=sys.stderr)
