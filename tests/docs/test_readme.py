"""The README's LightningModule, word for word, inside a real Trainer, on the default checkpoint's name."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.batches import batch
from support.hub import Hub, running
from torchmetrics import MetricCollection

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing

README = Path(__file__).parents[2] / "README.md"
SAMPLES = 4
LIMIT_S = 150

PROGRAM = """
import json, sys, warnings

import lightning as L
import torch
from support.batches import batch
from torch.utils.data import DataLoader

warnings.simplefilter("ignore")
{snippet}

values = batch({samples})


class Toy(Personalization):
    def generate(self, prompts):
        return torch.stack([values["generated_images"][values["prompts"].index(prompt)] for prompt in prompts])

    def segment(self, images, subjects):
        known = values["generated_images"]
        return torch.stack([values["generated_masks"][(known == image).flatten(1).all(1)][0] for image in images])


rows = [
    {{
        "prompt": values["prompts"][i],
        "subject": values["subjects"][i],
        "reference": values["reference_images"][i],
        "reference_mask": values["reference_masks"][i],
    }}
    for i in range({samples})
]
devices = int(sys.argv[1])
trainer = L.Trainer(
    accelerator="cpu",
    devices=devices,
    strategy="ddp" if devices > 1 else "auto",
    precision=sys.argv[2],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    default_root_dir=sys.argv[3],
)
module = Toy()
trainer.validate(module, DataLoader(rows, batch_size=2), verbose=False)
if trainer.is_global_zero:
    logged = {{name: value.item() for name, value in trainer.callback_metrics.items()}}
    state = list(module.state_dict()) + list(module.parameters())
    print("RESULT", json.dumps([logged, len(state), module.masc["cp"].backbone.checkpoint.commit]))
"""


def snippet() -> str:
    """The first Python block of the README."""
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)[0]


def validate(hub: Hub, folder: Path, devices: int, precision: str = "32-true") -> tuple[dict[str, float], int, str]:
    script = folder / "validate.py"
    script.write_text(PROGRAM.format(snippet=snippet(), samples=SAMPLES))
    result = subprocess.run(
        [sys.executable, str(script), str(devices), precision, str(folder)],
        env=hub.environment(folder / "cache"),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("RESULT"))
    logged, kept, commit = json.loads(line.removeprefix("RESULT"))
    return logged, kept, commit


@pytest.fixture
def expected(checkpoint: Path) -> dict[str, float]:
    collection = MetricCollection(
        {"cp": MaSCConceptPreservation(checkpoint), "pf": MaSCPromptFollowing(checkpoint)}, prefix="val/"
    )
    collection.update(**batch(SAMPLES))
    return {name: value.item() for name, value in collection.compute().items()}


@pytest.mark.timeout(LIMIT_S + 10)
@pytest.mark.parametrize(("devices", "precision"), [(1, "bf16-true"), (2, "32-true")])
def test_the_readmes_module_logs_both_metrics(
    devices: int, precision: str, checkpoint: Path, tmp_path: Path, expected: dict[str, float]
) -> None:
    with running(checkpoint) as hub:
        logged, kept, commit = validate(hub, tmp_path, devices, precision)
        assert hub.requests["GET", "model.safetensors"] == 1, "however many ranks, one download"
    assert logged == pytest.approx(expected, abs=1e-6)
    assert kept == 0, "nothing of the backbone in the module's state_dict or parameters"
    assert commit.startswith("0123456789abcdef")
