"""The specification as a readable loop in float64, for one sample at a time, without code of the package.

Images are encoded as by the processor of the checkpoint: padded to the complete patch budget, with a mask.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def grid_of(height: int, width: int, max_num_patches: int) -> tuple[int, int]:
    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        scale = (low + high) / 2
        sides = [max(16, math.ceil(side * scale / 16) * 16) for side in (height, width)]
        if (sides[0] // 16) * (sides[1] // 16) <= max_num_patches:
            low = scale
        else:
            high = scale
    rows, columns = (max(16, math.ceil(side * low / 16) * 16) // 16 for side in (height, width))
    return rows, columns


def patches_of(image: np.ndarray, rows: int, columns: int) -> list[list[float]]:
    """Convert (H, W, 3) uint8 to a list of patches, each a list of 768 normalised values."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    size = (rows * 16, columns * 16)
    resized = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", antialias=True)[0].double()
    values = (resized / 255 - 0.5) / 0.5
    patches = []
    for row in range(rows):
        for column in range(columns):
            patch = values[:, row * 16 : (row + 1) * 16, column * 16 : (column + 1) * 16]
            patches.append(patch.permute(1, 2, 0).reshape(-1).tolist())
    return patches


def coverage_of(mask: np.ndarray, rows: int, columns: int) -> list[float]:
    values = mask.astype(np.float32)
    if values.max() > 1:
        values = values / 255
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], size=(rows, columns), mode="bilinear", align_corners=False
    )
    return resized.clamp(0, 1).flatten().tolist()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


class Reference:
    """CP and PF of one sample as in the specification."""

    def __init__(self, folder: Path, max_num_patches: int) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.model = AutoModel.from_pretrained(folder).double().eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.max_num_patches = max_num_patches
        self.naflex = json.loads((folder / "config.json").read_text())["model_type"] == "siglip2"

    def features(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """Features of all patches, without padding."""
        if self.naflex:
            rows, columns = grid_of(*image.shape[:2], self.max_num_patches)
            patches = torch.zeros(1, self.max_num_patches, 768, dtype=torch.float64)
            patches[0, : rows * columns] = torch.tensor(patches_of(image, rows, columns), dtype=torch.float64)
            valid = torch.zeros(1, self.max_num_patches, dtype=torch.int64)
            valid[0, : rows * columns] = 1
            with torch.no_grad():
                output = self.model.vision_model(patches, valid, torch.tensor([[rows, columns]]))
        else:
            rows = columns = self.model.config.vision_config.image_size // 16
            side = rows * 16
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
            resized = torch.nn.functional.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
            with torch.no_grad():
                output = self.model.vision_model((resized.double() / 255 - 0.5) / 0.5)
        return output.last_hidden_state[0, : rows * columns], (rows, columns)

    def cp(self, generated: np.ndarray, reference: np.ndarray, reference_mask: np.ndarray) -> float:
        generated_features, _ = self.features(generated)
        reference_features, grid = self.features(reference)
        best = []
        for feature, coverage in zip(reference_features, coverage_of(reference_mask, *grid), strict=True):
            if coverage > 0.5:
                best.append(max(cosine(feature, other) for other in generated_features))
        return sum(best) / len(best) if best else math.nan

    def pf(self, generated: np.ndarray, generated_mask: np.ndarray, prompt: str, subject: str | None) -> float:
        features, grid = self.features(generated)
        kept = [
            feature
            for feature, coverage in zip(features, coverage_of(generated_mask, *grid), strict=True)
            if not coverage >= 0.5
        ]
        if not kept:
            return math.nan
        return cosine(self.pool(torch.stack(kept)), self.text(strip(prompt, subject)))

    def pool(self, patches: Tensor) -> Tensor:
        """Output of the pooling head for the given patches, computed head by head."""
        head = self.model.vision_model.head
        width = patches.shape[1]
        query_w, key_w, value_w = head.attention.in_proj_weight.split(width)
        query_b, key_b, value_b = head.attention.in_proj_bias.split(width)
        query = query_w @ head.probe[0, 0] + query_b
        keys, values = patches @ key_w.T + key_b, patches @ value_w.T + value_b
        step = width // head.attention.num_heads
        mixed = []
        for start in range(0, width, step):
            part = slice(start, start + step)
            logits = keys[:, part] @ query[part] / math.sqrt(step)
            mixed.append(torch.softmax(logits, dim=0) @ values[:, part])
        attended = head.attention.out_proj(torch.cat(mixed))
        with torch.no_grad():
            return attended + head.mlp(head.layernorm(attended))

    def text(self, prompt: str) -> Tensor:
        pad = self.tokenizer.pad_token_id
        tokens = self.tokenizer(prompt.lower(), padding=False, truncation=True, max_length=64)["input_ids"]
        tokens = tokens + [pad] * (64 - len(tokens))
        with torch.no_grad():
            return self.model.text_model(input_ids=torch.tensor([tokens])).pooler_output[0]


def strip(prompt: str, subject: str | None) -> str:
    if not subject:
        return prompt
    name = re.escape(subject)
    with_article = re.compile(rf"\b(a|an|the)\s+{name}\b", re.IGNORECASE)
    bare = re.compile(rf"\b{name}\b", re.IGNORECASE)
    pattern = with_article if with_article.search(prompt) else bare
    return re.sub(r"\s+", " ", pattern.sub("", prompt)).strip()
