"""Baselines to compare MaSC with: CLIP-I, CLIP-T, DINO-I, DINOv3, C-RADIOv4 and SigLIP2, on images without masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from masc_metrics.arguments import check_choice, check_count
from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.bench.baselines.networks import NETWORKS, EmbeddingNetwork, SigLIP2Network, shared_network
from masc_metrics.bench.run import BASELINES, Run
from masc_metrics.checkpoint import CheckpointSource
from masc_metrics.images import Images, check_images
from masc_metrics.precision import check_device
from masc_metrics.prompts import check_texts
from masc_metrics.reading import NotFiniteError

DEFAULT_BASELINE_MODELS: Mapping[str, str] = MappingProxyType(
    {
        "clip-i": "openai/clip-vit-base-patch32",
        "clip-t": "openai/clip-vit-base-patch32",
        "dino-i": "facebook/dino-vits8",
        "dinov3-i": "facebook/dinov3-vitl16-pretrain-lvd1689m",
        "radio-i": "nvidia/C-RADIOv4-SO400M",
    }
)
"""Hub id of each baseline's network; siglip2-i and siglip2-t use MaSC's backbone instead."""


class Baseline:
    r"""A baseline score of images without masks; made by :func:`load_baseline`.

    The score of a sample is the plain cosine of two embeddings,

    .. math:: \cos(a, b) = \frac{a^T b}{\lVert a \rVert \lVert b \rVert} \in [-1, 1],

    higher is better. It is neither scaled nor clipped at 0: torchmetrics' CLIPScore is :math:`\max(100 \cos, 0)`, the
    CLIPScore of its paper :math:`2.5 \max(\cos, 0)`, and DreamBench++ reports :math:`100 \cos`.

    Attributes:
        name: one of ``BASELINES``.
        kind: "image" if the generated image is compared with the reference image, "text" if with the prompt.
        checkpoint: hub id or folder of its network.
        folder: its folder on this machine.
        commit: commit hash on the hub; None for a folder that is not from the hub.
        batch_size: largest number of images or texts in one pass of the network.
    """

    def __init__(self, name: str, network: EmbeddingNetwork, batch_size: int) -> None:
        self.name, self.batch_size, self._network = name, batch_size, network
        self.kind: Literal["image", "text"] = "text" if name.endswith("-t") else "image"
        self.checkpoint, self.folder, self.commit = network.checkpoint, network.folder, network.commit

    def __repr__(self) -> str:
        return f"Baseline({self.name!r}, checkpoint={self.checkpoint!r}, commit={self.commit!r})"

    def score(self, generated_images: Images, reference_images: Images) -> list[float]:
        """Cosine of each generated image and its reference image.

        Images with equal pixels are encoded once, as long as the network's cache holds them.

        Args:
            generated_images: images in any form that :func:`masc_metrics.images.check_images` accepts.
            reference_images: likewise, one for each generated image.

        Returns:
            One score per sample in [-1, 1].

        Raises:
            TypeError: if this is a baseline of the other kind, or an image has a form that is not accepted.
            ValueError: if an image has a wrong shape or value range, or the numbers of images differ.
            RuntimeError: if the network's features are not finite, as by overflow in float16.
        """
        self._check_kind("image")
        generated = check_images(generated_images, "generated_images")
        references = check_images(reference_images, "reference_images")
        check_count("reference_images", len(references), len(generated))
        # In one call, so that batches are full and an image on both sides is encoded once even without a cache.
        embeddings_BD = self._network.image_embeddings([*generated.images, *references.images], self.batch_size)
        generated_BD, references_BD = embeddings_BD.chunk(2)
        return self._cosines(generated_BD, references_BD, "reference_images")

    def score_texts(self, generated_images: Images, prompts: Sequence[str]) -> list[float]:
        """Cosine of each generated image and its full prompt, subject included.

        CLIP reads the first 77 tokens of a prompt, including its begin and end tokens, SigLIP2 the first 64.

        Args:
            generated_images: as of :meth:`score`.
            prompts: one for each generated image.

        Returns:
            One score per sample in [-1, 1].

        Raises:
            TypeError, ValueError, RuntimeError: as :meth:`score`, and TypeError if a prompt is not a string.
            OSError: if the checkpoint has no tokenizer.
        """
        self._check_kind("text")
        generated = check_images(generated_images, "generated_images")
        check_texts(prompts, "prompts")
        check_count("prompts", len(prompts), len(generated))
        images_BD = self._network.image_embeddings(generated.images, self.batch_size)
        return self._cosines(images_BD, self._network.text_embeddings(prompts, self.batch_size), "prompts")

    def cut_tokens(self, prompts: Sequence[str]) -> list[int]:
        """Number of tokens at the end of each prompt, already scored, that :meth:`score_texts` ignored."""
        self._check_kind("text")
        return self._network.cut_tokens(prompts)

    def _check_kind(self, kind: Literal["image", "text"]) -> None:
        if self.kind != kind:
            other, method = ("prompts", "score_texts") if self.kind == "text" else ("reference images", "score")
            raise TypeError(f"baseline {self.name} compares generated images with {other}; call {method}")

    def _cosines(self, generated_BD: Tensor, others_BD: Tensor, name: str) -> list[float]:
        for label, embeddings_BD in (("generated_images", generated_BD), (name, others_BD)):
            broken = (~embeddings_BD.isfinite().all(dim=1)).nonzero()
            if len(broken):
                raise NotFiniteError(
                    f"baseline {self.name}: the features of {label}[{int(broken[0])}] are not finite; give another "
                    "dtype than float16, or check the checkpoint's weights"
                )
        # Rounding exceeds [-1, 1] by a few units in the seventh digit.
        cosines_B = F.cosine_similarity(generated_BD.float(), others_BD.float(), dim=1).clamp(-1, 1)
        scores: list[float] = cosines_B.tolist()
        return scores


def load_baseline(
    name: str, run: Run, *, device: str | torch.device, backbone: SigLIP2Backbone | None = None
) -> Baseline:
    """Load a baseline; baselines on the same network share it and its cache as long as one of them lives.

    ========== =========================================================================================
    clip-i     projected image embeddings of CLIP ViT-B/32, as in DreamBench++
    clip-t     projected embeddings of its image and its text tower
    dino-i     class token of DINO ViT-S/8 after the last layer norm, as in DreamBench++
    dinov3-i   class token of DINOv3 ViT-L/16 after the last layer norm
    radio-i    summary of C-RADIOv4 SO400M, as in the paper
    siglip2-i  MaSC's backbone: its pooling head over all patches, no mask
    siglip2-t  the same, compared with its text embedding
    ========== =========================================================================================

    Images are prepared as in DreamBench++ and in the paper. For DINO and DINOv3 the short side is resized to 256 pixels
    and the middle 224 x 224 cropped, whatever size the checkpoint's files name, see
    :func:`masc_metrics.bench.baselines.networks.short_side_and_crop`; for C-RADIO both are 512. CLIP uses the
    checkpoint's own processor, which also crops the middle, and SigLIP2 NaFlex keeps the aspect ratio. All but SigLIP2
    resize with Pillow, whatever the version of transformers.

    Args:
        name: one of ``BASELINES``.
        run: gives checkpoint, dtype, batch size, and for siglip2-i and siglip2-t the patch budget. Cosines are always
            computed in float32.
        device: device of the network; siglip2-i and siglip2-t run on the backbone's, in its dtype.
        backbone: MaSC's, from :func:`masc_metrics.load_backbone`; for siglip2-i and siglip2-t.

    Returns:
        The baseline, its network loaded.

    Raises:
        ValueError: if the name is unknown, the checkpoint has another architecture or is damaged, the device is not
            available, or backbone and checkpoint do not fit the name.
        OSError: if the checkpoint is not available; the text says how to get it. DINOv3 is gated: accept its licence on
            the hub and log in.
        ImportError: for dinov3-i, if transformers is older than 4.56; for radio-i, if it is older than 5.13.

    Source: DreamBooth (CLIP-I, CLIP-T, DINO), arXiv 2208.12242; DreamBench++, arXiv 2406.16855; CLIPScore, arXiv
        2104.08718; DINO, arXiv 2104.14294; DINOv3, arXiv 2508.10104; RADIO, arXiv 2312.06709; SigLIP2, arXiv
        2502.14786.
    """
    check_choice("name", name, BASELINES)
    device = check_device(device)
    family = name.split("-")[0]
    model = run.model_of(name)
    if family == "siglip2":
        if backbone is None:
            raise ValueError(f"backbone is None; baseline {name} needs MaSC's, from masc_metrics.load_backbone")
        if model is not None:
            raise ValueError(
                f"model is {model!r}, but baseline {name} uses MaSC's backbone; give its checkpoint by --model"
            )
        patches = run.max_num_patches
        siglip2 = shared_network((family, backbone, patches), lambda: SigLIP2Network(backbone, patches))
        return Baseline(name, siglip2, run.batch_size)
    source = CheckpointSource.of(model or DEFAULT_BASELINE_MODELS[name], None, run.cache_dir, run.local_files_only)
    dtype = run.torch_dtype
    network = shared_network((family, source, device, dtype), lambda: NETWORKS[family](name, source, device, dtype))
    baseline = Baseline(name, network, run.batch_size)
    if baseline.kind == "text":
        network.text_embeddings([""], 1)  # reads the tokenizer, whose errors come before a long run
    return baseline
