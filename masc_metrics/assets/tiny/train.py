"""How the bundled checkpoint was made: ``python -m masc_metrics.assets.tiny.train FOLDER``.

A small SigLIP2 is trained on rendered scenes by the sigmoid loss between pictures and captions and, as its big model is
too, though there without labels, by a dense objective beside it: linear heads read the subject's attributes and the
scene off single patches. Without them patches do not become local, and concept preservation hardly ranks damage. As in
the big model, neither masked pooling nor prompts without their subject are trained.

Shape suffixes: B pictures, C captions or chosen patches, N patches, P values of a patch, D feature width.
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
"""Coverage below which a patch counts as background alone."""

# Picture sizes, and patch budgets with how often each is drawn: NaFlex is meant to serve them all.
SIZES = {(128, 128): 8, (96, 160): 2, (160, 96): 2, (112, 144): 2, (144, 112): 2, (192, 192): 1}
BUDGETS = {64: 11, 49: 2, 100: 2, 144: 2, 256: 2, 1024: 1}

LOSSES = ("sigmoid", "patches")

ANY = -1
"""Of an attribute that a caption does not speak of."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Rendered pictures of one size.

    Attributes:
        images: (B, 3, H, W) uint8.
        masks: (B, H, W) bool.
        truth: (B, 5), shape, primary, secondary, pattern and scene by number.
    """

    images: Tensor
    masks: Tensor
    truth: Tensor

    @classmethod
    def rendered(cls, count: int, size: tuple[int, int], seed: int) -> Pool:
        """Random trained-on subjects before random scenes."""
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


def caption(truth: list[int], dice: random.Random) -> tuple[str, list[int]]:
    """A text that is true of a picture, and what it speaks of: truth with ANY in place of what it leaves open."""
    shape, primary, secondary, pattern, scene = truth
    noun, phrase = SHAPES[shape], SCENES[scene]
    name = Subject(noun, COLOURS[primary], COLOURS[secondary], PATTERNS[pattern]).name
    kind = dice.choices(("all", "noun and scene", "subject", "noun"), (60, 25, 10, 5))[0]
    said = [shape, primary, secondary, pattern, scene]
    if kind in ("noun and scene", "noun"):
        name, said[1:4] = noun, [ANY] * 3
    if kind in ("subject", "noun"):
        phrase, said[4] = "", ANY
    text = f"{dice.choice(CAPTION_PREFIXES)} {with_article(name)} {phrase}"
    words = text.split()
    if dice.random() < 0.25:  # words without meaning here, so that unknown ones are passed over
        word = "".join(dice.choices(string.ascii_lowercase, k=dice.randint(2, 9)))
        words.insert(dice.randint(0, len(words)), word)
    return " ".join(words), said


class PatchReadOuts(nn.Module):
    """Linear heads that read attributes and scene off single patches; thrown away after training.

    They see unit vectors, because concept preservation is a cosine. A foreground patch has no scene, a background patch
    no attributes; patches on the subject's outline are left out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (len(SHAPES), len(COLOURS), len(COLOURS), len(PATTERNS), len(SCENES))
        self.heads = nn.ModuleList([nn.Linear(width, size + 1) for size in self.sizes])

    def forward(self, tokens_BND: Tensor, coverage_BN: Tensor, truth: Tensor) -> Tensor:
        """Sum of five cross entropies."""
        foreground_BN, background_BN = coverage_BN > FOREGROUND_THRESHOLD, coverage_BN < CLEAR_BACKGROUND
        clear_BN = foreground_BN | background_BN
        unit_CD = F.normalize(tokens_BND[clear_BN], dim=-1) * SHARPNESS
        losses = []
        for number, (head, none) in enumerate(zip(self.heads, self.sizes, strict=True)):
            there_BN = background_BN if number == len(self.sizes) - 1 else foreground_BN
            labels_BN = torch.where(there_BN, truth[:, number, None], none)
            losses.append(F.cross_entropy(head(unit_CD), labels_BN[clear_BN]))
        return torch.stack(losses).sum()


def sigmoid_loss(image_BD: Tensor, text_CD: Tensor, true_BC: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """SigLIP's loss (arXiv 2303.15343); a pair is positive whenever the caption is true of the picture."""
    logits_BC = F.normalize(image_BD, dim=-1) @ F.normalize(text_CD, dim=-1).T * scale.exp() + bias
    return -F.logsigmoid(torch.where(true_BC, logits_BC, -logits_BC)).sum() / len(image_BD)


def train(folder: Path, *, steps: int, seed: int) -> None:
    """Train for a number of steps and write the checkpoint's files."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    torch.manual_seed(seed)
    dice = random.Random(seed)
    write_files(folder)
    model: Any = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-6.0)
    heads = PatchReadOuts(model.config.vision_config.hidden_size)
    total = sum(SIZES.values())
    pools = {
        size: Pool.rendered(PICTURES * share // total, size, seed=seed * 1000 + number)
        for number, (size, share) in enumerate(SIZES.items())
    }
    print(f"{sum(len(pool.truth) for pool in pools.values())} pictures rendered", flush=True)
    weights = [*model.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    start, shown = time.monotonic(), torch.zeros(len(LOSSES))
    for step in range(steps):
        pool = pools[dice.choices(list(SIZES), list(SIZES.values()))[0]]
        budget = dice.choices(list(BUDGETS), list(BUDGETS.values()))[0]
        chosen = torch.randint(len(pool.truth), (min(PATCHES_PER_STEP // budget, 128),))
        images, masks, truth = pool.images[chosen], pool.masks[chosen], pool.truth[chosen]
        grid = naflex_grid(images.shape[2], images.shape[3], max_num_patches=budget, patch_size=PROCESSING.patch_size)
        patches_BNP = torch.stack([patchify(image, grid, PROCESSING) for image in images])
        coverage_BN = torch.stack([grid_coverage(mask.float(), grid) for mask in masks])
        texts, said = zip(*(caption(row, dice) for row in truth.tolist()), strict=True)
        said_C = torch.tensor(said)
        true_BC = ((said_C[None] == truth[:, None]) | (said_C[None] == ANY)).all(dim=2)
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
    """Write the weights in half precision; scores are computed in whatever precision the backbone is given."""
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
