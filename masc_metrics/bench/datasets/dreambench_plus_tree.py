"""DreamBench++'s folders, each listed once, and what was looked for in them in vain."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
"""Where several are there, the first counts."""

CATEGORY_PATHS = {
    "live_subject_animal": "live_subject/animal",
    "live_subject_human": "live_subject/human",
    "object": "object",
    "style": "style",
}
"""A collection's prefix -> its folder in ``images``, ``captions`` and the masks of references."""

_COLLECTION = re.compile(rf"({'|'.join(CATEGORY_PATHS)})_(\d+)(?:_.*)?", re.DOTALL)


class Purpose(NamedTuple):
    """What a file is for, and what a folder of such files is for."""

    one: str
    many: str


GENERATED = Purpose("generated image", "generated images")
REFERENCE = Purpose("reference image", "reference images")
COPIED = Purpose(
    "reference image, of which the copy in src_image is taken",
    "reference images, of which the copies in src_image are taken",
)
REFERENCE_MASK = Purpose("reference mask", "reference masks")
GENERATED_MASK = Purpose("generated mask", "generated masks")
PROMPT = Purpose("prompt", "prompts")
SUBJECT = Purpose("subject", "subjects")


@dataclass(frozen=True, slots=True)
class Collection:
    """One subject of the benchmark.

    Attributes:
        prefix: a key of ``CATEGORY_PATHS``. What follows it does not matter: "style" may stand in a subject's name.
        number: as its files are named, such as "07".
    """

    prefix: str
    number: str

    @classmethod
    def named(cls, folder: str) -> Collection | None:
        """The collection of a folder such as ``object_07_mug``; None if it is named otherwise."""
        found = _COLLECTION.fullmatch(folder)
        return cls(found[1], found[2]) if found else None

    @property
    def path(self) -> str:
        """Folder of its picture below ``images``."""
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
    """Looks for files, and remembers what it was told to be missing.

    Args:
        masks: the topmost folder of masks, above which nothing is listed.
    """

    def __init__(self, masks: Path) -> None:
        self._masks = masks
        self._listings: dict[Path, _Listing] = {}
        self._lines: dict[Path, list[str]] = {}
        self._missing: dict[Path, dict[Purpose, None]] = {}
        self._as_folders: set[Path] = set()

    def folders(self, folder: Path) -> list[str]:
        """Names of the folders in it, sorted, without hidden ones; none if it is not there."""
        return self._listing(folder).folders

    def stems(self, folder: Path, suffixes: Sequence[str] = PICTURES) -> list[str]:
        """Names of the files in it with one of the suffixes, without it, each once, sorted."""
        names = (os.path.splitext(name) for name in self._listing(folder).files)
        return sorted({stem for stem, suffix in names if suffix in suffixes})

    def file(self, wanted: Path) -> Path | None:
        """The file if it is there, also with its suffix in capitals."""
        return self._listing(wanted.parent).files.get(wanted.name)

    def picture(self, wanted: Path) -> Path | None:
        """The same with any of the suffixes of ``PICTURES``."""
        found = (self.file(wanted.with_suffix(suffix)) for suffix in PICTURES)
        return next((file for file in found if file), None)

    def lines(self, wanted: Path) -> list[str]:
        """A text file's lines; none if it is not there, empty, or no UTF-8."""
        if wanted not in self._lines:
            file = self.file(wanted)
            try:
                text = file.read_text(encoding="utf-8-sig") if file else ""
            except UnicodeDecodeError:
                text = ""
            self._lines[wanted] = [line.strip() for line in text.rstrip().splitlines()]
        return self._lines[wanted]

    def miss(self, wanted: Path, purpose: Purpose) -> None:
        """Remember that a file is missing, or else the topmost folder on its path that is missing or empty."""
        missing = wanted
        while missing != self._masks and self._listing(missing.parent) == _Listing():
            missing = missing.parent
        if missing != wanted:
            self._as_folders.add(missing)
        self._missing.setdefault(missing, {})[purpose] = None

    def missing(self) -> tuple[str, ...]:
        """What is missing, a line each, by path."""
        return tuple(self._line(path) for path in sorted(self._missing))

    def _line(self, path: Path) -> str:
        purposes = sorted(self._missing[path])
        if path in self._as_folders:
            return f"{path}{os.sep}: {', '.join(purpose.many for purpose in purposes)}"
        if self.file(path):
            return f"{path}: holds no {' and no '.join(purpose.one for purpose in purposes)} as UTF-8 text"
        return f"{path}: {', '.join(purpose.one for purpose in purposes)}"

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
