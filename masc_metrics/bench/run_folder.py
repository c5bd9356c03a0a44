"""The folder of an unfinished run: kill the run at any moment, start it again, and it continues.

Every process appends results to a file of its own, and a restarted one to a new file. So no file has two writers, and a
line that was cut short is never continued. The finished samples are those found in any of the files.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masc_metrics.bench.sample import SampleResult
from masc_metrics.bench.tables import check_replaceable, replacing

if TYPE_CHECKING:
    from filelock import FileLock

SECONDS_BETWEEN_SYNCS = 5.0
"""Work lost at most if the machine loses power; if the process is killed, it is the current batch."""

_LOCK = "lock"

_RESULTS = "[0-9]*-*.jsonl"


class RunFolder:
    """The folder of one run.

    Args:
        folder: created when the run begins, removed when its scores are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._settings_file = folder / "settings.json"
        self._lock: FileLock | None = None

    def begin(
        self, settings: Mapping[str, Any], *, not_compared: Collection[str] = (), restart: bool = False
    ) -> list[int]:
        """Start or resume a run; locks the folder until :meth:`release`.

        Args:
            settings: everything that affects the scores, JSON-serialisable.
            not_compared: settings that may differ when a run is resumed.
            restart: discard the results of an earlier start.

        Returns:
            Positions of the samples that have results. Those that failed are not among them and are scored again.

        Raises:
            OSError: if the folder cannot be written.
            ValueError: if the run was started with other settings, which are named, or another process uses it.
        """
        self.folder.mkdir(exist_ok=True)
        self._acquire()
        if restart and self._settings_file.exists():
            for file in self._own_files():
                file.unlink()
        if not self._settings_file.exists():
            for file in self._own_settings():  # half of one, of a start that was killed or met a full disk
                file.unlink()
            if others := sorted({file.name for file in self.folder.iterdir()} - {_LOCK}):
                raise ValueError(
                    f"{self.folder} holds {others[0]!r} but is not the folder of a run; remove it, or give another "
                    "--out"
                )
            write_json(self._settings_file, settings)
            return []
        different = list(_differences(self.settings(), json.loads(_to_json(settings)), not_compared))
        if different:
            raise ValueError(
                f"{self.folder} was started with other settings: {'; '.join(different)}. Give the same settings, or "
                "--restart to discard its results"
            )
        return [number for number, result in self._results().items() if not result.error]

    def settings(self) -> dict[str, Any]:
        """Settings that the run was started with.

        Raises:
            ValueError: if their file is damaged.
        """
        try:
            settings = json.loads(self._settings_file.read_text())
            if not isinstance(settings, dict):
                raise ValueError(f"it holds a JSON {type(settings).__name__}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self._settings_file} cannot be read ({error}); remove {self.folder}") from error
        return settings

    def result_file(self, rank: int) -> ResultFile:
        """A new file for the results of this process."""
        return ResultFile(self.folder / f"{rank:05}-{uuid.uuid4().hex}.jsonl")

    def results(self, count: int) -> list[SampleResult]:
        """All results of a list of ``count`` samples, in its order.

        Raises:
            FileNotFoundError: if some are missing.
        """
        results = self._results()
        missing = [number for number in range(count) if number not in results]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {count} samples have no result, the first is number {missing[0]}"
            )
        return [results[number] for number in range(count)]

    def remove(self) -> None:
        """Remove the files of the run, and the folder if nothing else is in it."""
        for file in self._own_files():
            file.unlink(missing_ok=True)
        self.release()
        with suppress(OSError):
            (self.folder / _LOCK).unlink(missing_ok=True)
            self.folder.rmdir()

    def release(self) -> None:
        """Unlock the folder; the end of the process does so too, however it ends."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _acquire(self) -> None:
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"{self.folder} is used by another process; wait for it, or give another --out") from None
        except NotImplementedError:  # a file system without locks
            return
        self._lock = lock

    def has_results(self) -> bool:
        """Whether a later start would continue from results here."""
        return self._settings_file.exists() and any(file.stat().st_size for file in self.folder.glob(_RESULTS))

    def _own_files(self) -> list[Path]:
        """In the order of removal: results without settings would belong to no run."""
        return [*self.folder.glob(_RESULTS), *self._own_settings()]

    def _own_settings(self) -> list[Path]:
        return list(self.folder.glob(f"{self._settings_file.name}*"))

    def _results(self) -> dict[int, SampleResult]:
        """Result of each sample; where there are several, the first without an error."""
        results: dict[int, SampleResult] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            with file.open("rb") as stream:
                for line in stream:
                    try:
                        result = SampleResult(**json.loads(line, object_pairs_hook=_with_shared_names))
                    except (ValueError, TypeError, RecursionError):  # cut short, or zeroed by a loss of power
                        continue
                    if result.number not in results or results[result.number].error:
                        results[result.number] = result
        return results


def _with_shared_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # json makes new texts for the names in each line, which would take half of the memory.
    return {sys.intern(name): value for name, value in pairs}


class ResultFile:
    """Results of one process, one JSON line each; on disk every ``SECONDS_BETWEEN_SYNCS`` and when it is closed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stream = file.open("xb")
        self._synced = time.monotonic()

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._sync()
        with suppress(OSError):  # write has raised for a full disk
            self._stream.close()

    def write(self, results: Sequence[SampleResult]) -> None:
        """Append results.

        Raises:
            OSError: if the disk is full or not available, or the folder was removed.
        """
        if not self._file.exists():  # the system would accept what nobody can read any more
            raise FileNotFoundError(f"{self._file.parent}, the folder of this unfinished run, was removed or replaced")
        self._stream.write(b"".join(json.dumps(asdict(result)).encode() + b"\n" for result in results))
        self._stream.flush()
        if time.monotonic() - self._synced >= SECONDS_BETWEEN_SYNCS:
            self._sync()

    def _sync(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()


def check_json_file(out: Path, inputs: Sequence[Path]) -> None:
    """Raise ValueError unless JSON can be written to ``--out`` without overwriting an input."""
    _check_out(out, inputs, ".json")


def check_html_file(out: Path, inputs: Sequence[Path]) -> None:
    """Raise ValueError unless HTML can be written to ``--out`` without overwriting an input."""
    _check_out(out, inputs, ".html")


def _check_out(out: Path, inputs: Sequence[Path], suffix: str) -> None:
    if out.exists() and any(file.exists() and out.samefile(file) for file in inputs):
        raise ValueError(f"--out is {out}, which is an input; give another file")
    if out.suffix.lower() != suffix or out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out is {out}; give a name that ends with {suffix}, in a folder that exists")
    check_replaceable("--out", out)


def check_png_file(option: str, out: Path) -> None:
    """Raise ValueError unless a PNG can be written to the file that an option names."""
    if out.is_dir():
        raise ValueError(f"{option} is {out}, which is a folder; give a file")
    if out.suffix.lower() != ".png":
        raise ValueError(f"{option} is {out}; give a name that ends with .png")
    if not out.parent.is_dir():
        raise ValueError(f"{option} is {out}, but the folder {out.parent} does not exist; create it first")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ValueError(f"{option} is {out}, which cannot be written; give another file")


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file that appears complete or not at all."""
    with replacing(file) as stream:
        stream.write((_to_json(values) + "\n").encode())


def _to_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, default=str)  # paths become strings


def _differences(earlier: Any, now: Any, not_compared: Collection[str] = (), name: str = "") -> Iterator[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*earlier, *now]):
            if key not in not_compared:
                yield from _differences(earlier.get(key), now.get(key), name=f"{name}.{key}" if name else key)
    elif earlier != now:
        yield f"{name} was {json.dumps(earlier)} and is {json.dumps(now)}"
