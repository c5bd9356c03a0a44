"""MaSCValidation in a LightningCLI configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from PIL import Image
from support.batches import PATCHES, images, masks
from support.cli_parts import Module, Segmenter, generate, recorder
from support.concept_cases import SIZE
from support.trainers import third_party_warnings_ignored


@pytest.fixture(autouse=True)
def _ignore_third_party_warnings() -> Iterator[None]:
    with third_party_warnings_ignored():
        yield


@pytest.mark.parametrize(
    ("segment", "source"),
    [
        ({"class_path": "support.cli_parts.Segmenter", "init_args": {"margin": 16}}, "function"),
        (None, "transferred"),
        ("clipseg", "clipseg"),
    ],
)
def test_a_configuration_names_concepts_by_folders_and_functions_by_dotted_names(
    segment: Any, source: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "rex"
    folder.mkdir()
    for number, (picture, mask) in enumerate(zip(images(2, *SIZE), masks(2, *SIZE), strict=True)):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
        Image.fromarray(mask.numpy()).convert("L").save(folder / f"{number}_mask.png")
    callback = {
        "class_path": "masc_metrics.integrations.lightning.MaSCValidation",
        "init_args": {
            "concepts": [{"subject": "rex", "prompts": ["rex on a beach"], "reference_images": str(folder)}],
            "generate": "support.cli_parts.generate",
            "segment": segment,
            "every_n_steps": 2,
            "panel": "worst",
            "panel_size": [1, 2],
            "model_name_or_path": str(checkpoint),
            "dtype": "bfloat16",
            "max_num_patches": PATCHES,
        },
    }
    config = {
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "num_sanity_val_steps": 0,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(tmp_path),
            "callbacks": [callback],
        },
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    recorder.prompts.clear()
    command = LightningCLI(Module, save_config_callback=None, run=False, args=["--config", str(file)])
    (masc,) = [each for each in command.trainer.callbacks if type(each).__name__ == "MaSCValidation"]
    assert masc.generate is generate
    assert masc._scorer.cp.backbone.dtype == torch.bfloat16
    assert masc.settings.panel_size == (1, 2)
    if source == "clipseg":  # its checkpoint is not available
        assert masc._scorer.segment.settings.name == "clipseg"
        return
    assert isinstance(masc._scorer.segment, Segmenter) == (source == "function")
    command.trainer.fit(command.model)
    assert recorder.prompts == ["rex on a beach"] * 2
    assert [image.mask_source for image in masc.table] == [source]
    assert -1 <= command.trainer.callback_metrics["val/masc_cp/rex"].item() <= 1
    assert len(list((tmp_path / "masc_panels").iterdir())) == 2
