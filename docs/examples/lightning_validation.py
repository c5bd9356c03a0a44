"""Log concept preservation and prompt following to TensorBoard while a model trains, on one or more processes.

    pip install tensorboard
    python docs/examples/lightning_validation.py --devices 2
    torchrun --nproc-per-node 2 docs/examples/lightning_validation.py --devices 2
    tensorboard --logdir lightning_logs

The model is validated on pairs of subject and scene that are not in the training set, with a reference image in another
pose. It runs offline with the small bundled checkpoint. For real images, omit ``SMALL`` and replace ``generate`` and
``segment`` by your model's sampler and a segmenter.
"""

import argparse
import time

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from toy import SMALL, SUBJECTS, ToyGenerator, picture, training_rows, unseen_prompt

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing


def validation_rows() -> list[dict[str, object]]:
    """Prompts of unseen pairs, each with a reference image of its subject in another pose and scene."""
    rows = []
    for number, subject in enumerate(SUBJECTS):
        reference, mask = picture(subject, "on a tiled floor", seed=100 + number)
        rows.append(
            {
                "id": number,  # repeats from a distributed sampler count once
                "prompt": unseen_prompt(number),
                "subject": subject.name,
                "reference": reference,
                "reference_mask": mask,
            }
        )
    return rows


class Personalization(ToyGenerator):
    def __init__(self) -> None:
        super().__init__()
        self.masc = MetricCollection(
            {"cp": MaSCConceptPreservation(**SMALL), "pf": MaSCPromptFollowing(**SMALL)}, prefix="val/"
        )

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1, help="number of CPU processes; DDP if more than one")
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
    if torch.distributed.is_initialized():  # Lightning does not close CPU groups, which may crash torch at exit
        time.sleep(0.2)  # before torch 2.8, the next line may hang if a collective has just finished
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
