"""Where a run keeps what it has scored until it is whole: kill it at any moment and start it again.

Every start of every rank appends to a file of its own, so that no two write to one and a line that was cut short is
never written on. Which samples are done is read from all of them.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from masc_metrics.bench.outcome import Outcome

if TYPE_CHECKING:
    from filelock import FileLock

SECONDS_BETWEEN_SYNCS = 5.0
"""What a machine that loses its power can lose; a killed process loses the batch at hand."""

Settings = Mapping[str, Any]

_NOT_COMPARED = "machine"
_LOCK = "lock"


class RunFolder:
    """The folder of one run.

    Args:
        folder: made when the run begins, removed when its scores are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._settings_file = folder / "settings.json"
        self._lock: FileLock | None = None

    def begin(self, settings: Settings, *, restart: bool = False) -> list[int]:
        """Start, or go on with what an earlier start has left; no other process can until :meth:`release`.

        Args:
            settings: all that decides the scores, nested; what stands under "machine" is kept and not compared.
            restart: throw away what an earlier start has left.

        Returns:
            Places in the sample list that are scored already. Those that failed are tried again.

        Raises:
            OSError: if the folder cannot be written.
            ValueError: if it was begun with other settings, which are named, or another process works in it.
        """
        self.folder.mkdir(exist_ok=True)
        self._take()
        if restart and self._settings_file.exists():
            for file in self._own():
                file.unlink()
        if not self._settings_file.exists():
            if others := sorted({file.name for file in self.folder.iterdir()} - {_LOCK}):
                raise ValueError(
                    f"{self.folder} holds {others[0]!r}, but no settings of a run; remove it, or give another --out"
                )
            write_whole(self._settings_file, json.dumps(settings, indent=2).encode())
            return []
        try:
            earlier = json.loads(self._settings_file.read_text())
            if not isinstance(earlier, dict):
                raise ValueError(f"it holds a JSON {type(earlier).__name__}")
        except ValueError as error:
            raise ValueError(f"{self._settings_file} cannot be read ({error}); remove {self.folder}") from error
        different = list(_differences(earlier, json.loads(json.dumps(settings))))
        if different:
            raise ValueError(
                f"{self.folder} was begun with other settings: {'; '.join(different)}. Use the same, or give --restart "
                "to throw away what was scored with the others"
            )
        return [number for number, (_, _, failed) in self._places().items() if not failed]

    def settings(self) -> Settings:
        """Those that it was begun with."""
        settings: Settings = json.loads(self._settings_file.read_text())
        return settings

    def shard(self, rank: int) -> Shard:
        """A new file for what this process scores."""
        return Shard(self.folder / f"{rank:05}-{uuid.uuid4().hex}.jsonl")

    def outcomes(self, count: int) -> Iterator[Outcome]:
        """All outcomes in the order of the sample list, each once; few are in memory at a time.

        Args:
            count: samples in the list.

        Raises:
            FileNotFoundError: if some are not there.
        """
        places = self._places()
        missing = [number for number in range(count) if number not in places]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {count} samples are not scored, the first is number {missing[0]}"
            )
        streams: dict[Path, BinaryIO] = {}
        try:
            for number in range(count):
                file, offset, _ = places[number]
                if file not in streams:
                    streams[file] = file.open("rb")
                streams[file].seek(offset)
                yield Outcome(**json.loads(streams[file].readline()))
        finally:
            for stream in streams.values():
                stream.close()

    def remove(self) -> None:
        """Throw it away, except what is not of a run."""
        for file in self._own():
            file.unlink(missing_ok=True)
        self.release()
        with suppress(OSError):
            (self.folder / _LOCK).unlink(missing_ok=True)
            self.folder.rmdir()

    def _own(self) -> list[Path]:
        return [*self.folder.glob("[0-9]*-*.jsonl"), *self.folder.glob(f"{self._settings_file.name}*")]

    def release(self) -> None:
        """Let another process go on; the end of this one does so too, whatever ends it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _take(self) -> None:
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"another process works in {self.folder}; wait for its end, or give another --out"
            ) from None
        except NotImplementedError:  # a file system without locks
            return
        self._lock = lock

    def _places(self) -> dict[int, tuple[Path, int, bool]]:
        """File and offset of each sample's line, and whether it failed; what did not fail comes first."""
        places: dict[int, tuple[Path, int, bool]] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            with file.open("rb") as stream:
                offset = 0
                for line in stream:
                    outcome = _outcome(line)
                    if outcome is not None and (outcome.number not in places or places[outcome.number][2]):
                        places[outcome.number] = (file, offset, bool(outcome.error))
                    offset += len(line)
        return places


class Shard:
    """One process's outcomes, line by line; on the disk after ``SECONDS_BETWEEN_SYNCS``, and when it is closed."""

    def __init__(self, file: Path) -> None:
        self._stream = file.open("xb")
        self._synced = time.monotonic()

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self._sync()
        with suppress(OSError):  # a full disk has been met, and said, in write
            self._stream.close()

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Append outcomes.

        Raises:
            OSError: if the disk is full, or gone.
        """
        self._stream.write(b"".join(json.dumps(asdict(outcome)).encode() + b"\n" for outcome in outcomes))
        self._stream.flush()
        if time.monotonic() - self._synced >= SECONDS_BETWEEN_SYNCS:
            self._sync()

    def _sync(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    part = file.with_name(file.name + ".part")
    with part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, file)


def _differences(earlier: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*earlier, *now]):
            if (name, key) != ("", _NOT_COMPARED):
                yield from _differences(earlier.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif earlier != now:
        yield f"{name} was {json.dumps(earlier)} and is {json.dumps(now)}"


def _outcome(line: bytes) -> Outcome | None:
    """What a line says; None if it was cut short, or is zeros after a loss of power."""
    if not line.endswith(b"\n"):
        return None
    try:
        return Outcome(**json.loads(line))
    except (ValueError, TypeError):
        return None
