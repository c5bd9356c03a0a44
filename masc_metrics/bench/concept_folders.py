"""Samples by a folder convention, for those who would rather move files than write a list.

::

    ROOT/<concept>/reference.png  reference_mask.png  subject.txt
    ROOT/<concept>/<method>/<name>.png  <name>_mask.png  <name>.txt

``<name>.txt`` holds the prompt, ``subject.txt`` the subject's name in the prompts (without it they are kept
as they are). Pictures may be .png, .jpg, .jpeg or .webp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from masc_metrics.bench.sample import Sample

PICTURES = (".png", ".jpg", ".jpeg", ".webp")

_LAYOUT = "ROOT/<concept>/reference.png and ROOT/<concept>/<method>/<name>.png, with <name>_mask.png and <name>.txt"


def concept_folder_samples(root: Path) -> list[Sample]:
    """Every generated picture below the folder, by concept, method and name.

    A picture without its mask, prompt or reference is a sample with an error.

    Raises:
        OSError: if a folder cannot be read.
        ValueError: if there is no such picture at all.
    """
    methods = ((concept, method) for concept in _folders(root) for method in _folders(concept))
    found = (sample for concept, method in methods for sample in _of_method(concept, method))
    samples = [replace(sample, line=number) for number, sample in enumerate(found, start=1)]
    if not samples:
        raise ValueError(f"{root} holds no generated pictures; lay them out as {_LAYOUT}")
    return samples


def _of_method(concept: Path, method: Path) -> Iterator[Sample]:
    beside = _pictures(concept)
    pictures = _pictures(method)
    for name, picture in pictures.items():
        if name.endswith("_mask") and name.removesuffix("_mask") in pictures:
            continue
        files = {
            concept / "reference.png": beside.get("reference"),
            concept / "reference_mask.png": beside.get("reference_mask"),
            method / f"{name}_mask.png": pictures.get(f"{name}_mask"),
        }
        prompt = _text(method / f"{name}.txt")
        missing = [str(wanted) for wanted, file in files.items() if file is None]
        if prompt is None:
            missing.append(str(method / f"{name}.txt"))
        reference, reference_mask, mask = (None if file is None else str(file) for file in files.values())
        yield Sample(
            line=0,
            sample_id=f"{concept.name}/{method.name}/{name}",
            generated_image=str(picture),
            generated_mask=mask,
            reference_image=reference or "",
            reference_mask=reference_mask,
            prompt=prompt,
            subject=_text(concept / "subject.txt"),
            method=method.name,
            concept=concept.name,
            key=f"{concept.name}/{name}",
            error=f"there is no {' and no '.join(missing)}" if missing else "",
        )


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _pictures(folder: Path) -> dict[str, Path]:
    """Files by their name without suffix."""
    return {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in PICTURES}


def _text(file: Path) -> str | None:
    """What a text file says; None if it is not there or empty."""
    return (file.read_text(encoding="utf-8-sig").strip() or None) if file.is_file() else None
