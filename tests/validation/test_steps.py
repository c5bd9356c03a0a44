"""checkpoint_step: the training step of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from masc_metrics.validation import checkpoint_step


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("out/checkpoint-500", 500),
        ("out/checkpoint-500/pytorch_lora_weights.safetensors", 500),
        ("checkpoint-10/checkpoint-500/unet", 500),
        ("run/epoch=1-step=00042.ckpt", 42),
        ("dog-step00000300.safetensors", 300),
        ("s3://bucket/run/epoch=1-step=42.ckpt", 42),
    ],
)
def test_names_hold_the_step(path: str, step: int) -> None:
    assert checkpoint_step(path) == step


def test_a_stored_step_counts_more_than_the_name(tmp_path: Path) -> None:
    weight = {"weight": torch.zeros(2)}
    save_file(weight, tmp_path / "dog-step3.safetensors", metadata={"ss_steps": "1200"})
    assert checkpoint_step(tmp_path / "dog-step3.safetensors") == 1200
    save_file(weight, tmp_path / "dog-step3.safetensors")
    assert checkpoint_step(tmp_path / "dog-step3.safetensors") == 3
    torch.save({"state_dict": weight, "global_step": 7}, tmp_path / "step=3.ckpt")
    assert checkpoint_step(tmp_path / "step=3.ckpt") == 7
    folder = tmp_path / "sharded-step=3.ckpt"
    folder.mkdir()
    torch.save({"global_step": 8}, folder / "meta.pt")
    assert checkpoint_step(folder) == 8


def test_objects_are_unpickled_only_if_trusted(tmp_path: Path) -> None:
    file = tmp_path / "step=3.ckpt"
    torch.save({"global_step": 7, "hyper_parameters": {"path": Path("x"), "object": pytest.raises}}, file)
    assert checkpoint_step(file) == 3
    assert checkpoint_step(file, trusted=True) == 7


def test_paths_without_a_step_are_an_error_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="last holds no training step, and neither does its name; give step="):
        checkpoint_step("run/last")
