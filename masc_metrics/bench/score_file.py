"""The CSV of scores: written row by row beside its place, and moved there when it is whole."""

from __future__ import annotations

import csv
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from masc_metrics.bench.runner import Scored

HEADER = ("sample_id", "cp", "pf", "stripped_prompt", "error")


class ScoreFile:
    """Rows go to ``<out>.part`` and are flushed one by one; :meth:`finish` gives the file its name.

    An older file of that name stays until then, and what a run had written when it was cut short stays in the partial
    file. A device such as /dev/stdout is written to directly.

    Args:
        out: the CSV to write.
        samples: the sample list, which must be another file.

    Raises:
        OSError: if it cannot be written.
        ValueError: if it is a folder, lies in none, or is the sample list.
    """

    def __init__(self, out: Path, samples: Path) -> None:
        if not out.parent.is_dir():
            raise ValueError(f"{out}: there is no folder {out.parent}; make it first")
        if out.is_dir():
            raise ValueError(f"{out} is a folder; give a file in it")
        if out.exists() and out.samefile(samples):
            raise ValueError(f"{out} is the sample list itself; give another file for the scores")
        self._out = out
        self._part = out if out.exists() and not out.is_file() else out.with_name(out.name + ".part")
        try:
            self._stream = self._part.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise OSError(f"{out} cannot be written: {error.strerror}") from error
        self._writer = csv.writer(self._stream)
        self._rows = 0

    def __enter__(self) -> ScoreFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with suppress(OSError):  # a full disk has been met, and said, in write or finish
            self._stream.close()
        if not self._rows and self._part != self._out:
            self._part.unlink(missing_ok=True)

    def write(self, outcome: Scored) -> None:
        """Write one row: an undefined score is nan, a failed row has none."""
        if not self._rows:
            self._writer.writerow(HEADER)
        cp, pf = ("" if score is None else f"{score:.9g}" for score in (outcome.cp, outcome.pf))
        self._writer.writerow([outcome.sample.sample_id, cp, pf, outcome.stripped_prompt, outcome.error])
        self._stream.flush()
        self._rows += 1

    def finish(self) -> None:
        """Give the whole file its name."""
        self._stream.close()
        if self._part != self._out:
            os.replace(self._part, self._out)
