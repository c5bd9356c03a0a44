"""The baselines' frozen networks: read once, shared by their baselines, each distinct image encoded once.

Shape suffixes: B images or texts; H, W image sides in pixels; D embedding width.
"""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.cache import FeatureCache
from masc_metrics.checkpoint import CheckpointSource
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

_Key = TypeVar("_Key", bound=Hashable)

_CACHE_BYTES = 64 * 2**20
"""About 32000 images of CLIP's 512 values, or 21000 of DINOv3's 768."""


_SAFETENSORS_COMMITS = {
    "openai/clip-vit-base-patch32": "c237dc49a33fc61debc9276459120b7eac67e7ef",
    "facebook/dino-vits16": "a7a4d161f5c0bd70478c05ca5777ec7cd8848021",
}
"""Commits of the hub's own conversion to safetensors, for models whose main branch holds pickled weights only."""


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
        self.checkpoint, self.commit, self.device = checkpoint, commit, device
        self.cache, self.text_cache = FeatureCache(_CACHE_BYTES), FeatureCache(_CACHE_BYTES)
        self._lock = threading.RLock()

    def image_embeddings(self, images: Sequence[Tensor], batch_size: int) -> Tensor:
        """Embed (3, H, W) images, as (B, D) float32; only distinct ones that are not in the cache are encoded."""
        keys = [_content_key(image) for image in images]
        image_of = dict(zip(keys, images, strict=True))
        return self._embeddings(
            self.cache, keys, lambda part: self._encode_images([image_of[key] for key in part]), batch_size
        )

    def text_embeddings(self, texts: Sequence[str], batch_size: int) -> Tensor:
        """Embed texts, as (B, D) float32; only distinct ones that are not in the cache are encoded."""
        return self._embeddings(self.text_cache, texts, self._encode_texts, batch_size)

    def _embeddings(
        self, cache: FeatureCache, keys: Sequence[_Key], encode: Callable[[list[_Key]], Tensor], batch_size: int
    ) -> Tensor:
        # The surrounding program's gradients, inference mode and precision do not reach the network.
        with self._lock, torch.inference_mode(False), torch.no_grad(), without_autocast(self.device):
            found = cache.get_or_compute(list(dict.fromkeys(keys)), lambda part: encode(part).float(), batch_size)
        return torch.stack([found[key] for key in keys])

    @abstractmethod
    def _encode_images(self, images: list[Tensor]) -> Tensor: ...

    def _encode_texts(self, texts: list[str]) -> Tensor:
        raise TypeError(f"{self.checkpoint} has no text tower")


class CheckpointNetwork(EmbeddingNetwork):
    """A network with a checkpoint of its own, read through its transformers class.

    Args:
        baseline: name of the baseline, for error texts.
        source: hub id or folder of config.json, safetensors weights, and the files of the image processor and, for
            CLIP, of the tokenizer; two hub ids have a known commit with safetensors.
        device: device of the network.
        dtype: dtype of the weights.

    Raises:
        OSError: if the checkpoint is not available (FileNotFoundError, PermissionError or ConnectionError), or has no
            processor file.
        ValueError: if it has another model type or is damaged.
        ImportError: if the installed transformers has no such class.
    """

    _model_type: str  # of config.json
    _class_name: str
    _processor_class: str
    _options: Mapping[str, Any] = MappingProxyType({})
    _unused: tuple[str, ...] = ()

    def __init__(self, baseline: str, source: CheckpointSource, device: torch.device, dtype: torch.dtype) -> None:
        import transformers

        if not hasattr(transformers, self._class_name):  # DINOv3's is the newest
            raise ImportError(
                f"baseline {baseline} needs transformers 4.56 or newer, and {transformers.__version__} is installed; "
                "pip install 'transformers>=4.56'"
            )
        self._folder, commit = _find(baseline, source, self._model_type)
        super().__init__(source.model, commit, device)
        self._dtype = dtype
        self._processor = self._read_processor()
        self._network = read_network(
            self._folder,
            self._class_name,
            device,
            dtype,
            kind=self._class_name,
            part=f"a {self._class_name}",
            options=self._options,
            unused=self._unused,
        )

    def _read_processor(self) -> Callable[[Sequence[Tensor]], Tensor]:
        """A function from images, uint8 in 0..255 or float in [0, 1], to normalised pixels, (B, 3, H, W) float32.

        It is the checkpoint's image processor, which uses Pillow in every transformers version, with or without
        torchvision. Float images are rounded to uint8, which Pillow needs.
        """
        import transformers

        if not (self._folder / PROCESSOR_FILES[0]).is_file():
            raise FileNotFoundError(
                f"{self._folder} holds no {PROCESSOR_FILES[0]}; copy it from the original checkpoint"
            )
        # Since transformers 5 the plain name is torchvision's class, which resizes to other pixels.
        name = self._processor_class
        pil_class = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
        with quiet_transformers():
            processor = pil_class.from_pretrained(self._folder, local_files_only=True)

        def prepare(images: Sequence[Tensor]) -> Tensor:
            bytes_3HW = (
                (image * 255).round().to(torch.uint8) if image.is_floating_point() else image for image in images
            )
            arrays = [np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()) for image in bytes_3HW]
            # Stated, because the channel dimension of an image 3 pixels high is ambiguous.
            pixels = processor(arrays, input_data_format="channels_last", return_tensors="np")["pixel_values"]
            return torch.from_numpy(np.asarray(pixels, dtype=np.float32))

        return prepare

    def _pixels(self, images: Sequence[Tensor]) -> Tensor:
        return to_device(self._processor(images), self.device).to(self._dtype)


class CLIPNetwork(CheckpointNetwork):
    """CLIP: the projected embeddings of its image and its text tower."""

    _model_type, _class_name, _processor_class = "clip", "CLIPModel", "CLIPImageProcessor"

    @cached_property
    def _tokenizer(self) -> Any:
        remedy = "copy the original checkpoint's tokenizer files into it"
        return read_tokenizer(self._folder, ("tokenizer.json", "vocab.json"), remedy)

    def _encode_images(self, images: list[Tensor]) -> Tensor:
        # Not get_image_features, which gives a tensor in transformers 4 and a named tuple of several in 5.
        pooled_BD = self._network.vision_model(pixel_values=self._pixels(images)).pooler_output
        embeddings_BD: Tensor = self._network.visual_projection(pooled_BD)
        return embeddings_BD

    def _encode_texts(self, texts: list[str]) -> Tensor:
        # Padded to one length, so that an embedding does not depend on the other texts of its batch. Attention is
        # causal, so padding after the end-of-text token, where the embedding is read, has no effect.
        length = self._network.config.text_config.max_position_embeddings
        tokens = self._tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        pooled_BD = self._network.text_model(
            **{name: to_device(tokens[name], self.device) for name in ("input_ids", "attention_mask")}
        ).pooler_output
        embeddings_BD: Tensor = self._network.text_projection(pooled_BD)
        return embeddings_BD


class DINONetwork(CheckpointNetwork):
    """DINO: the class token of the last hidden state, after the final layer norm."""

    _model_type, _class_name, _processor_class = "vit", "ViTModel", "ViTImageProcessor"
    _options, _unused = MappingProxyType({"add_pooling_layer": False}), ("pooler.", "classifier.")

    def _encode_images(self, images: list[Tensor]) -> Tensor:
        hidden_BND: Tensor = self._network(pixel_values=self._pixels(images)).last_hidden_state
        return hidden_BND[:, 0]


class DINOv3Network(CheckpointNetwork):
    """DINOv3: the class token after the final layer norm, transformers' pooler output.

    transformers' image processor for it needs torchvision. Its steps are done here in torch, in the same order and with
    the values of the checkpoint's preprocessor_config.json: scale to [0, 1], resize with antialiasing in float32,
    normalise.
    """

    _model_type, _class_name = "dinov3_vit", "DINOv3ViTModel"

    def _read_processor(self) -> Callable[[Sequence[Tensor]], Tensor]:
        values = read_processor_values(self._folder)
        if values.center_crop or values.size is None:
            raise ValueError(
                f"{values.file} lacks a size of height and width or has do_center_crop true; copy "
                "it from the original checkpoint"
            )
        mean, std = (
            to_device(torch.tensor(part, dtype=torch.float32, device="cpu"), self.device)[:, None, None]
            for part in (values.mean, values.std)
        )

        def prepare(image: Tensor) -> Tensor:
            values_3HW = image * MAX_UINT8 if image.is_floating_point() else image
            scaled_13HW = to_device(values_3HW, self.device)[None].to(torch.float32) * values.rescale_factor
            resized_13HW = F.interpolate(
                scaled_13HW, values.size, mode=values.resample, align_corners=False, antialias=True
            )
            return (resized_13HW - mean) / std

        return lambda images: torch.cat([prepare(image) for image in images])

    def _encode_images(self, images: list[Tensor]) -> Tensor:
        embeddings_BD: Tensor = self._network(pixel_values=self._pixels(images)).pooler_output
        return embeddings_BD


class SigLIP2Network(EmbeddingNetwork):
    """MaSC's backbone without masks: its pooling head over all patches, and its text tower."""

    def __init__(self, backbone: SigLIP2Backbone, max_num_patches: int) -> None:
        super().__init__(backbone.source.model, backbone.checkpoint.commit, backbone.device)
        self._backbone, self._max_num_patches = backbone, max_num_patches

    def _encode_images(self, images: list[Tensor]) -> Tensor:
        features = self._backbone.encode_images(
            ImageBatch(tuple(images)), max_num_patches=self._max_num_patches, batch_size=len(images)
        )
        return self._backbone.pool(features, features.valid_BN)

    def _encode_texts(self, texts: list[str]) -> Tensor:
        return self._backbone.encode_texts(texts, batch_size=len(texts))


NETWORKS: Mapping[str, Callable[[str, CheckpointSource, torch.device, torch.dtype], CheckpointNetwork]] = {
    "clip": CLIPNetwork,
    "dino": DINONetwork,
    "dinov3": DINOv3Network,
}
"""By the part of the baseline's name before the dash."""


def _find(baseline: str, source: CheckpointSource, model_type: str) -> tuple[Path, str | None]:
    """Folder and commit of a checkpoint, downloaded if necessary."""
    revision = _SAFETENSORS_COMMITS.get(source.model)
    try:
        folder, commit = replace(source, revision=revision).locate(
            f"hf download --revision {revision}" if revision else "hf download"
        )
        check_folder(folder)
    except OSError as error:
        raise type(error)(f"baseline {baseline}: {error}") from error
    found = load_json(folder / "config.json").get("model_type")
    if found != model_type:
        raise ValueError(
            f"baseline {baseline}: {folder} is a checkpoint of type {found!r}; give one whose config.json says "
            f"{model_type!r}"
        )
    return folder, commit


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
