"""A small LightningModule with and without the metrics, and Trainers for it."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing
from support.batches import PATCHES, batch

SAMPLES = 6
NAMES = ("generated_images", "generated_masks", "reference_images", "reference_masks", "prompts", "subjects")


def collection(checkpoint: Path | str, **settings: Any) -> MetricCollection:
    settings = {"max_num_patches": PATCHES, **settings}
    return MetricCollection(
        {"cp": MaSCConceptPreservation(checkpoint, **settings), "pf": MaSCPromptFollowing(checkpoint, **settings)},
        prefix="val/",
    )


def rows(count: int = SAMPLES, seed: int = 0) -> list[dict[str, Any]]:
    """Samples of a dataset; images are uint8, which the Trainer's precision does not change."""
    values = batch(count, seed=seed)
    return [{"id": index} | {name: values[name][index] for name in NAMES} for index in range(count)]


def loader(count: int = SAMPLES, seed: int = 0, batch_size: int = 2) -> DataLoader[dict[str, Any]]:
    return DataLoader(rows(count, seed), batch_size=batch_size)  # type: ignore[arg-type]


def noise(count: int = 8, batch_size: int = 2) -> DataLoader[torch.Tensor]:
    """Training data of the toy module."""
    return DataLoader(torch.randn(count, 4, generator=torch.Generator().manual_seed(0)), batch_size=batch_size)  # type: ignore[arg-type]


def toy(lightning: ModuleType, metrics: Any = None, *, keyed: bool = False) -> Any:
    """A module whose training uses random numbers and depends on train and eval mode."""

    class Toy(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(
                torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(), torch.nn.Linear(8, 1)
            )
            if metrics is not None:
                self.masc = metrics

        def training_step(self, values: torch.Tensor, index: int) -> torch.Tensor:
            loss: torch.Tensor = self.net(values).square().mean()
            self.log("loss", loss)
            return loss

        def validation_step(self, values: dict[str, Any], index: int, dataloader_idx: int = 0) -> None:
            if metrics is not None:
                self.masc.update(
                    **{name: values[name] for name in NAMES}, **({"sample_ids": values["id"]} if keyed else {})
                )
                self.log_dict(self.masc)

        def test_step(self, values: dict[str, Any], index: int) -> None:
            self.validation_step(values, index)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    lightning.seed_everything(0, verbose=False)
    return Toy()


def trainer(lightning: ModuleType, folder: Path, **settings: Any) -> Any:
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        **settings,
    }
    return lightning.Trainer(**settings)


@contextmanager
def third_party_warnings_ignored() -> Iterator[None]:
    """Ignore warnings about few workers, small data and the like; warnings of this package still fail the test."""
    with warnings.catch_warnings():
        for module in ("lightning", "pytorch_lightning", "torch", "torchmetrics"):
            warnings.filterwarnings("ignore", module=rf"{module}\b")
        yield


def validation_warnings(function: Callable[[], Any]) -> list[str]:
    """Texts of the callback's warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(warning.message) for warning in caught if "MaSCValidation" in str(warning.message)]


def package(name: str) -> ModuleType:
    return importlib.import_module(name)
