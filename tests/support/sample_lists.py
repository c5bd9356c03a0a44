"""Small sample lists of rendered scenes in files, and readers of the files that their runs write."""

from __future__ import annotations

import csv
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from masc_metrics.bench.sample import COLUMNS
from masc_metrics.scenes import SCENES, Subject, caption, render

SUBJECTS = (
    Subject("star", "red", "blue", "striped"),
    Subject("ball", "green", "yellow", "dotted"),
    Subject("box", "blue", "white", "checked"),
)


def written(folder: Path, count: int, *, concepts: int = 3, size: int = 48) -> Path:
    """Write a CSV of samples with alternating subjects, and their images; returns the CSV file."""
    for name in ("ref", "out"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        concept = number % concepts
        subject = SUBJECTS[concept]
        scene = sorted(SCENES)[number % len(SCENES)]
        for name, seed in ((f"ref/{concept}", concept), (f"out/{number}", 100 + number)):
            if not (folder / f"{name}.png").exists():
                picture = render(subject, scene, seed=seed, size=(size, size))
                Image.fromarray(picture.image.transpose(1, 2, 0)).save(folder / f"{name}.png")
                Image.fromarray(picture.mask).save(folder / f"{name}_mask.png")
        prompt = caption(subject, scene)
        subject_name = prompt.removesuffix(f" {scene}")
        files = (f"out/{number}.png", f"out/{number}_mask.png", f"ref/{concept}.png", f"ref/{concept}_mask.png")
        rows.append(
            dict(zip(COLUMNS, (*files, prompt, subject_name), strict=True))
            | {
                "sample_id": f"s{number}",
                "method": "AB"[number % 2],
                "concept": subject.shape,
                "category": "round" if concept == 1 else "angular",
                "key": f"{subject.shape}-{number // 2}",
            }
        )
    return write_csv(folder / "samples.csv", rows)


def write_csv(file: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None) -> Path:
    """Write rows with these columns, by default those of the first row."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def lines_in(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("*.jsonl"))


def wait_for(lines: int, folder: Path, process: subprocess.Popen[bytes], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while lines_in(folder) < lines:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline, f"only {lines_in(folder)} samples in {limit_s} s"
        time.sleep(0.005)
