"""Concepts, and a model that generates and segments, for tests of MaSCValidation."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masc_metrics.integrations.lightning import Concept, MaSCValidation
from support.batches import PATCHES, images, masks

SIZE = (96, 128)
KITTEN, ROCKET = "kitten", "rocket"
PROMPTS = {
    KITTEN: ["a kitten on a beach", "a kitten in the snow", "a kitten in a forest"],
    ROCKET: ["a rocket on a beach", "a rocket in the snow"],
}
PICTURES = sum(map(len, PROMPTS.values()))


def concepts() -> list[Concept]:
    """Concepts "kitten" with one reference and "rocket" with two references."""
    return [
        Concept("kitten", PROMPTS[KITTEN], images(1, *SIZE, seed=70), masks(1, *SIZE, seed=70)),
        Concept("rocket", PROMPTS[ROCKET], images(2, *SIZE, seed=80), list(masks(2, *SIZE, seed=80))),
    ]


def three_concepts() -> list[Concept]:
    """Also "kettle" with two references."""
    kettle = Concept("kettle", ["a kettle in the snow"], images(2, *SIZE, seed=90), masks(2, *SIZE, seed=90))
    return [*concepts(), kettle]


class RecordingModel:
    """Generates and segments, and records the arguments and the state of the module and trainer."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.seeds: list[int] = []
        self.modes: list[tuple[bool, bool]] = []
        self.steps: list[tuple[int, bool]] = []

    def generate(self, module: Any, prompts: list[str], seed: int) -> Tensor:
        """Generate images that depend on the module's weights and on each of the three global random states."""
        self.prompts += prompts
        self.seeds.append(seed)
        self.modes.append((module.training, torch.is_grad_enabled()))
        self.steps.append((module.trainer.global_step, module.trainer.validating))
        image_seed = int(torch.randint(1000, ())) + int(np.random.randint(1000)) + random.randrange(1000)
        shade = module.net(torch.ones(1, 4, device=module.device)).float().sigmoid().item()
        return (images(len(prompts), *SIZE, seed=image_seed) * (0.5 + shade / 2)).to(torch.uint8)

    def segment(self, pictures: Tensor, nouns: list[str]) -> Tensor:
        assert len(nouns) == len(pictures)
        return masks(len(pictures), *SIZE, seed=5)


def validation(checkpoint: Path | str, recorder: RecordingModel, **settings: Any) -> MaSCValidation:
    settings = {"batch_size": 2, "max_num_patches": PATCHES, "model_name_or_path": checkpoint, **settings}
    generate, segment = (settings.pop(name, getattr(recorder, name)) for name in ("generate", "segment"))
    return MaSCValidation(settings.pop("concepts", concepts()), generate, segment, **settings)
