"""What a LightningCLI configuration names: a module, its data, a generator and a segmenter."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from support.concept_cases import RecordingModel
from support.trainers import noise

recorder = RecordingModel()


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 1)

    def training_step(self, values: torch.Tensor, index: int) -> torch.Tensor:
        loss: torch.Tensor = self.net(values).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> Any:
        return noise()


def generate(module: Any, prompts: list[str], seed: int) -> torch.Tensor:
    return recorder.generate(module, prompts, seed)


class Segmenter:
    def __init__(self, margin: int = 8) -> None:
        self.margin = margin

    def __call__(self, pictures: Any, nouns: list[str]) -> torch.Tensor:
        marked = torch.zeros(len(pictures), *pictures[0].shape[1:], dtype=torch.bool)
        marked[:, self.margin : -self.margin, self.margin : -self.margin] = True
        return marked
