"""Samples from a folder layout, as an alternative to a sample list.

::

    ROOT/<concept>/reference.png  reference_mask.png  subject.txt
    ROOT/<concept>/<method>/<name>.png  <name>_mask.png  <name>.txt

``<name>.txt`` holds the prompt, ``subject.txt`` the subject's name in the prompts; without it prompts are kept as they
are. Images may be .png, .jpg, .jpeg or .webp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from masc_metrics.bench.sample import Sample

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

_LAYOUT = "ROOT/<concept>/reference.png and ROOT/<concept>/<method>/<name>.png, with <name>_mask.png and <name>.txt"


def concept_folder_samples(root: Path) -> list[Sample]:
    """Find every generated image below the folder, ordered by concept, method and name.

    An image without its mask, prompt or reference becomes a sample with an error.

    Raises:
        OSError: if a folder cannot be read.
        ValueError: if there are no generated images.
    """
    methods = ((concept, method) for concept in _folders(root) for method in _folders(concept))
    found = (sample for concept, method in methods for sample in _method_samples(concept, method))
    samples = [replace(sample, line=position) for position, sample in enumerate(found, start=1)]
    if not samples:
        raise ValueError(f"{root} holds no generated images; the layout is {_LAYOUT}")
    return samples


def _method_samples(concept: Path, method: Path) -> Iterator[Sample]:
    references, images = _images(concept), _images(method)
    for name, image in images.items():
        if name.endswith("_mask") and name.removesuffix("_mask") in images:
            continue
        files = {
            concept / "reference.png": references.get("reference"),
            concept / "reference_mask.png": references.get("reference_mask"),
            method / f"{name}_mask.png": images.get(f"{name}_mask"),
        }
        prompt = _text(method / f"{name}.txt")
        missing = [str(expected) for expected, file in files.items() if file is None]
        if prompt is None:
            missing.append(str(method / f"{name}.txt"))
        reference, reference_mask, mask = (None if file is None else str(file) for file in files.values())
        yield Sample(
            line=0,
            sample_id=f"{concept.name}/{method.name}/{name}",
            generated_image=str(image),
            generated_mask=mask,
            reference_image=reference or "",
            reference_mask=reference_mask,
            prompt=prompt,
            subject=_text(concept / "subject.txt"),
            method=method.name,
            concept=concept.name,
            key=f"{concept.name}/{name}",
            error=f"missing {' and '.join(missing)}" if missing else "",
        )


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> dict[str, Path]:
    """Image files by name without suffix."""
    return {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in IMAGE_SUFFIXES}


def _text(file: Path) -> str | None:
    """Content of a text file; None if it is missing or empty."""
    return (file.read_text(encoding="utf-8-sig").strip() or None) if file.is_file() else None
