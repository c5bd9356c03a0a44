"""Writes a sample list of three methods on rendered scenes, for reports and figures; run as a program: FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for when it is run as a program

import numpy as np
from PIL import Image

from masc_metrics.scenes import SCENES, Picture, caption, random_subject, render
from support.sample_lists import write_csv

DAMAGES = {"LoRA rank 4": (1, 2), "LoRA rank 64": (0, 1), "overfitted": (0,)}
"""Numbers of attributes of the subject that a method changes, in turn; "overfitted" repeats the reference's scene."""


def three_methods(folder: Path, *, concepts: int = 4, prompts: int = 3, size: int = 192) -> Path:
    """Write the list and its files. One generated image is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    rows = []
    for concept in range(concepts):
        subject = random_subject(rng, held_out=True)
        first, *scenes = rng.choice(SCENES, size=prompts + 1, replace=False).tolist()
        reference = f"{concept}/reference"
        _write(folder / reference, render(subject, first, seed=100 + concept, size=(size, size)))
        for number, scene in enumerate(scenes):
            for method, damages in DAMAGES.items():
                shown = subject.damaged(damages[(concept + number) % len(damages)], rng)
                seed = int(rng.integers(2**32))
                name = f"{concept}/{method} {number}"
                _write(
                    folder / name,
                    render(shown, first if method == "overfitted" else scene, seed=seed, size=(size, size)),
                )
                rows.append(
                    {
                        "sample_id": f"{subject.shape}-{len(rows)}",
                        "method": method,
                        "concept": subject.name,
                        "key": number,
                        "generated_image": f"{name}.png",
                        "generated_mask": f"{name}_mask.png",
                        "reference_image": f"{reference}.png",
                        "reference_mask": f"{reference}_mask.png",
                        "prompt": caption(subject, scene),
                        "subject": subject.name,
                    }
                )
    (folder / rows[-1]["generated_image"]).unlink()
    return write_csv(folder / "samples.csv", rows)


def _write(name: Path, picture: Picture) -> None:
    name.parent.mkdir(exist_ok=True)
    Image.fromarray(picture.image.transpose(1, 2, 0)).save(f"{name}.png")
    Image.fromarray(picture.mask).save(f"{name}_mask.png")


if __name__ == "__main__":
    print(three_methods(Path(sys.argv[1])))
