"""Watch concept preservation and prompt following rise while a toy model is personalised.

    pip install tensorboard
    python docs/examples/lightning_validation.py --devices 2
    tensorboard --logdir lightning_logs

The "generative model" knows a few subjects and scenes as layers of pixels and learns them from rendered pictures. It is
validated on pairs of subject and scene that it was never shown together, against a reference picture in another pose.
Everything is offline: the scores come from the small bundled checkpoint. For real pictures, leave "tiny" out and put
your model's sampler and a segmenter in place of ``generate`` and ``segment``.
"""

import argparse

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing
from masc_metrics.scenes import Subject, render

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


def is_unseen(subject: int, scene: int) -> bool:
    """One scene in six is kept back from each subject."""
    return subject == scene


def training_rows() -> list[dict[str, object]]:
    """What the model learns from: one picture of every seen pair, all in one pose."""
    return [
        {"subject": subject, "scene": scene, "picture": picture(SUBJECTS[subject], SCENES[scene], seed=1)[0]}
        for subject in range(len(SUBJECTS))
        for scene in range(len(SCENES))
        if not is_unseen(subject, scene)
    ]


def validation_rows() -> list[dict[str, object]]:
    """Prompts for the unseen pairs, each with a reference picture of its subject in another pose and scene."""
    rows = []
    for number, (subject, scene) in enumerate(zip(SUBJECTS, SCENES, strict=True)):
        reference, mask = picture(subject, "on a tiled floor", seed=100 + number)
        prompt = f"a photo of a {subject.name} {scene}"
        rows.append(
            {
                "id": number,  # with which a distributed sampler's repeats count once
                "prompt": prompt,
                "subject": subject.name,
                "reference": reference,
                "reference_mask": mask,
            }
        )
    return rows


def picture(subject: Subject, scene: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A rendered picture and its subject's mask, as tensors."""
    rendered = render(subject, scene, seed=seed, size=SIZE)
    return torch.from_numpy(rendered.image), torch.from_numpy(rendered.mask)


class Personalization(L.LightningModule):
    """Layers of pixels: one for each scene, and over it one with transparency for each subject."""

    def __init__(self) -> None:
        super().__init__()
        self.masc = MetricCollection(
            {
                "cp": MaSCConceptPreservation("tiny", max_num_patches=64),
                "pf": MaSCPromptFollowing("tiny", max_num_patches=64),
            },
            prefix="val/",
        )
        self.scenes = torch.nn.Parameter(torch.randn(len(SCENES), 3, *SIZE))
        self.subjects = torch.nn.Parameter(torch.randn(len(SUBJECTS), 3, *SIZE))
        self.opacity = torch.nn.Parameter(torch.full((len(SUBJECTS), 1, *SIZE), -1.0))

    def forward(self, subject: torch.Tensor, scene: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) pictures in [0, 1]."""
        opacity = self.opacity[subject].sigmoid()
        return opacity * self.subjects[subject].sigmoid() + (1 - opacity) * self.scenes[scene].sigmoid()

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = torch.nn.functional.mse_loss(self(batch["subject"], batch["scene"]), batch["picture"] / 255)
        self.log("train/loss", loss)
        return loss

    def generate(self, prompts: list[str]) -> torch.Tensor:
        subject = [next(i for i, subject in enumerate(SUBJECTS) if subject.name in prompt) for prompt in prompts]
        scene = [next(i for i, scene in enumerate(SCENES) if scene in prompt) for prompt in prompts]
        return self(torch.tensor(subject, device=self.device), torch.tensor(scene, device=self.device))

    def segment(self, images: torch.Tensor, subjects: list[str]) -> torch.Tensor:
        """This model knows where it painted; for any other, ask a segmenter."""
        names = [subject.name for subject in SUBJECTS]
        return self.opacity[[names.index(subject) for subject in subjects], 0].sigmoid() > 0.5

    def validation_step(self, batch: dict[str, object], batch_idx: int) -> None:
        images = self.generate(batch["prompt"])
        self.masc.update(
            generated_images=images,
            generated_masks=self.segment(images, batch["subject"]),
            reference_images=batch["reference"],
            reference_masks=batch["reference_mask"],
            prompts=batch["prompt"],
            subjects=batch["subject"],
            sample_ids=batch["id"],
        )
        self.log_dict(self.masc)
        if batch_idx == 0:
            self.logger.experiment.add_images("val/generated", images, self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1, help="CPU processes; with more than one, by DDP")
    parser.add_argument("--logdir", default="lightning_logs")
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()

    L.seed_everything(0)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=options.devices,
        strategy="ddp" if options.devices > 1 else "auto",
        max_epochs=options.epochs,
        check_val_every_n_epoch=3,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=TensorBoardLogger(options.logdir, name="personalization"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Personalization()
    validation = DataLoader(validation_rows(), batch_size=3)
    trainer.validate(model, validation)
    trainer.fit(model, DataLoader(training_rows(), batch_size=6, shuffle=True), validation)
    trainer.print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})


if __name__ == "__main__":
    main()
