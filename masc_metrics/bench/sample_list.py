"""Sample lists: the samples to score, from a CSV, JSON Lines or Parquet file or a folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from masc_metrics.bench.concept_folders import concept_folder_samples
from masc_metrics.bench.run import MASC_SCORES
from masc_metrics.bench.sample import COLUMNS, FILES, GROUPS, Sample
from masc_metrics.bench.tables import Row, read_rows

_ALWAYS_NEEDED = ("generated_image", "reference_image")

_NEEDED = {
    "cp": ("reference_mask",),
    "pf": ("generated_mask", "prompt", "subject"),
}


@dataclass(frozen=True, slots=True)
class SampleList:
    """The samples to score, in order.

    Attributes:
        samples: all samples, those with an error included.
        source: file or folder that they were read from, for messages.
        root: folder that relative paths start from.
    """

    samples: tuple[Sample, ...]
    source: Path
    root: Path

    @property
    def sha256(self) -> str:
        """Digest of the list's content; it does not depend on where its folder is."""
        digest = hashlib.sha256()
        for sample in self.samples:
            content = asdict(sample) | {name: self._relative(getattr(sample, name)) for name in FILES}
            digest.update(json.dumps(content).encode())
        return digest.hexdigest()

    def _relative(self, file: str | None) -> str | None:
        return os.path.relpath(file, self.root) if file else file


def read_samples(source: Path, scores: Iterable[str] = MASC_SCORES) -> SampleList:
    """Read a sample list.

    Args:
        source: a CSV (.csv), JSON Lines (.jsonl) or Parquet (.parquet) file with those columns of ``COLUMNS`` that the
            scores need and, optionally, ``sample_id`` and the columns of ``GROUPS``. Other columns are ignored. Paths
            are relative to the file. Or a folder, see :mod:`masc_metrics.bench.concept_folders`.
        scores: scores to compute. All need the two images, "cp" also ``reference_mask``, and "pf" also
            ``generated_mask``, ``prompt`` and ``subject``.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is malformed, has no rows, leaves out a needed file, or has an empty or repeated
            ``sample_id``; the text names the file, the line and the remedy.
        ImportError: for Parquet without pyarrow.
    """
    if source.is_dir():
        return SampleList(tuple(concept_folder_samples(source)), source, source)
    needed = {*_ALWAYS_NEEDED, *(name for score in scores for name in _NEEDED.get(score, ()))}
    columns = [name for name in COLUMNS if name in needed]
    samples = tuple(_samples(read_rows(source, columns), source, columns))
    if not samples:
        raise ValueError(f"{source} lists no samples; give one row per sample below the header line")
    return SampleList(samples, source, source.parent)


def _samples(rows: Iterable[Row], source: Path, needed: list[str]) -> Iterator[Sample]:
    line_of: dict[str, int] = {}
    for position, row in enumerate(rows, start=1):
        cells = {name: (cell or "").strip() for name, cell in row.cells.items() if name not in ("prompt", "subject")}
        for name in FILES:
            if name in needed and not cells.get(name):
                raise ValueError(f"{source}, line {row.line}: {name} is empty; give a file")
        sample_id = cells.get("sample_id", str(position))
        if not sample_id:
            raise ValueError(f"{source}, line {row.line}: sample_id is empty; give each row its own, or no such column")
        if sample_id in line_of:
            raise ValueError(
                f"{source}, line {row.line}: sample_id {sample_id!r} repeats that of line {line_of[sample_id]}; give "
                "each row its own"
            )
        line_of[sample_id] = row.line
        files = {name: os.path.join(source.parent, cells[name]) if cells.get(name) else None for name in FILES}
        prompt = row.cells.get("prompt")
        yield Sample(
            line=row.line,
            sample_id=sample_id,
            generated_image=files["generated_image"] or "",
            generated_mask=files["generated_mask"],
            reference_image=files["reference_image"] or "",
            reference_mask=files["reference_mask"],
            prompt=prompt or "" if "prompt" in needed else prompt,
            subject=row.cells.get("subject") or None,
            **{name: cells.get(name, "") for name in GROUPS},
        )
