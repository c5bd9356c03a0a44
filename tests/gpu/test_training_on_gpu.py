"""Metrics and callback in a Trainer on a GPU: every precision, panels, FSDP, and training left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import processes
from support.batches import batch
from support.concept_cases import RecordingModel, three_concepts, validation
from support.gpu import RESIZE_TOLERANCE
from support.trainers import collection, loader, noise, package, rows, third_party_warnings_ignored, toy, trainer

# Versions on a GPU machine are not pinned, so third-party warnings are not errors there.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True)
def _quiet_lightning() -> Iterator[None]:
    with third_party_warnings_ignored():
        yield


def accelerator(gpu: torch.device) -> str:
    return "gpu" if gpu.type == "cuda" else "cpu"


def logged(run: Any) -> dict[str, float]:
    return {name: value.item() for name, value in run.callback_metrics.items() if "val/" in name}


def expected(checkpoint: Path) -> dict[str, float]:
    """Scores of the same samples on the CPU, without a Trainer."""
    metrics = collection(checkpoint)
    metrics.update(**batch(len(rows())))
    return {name: value.item() for name, value in metrics.compute().items()}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-mixed"])
def test_precision_of_the_trainer_does_not_change_a_score(
    precision: str, checkpoint: Path, gpu: torch.device, tmp_path: Path
) -> None:
    if precision == "16-mixed" and gpu.type == "cpu":
        pytest.skip("Lightning has no 16-mixed on a CPU")
    lightning = package("lightning")
    run = trainer(lightning, tmp_path, accelerator=accelerator(gpu), precision=precision)
    run.fit(toy(lightning, collection(checkpoint)), noise(), loader())
    assert logged(run) == pytest.approx(expected(checkpoint), abs=RESIZE_TOLERANCE)


def test_callback_scores_equal_the_cpus_and_its_panel_is_written(
    checkpoint: Path, gpu: torch.device, tmp_path: Path
) -> None:
    lightning = package("lightning")
    scores = []
    for kind in ("cpu", accelerator(gpu)):
        callback = validation(checkpoint, RecordingModel(), panel_dir=tmp_path / f"panels-{kind}-{len(scores)}")
        run = trainer(lightning, tmp_path, accelerator=kind, callbacks=[callback])
        run.validate(toy(lightning), loader(1), verbose=False)
        scores.append(logged(run))
        assert len(list((tmp_path / f"panels-{kind}-{len(scores) - 1}").glob("*.png"))) == 1
    assert scores[0].keys() == scores[1].keys()
    assert scores[1] == pytest.approx(scores[0], abs=RESIZE_TOLERANCE)


def test_training_is_bit_identical_with_and_without_the_callback(
    checkpoint: Path, gpu: torch.device, tmp_path: Path
) -> None:
    lightning = package("lightning")
    weights, states = [], []
    callback = validation(checkpoint, RecordingModel(), concepts=three_concepts(), every_n_steps=2, panel_size=None)
    for callbacks in ([], [callback]):
        module = toy(lightning)
        run = trainer(lightning, tmp_path, accelerator=accelerator(gpu), callbacks=callbacks, max_epochs=2)
        run.fit(module, noise())
        weights.append({name: value.cpu() for name, value in module.state_dict().items()})
        states.append(torch.cuda.get_rng_state() if gpu.type == "cuda" else torch.get_rng_state())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert torch.equal(*states)


def trained_by_fsdp(rank: int, world: int, checkpoint: str, folder: Path) -> dict[str, Any]:
    from lightning.pytorch.strategies import FSDPStrategy

    lightning = package("lightning")
    results: dict[str, Any] = {}
    with third_party_warnings_ignored():
        for case, metrics in (("without", None), ("with", collection(checkpoint))):
            strategy = FSDPStrategy(auto_wrap_policy={torch.nn.Linear}, state_dict_type="full")
            callbacks = [] if metrics is None else [validation(checkpoint, RecordingModel(), panel_size=None)]
            run = trainer(
                lightning, folder / case, accelerator="gpu", strategy=strategy, callbacks=callbacks,
                enable_checkpointing=True,
            )  # fmt: skip
            run.fit(toy(lightning, metrics), noise(), loader())
            file = Path(run.checkpoint_callback.best_model_path)
            results[case] = list(torch.load(file, weights_only=False)["state_dict"]), file.stat().st_size, logged(run)
    return results


def test_fsdp_on_one_gpu_trains_validates_and_saves_a_full_state(
    checkpoint: Path, gpu: torch.device, tmp_path: Path
) -> None:
    """On one GPU torch replaces sharding by NO_SHARD: wrapping and the full state are tested, not sharding."""
    if gpu.type == "cpu":
        pytest.skip("torch's full state of FSDP modules crashes on a CPU")
    (results,) = processes.run(
        trained_by_fsdp, 1, tmp_path, str(checkpoint), tmp_path / "runs", limit_s=110, backend="nccl"
    )
    assert results["with"][0] == results["without"][0] == list(toy(package("lightning")).state_dict())
    scores = results["with"][2]
    truth = expected(checkpoint)
    assert {name: scores[name] for name in truth} == pytest.approx(truth, abs=RESIZE_TOLERANCE)
    assert "val/masc_cp" in scores
