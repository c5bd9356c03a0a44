"""Training of the bundled checkpoint: ``python -m masc_metrics.assets.tiny.train FOLDER``.

A small SigLIP2 model is trained on rendered scenes with the sigmoid loss between images and captions, and with a dense
objective, as SigLIP2 is, but supervised: linear heads predict the subject's attributes and the scene from single
patches. Without it, patch features are not local, and concept preservation hardly ranks damage. As in SigLIP2, neither
masked pooling nor prompts without their subject are trained.

Shape suffixes: B images, C captions or chosen patches, N patches, P values of a patch, D feature width.
"""

from __future__ import annotations

import argparse
import math
import random
import string
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc_metrics.assets.tiny.files import CAPTION_PREFIXES, TEXT_LENGTH, write_files
from masc_metrics.grid import naflex_grid
from masc_metrics.images import ImageProcessing, patchify
from masc_metrics.masks import FOREGROUND_THRESHOLD, grid_coverage
from masc_metrics.scenes import COLOURS, PATTERNS, SCENES, SHAPES, Subject, random_subject, render
from masc_metrics.scenes.subjects import with_article

PROCESSING = ImageProcessing(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", None)

PICTURES = 16_000
PATCHES_PER_STEP = 8192
LEARNING_RATE = 1.5e-3
SHARPNESS = 16.0
CLEAR_BACKGROUND = 0.1
"""Coverage below which a patch counts as background."""

# Image sizes and patch budgets with their relative frequencies; NaFlex supports all of them.
SIZES = {(128, 128): 8, (96, 160): 2, (160, 96): 2, (112, 144): 2, (144, 112): 2, (192, 192): 1}
BUDGETS = {64: 11, 49: 2, 100: 2, 144: 2, 256: 2, 1024: 1}

LOSSES = ("sigmoid", "patches")

UNSPECIFIED = -1
"""Number of an attribute that a caption does not mention."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Rendered images of one size.

    Attributes:
        images: (B, 3, H, W) uint8.
        masks: (B, H, W) bool.
        truth: (B, 5), numbers of shape, primary, secondary, pattern and scene.
    """

    images: Tensor
    masks: Tensor
    truth: Tensor

    @classmethod
    def rendered(cls, count: int, size: tuple[int, int], seed: int) -> Pool:
        """Render random subjects of the training set in random scenes."""
        rng = np.random.default_rng(seed)
        pictures, truths = [], []
        for _ in range(count):
            subject, scene = random_subject(rng, held_out=False), int(rng.integers(len(SCENES)))
            pictures.append(render(subject, SCENES[scene], seed=int(rng.integers(2**32)), size=size))
            truths.append([
                SHAPES.index(subject.shape), COLOURS.index(subject.primary), COLOURS.index(subject.secondary),
                PATTERNS.index(subject.pattern), scene,
            ])  # fmt: skip
        return cls(
            torch.from_numpy(np.stack([picture.image for picture in pictures])),
            torch.from_numpy(np.stack([picture.mask for picture in pictures])),
            torch.tensor(truths),
        )


def caption(truth: list[int], rng: random.Random) -> tuple[str, list[int]]:
    """Random caption of an image, and its ground truth with UNSPECIFIED for attributes that are not mentioned."""
    shape, primary, secondary, pattern, scene = truth
    noun, phrase = SHAPES[shape], SCENES[scene]
    name = Subject(noun, COLOURS[primary], COLOURS[secondary], PATTERNS[pattern]).name
    kind = rng.choices(("all", "noun and scene", "subject", "noun"), (60, 25, 10, 5))[0]
    mentioned = [shape, primary, secondary, pattern, scene]
    if kind in ("noun and scene", "noun"):
        name, mentioned[1:4] = noun, [UNSPECIFIED] * 3
    if kind in ("subject", "noun"):
        phrase, mentioned[4] = "", UNSPECIFIED
    text = f"{rng.choice(CAPTION_PREFIXES)} {with_article(name)} {phrase}"
    words = text.split()
    if rng.random() < 0.25:  # random words, so that the model learns to ignore unknown ones
        word = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9)))
        words.insert(rng.randint(0, len(words)), word)
    return " ".join(words), mentioned


class PatchClassifiers(nn.Module):
    """Linear heads that predict attributes and scene from single patches; discarded after training.

    Their inputs are unit vectors, because concept preservation is a cosine. The label of the scene is "none" on
    foreground patches, the labels of the attributes on background patches; patches on the outline are ignored.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (len(SHAPES), len(COLOURS), len(COLOURS), len(PATTERNS), len(SCENES))
        self.heads = nn.ModuleList([nn.Linear(width, size + 1) for size in self.sizes])

    def forward(self, tokens_BND: Tensor, coverage_BN: Tensor, truth: Tensor) -> Tensor:
        """Sum of five cross-entropy losses."""
        foreground_BN, background_BN = coverage_BN > FOREGROUND_THRESHOLD, coverage_BN < CLEAR_BACKGROUND
        clear_BN = foreground_BN | background_BN
        unit_CD = F.normalize(tokens_BND[clear_BN], dim=-1) * SHARPNESS
        losses = []
        for number, (head, none) in enumerate(zip(self.heads, self.sizes, strict=True)):
            labelled_BN = background_BN if number == len(self.sizes) - 1 else foreground_BN
            labels_BN = torch.where(labelled_BN, truth[:, number, None], none)
            losses.append(F.cross_entropy(head(unit_CD), labels_BN[clear_BN]))
        return torch.stack(losses).sum()


def sigmoid_loss(image_BD: Tensor, text_CD: Tensor, true_BC: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """SigLIP's loss (arXiv 2303.15343); a pair is positive if the caption is true of the image."""
    logits_BC = F.normalize(image_BD, dim=-1) @ F.normalize(text_CD, dim=-1).T * scale.exp() + bias
    return -F.logsigmoid(torch.where(true_BC, logits_BC, -logits_BC)).sum() / len(image_BD)


def train(folder: Path, *, steps: int, seed: int) -> None:
    """Train a checkpoint and write its files."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    torch.manual_seed(seed)
    rng = random.Random(seed)
    write_files(folder)
    model: Any = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-6.0)
    heads = PatchClassifiers(model.config.vision_config.hidden_size)
    total = sum(SIZES.values())
    pools = {
        size: Pool.rendered(PICTURES * share // total, size, seed=seed * 1000 + number)
        for number, (size, share) in enumerate(SIZES.items())
    }
    print(f"{sum(len(pool.truth) for pool in pools.values())} images rendered", flush=True)
    weights = [*model.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    start, shown = time.monotonic(), torch.zeros(len(LOSSES))
    for step in range(steps):
        pool = pools[rng.choices(list(SIZES), list(SIZES.values()))[0]]
        budget = rng.choices(list(BUDGETS), list(BUDGETS.values()))[0]
        chosen = torch.randint(len(pool.truth), (min(PATCHES_PER_STEP // budget, 128),))
        images, masks, truth = pool.images[chosen], pool.masks[chosen], pool.truth[chosen]
        grid = naflex_grid(images.shape[2], images.shape[3], max_num_patches=budget, patch_size=PROCESSING.patch_size)
        patches_BNP = torch.stack([patchify(image, grid, PROCESSING) for image in images])
        coverage_BN = torch.stack([grid_coverage(mask.float(), grid) for mask in masks])
        texts, mentioned = zip(*(caption(row, rng) for row in truth.tolist()), strict=True)
        mentioned_C = torch.tensor(mentioned)
        true_BC = ((mentioned_C[None] == truth[:, None]) | (mentioned_C[None] == UNSPECIFIED)).all(dim=2)
        ids = tokenizer(list(texts), padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")

        shapes = torch.tensor([grid] * len(images))
        vision = model.vision_model(patches_BNP, torch.ones(patches_BNP.shape[:2], dtype=torch.long), shapes)
        text_CD = model.text_model(input_ids=ids["input_ids"]).pooler_output
        contrast = sigmoid_loss(vision.pooler_output, text_CD, true_BC, model.logit_scale, model.logit_bias)
        dense = heads(vision.last_hidden_state, coverage_BN, truth)
        loss: Tensor = contrast + dense
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        shown += torch.tensor([contrast.item(), dense.item()]) / 50
        if step % 50 == 49:
            losses = ", ".join(f"{name} {loss:.3f}" for name, loss in zip(LOSSES, shown.tolist(), strict=True))
            print(f"step {step + 1}: {losses}; {time.monotonic() - start:.0f} s", flush=True)
            shown.zero_()
    save(model, folder)


def save(model: nn.Module, folder: Path) -> None:
    """Write the weights in half precision; the precision of inference is that of the backbone."""
    from safetensors.torch import save_file

    half = {name: tensor.detach().half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write the checkpoint")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train(options.folder, steps=options.steps, seed=options.seed)
