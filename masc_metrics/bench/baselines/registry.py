"""Baselines to stand beside MaSC in one table: CLIP-I, CLIP-T, DINO-I, DINOv3 and SigLIP2 over whole images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masc_metrics.arguments import check_positive
from masc_metrics.backbone import DEFAULT_ENCODE_BATCH_SIZE, SigLIP2Backbone
from masc_metrics.bench.baselines.files import find_files
from masc_metrics.bench.baselines.networks import (
    CLIPNetwork,
    DINONetwork,
    DINOv3Network,
    EmbeddingNetwork,
    SigLIP2Network,
    shared_network,
)
from masc_metrics.checkpoint import CheckpointSource
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.precision import DEFAULT_DTYPE, check_device, check_dtype
from masc_metrics.prompts import check_texts

BASELINES: tuple[str, ...] = ("clip-i", "clip-t", "dino-i", "dinov3-i", "siglip2-i", "siglip2-t")
"""Names of all baselines; those on "-i" compare two images, those on "-t" an image and a text."""

DEFAULT_BASELINE_MODELS: Mapping[str, str] = MappingProxyType(
    {
        "clip-i": "openai/clip-vit-base-patch32",
        "clip-t": "openai/clip-vit-base-patch32",
        "dino-i": "facebook/dino-vits16",
        "dinov3-i": "facebook/dinov3-vitb16-pretrain-lvd1689m",
    }
)
"""Hub id of each baseline's network; siglip2-i and siglip2-t are not in it, they use MaSC's backbone."""

_NETWORKS = {"clip": ("clip", CLIPNetwork), "dino": ("vit", DINONetwork), "dinov3": ("dinov3_vit", DINOv3Network)}
"""model_type of config.json and network class, by the name before the dash."""


class Baseline:
    r"""One baseline score over whole images, without masks; made by :func:`load_baseline`.

    The score of a sample is the plain cosine of two embeddings,

    .. math:: \cos(a, b) = \frac{a^T b}{\lVert a \rVert \lVert b \rVert} \in [-1, 1],

    higher is better. It is neither scaled nor clipped at 0: torchmetrics' CLIPScore is :math:`\max(100 \cos, 0)`, the
    CLIPScore of its paper :math:`2.5 \max(\cos, 0)`, and DreamBench++ reports :math:`100 \cos`.

    Attributes:
        name: one of ``BASELINES``.
        kind: "image" if the generated image is compared with the reference image, "text" if with the prompt.
        checkpoint: hub id or folder of its network.
        commit: the hub's commit hash; None for a folder that did not come from the hub.
        batch_size: images or texts in one pass of the network, at most.
    """

    def __init__(self, name: str, network: EmbeddingNetwork, batch_size: int) -> None:
        self.name = name
        self.kind: Literal["image", "text"] = "text" if name.endswith("-t") else "image"
        self.checkpoint = network.checkpoint
        self.commit = network.commit
        self.batch_size = batch_size
        self._network = network

    def __repr__(self) -> str:
        return f"Baseline({self.name!r}, checkpoint={self.checkpoint!r}, commit={self.commit!r})"

    def score(self, generated: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> list[float]:
        """Cosine of each generated image and its reference image.

        Equal images, by their pixels, are encoded once as long as the network's cache holds them.

        Args:
            generated: (H, W, 3) uint8 RGB arrays of any sizes, in 0..255.
            references: likewise, one for each generated image.

        Returns:
            One score a sample in [-1, 1].

        Raises:
            TypeError: if this is a baseline of kind "text", or an image is no uint8 array.
            ValueError: if an image has another shape, or the lengths differ.
            RuntimeError: if the network's features are not finite, as by overflow in float16.
        """
        self._check_kind("image")
        _check_images("generated", generated)
        _check_images("references", references)
        _check_lengths(len(generated), "references", len(references))
        if len(generated) == 0:
            return []
        # Together, so that batches are full and a picture on both sides is encoded once even without a cache.
        embeddings_BD = self._network.image_embeddings([*generated, *references], self.batch_size)
        generated_BD, references_BD = embeddings_BD.chunk(2)
        return self._cosines(generated_BD, references_BD, "references")

    def score_texts(self, generated: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
        """Cosine of each generated image and its full prompt, the subject included.

        CLIP reads the first 77 tokens of a prompt, its begin and end marks among them, SigLIP2 the first 64.

        Args:
            generated: (H, W, 3) uint8 RGB arrays of any sizes, in 0..255.
            prompts: one for each generated image.

        Returns:
            One score a sample in [-1, 1].

        Raises:
            TypeError: if this is a baseline of kind "image", an image is no uint8 array or a prompt no string.
            ValueError: if an image has another shape, or the lengths differ.
            OSError: if the checkpoint has no tokenizer.
            RuntimeError: if the network's features are not finite, as by overflow in float16.
        """
        self._check_kind("text")
        _check_images("generated", generated)
        check_texts(prompts, "prompts")
        _check_lengths(len(generated), "prompts", len(prompts))
        if len(generated) == 0:
            return []
        images_BD = self._network.image_embeddings(generated, self.batch_size)
        return self._cosines(images_BD, self._network.text_embeddings(prompts, self.batch_size), "prompts")

    def _check_kind(self, kind: Literal["image", "text"]) -> None:
        if self.kind != kind:
            other, method = ("prompts", "score_texts") if self.kind == "text" else ("reference images", "score")
            raise TypeError(f"baseline {self.name} compares generated images with {other}; call {method}")

    def _cosines(self, generated_BD: Tensor, others_BD: Tensor, name: str) -> list[float]:
        for label, embeddings_BD in (("generated", generated_BD), (name, others_BD)):
            broken = (~embeddings_BD.isfinite().all(dim=1)).nonzero()
            if len(broken):
                raise RuntimeError(
                    f"baseline {self.name}: the features of {label}[{int(broken[0])}] are not finite; give another "
                    "dtype than float16, or check the checkpoint's weights"
                )
        # Rounding alone leads out of [-1, 1], by a few units in the seventh digit.
        cosines_B = F.cosine_similarity(generated_BD.float(), others_BD.float(), dim=1).clamp(-1, 1)
        scores: list[float] = cosines_B.tolist()
        return scores


def load_baseline(
    name: str,
    *,
    device: str | torch.device,
    model: str | None = None,
    dtype: torch.dtype = DEFAULT_DTYPE,
    backbone: SigLIP2Backbone | None = None,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
) -> Baseline:
    """Load a baseline; those on one network share it, and what it has encoded, as long as one of them lives.

    ========== =========================================================================================
    clip-i     projected image embeddings of CLIP ViT-B/32, as in DreamBench++
    clip-t     projected embeddings of its image and its text tower
    dino-i     class token of DINO ViT-S/16 after the last layer norm, as in DreamBooth
    dinov3-i   class token of DINOv3 ViT-B/16 after the last layer norm
    siglip2-i  MaSC's backbone: its pooling head over all patches, no mask
    siglip2-t  that against its text embedding
    ========== =========================================================================================

    Images are prepared as each checkpoint's own files say: CLIP crops the middle, the others squash to a square, and
    SigLIP2 NaFlex keeps the aspect ratio. transformers does it through Pillow, whatever its version; DINOv3's processor
    needs torchvision, so its steps are taken with torch instead. DreamBench++ itself runs DINO as ViT-S/8
    (``model="facebook/dino-vits8"``), resizes to 256 pixels and crops the middle 224.

    Args:
        name: one of ``BASELINES``.
        device: where the network runs; siglip2-i and siglip2-t run where the backbone does.
        model: hub id or local folder of another checkpoint of the same architecture; None is the one of
            ``DEFAULT_BASELINE_MODELS``.
        dtype: float32, bfloat16 or float16, whatever autocast says; siglip2-i and siglip2-t run in the backbone's.
            Cosines are always of float32.
        backbone: MaSC's, from :func:`masc_metrics.load_backbone`; for siglip2-i and siglip2-t.
        max_num_patches: patch budget of one image, for siglip2-i and siglip2-t.
        cache_dir: where downloads are kept.
        local_files_only: never use the network.
        batch_size: images or texts in one pass.

    Returns:
        The baseline, read and ready.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if there is no baseline of that name, the checkpoint is of another architecture or damaged, the
            device is not there, or backbone and model do not fit the name.
        OSError: if the checkpoint cannot be had; the text says how to get it. DINOv3 is gated: accept its licence on
            the hub and log in.
        ImportError: for dinov3-i, if transformers is older than 4.56.

    Source: DreamBooth (CLIP-I, CLIP-T, DINO), arXiv 2208.12242; DreamBench++, arXiv 2406.16855; CLIPScore, arXiv
        2104.08718; DINO, arXiv 2104.14294; DINOv3, arXiv 2508.10104; SigLIP2, arXiv 2502.14786.
    """
    if name not in BASELINES:
        raise ValueError(f"there is no baseline {name!r}; there are {', '.join(BASELINES)}")
    check_dtype(dtype)
    device = check_device(device)
    check_positive("batch_size", batch_size)
    check_positive("max_num_patches", max_num_patches)
    family = name.split("-")[0]
    if family == "siglip2":
        return Baseline(name, _siglip2_network(name, model, backbone, max_num_patches), batch_size)
    model_type, network_class = _NETWORKS[family]
    if family == "dinov3":
        _check_dinov3()
    source = CheckpointSource.of(model or DEFAULT_BASELINE_MODELS[name], None, cache_dir, local_files_only)
    network = shared_network(
        (family, source, device, dtype),
        lambda: network_class(find_files(name, source, model_type), device, dtype),
    )
    baseline = Baseline(name, network, batch_size)
    if baseline.kind == "text":
        network.prepare_texts()
    return baseline


def _siglip2_network(
    name: str, model: str | None, backbone: SigLIP2Backbone | None, max_num_patches: int
) -> EmbeddingNetwork:
    if backbone is None:
        raise ValueError(f"backbone is None; baseline {name} needs MaSC's own, from masc_metrics.load_backbone")
    if model is not None:
        raise ValueError(f"model is {model!r}, but baseline {name} uses the backbone; load that one from {model!r}")
    return shared_network(("siglip2", backbone, max_num_patches), lambda: SigLIP2Network(backbone, max_num_patches))


def _check_dinov3() -> None:
    import transformers

    if not hasattr(transformers, "DINOv3ViTModel"):
        raise ImportError(
            f"baseline dinov3-i needs transformers 4.56 or newer, and {transformers.__version__} is installed; "
            "pip install 'transformers>=4.56'"
        )


def _check_images(name: str, images: Sequence[np.ndarray]) -> None:
    if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
        raise TypeError(f"{name} is a {type(images).__name__}; give a list of (H, W, 3) uint8 arrays")
    for index, image in enumerate(images):
        if not isinstance(image, np.ndarray):
            raise TypeError(f"{name}[{index}] is a {type(image).__name__}; give an (H, W, 3) uint8 array")
        if image.dtype != np.uint8:
            raise TypeError(f"{name}[{index}] is of {image.dtype}; give uint8 in 0..255")
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"{name}[{index}] has shape {image.shape}; give (H, W, 3), RGB")


def _check_lengths(count: int, name: str, others: int) -> None:
    if count != others:
        raise ValueError(f"generated has {count} images but {name} has {others}; give one for each")
