"""Writes rendered scenes as a sample list, for `masc-metrics sensitivity`; run as a program: FOLDER [SAMPLES]."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for when it is run as a program

from PIL import Image

from masc_metrics.scenes import concept_benchmark
from support.sample_lists import write_csv

SIZE = 256


def rendered(folder: Path, samples: int) -> Path:
    """Write the list; its ten methods are the damages of :func:`masc_metrics.scenes.concept_benchmark`."""
    pairs = concept_benchmark(samples, seed=5, size=(SIZE, SIZE))
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(samples):
        files = {}
        for which in ("generated", "reference"):
            pixels, mask = (getattr(pairs, f"{which}_{kind}")[number] for kind in ("images", "masks"))
            files |= {f"{which}_{kind}": f"{which}-{number}-{kind}.png" for kind in ("image", "mask")}
            Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / files[f"{which}_image"])
            Image.fromarray(mask).save(folder / files[f"{which}_mask"])
        scene = "wrong scene" if pairs.prompt_damage[number] else "scene"
        rows.append(
            files
            | {
                "prompt": pairs.prompts[number],
                "subject": pairs.subjects[number],
                "method": f"{pairs.identity_damage[number]} damaged, {scene}",
                "concept": f"subject {number}",
            }
        )
    return write_csv(folder / "samples.csv", rows)


if __name__ == "__main__":
    print(rendered(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 300))
