"""Toy model of the examples, which needs no download, and its rendered training images.

It learns a few subjects and scenes as layers of pixels. In your code, use a diffusion model instead.
"""

from __future__ import annotations

import lightning as L
import torch

from masc_metrics.scenes import Subject, caption, render

SIZE = (128, 128)
SUBJECTS = [
    Subject("star", "yellow", "blue", "dotted"),
    Subject("fish", "orange", "white", "striped"),
    Subject("heart", "red", "yellow", "halved"),
    Subject("gear", "purple", "green", "checked"),
    Subject("house", "white", "red", "striped"),
    Subject("ring", "green", "black", "dotted"),
]
SCENES = ["on a beach", "in a forest", "at a brick wall", "in the snow", "in a night sky", "on a wooden table"]
SMALL = {"model_name_or_path": "tiny", "max_num_patches": 64}
"""Settings of both metrics for the bundled checkpoint. For real images, omit them."""


def picture(subject: Subject, scene: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Render an image and the mask of its subject, as tensors."""
    rendered = render(subject, scene, seed=seed, size=SIZE)
    return torch.from_numpy(rendered.image), torch.from_numpy(rendered.mask)


def prompt(subject: Subject, scene: str) -> str:
    return f"a photo of {caption(subject, scene)}"


def unseen_prompt(number: int) -> str:
    """Prompt with a subject and the scene in which it is not trained."""
    return prompt(SUBJECTS[number], SCENES[number])


def training_rows() -> list[dict[str, object]]:
    """One image of every other pair of subject and scene, all in the same pose."""
    return [
        {"subject": subject, "scene": scene, "picture": picture(SUBJECTS[subject], SCENES[scene], seed=1)[0]}
        for subject in range(len(SUBJECTS))
        for scene in range(len(SCENES))
        if subject != scene
    ]


class ToyGenerator(L.LightningModule):
    """Layers of pixels: an opaque one for each scene, and one with an alpha channel for each subject."""

    def __init__(self) -> None:
        super().__init__()
        self.scenes = torch.nn.Parameter(torch.randn(len(SCENES), 3, *SIZE))
        self.subjects = torch.nn.Parameter(torch.randn(len(SUBJECTS), 3, *SIZE))
        self.opacity = torch.nn.Parameter(torch.full((len(SUBJECTS), 1, *SIZE), -1.0))

    def forward(self, subject: torch.Tensor, scene: torch.Tensor) -> torch.Tensor:
        """Images in [0, 1], (B, 3, H, W)."""
        opacity = self.opacity[subject].sigmoid()
        return opacity * self.subjects[subject].sigmoid() + (1 - opacity) * self.scenes[scene].sigmoid()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = torch.nn.functional.mse_loss(self(batch["subject"], batch["scene"]), batch["picture"] / 255)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)

    def generate(self, prompts: list[str]) -> torch.Tensor:
        """Images in [0, 1], (B, 3, H, W)."""
        subject = [next(i for i, subject in enumerate(SUBJECTS) if subject.name in prompt) for prompt in prompts]
        scene = [next(i for i, scene in enumerate(SCENES) if scene in prompt) for prompt in prompts]
        return self(torch.tensor(subject, device=self.device), torch.tensor(scene, device=self.device))

    def segment(self, images: torch.Tensor, subjects: list[str]) -> torch.Tensor:
        """Masks, (B, H, W), from the model's alpha channels; for other models, use a segmenter."""
        names = [subject.name for subject in SUBJECTS]
        opacity = self.opacity[[names.index(subject) for subject in subjects]].sigmoid()
        return torch.nn.functional.avg_pool2d(opacity, 9, stride=1, padding=4)[:, 0] > 0.5  # smooth out single pixels
