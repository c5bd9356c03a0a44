"""Sample lists: what is to be scored, from a CSV, JSON Lines or Parquet file or a folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from masc_metrics.bench.concept_folders import concept_folder_samples
from masc_metrics.bench.sample import COLUMNS, FILES, GROUPS, Sample
from masc_metrics.bench.tables import Row, read_rows

NEEDED = {
    "cp": ("generated_image", "reference_image", "reference_mask"),
    "pf": ("generated_image", "generated_mask", "reference_image", "prompt", "subject"),
}
"""Columns that a score cannot do without; any other score needs the two images."""

_ALWAYS = ("generated_image", "reference_image")


@dataclass(frozen=True, slots=True)
class SampleList:
    """What is to be scored, in order.

    Attributes:
        samples: each row or pair; those that cannot be scored are in it too, each with its reason.
        root: the folder that relative paths start from.
    """

    samples: tuple[Sample, ...]
    root: Path

    @property
    def sha256(self) -> str:
        """Digest of all that the list says, wherever its folder lies and from wherever it is called."""
        digest = hashlib.sha256()
        for sample in self.samples:
            said = asdict(sample) | {name: self._relative(getattr(sample, name)) for name in FILES}
            digest.update(json.dumps(said).encode())
        return digest.hexdigest()

    def _relative(self, file: str | None) -> str | None:
        return os.path.relpath(file, self.root) if file else file


def read_samples(source: Path, scores: Iterable[str] = ("cp", "pf")) -> SampleList:
    """Read a sample list.

    Args:
        source: a CSV (.csv), JSON Lines (.jsonl) or Parquet (.parquet) file with the columns of ``COLUMNS``, as far as
            the scores need them, and, optionally, ``sample_id`` and ``GROUPS``; further columns are ignored, paths are
            relative to the file. Or a folder, see :mod:`masc_metrics.bench.concept_folders`.
        scores: what is asked for, which decides what a row must hold: see ``NEEDED``.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no such list or has no rows.
    """
    if source.is_dir():
        return SampleList(tuple(concept_folder_samples(source)), source)
    needed = [name for name in COLUMNS if name in _ALWAYS or any(name in NEEDED.get(score, ()) for score in scores)]
    samples = tuple(_samples(read_rows(source, needed), source.parent, needed))
    if not samples:
        raise ValueError(f"{source} lists no samples; give one row a sample below the column names")
    return SampleList(samples, source.parent)


def _samples(rows: Iterable[Row], folder: Path, needed: list[str]) -> Iterator[Sample]:
    first_line_of: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        cells, error = row.cells, row.error
        files = {name: (cells.get(name) or "").strip() for name in FILES}
        if not error:
            error = next((f"{name} is empty" for name in FILES if name in needed and not files[name]), "")
        sample_id = str(number)
        if "sample_id" in cells:
            sample_id = (cells["sample_id"] or "").strip()
            if not sample_id and not row.error:
                error = "sample_id is empty; give each row its own, or leave the column out"
            elif sample_id and sample_id in first_line_of:
                error = f"sample_id {sample_id!r} stands in line {first_line_of[sample_id]} already"
        first_line_of.setdefault(sample_id, row.line)
        groups = {name: (cells.get(name) or "").strip() for name in GROUPS}
        paths = {name: os.path.join(folder, file) for name, file in files.items() if file}
        yield Sample(
            line=row.line,
            sample_id=sample_id,
            generated_image=paths.get("generated_image", ""),
            generated_mask=paths.get("generated_mask"),
            reference_image=paths.get("reference_image", ""),
            reference_mask=paths.get("reference_mask"),
            prompt=(cells.get("prompt") or "") if "prompt" in needed else cells.get("prompt"),
            subject=cells.get("subject") or None,
            error=error,
            method=groups["method"],
            concept=groups["concept"],
            category=groups["category"],
            key=groups["key"],
        )
