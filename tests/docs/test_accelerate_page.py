"""docs/accelerate.md: every snippet runs as printed, with a pipeline of the form of diffusers'."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from support.batches import batch
from support.hub import python, running

PAGE = Path(__file__).parents[2] / "docs" / "accelerate.md"
VALIDATION, SWEEP, METRICS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
LIMIT_S = 150

SCRIPT = """
import types, warnings

import torch
from PIL import Image
from support.batches import batch

warnings.simplefilter("ignore")
values = batch(2)


class Pipeline:
    def __init__(self):
        self.unet = torch.nn.Linear(1, 1)
        self.loaded = []

    def __call__(self, prompts, generator):
        pictures = values["generated_images"][: len(prompts)].permute(0, 2, 3, 1).numpy()
        return types.SimpleNamespace(images=[Image.fromarray(picture) for picture in pictures])

    def load_lora_weights(self, folder):
        self.loaded.append(folder.name)

    def unload_lora_weights(self):
        self.loaded.append("-")


pipeline, step = Pipeline(), 7
"""

VALIDATED = """
import json
print("RESULT", json.dumps([result.scores, pipeline.loaded]))
"""

LOADED = """
loader = [{name: values[name] for name in ("reference_images", "reference_masks", "prompts", "subjects")}]
loader[0]["sample_ids"] = [0, 1]


def generate(prompts, seed):
    return values["generated_images"]


"""


@pytest.mark.timeout(LIMIT_S + 10)
def test_snippets_score_a_concept_log_each_checkpoint_and_print_the_means_of_metrics(
    checkpoint: Path, tmp_path: Path
) -> None:
    values = batch(1)
    (tmp_path / "photos" / "rex").mkdir(parents=True)
    image, mask = values["reference_images"][0], values["reference_masks"][0]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "photos" / "rex" / "a.png")
    Image.fromarray(mask.byte().mul(255).numpy()).save(tmp_path / "photos" / "rex" / "a_mask.png")
    for step in (1000, 500):
        (tmp_path / "out" / f"checkpoint-{step}").mkdir(parents=True)
    with running(checkpoint) as hub:
        printed = python(hub, tmp_path, "-c", SCRIPT + VALIDATION + SWEEP + VALIDATED + LOADED + METRICS)
    result, _, means = printed.partition("RESULT")[2].partition("\n")
    scores, loaded = json.loads(result)
    assert scores.keys() >= {"cp", "pf", "cp/sks dog", "pf/sks dog"}
    assert (tmp_path / "panel-000007.png").is_file()
    assert loaded == ["checkpoint-500", "-", "checkpoint-1000", "-"]
    assert len(list((tmp_path / "runs").rglob("events.*"))) == 1

    assert "step 1000" in (tmp_path / "sweep.html").read_text()
    assert re.search(r"'cp': tensor\(-?\d.*'pf': tensor\(-?\d", means), means
