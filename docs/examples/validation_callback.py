"""Validation by a callback, without a validation loop: it generates images, scores them, and logs scores and a panel.

    pip install tensorboard jinja2
    python docs/examples/validation_callback.py
    tensorboard --logdir lightning_logs

It also writes ``training.html`` into the log folder: a report with curves and the images of every step.

With ``--logger wandb`` (``pip install wandb``), scores and panel are logged to Weights & Biases instead, offline in the
log folder until ``wandb sync``.
"""

import argparse
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from torch.utils.data import DataLoader
from toy import SCENES, SMALL, SUBJECTS, ToyGenerator, picture, prompt, training_rows, unseen_prompt

from masc_metrics.integrations.lightning import Concept, MaSCValidation


def concepts() -> list[Concept]:
    """Concepts with two reference images and two prompts, one of them with a scene that is not in the training set."""
    result = []
    for number, subject in enumerate(SUBJECTS):
        references = [picture(subject, "on a tiled floor", seed=100 + number + shift) for shift in (0, 50)]
        result.append(
            Concept(
                subject.name,
                prompts=[unseen_prompt(number), prompt(subject, SCENES[number - 1])],
                reference_images=[image for image, _ in references],
                reference_masks=[mask for _, mask in references],
                name=subject.shape,
            )
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logger", choices=["tensorboard", "wandb"], default="tensorboard")
    parser.add_argument("--logdir", default="lightning_logs")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--every", type=int, default=3, help="epochs between validations")
    options = parser.parse_args()
    Path(options.logdir).mkdir(parents=True, exist_ok=True)

    L.seed_everything(0)
    model = ToyGenerator()
    masc = MaSCValidation(
        concepts(),
        generate=lambda module, prompts, seed: module.generate(prompts),
        segment=model.segment,
        every_n_epochs=options.every,
        report=Path(options.logdir, "training.html"),
        **SMALL,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=options.epochs,
        log_every_n_steps=1,
        callbacks=[masc],
        logger=TensorBoardLogger(options.logdir, name="callback")
        if options.logger == "tensorboard"
        else WandbLogger(save_dir=options.logdir, project="masc", offline=True),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(training_rows(), batch_size=6, shuffle=True))
    trainer.print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})


if __name__ == "__main__":
    main()
