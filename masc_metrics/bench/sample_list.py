"""Sample lists: the samples to score, from a CSV, JSON Lines or Parquet file, or from a folder.

The layout of a folder is::

    ROOT/<concept>/reference.png  reference_mask.png  subject.txt
    ROOT/<concept>/<method>/<name>.png  <name>_mask.png  <name>.txt

``<name>.txt`` holds the prompt, ``subject.txt`` the subject's name in the prompts; without it prompts are kept as they
are. Images have any of the endings in :data:`masc_metrics.images.PICTURE_SUFFIXES`. Files that are neither images nor
texts, and masks of no image, are left out and named.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from masc_metrics.bench.run import MASC_SCORES, MASK_SOURCES, inputs_of
from masc_metrics.bench.sample import COLUMNS, FILES, GROUPS, Sample, relative_to
from masc_metrics.bench.sample import columns as table_columns
from masc_metrics.bench.tables import Row, file_in, iterate_rows, quoted, text_of
from masc_metrics.images import PICTURE_SUFFIXES

_Text = TypeVar("_Text", str, "str | None")

_KNOWN_COLUMNS = {*COLUMNS, *GROUPS, "sample_id"}

_IMAGE_SUFFIXES = frozenset(itertools.chain.from_iterable(PICTURE_SUFFIXES.values()))

_OTHER_SOURCES = {
    "reference_mask": ", or a segmenter, such as --mask-source grounded_sam2",
    "generated_mask": ", or --mask-source transfer, or a segmenter, such as --mask-source grounded_sam2",
}
"""Where else masks come from, for error texts."""

_LAYOUT = "ROOT/<concept>/reference.png and ROOT/<concept>/<method>/<name>.png, with <name>_mask.png and <name>.txt"


@dataclass(frozen=True, slots=True)
class SampleList:
    """The samples to score, in order.

    Attributes:
        samples: all samples, those with an error included.
        source: file or folder that they were read from. Relative paths start from the folder.
        notes: what was left out of a folder, and why.
    """

    samples: tuple[Sample, ...]
    source: Path
    notes: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Digest of the list's content; it does not depend on where its folder is."""
        digest = hashlib.sha256()
        relative = relative_to(self.source if self.source.is_dir() else self.source.parent)
        # What a sample lacks follows from the rest, and may name files by their full paths.
        names = [item.name for item in fields(Sample) if item.name != "lacks"]
        for sample in self.samples:
            content = {name: getattr(sample, name) for name in names}
            content |= {name: relative(content[name]) for name in (*FILES, "orientation_mask") if content[name]}
            digest.update(json.dumps(content).encode())
        return digest.hexdigest()


def read_samples(
    source: Path,
    scores: Iterable[str] = MASC_SCORES,
    mask_source: str = MASK_SOURCES[0],
    *,
    transferable: bool = True,
) -> SampleList:
    """Read a sample list.

    Args:
        source: a table, see :func:`masc_metrics.bench.tables.read_rows`, with those columns of ``COLUMNS`` that the
            scores need and, optionally, ``sample_id`` and the columns of ``GROUPS``. Other columns are copied into the
            table of scores. Paths are relative to the file. Or a folder with the layout in the module's docstring.
        scores: columns of scores to compute; :func:`masc_metrics.bench.run.inputs_of` says what each needs. A sample
            that lacks an input in its row has the scores that do not need it.
        mask_source: with "transfer", no ``generated_mask`` is needed; with a segmenter's name no mask, because it marks
            what the column ``noun`` names, else ``subject``.
        transferable: whether the command has the option ``--mask-source``, which error texts then offer.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is malformed, has no rows, lacks a needed column or has it empty in all rows, lacks a
            generated image, has an empty or repeated ``sample_id``, or a column with the name of one that scoring
            writes; the text names the file, the line and the remedy.
        ImportError: for Parquet without pyarrow.
    """
    scores = tuple(scores)
    needed = {name for score in scores for name in inputs_of(score, mask_source)}
    if source.is_dir():
        notes: list[str] = []
        return SampleList(tuple(_folder_samples(source, needed, notes)), source, tuple(notes))
    columns = [name for name in COLUMNS if name in needed]
    written = {*table_columns(scores)} - _KNOWN_COLUMNS
    rows = iterate_rows(source, columns, texts=_KNOWN_COLUMNS, pictures=FILES)
    samples = tuple(_samples(rows, source, columns, written, transferable))
    if not samples:
        raise ValueError(f"{source} lists no samples; give one row per sample below the header line")
    for name in columns:
        if all(name in sample.lacks for sample in samples):
            raise ValueError(f"{source}, line {samples[0].line}: {samples[0].lacks[name]}")
    return SampleList(samples, source)


def _samples(
    rows: Iterable[Row], source: Path, needed: list[str], written: set[str], transferable: bool
) -> Iterator[Sample]:
    folder = str(source.parent)
    shared = _Shared()
    line_of: dict[str, int] = {}
    for position, row in enumerate(rows, start=1):
        if clash := sorted(written & row.cells.keys()):
            raise ValueError(
                f"{source} has a column {clash[0]!r}, which the table of scores has too; rename or remove it"
            )
        cells = {name: text_of(row, name) for name in row.cells if name not in ("prompt", "subject")}
        lacks = {}
        for name in FILES:
            if name in needed and not cells.get(name):
                instead = _OTHER_SOURCES.get(name, "") if transferable else ""
                lacks[name] = f"{name} is empty; give a file{instead}"
        if "generated_image" in lacks:
            raise ValueError(f"{source}, line {row.line}: {lacks['generated_image']}")
        sample_id = cells.get("sample_id", str(position))
        if not sample_id:
            raise ValueError(f"{source}, line {row.line}: sample_id is empty; give each row its own, or no such column")
        given = "sample_id" in cells  # positions cannot repeat
        if given and sample_id in line_of:
            raise ValueError(
                f"{source}, line {row.line}: sample_id {quoted(sample_id)} repeats that of line "
                f"{line_of[sample_id]}; give each row its own"
            )
        if given:
            line_of[sample_id] = row.line
        files = {name: file_in(folder, cells[name]) if cells.get(name) else None for name in FILES}
        prompt, subject = (row.cells.get(name) if text_of(row, name) else None for name in ("prompt", "subject"))
        noun = shared(cells.get("noun") or text_of(row, "subject"))
        extra = {shared(name): shared(cell) for name, cell in row.cells.items() if name not in _KNOWN_COLUMNS}
        yield Sample(
            line=row.line,
            sample_id=sample_id,
            generated_image=files["generated_image"] or "",
            generated_mask=files["generated_mask"],
            reference_image=shared(files["reference_image"] or ""),
            reference_mask=shared(files["reference_mask"]),
            prompt=shared(prompt or "" if "prompt" in needed else prompt),
            subject=shared(subject),
            reference_noun=noun,
            generated_noun=noun,
            extra=extra or _NOTHING,
            lacks=lacks or _NOTHING,
            **{name: shared(cells.get(name, "")) for name in GROUPS},
        )


_NOTHING: Mapping[str, str] = {}
"""One object for all rows: an empty dict takes 64 bytes."""


class _Shared:
    """One object for equal texts of a list, of which prompts, references and groups have many."""

    def __init__(self) -> None:
        self._texts: dict[str | None, str | None] = {}

    def __call__(self, text: _Text) -> _Text:
        if len(self._texts) < _MOST_SHARED:
            return self._texts.setdefault(text, text)  # type: ignore[return-value]  # equal texts have one type
        return self._texts.get(text, text)  # type: ignore[return-value]


_MOST_SHARED = 2**16  # where each row has its own, remembering them costs more than it saves


def _folder_samples(root: Path, needed: Collection[str], notes: list[str]) -> list[Sample]:
    """Find every generated image below the folder, ordered by concept, method and name.

    An image without a needed mask, prompt or reference becomes a sample that lacks it. What is left out is added to
    ``notes``.

    Raises:
        OSError: if a folder cannot be read.
        ValueError: if there are no generated images, or two of one name.
    """
    methods = ((concept, method) for concept in _folders(root) for method in _folders(concept))
    left_out: dict[str, list[Path]] = {}
    found = (sample for concept, method in methods for sample in _method_samples(concept, method, needed, left_out))
    samples = [replace(sample, line=position) for position, sample in enumerate(found, start=1)]
    notes += [f"{root}: left out {_count(files)}: {files[0]}; {reason}" for reason, files in left_out.items()]
    if not samples:
        raise ValueError(f"{'; '.join([f'{root} holds no generated images; the layout is {_LAYOUT}', *notes])}")
    return samples


def _count(files: Sequence[Path]) -> str:
    return "1 file" if len(files) == 1 else f"{len(files)} files, the first is"


def _method_samples(
    concept: Path, method: Path, needed: Collection[str], left_out: dict[str, list[Path]]
) -> Iterator[Sample]:
    references, images, subject = _images(concept), _images(method), _text(concept / "subject.txt")
    for file in sorted(method.iterdir()):
        if file.is_file() and file.suffix.lower() not in {*_IMAGE_SUFFIXES, ".txt"} and not file.name.startswith("."):
            left_out.setdefault(f"images are read from {', '.join(sorted(_IMAGE_SUFFIXES))}", []).append(file)
    for name, image in images.items():
        if name.endswith("_mask"):
            if name.removesuffix("_mask") not in images:
                left_out.setdefault("it is the mask of no image beside it", []).append(image)
            continue
        found = {
            "reference_image": (concept / "reference.png", references.get("reference")),
            "reference_mask": (concept / "reference_mask.png", references.get("reference_mask")),
            "generated_mask": (method / f"{name}_mask.png", images.get(f"{name}_mask")),
            "prompt": (method / f"{name}.txt", _text(method / f"{name}.txt")),
        }
        lacks = {
            column: f"{column} is missing: {file}"
            for column, (file, content) in found.items()
            if content is None and column in needed
        }
        reference, reference_mask, mask, prompt = (None if part is None else str(part) for _, part in found.values())
        yield Sample(
            line=0,
            sample_id=f"{concept.name}/{method.name}/{name}",
            generated_image=str(image),
            generated_mask=mask,
            reference_image=reference or "",
            reference_mask=reference_mask,
            prompt=prompt,
            subject=subject,
            method=method.name,
            concept=concept.name,
            key=f"{concept.name}/{name}",
            lacks=lacks,
            reference_noun=subject or "",
            generated_noun=subject or "",
        )


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> dict[str, Path]:
    """Image files by name without suffix."""
    images: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in _IMAGE_SUFFIXES and images.setdefault(file.stem, file) != file:
            raise ValueError(f"{images[file.stem]} and {file} have one name; rename or remove one")
    return images


def _text(file: Path) -> str | None:
    """Content of a text file; None if it is missing or empty."""
    try:
        return (file.read_text(encoding="utf-8-sig").strip() or None) if file.is_file() else None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error}); save it as UTF-8") from error
