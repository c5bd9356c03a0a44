"""The baselines' frozen networks: read once, shared by their baselines, each distinct image encoded once.

Shape suffixes: B images or texts; H, W image sides in pixels; D embedding width.
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.bench.run import Run
from masc_metrics.cache import FeatureCache
from masc_metrics.checkpoint import CheckpointSource
from masc_metrics.hub import fetch
from masc_metrics.images import MAX_UINT8, ImageBatch
from masc_metrics.precision import to_device, without_autocast
from masc_metrics.reading import (
    PROCESSOR_FILES,
    check_folder,
    load_json,
    quiet_transformers,
    read_network,
    read_processor_values,
    read_tokenizer,
)

_CACHE_BYTES = 64 * 2**20
"""About 32000 images of CLIP's 512 values, or 21000 of DINOv3's 768."""


_SAFETENSORS_COMMITS = {
    "openai/clip-vit-base-patch32": "c237dc49a33fc61debc9276459120b7eac67e7ef",
    "facebook/dino-vits16": "a7a4d161f5c0bd70478c05ca5777ec7cd8848021",
}
"""Commits of the hub's own conversion to safetensors, for models whose main branch holds pickled weights only."""


@dataclass(frozen=True, slots=True)
class BaselineFiles:
    """A baseline's checkpoint on this machine.

    Attributes:
        checkpoint: hub id or folder, as given.
        folder: folder of config.json, safetensors weights, and the files of the image processor and, for CLIP, of the
            tokenizer.
        commit: commit hash on the hub; None for a folder that is not from the hub.
    """

    checkpoint: str
    folder: Path
    commit: str | None


def find_files(baseline: str, source: CheckpointSource, model_type: str) -> BaselineFiles:
    """Find a checkpoint on this machine, or download it.

    Args:
        baseline: name of the baseline, for error texts.
        source: hub id or folder; two hub ids have a known commit with safetensors.
        model_type: ``model_type`` that its config.json must have.

    Raises:
        OSError: if the checkpoint is not available (FileNotFoundError, PermissionError or ConnectionError).
        ValueError: if it has another model type.
    """
    path = Path(source.model)
    if path.is_absolute():
        files = BaselineFiles(source.model, path, path.name if path.parent.name == "snapshots" else None)
    else:
        revision = _SAFETENSORS_COMMITS.get(source.model)
        command = f"hf download --revision {revision}" if revision else "hf download"
        try:
            folder = fetch(source.model, revision, source.cache_dir, source.local_files_only, command)
        except OSError as error:
            raise type(error)(f"baseline {baseline}: {error}") from error
        files = BaselineFiles(source.model, folder, folder.name)
    try:
        check_folder(files.folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"baseline {baseline}: {error}") from None
    found = load_json(files.folder / "config.json").get("model_type")
    if found != model_type:
        raise ValueError(
            f"baseline {baseline}: {files.folder} is a checkpoint of type {found!r}; give one whose config.json says "
            f"{model_type!r}"
        )
    return files


def read_processor(files: BaselineFiles, class_name: str) -> Callable[[Sequence[Tensor]], Tensor]:
    """Read the checkpoint's image processor; it uses Pillow in every transformers version, with or without torchvision.

    Args:
        files: the checkpoint.
        class_name: class of transformers' image processor.

    Returns:
        A function from (3, H, W) images, uint8 in 0..255 or float in [0, 1], to normalised pixels, (B, 3, H, W)
        float32. Float images are rounded to uint8, which Pillow needs.

    Raises:
        OSError: if the checkpoint has no processor file.
    """
    import transformers

    if not (files.folder / PROCESSOR_FILES[0]).is_file():
        raise FileNotFoundError(f"{files.folder} holds no {PROCESSOR_FILES[0]}; copy it from the original checkpoint")
    # Since transformers 5 the plain name is torchvision's class, which resizes to other pixels.
    pil_class = getattr(transformers, f"{class_name}Pil", None) or getattr(transformers, class_name)
    with quiet_transformers():
        processor = pil_class.from_pretrained(files.folder, local_files_only=True)

    def prepare(images: Sequence[Tensor]) -> Tensor:
        arrays = [np.ascontiguousarray(_to_uint8(image).permute(1, 2, 0).cpu().numpy()) for image in images]
        # Stated, because the channel dimension of an image 3 pixels high is ambiguous.
        pixels = processor(arrays, input_data_format="channels_last", return_tensors="np")["pixel_values"]
        return torch.from_numpy(np.asarray(pixels, dtype=np.float32))

    return prepare


def _to_uint8(image: Tensor) -> Tensor:
    return (image * 255).round().to(torch.uint8) if image.is_floating_point() else image


class EmbeddingNetwork(ABC):
    """A frozen network that embeds images, and in some networks texts, for comparison by cosine.

    Attributes:
        checkpoint: hub id or folder.
        commit: commit hash on the hub; None for a folder that is not from the hub.
        device: device of the network.
        cache: embeddings of encoded images, by the content of their pixels.
        text_cache: embeddings of encoded texts.
    """

    def __init__(self, checkpoint: str, commit: str | None, device: torch.device) -> None:
        self.checkpoint = checkpoint
        self.commit = commit
        self.device = device
        self.cache = FeatureCache(_CACHE_BYTES)
        self.text_cache = FeatureCache(_CACHE_BYTES)
        self._lock = threading.RLock()

    def image_embeddings(self, images: Sequence[Tensor], batch_size: int) -> Tensor:
        """Embed (3, H, W) images; only distinct ones that are not in the cache are encoded.

        Returns:
            (B, D) float32.
        """
        keys = [_content_key(image) for image in images]
        image_of = dict(zip(keys, images, strict=True))
        with self._frozen():
            found = self.cache.get_or_compute(
                list(image_of), lambda part: self._encode_images([image_of[key] for key in part]).float(), batch_size
            )
        return torch.stack([found[key] for key in keys])

    def text_embeddings(self, texts: Sequence[str], batch_size: int) -> Tensor:
        """Embed texts; only distinct ones that are not in the cache are encoded.

        Returns:
            (B, D) float32.
        """
        with self._frozen():
            found = self.text_cache.get_or_compute(
                list(dict.fromkeys(texts)), lambda part: self._encode_texts(part).float(), batch_size
            )
        return torch.stack([found[text] for text in texts])

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Shield the network from gradients and from the surrounding precision and inference mode."""
        with self._lock, torch.inference_mode(False), torch.no_grad(), without_autocast(self.device):
            yield

    @abstractmethod
    def _encode_images(self, images: list[Tensor]) -> Tensor: ...

    def _encode_texts(self, texts: list[str]) -> Tensor:
        raise TypeError(f"{self.checkpoint} has no text tower")


class CLIPNetwork(EmbeddingNetwork):
    """CLIP: the projected embeddings of its image and its text tower."""

    def __init__(self, files: BaselineFiles, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(files.checkpoint, files.commit, device)
        self._files, self._dtype = files, dtype
        self._processor = read_processor(files, "CLIPImageProcessor")
        self._network = read_network(files.folder, "CLIPModel", device, dtype, kind="CLIPModel", part="a CLIPModel")

    @cached_property
    def _tokenizer(self) -> Any:
        remedy = "copy the original checkpoint's tokenizer files into it"
        return read_tokenizer(self._files.folder, ("tokenizer.json", "vocab.json"), remedy)

    def _encode_images(self, images: list[Tensor]) -> Tensor:
        pixels_B3HW = to_device(self._processor(images), self.device).to(self._dtype)
        # Not get_image_features, which gives a tensor in transformers 4 and a named tuple of several in 5.
        pooled_BD = self._network.vision_model(pixel_values=pixels_B3HW).pooler_output
        embeddings_BD: Tensor = self._network.visual_projection(pooled_BD)
        return embeddings_BD

    def _encode_texts(self, texts: list[str]) -> Tensor:
        # Padded to one length, so that an embedding does not depend on the other texts of its batch. Attention is
        # causal, so padding after the end-of-text token, where the embedding is read, has no effect.
        tokens = self._tokenizer(
            texts,
            padding="max_length",
            max_length=self._network.config.text_config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        )
        pooled_BD = self._network.text_model(
            input_ids=to_device(tokens["input_ids"], self.device),
            attention_mask=to_device(tokens["attention_mask"], self.device),
        ).pooler_output
        embeddings_BD: Tensor = self._network.text_projection(pooled_BD)
        return embeddings_BD


class DINONetwork(EmbeddingNetwork):
    """DINO: the class token of the last hidden state, after the final layer norm."""

    def __init__(self, files: BaselineFiles, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(files.checkpoint, files.commit, device)
        self._dtype = dtype
        self._processor = read_processor(files, "ViTImageProcessor")
        self._network = read_network(
            files.folder,
            "ViTModel",
            device,
            dtype,
            kind="ViTModel",
            part="a ViTModel",
            options={"add_pooling_layer": False},
            unused=("pooler.", "classifier."),
        )

    def _encode_images(self, images: list[Tensor]) -> Tensor:
        pixels_B3HW = to_device(self._processor(images), self.device).to(self._dtype)
        hidden_BND: Tensor = self._network(pixel_values=pixels_B3HW).last_hidden_state
        return hidden_BND[:, 0]


class DINOv3Network(EmbeddingNetwork):
    """DINOv3: the class token after the final layer norm, transformers' pooler output.

    transformers' image processor for it needs torchvision. Its steps are done here in torch, in the same order and with
    the values of the checkpoint's preprocessor_config.json: scale to [0, 1], resize with antialiasing in float32,
    normalise.
    """

    def __init__(self, files: BaselineFiles, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(files.checkpoint, files.commit, device)
        self._dtype = dtype
        self._processing = read_processor_values(files.folder)
        if self._processing.center_crop or self._processing.size is None:
            raise ValueError(
                f"{self._processing.file} lacks a size of height and width or has do_center_crop true; copy "
                "it from the original checkpoint"
            )
        self._network = read_network(
            files.folder, "DINOv3ViTModel", device, dtype, kind="DINOv3ViTModel", part="a DINOv3ViTModel"
        )

    def _encode_images(self, images: list[Tensor]) -> Tensor:
        pixels_B3HW = torch.cat([self._prepared(image) for image in images])
        embeddings_BD: Tensor = self._network(pixel_values=pixels_B3HW.to(self._dtype)).pooler_output
        return embeddings_BD

    def _prepared(self, image: Tensor) -> Tensor:
        processing = self._processing
        values_3HW = image * MAX_UINT8 if image.is_floating_point() else image
        scaled_13HW = to_device(values_3HW, self.device)[None].to(torch.float32) * processing.rescale_factor
        resized_13HW = F.interpolate(
            scaled_13HW, processing.size, mode=processing.resample, align_corners=False, antialias=True
        )
        mean, std = (
            to_device(torch.tensor(values, dtype=torch.float32, device="cpu"), self.device)[:, None, None]
            for values in (processing.mean, processing.std)
        )
        return (resized_13HW - mean) / std


class SigLIP2Network(EmbeddingNetwork):
    """MaSC's backbone without masks: its pooling head over all patches, and its text tower."""

    def __init__(self, backbone: SigLIP2Backbone, run: Run) -> None:
        super().__init__(backbone.source.model, backbone.checkpoint.commit, backbone.device)
        self._backbone, self._run = backbone, run

    def _encode_images(self, images: list[Tensor]) -> Tensor:
        features = self._backbone.encode_images(
            ImageBatch(tuple(images)), max_num_patches=self._run.max_num_patches, batch_size=len(images)
        )
        return self._backbone.pool(features, features.valid_BN)

    def _encode_texts(self, texts: list[str]) -> Tensor:
        return self._backbone.encode_texts(texts, batch_size=len(texts))


_shared: WeakValueDictionary[Hashable, EmbeddingNetwork] = WeakValueDictionary()
_shared_lock = threading.Lock()


def shared_network(key: Hashable, make: Callable[[], EmbeddingNetwork]) -> EmbeddingNetwork:
    """The process's only network of a key: created if no baseline holds it, freed with the last baseline that does."""
    with _shared_lock:
        network = _shared.get(key)
        if network is None:
            network = _shared[key] = make()
        return network


def _content_key(image: Tensor) -> tuple[tuple[int, ...], torch.dtype, bytes]:
    """What an image's embedding depends on: its shape, its dtype and a 128-bit digest of its pixels."""
    pixels = image.detach().cpu().contiguous().numpy()
    return tuple(image.shape), image.dtype, hashlib.blake2b(pixels.data, digest_size=16).digest()
