"""The examples of docs/examples run as they stand, and leave in the logger what they promise."""

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
def _beside_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    """In this process, as its own would be."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a segmenter that finds nothing in the first pictures is told of
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def torchrun(name: str, *arguments: str) -> str:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return processes.command([*launcher, str(EXAMPLES / name), *arguments], limit_s=LIMIT_S)


def read_events(folder: Path) -> EventAccumulator:
    (version,) = folder.glob("*/version_*")
    return EventAccumulator(str(version)).Reload()


def assert_it_rises(events: EventAccumulator, name: str, gain: float) -> None:
    steps, values = zip(*((event.step, event.value) for event in events.Scalars(name)), strict=True)
    assert len(set(steps)) >= 4
    assert values[-1] > values[0] + gain, f"{name}: {values}"


def test_plain_metrics_tell_the_three_generators_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "plain_metrics.py")
    found = re.findall(r"^([a-z ]+?) +(-?\d\.\d+) +(-?\d\.\d+)$", capsys.readouterr().out, flags=re.MULTILINE)
    table = {what: (float(cp), float(pf)) for what, cp, pf in found}
    assert table["both right"][0] > table["wrong subject"][0] + 0.3
    assert table["both right"][1] > table["wrong scene"][1] + 0.3


@pytest.mark.timeout(LIMIT_S + 20)
def test_validation_under_torchrun_logs_both_metrics_and_both_rise(tmp_path: Path) -> None:
    torchrun("lightning_validation.py", "--devices", "2", "--logdir", str(tmp_path))
    events = read_events(tmp_path)
    for name in ("val/cp", "val/pf"):  # it is about 0.6 for each
        assert_it_rises(events, name, 0.3)
    assert len(events.Images("val/generated")) >= 4


@pytest.mark.timeout(LIMIT_S + 20)
def test_two_processes_of_torchrun_print_the_means_of_one(tmp_path: Path) -> None:
    printed = torchrun("ddp_evaluation.py")
    example = runpy.run_path(str(EXAMPLES / "ddp_evaluation.py"))
    small = example["SMALL"]
    alone = MetricCollection({"cp": MaSCConceptPreservation(**small), "pf": MaSCPromptFollowing(**small)})
    for number in range(example["SAMPLES"]):
        values = example["sample"](number)
        del values["sample_ids"]
        alone.update(**{name: [value] for name, value in values.items()})
    means = {name: float(value) for name, value in re.findall(r"(cp|pf) (-?\d\.\d+)", printed)}
    assert "7 samples on 2 processes" in printed
    assert means == pytest.approx({name: value.item() for name, value in alone.compute().items()}, abs=2e-6)


def test_the_callback_leaves_scalars_and_panels_in_tensorboard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "validation_callback.py", "--logdir", str(tmp_path))
    events = read_events(tmp_path)
    assert_it_rises(events, "val/masc_cp", 0.15)  # it is about 0.3: before the first validation much is learnt
    assert set(events.Tags()["scalars"]) >= {"val/masc_pf", "val/masc_cp/star", "val/masc_pf/ring", "train/loss"}
    assert [event.step for event in events.Images("val/masc_panel")] == [14, 29, 44, 59]


def test_the_callback_leaves_scalars_and_panels_in_an_offline_wandb_run(
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
        assert len(panel.getcolors(maxcolors=2**24) or []) > 1000, "it holds pictures"
