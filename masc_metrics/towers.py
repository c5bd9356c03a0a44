"""Vision and text towers of a SigLIP2 checkpoint, read separately, with one interface for all transformers versions.

Shape suffixes: B images or texts; H, W image sides in pixels, or H heads of K values; N patches; D feature width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from masc_metrics import onednn
from masc_metrics.checkpoint import Checkpoint
from masc_metrics.images import ImageProcessing, cut, normalise
from masc_metrics.precision import to_device
from masc_metrics.reading import check_token_ids, read_network, read_tokenizer

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model")


def _read_tower(checkpoint: Checkpoint, tower: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Read one tower, "Vision" or "Text", through its transformers class, without reading the other one."""
    family = {"siglip2": "Siglip2", "siglip": "Siglip"}[checkpoint.model_type]
    network = read_network(
        checkpoint.folder,
        f"{family}{tower}Model",
        device,
        dtype,
        kind="SigLIP2 checkpoint",
        part=f"its {tower.lower()} tower",
        unused=("text_model." if tower == "Vision" else "vision_model.", "logit_"),
    )
    if device.type == "cpu" and onednn.is_available(dtype):
        onednn.use_onednn(network, network.config.hidden_act)
    return network


@dataclass(frozen=True, slots=True)
class VisionTower:
    """Vision tower: patch features of images, and image embeddings by attention pooling over selected patches."""

    network: Any
    processing: ImageProcessing

    @classmethod
    def read(cls, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> VisionTower:
        """Read the vision tower.

        Raises:
            ValueError: if weights of the tower or its pooling head are missing.
        """
        network = _read_tower(checkpoint, "Vision", device, dtype)
        network = getattr(network, "vision_model", network)  # transformers 4 has one more wrapper than 5
        if not hasattr(network, "head"):
            raise ValueError(f"{checkpoint.folder} has no attention-pooling head; give a full SigLIP2 checkpoint")
        network.use_head = False  # pool() runs the head on selected patches
        return cls(network, checkpoint.processing)

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Last hidden state, (B, N, D), of images resized to one grid by :func:`masc_metrics.images.resize`."""
        weight = self.network.post_layernorm.weight
        pixels_B3HW = normalise(pixels_B3HW, self.processing).to(weight.dtype)
        if self.processing.fixed_size is None:
            side = self.processing.patch_size
            batch, _, height, width = pixels_B3HW.shape
            # On the CPU, because the network reads each number; on a GPU each read would synchronise.
            shapes = torch.tensor([(height // side, width // side)] * batch, device="cpu")
            # Positional, because the name of the mask differs between transformers versions. Nothing is padded.
            output = self.network(cut(pixels_B3HW, side), None, shapes)
        else:
            output = self.network(pixels_B3HW)
        tokens_BND: Tensor = output.last_hidden_state
        return tokens_BND

    def attention(self, tokens_BND: Tensor, keep_BN: Tensor) -> Tensor:
        r"""Weights of the pooling head, (B, H, N) for H heads: each head's sum over the kept patches is 1.

        The attention has one query q_h per head, computed from the probe. The key projection is applied to the query
        instead of to every patch,

        .. math:: q_h^T (K_h x_n + b) = (K_h^T q_h)^T x_n + \text{const}

        so that the keys of the N patches are never computed.
        """
        head = self.network.head
        attention = head.attention
        heads, width = attention.num_heads, attention.embed_dim
        to_query, to_key, _ = attention.in_proj_weight.float().chunk(3)
        query_bias = attention.in_proj_bias.float().chunk(3)[0]  # the key bias cancels in the softmax
        query_HD = (to_query @ head.probe[0, 0].float() + query_bias).reshape(heads, 1, -1)
        query_HD = (query_HD @ to_key.reshape(heads, -1, width))[:, 0] / math.sqrt(width // heads)
        logits_BHN = (tokens_BND.float() @ query_HD.mT).mT.masked_fill(~keep_BN[:, None], -torch.inf)
        weights_BHN: Tensor = logits_BHN.softmax(dim=2)
        return weights_BHN

    def pool(self, tokens_BND: Tensor, keep_BN: Tensor) -> Tensor:
        r"""Image embeddings, (B, D) float32, pooled over the kept patches, of which every row has at least one.

        The value projection is applied after the sum that :meth:`attention` weights,

        .. math:: \sum_n a_{hn} (V_h x_n + b) = V_h \sum_n a_{hn} x_n + b

        so that the values of the N patches are never computed: the same embedding for a hundredth of the work.
        """
        head = self.network.head
        attention = head.attention
        to_value = attention.in_proj_weight.float().chunk(3)[2]
        value_bias = attention.in_proj_bias.float().chunk(3)[2]
        patches_BND = tokens_BND.float()
        mixed_BHD = self.attention(patches_BND, keep_BN) @ patches_BND
        values_BHK = torch.einsum(
            "bhd,hkd->bhk", mixed_BHD, to_value.reshape(attention.num_heads, -1, attention.embed_dim)
        )
        attended_BD = values_BHK.flatten(1) + value_bias
        attended_BD = attention.out_proj(attended_BD.to(tokens_BND.dtype))
        pooled_BD: Tensor = attended_BD + head.mlp(head.layernorm(attended_BD))
        return pooled_BD.float()


@dataclass(frozen=True, slots=True)
class TextTower:
    """Text tower: text embeddings, with the tokenizer."""

    network: Any
    tokenizer: Any
    checkpoint: Checkpoint

    @classmethod
    def read(cls, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> TextTower:
        """Read the text tower and the tokenizer.

        Raises:
            OSError: if there is no readable tokenizer.
            ValueError: if weights of the tower are missing.
        """
        # read_tokenizer pads on the right, as in training: the padding side changes the pooled, last position.
        tokenizer = read_tokenizer(
            checkpoint.folder,
            _TOKENIZER_FILES,
            "save it next to the model, AutoTokenizer.from_pretrained(original).save_pretrained(folder), or download "
            "the checkpoint again",
        )
        return cls(_read_tower(checkpoint, "Text", device, dtype), tokenizer, checkpoint)

    def cut_tokens(self, texts: list[str]) -> list[int]:
        """Number of tokens of each text that do not fit into the tower's length."""
        tokens = self.tokenizer(texts, verbose=False)["input_ids"]  # verbose would warn of the texts that are counted
        return [max(len(each) - self.checkpoint.text_length, 0) for each in tokens]

    def encode(self, texts: list[str]) -> Tensor:
        """Text embeddings, (B, D), in the tower's dtype; no attention mask, as the checkpoint was trained.

        Raises:
            ValueError: if the tokenizer is not the tower's.
        """
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=self.checkpoint.text_length, truncation=True, return_tensors="pt"
        )
        check_token_ids(tokens["input_ids"], self.network.config.vocab_size, self.checkpoint.folder)
        ids = to_device(tokens["input_ids"], self.network.device)
        embedding_BD: Tensor = self.network(input_ids=ids).pooler_output
        return embedding_BD
