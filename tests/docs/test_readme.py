"""README.md: every snippet runs as printed, on the default checkpoint's name, and its figures are measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from support.batches import batch
from support.hub import Hub, python, running
from support.score_levels import README, score_levels, table
from torchmetrics import MetricCollection

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing

TEXT = README.read_text(encoding="utf-8")
PLAIN, MODULE, CALLBACK = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
SAMPLES = 4
LIMIT_S = 150

MODULE_PROGRAM = """
import json, sys, warnings

import torch
from support.batches import batch
from torch.utils.data import DataLoader

warnings.simplefilter("ignore")
{snippet}

values = batch({samples})


class Toy(Personalization):
    def generate(self, prompts):
        return torch.stack([values["generated_images"][values["prompts"].index(prompt)] for prompt in prompts])


keys = ("reference_images", "reference_masks", "prompts", "subjects")
rows = [{{key: values[key][i] for key in keys}} for i in range({samples})]
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
)
module = Toy()
trainer.validate(module, DataLoader(rows, batch_size=2), verbose=False)
if trainer.is_global_zero:
    logged = {{name: value.item() for name, value in trainer.callback_metrics.items()}}
    state = list(module.state_dict()) + list(module.parameters())
    print("RESULT", json.dumps([logged, len(state), module.masc["cp"].backbone.checkpoint.commit]))
"""

CALLBACK_PROGRAM = """
import json, warnings

import torch
from support.batches import batch
from torch.utils.data import DataLoader

warnings.simplefilter("ignore")
values = batch(1)
photos, masks = values["reference_images"], values["reference_masks"]
asked = []


def generate(module, prompts, seed):
    asked.extend(prompts)
    return values["generated_images"][: len(prompts)]

{snippet}

class Toy(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


trainer.fit(Toy(), DataLoader(torch.ones(250, 1)))
logged = {{name: value.item() for name, value in trainer.callback_metrics.items()}}
print("RESULT", json.dumps([logged, asked]))
"""


@pytest.fixture
def local_hub(checkpoint: Path):
    with running(checkpoint) as hub:
        yield hub


def run_program(hub: Hub, folder: Path, program: str, *arguments: str) -> list:
    script = folder / "program.py"
    script.write_text(program)
    output = python(hub, folder, str(script), *arguments)
    return json.loads(next(line for line in output.splitlines() if line.startswith("RESULT")).removeprefix("RESULT"))


def expected_scores(checkpoint: Path, values: dict, *, given_masks: bool = False) -> dict[str, float]:
    if not given_masks:
        values = {name: value for name, value in values.items() if name != "generated_masks"}
    collection = MetricCollection({"cp": MaSCConceptPreservation(checkpoint), "pf": MaSCPromptFollowing(checkpoint)})
    collection.update(**values)
    return {name: value.item() for name, value in collection.compute().items()}


def save_images(folder: Path, values: dict) -> None:
    """The four files that the README names, of the first sample of a batch."""
    for name in ("generated", "reference"):
        image, mask = values[f"{name}_images"][0], values[f"{name}_masks"][0]
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{name}.png")
        Image.fromarray(mask.byte().mul(255).numpy()).save(folder / f"{name}_mask.png")


@pytest.mark.timeout(LIMIT_S + 10)
def test_plain_snippet_prints_both_scores(local_hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    values = batch(1) | {"prompts": ["a photo of a corgi on a beach"], "subjects": ["corgi"]}
    save_images(tmp_path, values)
    printed = dict(re.findall(r"'(\w+)': tensor\((-?[\d.]+)\)", python(local_hub, tmp_path, "-c", PLAIN)))
    expected = expected_scores(checkpoint, values)
    assert {name: float(value) for name, value in printed.items()} == pytest.approx(expected, abs=1e-4)


@pytest.mark.timeout(LIMIT_S + 10)
@pytest.mark.parametrize(("devices", "precision"), [(1, "bf16-true"), (2, "32-true")])
def test_module_snippet_logs_both_metrics(
    devices: int, precision: str, local_hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    program = MODULE_PROGRAM.format(snippet=MODULE, samples=SAMPLES)
    logged, kept, commit = run_program(local_hub, tmp_path, program, str(devices), precision)
    expected = {f"val/{name}": value for name, value in expected_scores(checkpoint, batch(SAMPLES)).items()}
    assert local_hub.requests["GET", "model.safetensors"] == 1, "all ranks share one download"
    assert logged == pytest.approx(expected, abs=1e-6)
    assert kept == 0, "the module's state_dict and parameters hold nothing of the backbone"
    assert commit.startswith("0123456789abcdef")


@pytest.mark.timeout(LIMIT_S + 10)
def test_callback_snippet_logs_both_metrics(local_hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    logged, asked = run_program(local_hub, tmp_path, CALLBACK_PROGRAM.format(snippet=CALLBACK))
    values = batch(1) | {"prompts": ["sks dog on a beach"], "subjects": ["sks dog"]}
    expected = expected_scores(checkpoint, values)
    assert asked == ["sks dog on a beach"] * 3, "checked before training, validated after 500 and after 1000 steps"
    assert logged["val/masc_cp"] == pytest.approx(expected["cp"], abs=1e-6)
    assert logged["val/masc_pf"] == pytest.approx(expected["pf"], abs=1e-6)


@pytest.mark.timeout(LIMIT_S + 10)
def test_file_command_writes_both_scores(local_hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    values = batch(1)
    save_images(tmp_path, values)
    columns = "generated_image,generated_mask,reference_image,reference_mask,prompt,subject"
    cells = f"generated.png,generated_mask.png,reference.png,reference_mask.png,{values['prompts'][0]},cat"
    (tmp_path / "samples.csv").write_text(f"{columns}\n{cells}\n")
    (command,) = re.findall(r"`masc-metrics (score [^`]+)`", TEXT)
    python(local_hub, tmp_path, "-m", "masc_metrics", *command.split(), "--device", "cpu")
    head, row = ((line.split(",")) for line in (tmp_path / "scores.csv").read_text().splitlines())
    scores = dict(zip(head, row, strict=True))
    expected = expected_scores(checkpoint, values, given_masks=True)
    assert float(scores["cp"]) == pytest.approx(expected["cp"], abs=1e-5)
    assert float(scores["pf"]) == pytest.approx(expected["pf"], abs=1e-5)


def test_score_levels_are_those_measured() -> None:
    assert table(score_levels()) in TEXT, "python tests/support/score_levels.py writes the measured table"


def test_readme_has_at_most_100_lines() -> None:
    assert len(TEXT.splitlines()) <= 100


def test_what_you_get_is_five_bullets_of_at_most_twelve_words() -> None:
    section = TEXT.split("## What you get\n")[1].split("\n\n")[0]
    bullets = re.sub(r"\]\([^)]*\)", "]", section).splitlines()
    assert len(bullets) == 5
    assert all(len(bullet.removeprefix("- ").split()) <= 12 for bullet in bullets)


def test_one_command_runs_the_demo_and_one_runs_the_tests() -> None:
    commands = [line for line in TEXT.splitlines() if line.startswith("python3 -m venv ")]
    assert [command.split("/")[-1].split()[0] for command in commands] == ["masc-metrics", "pytest"]
