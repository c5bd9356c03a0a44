"""The programs in docs/examples run as they are, and log what they promise."""

from __future__ import annotations

import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image
from support import processes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchmetrics import MetricCollection

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
LIMIT_S = 100


@pytest.fixture(autouse=True)
def _import_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    """Run an example in this process, as a program."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the segmenter finds nothing in the first images
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def torchrun(name: str, *arguments: str) -> str:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return processes.command([*launcher, str(EXAMPLES / name), *arguments], limit_s=LIMIT_S)


def read_events(folder: Path) -> EventAccumulator:
    (version,) = folder.glob("*/version_*")
    return EventAccumulator(str(version)).Reload()


def assert_rises(events: EventAccumulator, name: str, gain: float) -> None:
    steps, values = zip(*((event.step, event.value) for event in events.Scalars(name)), strict=True)
    assert len(set(steps)) >= 4
    assert values[-1] > values[0] + gain, f"{name}: {values}"


def test_plain_metrics_rank_the_right_generator_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "plain_metrics.py")
    found = re.findall(r"^([a-z ]+?) +(-?\d\.\d+) +(-?\d\.\d+)$", capsys.readouterr().out, flags=re.MULTILINE)
    table = {variant: (float(cp), float(pf)) for variant, cp, pf in found}
    assert table["both right"][0] > table["wrong subject"][0] + 0.3
    assert table["both right"][1] > table["wrong scene"][1] + 0.3


@pytest.mark.timeout(LIMIT_S + 20)
def test_lightning_validation_under_torchrun_logs_rising_scores(tmp_path: Path) -> None:
    torchrun("lightning_validation.py", "--devices", "2", "--logdir", str(tmp_path))
    events = read_events(tmp_path)
    for name in ("val/cp", "val/pf"):  # about 0.6 for each
        assert_rises(events, name, 0.3)
    assert len(events.Images("val/generated")) >= 4


@pytest.mark.timeout(LIMIT_S + 20)
def test_ddp_evaluation_on_two_processes_prints_the_means_of_one(tmp_path: Path) -> None:
    printed = torchrun("ddp_evaluation.py")
    example = runpy.run_path(str(EXAMPLES / "ddp_evaluation.py"))
    small = example["SMALL"]
    single = MetricCollection({"cp": MaSCConceptPreservation(**small), "pf": MaSCPromptFollowing(**small)})
    for number in range(example["SAMPLES"]):
        values = example["sample"](number)
        del values["sample_ids"]
        single.update(**{name: [value] for name, value in values.items()})
    means = {name: float(value) for name, value in re.findall(r"(cp|pf) (-?\d\.\d+)", printed)}
    assert "7 samples on 2 processes" in printed
    assert means == pytest.approx({name: value.item() for name, value in single.compute().items()}, abs=2e-6)


@pytest.mark.timeout(LIMIT_S + 20)
def test_accelerate_training_on_two_processes_logs_rising_scores_and_panels(tmp_path: Path) -> None:
    printed = torchrun("accelerate_training.py", "--logdir", str(tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert_rises(events, "val/masc_cp", 0.15)  # about 0.4
    assert {event.step for event in events.Images("val/masc_panel")} >= {4, 24}  # TensorBoard keeps a few
    assert len(list((tmp_path / "masc_tables").iterdir())) == 6
    assert re.search(r"2 processes: cp 0\.\d+, pf -?\d\.\d+", printed)
    (cp,) = re.findall(r"'cp': (\d\.\d+)", printed)
    assert float(cp) == pytest.approx(events.Scalars("val/masc_cp")[-1].value, abs=2e-6)


def test_callback_logs_scores_and_panels_to_tensorboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "validation_callback.py", "--logdir", str(tmp_path))
    events = read_events(tmp_path)
    assert_rises(events, "val/masc_cp", 0.15)  # about 0.3: the model learns much before the first validation
    assert set(events.Tags()["scalars"]) >= {"val/masc_pf", "val/masc_cp/star", "val/masc_pf/ring", "train/loss"}
    assert [event.step for event in events.Images("val/masc_panel")] == [14, 29, 44, 59]


def test_callback_logs_scores_and_panels_to_an_offline_wandb_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    try:
        run(monkeypatch, "validation_callback.py", "--logdir", str(tmp_path), "--logger", "wandb", "--epochs", "3")
        summary = dict(wandb.run.summary)
    finally:
        wandb.finish()
        wandb.teardown()
    assert -1 <= summary["val/masc_cp"] <= 1
    assert -1 <= summary["val/masc_pf/star"] <= 1
    (file,) = tmp_path.rglob("masc_panel*.png")
    with Image.open(file) as panel:
        assert panel.width > 500
        assert len(panel.getcolors(maxcolors=2**24) or []) > 1000, "the panel contains images"
