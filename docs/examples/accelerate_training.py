"""Training with accelerate that validates concepts, on one process or several.

    pip install accelerate
    torchrun --nproc-per-node 2 docs/examples/accelerate_training.py

On GPUs, ``accelerate launch docs/examples/accelerate_training.py`` starts it as well.
"""

import argparse
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from toy import SCENES, SMALL, SUBJECTS, ToyGenerator, picture, prompt, training_rows, unseen_prompt

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing
from masc_metrics.validation import Concept, log_validation, validate_concepts


def concept(number: int) -> Concept:
    """A concept with two reference images and two prompts."""
    subject = SUBJECTS[number]
    references = [picture(subject, "on a tiled floor", seed=100 + number + shift) for shift in (0, 50)]
    return Concept(
        subject.name,
        prompts=[unseen_prompt(number), prompt(subject, SCENES[number - 1])],
        reference_images=[image for image, _ in references],
        reference_masks=[mask for _, mask in references],
        name=subject.shape,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logdir", default="accelerate_logs")
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    set_seed(0)
    model = ToyGenerator()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    rows = [row | {"id": number} for number, row in enumerate(training_rows())]
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(rows, batch_size=4, shuffle=True))
    toy = accelerator.unwrap_model(model)
    # Metrics are not for prepare, which would treat them as models to train and to save.
    masc = MetricCollection({"cp": MaSCConceptPreservation(**SMALL), "pf": MaSCPromptFollowing(**SMALL)})
    masc.to(accelerator.device)
    logger = TensorBoardLogger(Path(options.logdir), name="", version="")
    step = 0
    for _ in range(options.epochs):
        for batch in loader:
            loss = torch.nn.functional.mse_loss(model(batch["subject"], batch["scene"]), batch["picture"] / 255)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        # On every rank: the ranks share the prompts, and each gets the same result.
        result = validate_concepts(
            [concept(number) for number in range(len(SUBJECTS))],
            generate=lambda prompts, seed: toy.generate(prompts),
            modules=toy,
            device=accelerator.device,
            **SMALL,
        )
        log_validation(result, logger, step)

    # A metric of images of your own. The prepared loader repeats samples at its end; with sample_ids each counts once.
    for batch in loader:
        subjects = [SUBJECTS[number] for number in batch["subject"].tolist()]
        scenes = [SCENES[number] for number in batch["scene"].tolist()]
        prompts = [prompt(subject, scene) for subject, scene in zip(subjects, scenes, strict=True)]
        with torch.no_grad():
            generated = toy.generate(prompts)
        masc.update(
            generated_images=generated,
            reference_images=batch["picture"],
            reference_masks=[picture(*pair, seed=1)[1] for pair in zip(subjects, scenes, strict=True)],
            prompts=prompts,
            subjects=[subject.name for subject in subjects],
            sample_ids=batch["id"],
        )
    means = masc.compute()  # on every rank, or no rank: the others would wait
    accelerator.print(f"{accelerator.num_processes} processes:", end=" ")
    accelerator.print(", ".join(f"{name} {value.item():.6f}" for name, value in means.items()))
    accelerator.print({name: round(value, 6) for name, value in result.scores.items()})
    time.sleep(0.2)  # before torch 2.8, the next line may hang if a collective has just finished
    accelerator.end_training()  # closes the process group


if __name__ == "__main__":
    main()
