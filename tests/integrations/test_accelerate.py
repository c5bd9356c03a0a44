"""Metrics and validate_concepts in scripts of accelerate, on two processes."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from support import processes
from support.batches import CP_ARGUMENTS, PATCHES, batch, images, masks, only
from support.concept_cases import SIZE, concepts
from torch.utils.data import DataLoader

from masc_metrics import MaSCConceptPreservation
from masc_metrics.validation import validate_concepts

SAMPLES = 5


def samples() -> list[dict[str, Any]]:
    values = only(batch(SAMPLES), CP_ARGUMENTS)
    return [{"sample_ids": row} | {name: value[row] for name, value in values.items()} for row in range(SAMPLES)]


def metric(checkpoint: str, **settings: Any) -> MaSCConceptPreservation:
    return MaSCConceptPreservation(checkpoint, max_num_patches=PATCHES, **settings)


def work(rank: int, world: int, checkpoint: str) -> dict[str, Any]:
    accelerator = Accelerator(cpu=True)
    model, loader = accelerator.prepare(torch.nn.Linear(1, 1), DataLoader(samples(), batch_size=2))  # type: ignore[arg-type]
    results: dict[str, Any] = {"processes": accelerator.num_processes, "wrapped": type(model).__name__}
    everywhere, own = metric(checkpoint), metric(checkpoint, sync_on_compute=False)
    for values in loader:
        everywhere.update(**values)
        own.update(**values)
    results["everywhere"] = everywhere.compute().item()
    if accelerator.is_main_process:
        results["main only, of its own samples"] = own.compute().item()

    group = torch.distributed.new_group(timeout=datetime.timedelta(seconds=3))
    waiting = metric(checkpoint, process_group=group)
    waiting.update(**next(iter(loader)))
    if accelerator.is_main_process:
        try:
            waiting.compute()
        except RuntimeError as error:
            results["main only"] = str(error)
    accelerator.wait_for_everyone()

    result = validate_concepts(
        concepts(),
        lambda prompts, seed: images(len(prompts), *SIZE, seed=seed),
        lambda pictures, nouns: masks(len(pictures), *SIZE, seed=5),
        modules=model,
        batch_size=2,
        model_name_or_path=checkpoint,
        max_num_patches=PATCHES,
    )
    return results | {"validation": result.scores}


@pytest.fixture(scope="module")
def ranks(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return processes.run(work, 2, tmp_path_factory.mktemp("ranks"), str(checkpoint))


def test_compute_on_every_rank_gives_the_mean_over_all_samples(ranks: list[dict[str, Any]], checkpoint: Path) -> None:
    """The prepared loader repeats samples, so that ranks have equally many; with ids each counts once."""
    single = metric(str(checkpoint))
    single.update(**only(batch(SAMPLES), CP_ARGUMENTS))
    for rank in ranks:
        assert (rank["processes"], rank["wrapped"]) == (2, "DistributedDataParallel")
        assert rank["everywhere"] == pytest.approx(single.compute().item(), abs=1e-6)


def test_compute_on_the_main_process_alone_waits_for_the_others(ranks: list[dict[str, Any]]) -> None:
    assert "imed out" in ranks[0]["main only"]


def test_without_synchronisation_the_main_process_computes_the_mean_of_its_samples(
    ranks: list[dict[str, Any]], checkpoint: Path
) -> None:
    own = metric(str(checkpoint))
    for values in (samples()[:2], samples()[4:] + samples()[:1]):  # batches 0 and 2, the last one filled up
        own.update(**torch.utils.data.default_collate(values))
    assert ranks[0]["main only, of its own samples"] == pytest.approx(own.compute().item(), abs=1e-6)


def test_validate_concepts_gives_every_process_the_scores_of_all_images(
    ranks: list[dict[str, Any]], checkpoint: Path
) -> None:
    single = validate_concepts(
        concepts(),
        lambda prompts, seed: images(len(prompts), *SIZE, seed=seed),
        lambda pictures, nouns: masks(len(pictures), *SIZE, seed=5),
        batch_size=2,
        model_name_or_path=checkpoint,
        max_num_patches=PATCHES,
    )
    for rank in ranks:
        assert rank["validation"] == pytest.approx(single.scores, abs=1e-6)


def test_prepare_treats_a_metric_as_a_model_to_save(checkpoint: Path, tmp_path: Path) -> None:
    """The reason for docs/accelerate.md to advise against it."""
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(torch.nn.Linear(1, 1))
    accelerator.save_state(tmp_path / "without")
    accelerator.prepare(metric(str(checkpoint)))
    accelerator.save_state(tmp_path / "with")
    files = [{file.name for file in (tmp_path / name).iterdir()} for name in ("without", "with")]
    assert files[1] - files[0] == {"model_1.safetensors"}
