"""DreamBench++'s folders, each listed once, and the files that are missing from them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""In order of preference, if there are images with several of them."""

CATEGORY_PATHS = {
    "live_subject_animal": "live_subject/animal",
    "live_subject_human": "live_subject/human",
    "object": "object",
    "style": "style",
}
"""Folder in ``images``, ``captions`` and the reference masks, by prefix of the collection's name."""

_COLLECTION = re.compile(rf"({'|'.join(CATEGORY_PATHS)})_(\d+)(?:_.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Collection:
    """One subject of the benchmark.

    Attributes:
        prefix: a key of ``CATEGORY_PATHS``. The rest of the name does not count: a subject's name may hold "style".
        number: number in its file names, such as "07".
    """

    prefix: str
    number: str

    @classmethod
    def from_folder(cls, folder: str) -> Collection | None:
        """Parse a folder name such as ``object_07_mug``; None for any other name."""
        found = _COLLECTION.fullmatch(folder)
        return cls(found[1], found[2]) if found else None

    @property
    def path(self) -> str:
        """Folder of its image below ``images``."""
        return CATEGORY_PATHS[self.prefix]

    @property
    def category(self) -> str:
        """One of animal, human, object, style."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class _Listing:
    files: dict[str, Path] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)


class Tree:
    """Finds files, and remembers those that are missing."""

    def __init__(self) -> None:
        self._listings: dict[Path, _Listing] = {}
        self._lines: dict[Path, list[str]] = {}
        self._missing: set[tuple[Path, str]] = set()

    def folders(self, folder: Path) -> list[str]:
        """Names of the folders in a folder, sorted, without hidden ones; empty if it does not exist."""
        return self._listing(folder).folders

    def stems(self, folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[str]:
        """Names, without suffix, of the files in a folder with one of the suffixes; distinct and sorted."""
        names = (os.path.splitext(name) for name in self._listing(folder).files)
        return sorted({stem for stem, suffix in names if suffix in suffixes})

    def file(self, wanted: Path) -> Path | None:
        """The file if it exists; its suffix may be in capitals."""
        return self._listing(wanted.parent).files.get(wanted.name)

    def image(self, wanted: Path) -> Path | None:
        """The file if it exists with any of the suffixes of ``IMAGE_SUFFIXES``."""
        found = (self.file(wanted.with_suffix(suffix)) for suffix in IMAGE_SUFFIXES)
        return next((file for file in found if file), None)

    def lines(self, wanted: Path) -> list[str]:
        """Lines of a text file; empty if it does not exist, is empty, or is not UTF-8."""
        if wanted not in self._lines:
            file = self.file(wanted)
            try:
                text = file.read_text(encoding="utf-8-sig") if file else ""
            except UnicodeDecodeError:
                text = ""
            self._lines[wanted] = [line.strip() for line in text.rstrip().splitlines()]
        return self._lines[wanted]

    def add_missing(self, wanted: Path, purpose: str) -> None:
        """Remember that a file is missing, and what it is for."""
        self._missing.add((wanted, purpose))

    def missing(self) -> tuple[tuple[Path, str], ...]:
        """Missing files with their purposes, sorted."""
        return tuple(sorted(self._missing))

    def _listing(self, folder: Path) -> _Listing:
        if folder not in self._listings:
            self._listings[folder] = listing = _Listing()
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except (FileNotFoundError, NotADirectoryError):
                entries = []
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    listing.folders.append(entry.name)
                else:
                    stem, suffix = os.path.splitext(entry.name)
                    listing.files[stem + suffix.lower()] = folder / entry.name
        return self._listings[folder]
