"""The baselines' frozen networks: read once, shared by their baselines, each distinct image encoded once.

Shape suffixes: B images or texts; H, W image sides in pixels; D embedding width.
"""

from __future__ import annotations

import hashlib
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
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.cache import FeatureCache
from masc_metrics.checkpoint import CheckpointSource
from masc_metrics.images import MAX_UINT8, ImageBatch
from masc_metrics.locks import Lock
from masc_metrics.precision import to_device, without_autocast
from masc_metrics.reading import (
    PROCESSOR_FILES,
    check_folder,
    check_token_ids,
    load_json,
    quiet_transformers,
    read_network,
    read_processor_values,
    read_tokenizer,
    readable,
    usable,
)

_Key = TypeVar("_Key", bound=Hashable)

_CACHE_BYTES = 64 * 2**20
"""About 32000 images of CLIP's 512 values, or 16000 of DINOv3's 1024."""


_SAFETENSORS_COMMITS = {
    "openai/clip-vit-base-patch32": "c237dc49a33fc61debc9276459120b7eac67e7ef",
    "facebook/dino-vits16": "a7a4d161f5c0bd70478c05ca5777ec7cd8848021",
}
"""Commits of the hub's own conversion to safetensors, for models whose main branch holds pickled weights only."""


class EmbeddingNetwork(ABC):
    """A frozen network that embeds images, and in some networks texts, for comparison by cosine.

    Attributes:
        checkpoint: hub id or folder.
        folder: its folder on this machine.
        commit: commit hash on the hub; None for a folder that is not from the hub.
        device: device of the network.
        cache: embeddings of encoded images, by the content of their pixels.
        text_cache: embeddings of encoded texts.
    """

    def __init__(self, checkpoint: str, folder: Path, commit: str | None, device: torch.device) -> None:
        self.checkpoint, self.folder, self.commit, self.device = checkpoint, folder, commit, device
        self.cache, self.text_cache = FeatureCache(_CACHE_BYTES), FeatureCache(_CACHE_BYTES)
        self._lock = Lock()

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

    def cut_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens at the end of each text, already embedded, that did not fit into the text tower."""
        return self._cut_tokens(texts)

    def _embeddings(
        self, cache: FeatureCache, keys: Sequence[_Key], encode: Callable[[list[_Key]], Tensor], batch_size: int
    ) -> Tensor:
        # The surrounding program's gradients, inference mode and precision do not reach the network.
        with (
            self._lock,
            torch.inference_mode(False),
            torch.no_grad(),
            without_autocast(self.device),
            usable(self.checkpoint),
        ):
            found = cache.get_or_compute(list(dict.fromkeys(keys)), lambda part: encode(part).float(), batch_size)
        return torch.stack([found[key] for key in keys])

    @abstractmethod
    def _encode_images(self, images: list[Tensor]) -> Tensor: ...

    def _encode_texts(self, texts: list[str]) -> Tensor:
        raise TypeError(f"{self.checkpoint} has no text tower")

    def _cut_tokens(self, texts: Sequence[str]) -> list[int]:
        raise TypeError(f"{self.checkpoint} has no text tower")


class CheckpointNetwork(EmbeddingNetwork):
    """A network with a checkpoint of its own, read through its transformers class.

    Args:
        baseline: name of the baseline, for error texts.
        source: hub id or folder of config.json, safetensors weights, and the files of the image processor and, for
            CLIP, of the tokenizer; some hub ids have a known commit with safetensors.
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
    _since: str = "4.51"  # version of transformers that first has the class
    _short_side: int = 256
    _crop: int = 224
    _options: Mapping[str, Any] = MappingProxyType({})
    _unused: tuple[str, ...] = ()

    def __init__(self, baseline: str, source: CheckpointSource, device: torch.device, dtype: torch.dtype) -> None:
        import transformers

        if not hasattr(transformers, self._class_name):
            raise ImportError(
                f"baseline {baseline} needs transformers {self._since} or newer, and {transformers.__version__} is "
                f"installed; pip install 'transformers>={self._since}'"
            )
        folder, commit = _find(baseline, source, self._model_type)
        super().__init__(source.model, folder, commit, device)
        self._dtype = dtype
        self._processor = self._read_processor()
        self._network = read_network(
            self.folder,
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

        The images are resized and cropped by :func:`short_side_and_crop`, then scaled and normalised with the values of
        the checkpoint's image-processor file.
        """
        values = read_processor_values(self.folder)
        mean_311, std_311 = (
            torch.tensor(part, dtype=torch.float32, device="cpu")[:, None, None] for part in (values.mean, values.std)
        )

        def prepare(images: Sequence[Tensor]) -> Tensor:
            cropped_B3HW = torch.stack([short_side_and_crop(image, self._short_side, self._crop) for image in images])
            return (cropped_B3HW.to(torch.float32) * values.rescale_factor - mean_311) / std_311

        return prepare

    def _pixels(self, images: Sequence[Tensor]) -> Tensor:
        return to_device(self._processor(images), self.device).to(self._dtype)


class CLIPNetwork(CheckpointNetwork):
    """CLIP: the projected embeddings of its image and its text tower."""

    _model_type, _class_name = "clip", "CLIPModel"

    def _read_processor(self) -> Callable[[Sequence[Tensor]], Tensor]:
        """The checkpoint's image processor, which uses Pillow in every version, with or without torchvision."""
        import transformers

        if not (self.folder / PROCESSOR_FILES[0]).is_file():
            raise FileNotFoundError(
                f"{self.folder} holds no {PROCESSOR_FILES[0]}; copy it from the original checkpoint"
            )
        # Since transformers 5 the plain name is torchvision's class, which resizes to other pixels.
        pil_class = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
        with quiet_transformers(), readable(self.folder, "image processor"):
            processor = pil_class.from_pretrained(self.folder, local_files_only=True)

        def prepare(images: Sequence[Tensor]) -> Tensor:
            arrays = [_bytes_HW3(image) for image in images]
            # Stated, because the channel dimension of an image 3 pixels high is ambiguous.
            pixels = processor(arrays, input_data_format="channels_last", return_tensors="np")["pixel_values"]
            return torch.from_numpy(np.asarray(pixels, dtype=np.float32))

        return prepare

    @cached_property
    def _tokenizer(self) -> Any:
        remedy = "copy the original checkpoint's tokenizer files into it"
        return read_tokenizer(self.folder, ("tokenizer.json", "vocab.json"), remedy)

    def _encode_images(self, images: list[Tensor]) -> Tensor:
        # Not get_image_features, which gives a tensor in transformers 4 and a named tuple of several in 5.
        pooled_BD = self._network.vision_model(pixel_values=self._pixels(images)).pooler_output
        embeddings_BD: Tensor = self._network.visual_projection(pooled_BD)
        return embeddings_BD

    @property
    def _text_length(self) -> int:
        length: int = self._network.config.text_config.max_position_embeddings
        return length

    def _cut_tokens(self, texts: Sequence[str]) -> list[int]:
        tokens = self._tokenizer(list(texts), verbose=False)["input_ids"]
        return [max(len(each) - self._text_length, 0) for each in tokens]

    def _encode_texts(self, texts: list[str]) -> Tensor:
        # Padded to one length, so that an embedding does not depend on the other texts of its batch. Attention is
        # causal, so padding after the end-of-text token, where the embedding is read, has no effect.
        tokens = self._tokenizer(
            texts, padding="max_length", max_length=self._text_length, truncation=True, return_tensors="pt"
        )
        check_token_ids(tokens["input_ids"], self._network.config.text_config.vocab_size, self.folder)
        pooled_BD = self._network.text_model(
            **{name: to_device(tokens[name], self.device) for name in ("input_ids", "attention_mask")}
        ).pooler_output
        embeddings_BD: Tensor = self._network.text_projection(pooled_BD)
        return embeddings_BD


class DINONetwork(CheckpointNetwork):
    """DINO: the class token of the last hidden state, after the final layer norm."""

    _model_type, _class_name = "vit", "ViTModel"
    _options, _unused = MappingProxyType({"add_pooling_layer": False}), ("pooler.", "classifier.")

    def _encode_images(self, images: list[Tensor]) -> Tensor:
        hidden_BND: Tensor = self._network(pixel_values=self._pixels(images)).last_hidden_state
        return hidden_BND[:, 0]


class DINOv3Network(CheckpointNetwork):
    """DINOv3: the class token after the final layer norm, transformers' pooler output."""

    _model_type, _class_name, _since = "dinov3_vit", "DINOv3ViTModel", "4.56"

    def _encode_images(self, images: list[Tensor]) -> Tensor:
        embeddings_BD: Tensor = self._network(pixel_values=self._pixels(images)).pooler_output
        return embeddings_BD


class RADIONetwork(CheckpointNetwork):
    """C-RADIO: the summary, which is its class tokens one after another.

    The network normalises pixels itself, so they are only scaled to [0, 1]. No image-processor file is read.
    """

    _model_type, _class_name, _since = "radio", "RadioModel", "5.13"
    _short_side, _crop = 512, 512

    def _read_processor(self) -> Callable[[Sequence[Tensor]], Tensor]:
        def prepare(images: Sequence[Tensor]) -> Tensor:
            cropped_B3HW = torch.stack([short_side_and_crop(image, self._short_side, self._crop) for image in images])
            return cropped_B3HW.to(torch.float32) / MAX_UINT8

        return prepare

    def _encode_images(self, images: list[Tensor]) -> Tensor:
        summary_BD: Tensor = self._network(pixel_values=self._pixels(images)).summary
        return summary_BD


class SigLIP2Network(EmbeddingNetwork):
    """MaSC's backbone without masks: its pooling head over all patches, and its text tower."""

    def __init__(self, backbone: SigLIP2Backbone, max_num_patches: int) -> None:
        checkpoint = backbone.checkpoint
        super().__init__(backbone.source.model, checkpoint.folder, checkpoint.commit, backbone.device)
        self._backbone, self._max_num_patches = backbone, max_num_patches

    def _encode_images(self, images: list[Tensor]) -> Tensor:
        features = self._backbone.encode_images(
            ImageBatch(tuple(images)), max_num_patches=self._max_num_patches, batch_size=len(images)
        )
        return self._backbone.pool(features, features.valid_BN)

    def _encode_texts(self, texts: list[str]) -> Tensor:
        return self._backbone.encode_texts(texts, batch_size=len(texts))

    def _cut_tokens(self, texts: Sequence[str]) -> list[int]:
        return self._backbone.cut_tokens(texts)


NETWORKS: Mapping[str, Callable[[str, CheckpointSource, torch.device, torch.dtype], CheckpointNetwork]] = {
    "clip": CLIPNetwork,
    "dino": DINONetwork,
    "dinov3": DINOv3Network,
    "radio": RADIONetwork,
}
"""By the part of the baseline's name before the dash."""


def short_side_and_crop(image_3HW: Tensor, short_side: int, crop: int) -> Tensor:
    """Resize an image to a short side and crop the middle, as torchvision's Resize and CenterCrop do with Pillow.

    The long side becomes ``int(short_side * long / short)``. Pillow resizes uint8 values by antialiased bicubic
    interpolation. The crop begins at ``round((side - crop) / 2)``, halves rounded to even.

    Args:
        image_3HW: uint8, or float in [0, 1], which is rounded to uint8.
        short_side: length of the shorter side in pixels, at least ``crop``.
        crop: side of the square in pixels.

    Returns:
        (3, crop, crop) uint8 on the CPU.
    """
    image = Image.fromarray(_bytes_HW3(image_3HW))
    shortest = min(image.size)
    width, height = (short_side if side == shortest else int(short_side * side / shortest) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    cropped = resized.crop((left, top, left + crop, top + crop))
    return torch.from_numpy(np.array(cropped)).permute(2, 0, 1)


def _bytes_HW3(image_3HW: Tensor) -> NDArray[np.uint8]:  # noqa: N802
    """An image as uint8, as Pillow needs it."""
    if image_3HW.is_floating_point():
        image_3HW = (image_3HW * MAX_UINT8).round().to(torch.uint8)
    return np.ascontiguousarray(image_3HW.permute(1, 2, 0).cpu().numpy())


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
_shared_lock = Lock()


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
