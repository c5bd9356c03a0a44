"""The two towers of a SigLIP2 checkpoint, each read from disk by itself, behind one face for all transformers versions.

Shape suffixes: B images or texts, N patches, P values of a patch, D feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from masc_metrics.checkpoint import Checkpoint, quiet_transformers, readable
from masc_metrics.grid import Grid
from masc_metrics.images import ImageProcessing

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model")


def _read_tower(checkpoint: Checkpoint, tower: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Read one tower, "Vision" or "Text", through its transformers class; the other one's weights stay on disk."""
    import transformers

    family = {"siglip2": "Siglip2", "siglip": "Siglip"}[checkpoint.model_type]
    tower_class = getattr(transformers, f"{family}{tower}Model")
    dtype_name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    # transformers 4 draws random weights before it reads the real ones; a training around it must not notice.
    untouched_dice = torch.random.fork_rng(devices=[])
    with (
        quiet_transformers(),
        readable(checkpoint.folder),
        torch.inference_mode(False),
        torch.device("cpu"),
        untouched_dice,
    ):
        network, report = tower_class.from_pretrained(
            checkpoint.folder,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **{dtype_name: dtype},
        )
    # transformers fills what is missing with random numbers, drops what is left over, and only warns.
    other_tower = ("text_model." if tower == "Vision" else "vision_model.", "logit_")
    for what, keys in (
        ("lacks", report["missing_keys"]),
        ("has, beyond its config.json,", [key for key in report["unexpected_keys"] if not key.startswith(other_tower)]),
    ):
        if keys:
            raise ValueError(
                f"{checkpoint.folder} {what} {len(keys)} weights of its {tower.lower()} tower, {min(keys)} first; give "
                "a full SigLIP2 checkpoint"
            )
    return network.eval().requires_grad_(False).to(device)


@dataclass(frozen=True, slots=True)
class VisionTower:
    """Patches to patch features, and the attention-pooling head that turns chosen ones into an image embedding."""

    network: Any
    processing: ImageProcessing

    @classmethod
    def read(cls, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> VisionTower:
        """Read the vision tower alone.

        Raises:
            ValueError: if weights of it, or its pooling head, are missing.
        """
        network = _read_tower(checkpoint, "Vision", device, dtype)
        network = getattr(network, "vision_model", network)  # transformers 4 wraps it once more than 5 does
        if not hasattr(network, "head"):
            raise ValueError(f"{checkpoint.folder} has no attention-pooling head; give a full SigLIP2 checkpoint")
        network.use_head = False  # pool() runs it on chosen patches; over all of them it would be wasted
        return cls(network, checkpoint.processing)

    def encode(self, patches_BNP: Tensor, grid: Grid) -> Tensor:
        """Last hidden state, (B, N, D), of images of one grid, after the final layer norm."""
        patches_BNP = patches_BNP.to(self.network.post_layernorm.weight.dtype)
        rows, columns = grid
        if self.processing.fixed_size is None:
            shapes = torch.tensor([grid] * len(patches_BNP), device=patches_BNP.device)
            # By position, because the mask's name differs between transformers versions. No mask: nothing is padded.
            output = self.network(patches_BNP, None, shapes)
        else:
            side = self.processing.patch_size
            cut = patches_BNP.reshape(-1, rows, columns, side, side, 3).permute(0, 5, 1, 3, 2, 4)
            output = self.network(cut.reshape(-1, 3, rows * side, columns * side))
        tokens_BND: Tensor = output.last_hidden_state
        return tokens_BND

    def pool(self, tokens_BND: Tensor, keep_BN: Tensor) -> Tensor:
        """Image embeddings, (B, D) float32, from the kept patches alone; at least one is kept in every row."""
        head = self.network.head
        probe = head.probe.expand(len(tokens_BND), -1, -1)
        attended = head.attention(probe, tokens_BND, tokens_BND, key_padding_mask=~keep_BN, need_weights=False)[0]
        pooled = attended + head.mlp(head.layernorm(attended))
        pooled_BD: Tensor = pooled[:, 0].float()
        return pooled_BD


@dataclass(frozen=True, slots=True)
class TextTower:
    """Texts to text embeddings."""

    network: Any
    tokenizer: Any
    length: int

    @classmethod
    def read(cls, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> TextTower:
        """Read the text tower and the tokenizer.

        Raises:
            OSError: if there is no tokenizer that can be read.
            ValueError: if weights of the tower are missing.
        """
        from transformers import AutoTokenizer

        folder = checkpoint.folder
        try:
            # transformers 5 makes an empty tokenizer of nothing, without a word
            if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
                raise FileNotFoundError(f"none of {', '.join(_TOKENIZER_FILES)} is there")
            with quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises anything from OSError to TypeError, by what is missing
            raise OSError(
                f"{folder} has no tokenizer that can be read ({type(error).__name__}: {error}); save it beside the "
                "model, AutoTokenizer.from_pretrained(original).save_pretrained(folder), or prefetch it again"
            ) from error
        # The pooled position is the last one, so the side decides what is read there.
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        return cls(_read_tower(checkpoint, "Text", device, dtype), tokenizer, checkpoint.text_length)

    def encode(self, texts: list[str]) -> Tensor:
        """Text embeddings, (B, D), in the tower's dtype; no attention mask, as the checkpoint was trained."""
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        embedding_BD: Tensor = self.network(input_ids=tokens["input_ids"].to(self.network.device)).pooler_output
        return embedding_BD
