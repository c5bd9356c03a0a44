"""Sample lists: the samples to score, from a CSV, JSON Lines or Parquet file, or from a folder.

The layout of a folder is::

    ROOT/<concept>/reference.png  reference_mask.png  subject.txt  [reference_2.png  reference_2_mask.png  ...]
    ROOT/<concept>/<method>/<name>.png  <name>_mask.png  <name>.txt

``<name>.txt`` holds the prompt, ``subject.txt`` the subject's name in the prompts; without it prompts are kept as they
are. Images have any of the endings in :data:`masc_metrics.images.PICTURE_SUFFIXES`. Files that are neither images nor
texts, and masks of no image, are left out and named.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeAlias

from masc_metrics.bench.run import MASC_SCORES, MASK_SOURCES, inputs_of
from masc_metrics.bench.sample import COLUMNS, FILES, GROUPS, SEPARATOR, Sample, relative_to
from masc_metrics.bench.sample import columns as table_columns
from masc_metrics.bench.tables import Row, file_in, iterate_rows, quoted, texts_of
from masc_metrics.images import PICTURE_SUFFIXES

_KNOWN_COLUMNS = {*COLUMNS, *GROUPS, "sample_id"}

_READ_COLUMNS = {*_KNOWN_COLUMNS, "noun"}

Reference: TypeAlias = "tuple[str, str | None]"
"""Image and mask file of a reference."""

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
        pictures: SHA-256 of the distinct pictures that are stored in a Parquet file, in order.
    """

    samples: tuple[Sample, ...]
    source: Path
    notes: tuple[str, ...] = ()
    pictures: tuple[bytes, ...] = ()

    @property
    def sha256(self) -> str:
        """Digest of the list's content, stored pictures included; it does not depend on where its folder is."""
        digest = hashlib.sha256(b"".join(self.pictures))
        relative = relative_to(self.source if self.source.is_dir() else self.source.parent)
        # What a sample lacks follows from the rest, and may name files by their full paths.
        names = [item.name for item in fields(Sample) if item.name != "lacks"]
        for sample in self.samples:
            content = {name: getattr(sample, name) for name in names}
            content |= {name: relative(content[name]) for name in (*FILES, "orientation_mask") if content[name]}
            content["more_references"] = [[file and relative(file) for file in pair] for pair in sample.more_references]
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
            table of scores. Paths are relative to the file. A cell of ``reference_image`` may hold several files,
            separated by ";" or as a JSON list, and then ``reference_mask`` as many. Or a folder with the layout in the
            module's docstring.
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
    place_of: dict[tuple[str, bytes], str] = {}
    rows = iterate_rows(source, columns, texts=_KNOWN_COLUMNS, pictures=FILES, place_of=place_of)
    with _no_garbage_collection():
        samples = tuple(_samples(rows, source, columns, written, transferable))
    if not samples:
        raise ValueError(f"{source} lists no samples; give one row per sample below the header line")
    for name in columns:
        if all(name in sample.lacks for sample in samples):
            raise ValueError(f"{source}, line {samples[0].line}: {samples[0].lacks[name]}")
    return SampleList(samples, source, pictures=tuple(picture for _, picture in place_of))


def _samples(
    rows: Iterable[Row], source: Path, needed: list[str], written: set[str], transferable: bool
) -> Iterator[Sample]:
    folder = str(source.parent)
    shared, references = _Shared(), _References(folder)
    line_of: dict[str, int] = {}
    needed_files = [name for name in FILES if name in needed]
    needs_prompt = "prompt" in needed
    names: AbstractSet[str] = frozenset()
    read: list[str] = []
    copied: list[str] = []
    for position, row in enumerate(rows, start=1):
        if row.cells.keys() != names:  # once, except in JSON
            names = row.cells.keys()
            if clash := sorted(written & names):
                raise ValueError(
                    f"{source} has a column {clash[0]!r}, which the table of scores has too; rename or remove it"
                )
            read = [name for name in names if name in _READ_COLUMNS]
            copied = [name for name in names if name not in _KNOWN_COLUMNS]
        cells = texts_of(row, read)
        lacks = {}
        for name in needed_files:
            if not cells.get(name):
                instead = _OTHER_SOURCES.get(name, "") if transferable else ""
                lacks[name] = f"{name} is empty; give a file{instead}"
        if "generated_image" in lacks:
            raise ValueError(f"{source}, line {row.line}: {lacks['generated_image']}")
        sample_id = cells.get("sample_id")
        if sample_id is None:
            sample_id = str(position)  # positions cannot repeat
        elif not sample_id:
            raise ValueError(f"{source}, line {row.line}: sample_id is empty; give each row its own, or no such column")
        elif line_of.setdefault(sample_id, row.line) != row.line:
            raise ValueError(
                f"{source}, line {row.line}: sample_id {quoted(sample_id)} repeats that of line "
                f"{line_of[sample_id]}; give each row its own"
            )
        generated_image, generated_mask = cells.get("generated_image"), cells.get("generated_mask")
        (reference_image, reference_mask), more = references.of(cells, source, row.line)
        prompt = row.cells["prompt"] if cells.get("prompt") else "" if needs_prompt else None
        subject = row.cells["subject"] if cells.get("subject") else None
        noun = shared[cells.get("noun") or cells.get("subject", "")]
        yield Sample(
            line=row.line,
            sample_id=sample_id,
            generated_image=file_in(folder, generated_image) if generated_image else "",
            generated_mask=file_in(folder, generated_mask) if generated_mask else None,
            reference_image=reference_image,
            reference_mask=reference_mask,
            more_references=more,
            prompt=None if prompt is None else shared[prompt],
            subject=None if subject is None else shared[subject],
            method=shared[cells.get("method", "")],
            concept=shared[cells.get("concept", "")],
            category=shared[cells.get("category", "")],
            key=shared[cells.get("key", "")],
            reference_noun=noun,
            generated_noun=noun,
            extra={name: cell and shared[cell] for name in copied for cell in [row.cells[name]]}
            if copied
            else _NOTHING,
            lacks=lacks or _NOTHING,
        )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Rows hold no cycles, and to look for some among ever more rows takes a seventh of the time of a long list."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_NOTHING: Mapping[str, str] = {}
"""One object for all rows: an empty dict takes 64 bytes."""


class _Shared(dict[str, str]):
    """One object for equal texts of a list, of which prompts, references and groups have many."""

    def __missing__(self, text: str) -> str:
        if len(self) < _MOST_SHARED:
            self[text] = text
        return text


class _References:
    """The references of a list's rows; rows with equal cells have one object."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._known: dict[tuple[str, str], tuple[Reference, tuple[Reference, ...]]] = {}

    def of(self, cells: Mapping[str, str], source: Path, line: int) -> tuple[Reference, tuple[Reference, ...]]:
        """The first reference of a row, and its others; errors as of :func:`references_of`."""
        key = cells.get("reference_image", ""), cells.get("reference_mask", "")
        found = self._known.get(key)
        if found is None:
            first, *more = references_of(cells, self._folder, f"{source}, line {line}")
            found = first, tuple(more)
            if len(self._known) < _MOST_SHARED:
                self._known[key] = found
        return found


_MOST_SHARED = 2**16  # where each row has its own, remembering them costs more than it saves


def references_of(cells: Mapping[str, str], folder: str | Path, label: str) -> list[Reference]:
    """Image and mask file of each reference of a row, at least one; the image's is empty if there is none.

    Raises:
        ValueError: if there are as many masks neither as images nor none, or a cell with several files is malformed.
    """
    images, masks = (
        files_of_cell(cells.get(name, ""), folder, f"{label}: {name}") for name in ("reference_image", "reference_mask")
    )
    if not masks:
        if len(images) > 1:
            no_masks: list[Reference] = [(image, None) for image in images]
            return no_masks
        return [(images[0] if images else "", None)]
    if len(images) != len(masks) and len(masks) + len(images) > 1:
        raise ValueError(
            f"{label}: reference_image holds {len(images)} files and reference_mask {len(masks)}; give one mask for "
            "each image, in the same order"
        )
    return list(zip(images or [""], masks, strict=True))


def files_of_cell(cell: str, folder: str | Path, label: str) -> list[str]:
    """The files of a cell, below a folder: one, several separated by ";", or a JSON list.

    Raises:
        ValueError: if a file is empty, or the list is not one of texts.
    """
    if not cell:
        return []
    names: object = [cell]
    if cell.startswith("[") and not os.path.exists(os.path.join(folder, cell)):
        try:
            names = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{label} is {quoted(cell)}, not a JSON list ({error}); give a list of files") from error
    elif SEPARATOR in cell and not os.path.exists(os.path.join(folder, cell)):
        names = cell.split(SEPARATOR)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"{label} is {quoted(cell)}, in which a file is empty or not text; give the names of files")
    return [file_in(folder, name.strip()) for name in names]


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
    notes += [f"{root}: left out {_count(files)}: {files[0]}; {reason}" for reason, files in left_out.items() if files]
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
    numbered = [name for name in references if re.fullmatch(r"reference_\d+", name)]
    further = sorted(numbered, key=lambda name: (int(name.removeprefix("reference_")), name))
    known = {name + ending for name in ("reference", *further) for ending in ("", "_mask")}
    unknown = left_out.setdefault("references are named reference.png, reference_2.png and so on", [])
    unknown += [file for name, file in references.items() if name not in known and file not in unknown]
    more = [(str(references[name]), _or_none(references.get(f"{name}_mask"))) for name in further]
    wants_masks = "reference_mask" in needed or "reference_mask" in references
    missing = [str(concept / f"{name}_mask.png") for name in further if f"{name}_mask" not in references]
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
        if missing and wants_masks:
            lacks.setdefault("reference_mask", f"reference_mask is missing: {missing[0]}")
        reference, reference_mask, mask, prompt = (None if part is None else str(part) for _, part in found.values())
        yield Sample(
            line=0,
            sample_id=f"{concept.name}/{method.name}/{name}",
            generated_image=str(image),
            generated_mask=mask,
            reference_image=reference or "",
            reference_mask=reference_mask,
            more_references=tuple(more),
            prompt=prompt,
            subject=subject,
            method=method.name,
            concept=concept.name,
            key=f"{concept.name}/{name}",
            lacks=lacks,
            reference_noun=subject or "",
            generated_noun=subject or "",
        )


def _or_none(file: Path | None) -> str | None:
    return None if file is None else str(file)


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
