"""The frozen SigLIP2 network: one per process, checkpoint, device and dtype; it encodes each distinct image once.

Shape suffixes: B images or texts, N patches, P values of a patch, D feature width.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from masc_metrics.arguments import check_positive
from masc_metrics.cache import DEFAULT_CACHE_BYTES, DEFAULT_TEXT_CACHE_BYTES, FeatureCache, ImageKey, image_keys
from masc_metrics.checkpoint import DEFAULT_MODEL, Checkpoint, CheckpointSource
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES, Grid
from masc_metrics.images import Images, check_images, resize
from masc_metrics.precision import DEFAULT_DTYPE, check_device, check_dtype, to_device, without_autocast
from masc_metrics.prompts import check_texts
from masc_metrics.towers import TextTower, VisionTower

DEFAULT_ENCODE_BATCH_SIZE = 16

_CPU_PATCHES_IN_A_PASS = 1024
"""More do not fit a CPU's caches: they take more memory and more time."""


@dataclass(frozen=True, slots=True)
class PatchFeatures:
    """Patch features of B images, padded to the longest.

    Attributes:
        tokens_BND: the vision tower's last hidden state after its final layer norm, in the backbone's dtype; 0 on
            padding.
        valid_BN: bool, False on padding.
        grids: patch rows and columns of each image; its patches are the first rows * columns, row-major.
    """

    tokens_BND: Tensor
    valid_BN: Tensor
    grids: tuple[Grid, ...]


class SigLIP2Backbone:
    """A frozen SigLIP2 checkpoint on one device in one dtype; made by :func:`load_backbone`.

    It is no ``torch.nn.Module``, so that a metric or LightningModule holding it gains no parameter, no state_dict key
    and no hook from it. Copies are the same object, and a pickle holds where it came from, not its weights. The vision
    tower is read from disk when an image is first encoded, the text tower when a text is.

    Attributes:
        source: the checkpoint asked for.
        device: where it runs.
        dtype: the precision it runs in, whatever autocast or the surrounding module says.
        cache: features of images encoded already; ``cache.max_bytes`` bounds them.
        text_cache: embeddings of texts encoded already, kept apart so that images never push them out.
    """

    def __init__(self, source: CheckpointSource, device: torch.device, dtype: torch.dtype) -> None:
        self.source = source
        self.device = device
        self.dtype = dtype
        self.cache = FeatureCache(DEFAULT_CACHE_BYTES)
        self.text_cache = FeatureCache(DEFAULT_TEXT_CACHE_BYTES)
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"SigLIP2Backbone({self.source.model!r}, device={str(self.device)!r}, dtype={self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> SigLIP2Backbone:
        return self

    def __copy__(self) -> SigLIP2Backbone:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_backbone, (self.source, self.device, self.dtype)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint's files on this machine and the hub commit they are from; downloads them at first use."""
        return self.source.resolve()

    @cached_property
    def _vision(self) -> VisionTower:
        return VisionTower.read(self.checkpoint, self.device, self.dtype)

    @cached_property
    def _text(self) -> TextTower:
        return TextTower.read(self.checkpoint, self.device, self.dtype)

    @property
    def text_tower_loaded(self) -> bool:
        """Whether the text tower was needed, and so read, already."""
        return "_text" in self.__dict__

    def load(self, *, text_tower: bool = False) -> SigLIP2Backbone:
        """Read the vision tower now instead of at the first image, and the text tower if asked.

        Raises:
            OSError: if the checkpoint cannot be had; the text says how to get it.
            ValueError: if it is no SigLIP2 checkpoint.
        """
        with self._lock:
            self._vision  # noqa: B018  # a cached property: to look at it is to read it
            if text_tower:
                self._text  # noqa: B018
        return self

    def release_text_tower(self) -> None:
        """Free the text tower's memory, three fifths of the network's; a text not met before reads it again.

        Embeddings made already stay in ``text_cache``, so that the prompts of one validation cost the next one nothing.
        """
        with self._lock:
            self.__dict__.pop("_text", None)

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Neither gradients nor the surrounding precision and inference mode reach the network."""
        with self._lock, torch.inference_mode(False), torch.no_grad(), without_autocast(self.device):
            yield

    def encode_images(
        self,
        images: Images,
        *,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
    ) -> PatchFeatures:
        """Patch features of images; one pass of the vision tower for each distinct one that the cache does not hold.

        Images of equal grid go through the tower together and without padding, so that no image's features depend on
        its company.

        Args:
            images: any form that :func:`masc_metrics.images.check_images` accepts, of any sizes.
            max_num_patches: patch budget of one image; fixed-resolution checkpoints ignore it.
            batch_size: images in one pass of the tower, at most; a CPU takes no more than 1024 patches at a time.

        Returns:
            Features on the backbone's device, in the order of the images.

        Raises:
            TypeError, ValueError: for images or settings that are not accepted.
            OSError: if the checkpoint cannot be had.
        """
        check_positive("max_num_patches", max_num_patches)
        check_positive("batch_size", batch_size)
        batch = check_images(images, "images")
        with self._frozen():
            processing = self.checkpoint.processing
            grids = tuple(processing.grid(height, width, max_num_patches) for height, width in batch.sizes)
            pixels = [
                to_device(resize(image, grid, processing), self.device)
                for image, grid in zip(batch.images, grids, strict=True)
            ]
            keys = image_keys(grids, pixels)
            pixels_of = dict(zip(keys, pixels, strict=True))

            def encode(part: list[ImageKey]) -> Tensor:
                return self._vision.encode(torch.stack([pixels_of[key] for key in part]))

            found: dict[ImageKey, Tensor] = {}
            for grid, dtype in dict.fromkeys((key.grid, key.dtype) for key in keys):  # so that nothing is padded
                alike = [key for key in pixels_of if (key.grid, key.dtype) == (grid, dtype)]
                found |= self.cache.get_or_compute(alike, encode, self._images_in_a_pass(grid, batch_size))
            tokens_BND = pad_sequence([found[key] for key in keys], batch_first=True)
            counts_B = torch.tensor([rows * columns for rows, columns in grids], device="cpu")
            valid_BN = torch.arange(tokens_BND.shape[1], device="cpu") < counts_B[:, None]
            return PatchFeatures(tokens_BND, to_device(valid_BN, self.device), grids)

    def _images_in_a_pass(self, grid: Grid, batch_size: int) -> int:
        on_a_cpu = max(1, _CPU_PATCHES_IN_A_PASS // (grid[0] * grid[1]))
        return min(batch_size, on_a_cpu) if self.device.type == "cpu" else batch_size

    def pool(self, features: PatchFeatures, keep_BN: Tensor) -> Tensor:
        """Image embeddings from chosen patches: the checkpoint's attention-pooling head, blind to all others.

        Args:
            features: patch features from this backbone.
            keep_BN: bool, the patches to pool over; padding is never kept.

        Returns:
            (B, D) float32 in the space of :meth:`encode_texts`; rows of NaN where no patch is kept.

        Raises:
            ValueError: if ``keep_BN`` has another shape than the features.
        """
        if keep_BN.shape != features.valid_BN.shape:
            raise ValueError(
                f"keep_BN is {tuple(keep_BN.shape)} but the features are {tuple(features.valid_BN.shape)}; give one "
                "boolean a patch"
            )
        with self._frozen():
            keep_BN = keep_BN.bool() & features.valid_BN
            empty_B = ~keep_BN.any(dim=1)
            # Attention over nothing is NaN by itself, but not in every kernel: let such rows see all, then void them.
            pooled_BD = self._vision.pool(features.tokens_BND, keep_BN | empty_B[:, None])
            return pooled_BD.masked_fill(empty_B[:, None], torch.nan)

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = DEFAULT_ENCODE_BATCH_SIZE) -> Tensor:
        """Text embeddings, one pass of the text tower for each distinct text that the cache does not hold.

        Texts are lower-cased, padded and truncated on the right to the text tower's length (64 tokens in SigLIP2), and
        attended to in full, padding included, as the checkpoint was trained.

        Args:
            texts: any strings, an empty one included.
            batch_size: texts in one pass of the tower.

        Returns:
            (B, D) float32 on the backbone's device.

        Raises:
            TypeError: if the texts are not a list of strings.
            ValueError: if there is none, or one is no Unicode.
            OSError: if the checkpoint cannot be had or has no tokenizer.
        """
        check_positive("batch_size", batch_size)
        check_texts(texts, "texts")
        if len(texts) == 0:
            raise ValueError("texts is empty; give at least one string")
        with self._frozen():
            lowered = [text.lower() for text in texts]
            distinct = list(dict.fromkeys(lowered))
            found = self.text_cache.get_or_compute(distinct, lambda part: self._text.encode(part).float(), batch_size)
            return torch.stack([found[text] for text in lowered])


_shared: dict[tuple[CheckpointSource, torch.device, torch.dtype], SigLIP2Backbone] = {}
_shared_lock = threading.Lock()


def shared_backbone(source: CheckpointSource, device: str | torch.device, dtype: torch.dtype) -> SigLIP2Backbone:
    """The process's one backbone of this source, device and dtype; nothing is read before it is needed."""
    device = check_device(device)  # "cuda" and "cuda:0" are one
    with _shared_lock:
        key = (source, device, dtype)
        if key not in _shared:
            _shared[key] = SigLIP2Backbone(source, device, dtype)
        return _shared[key]


def load_backbone(
    model_name_or_path: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = DEFAULT_DTYPE,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> SigLIP2Backbone:
    """The process's shared backbone, with its vision tower read and ready.

    Args:
        model_name_or_path: hub id or local folder of a SigLIP2 checkpoint, NaFlex or fixed-resolution; "tiny" is the
            small one that comes with the package, trained on rendered scenes alone.
        device: where it runs; "cuda" is the current GPU.
        dtype: float32 for the paper's numbers; bfloat16 for speed.
        revision: branch, tag or commit on the hub.
        cache_dir: where downloads are kept.
        local_files_only: never use the network.

    Returns:
        The same object for the same arguments, as long as the process lives or until :func:`release_backbones`.

    Raises:
        TypeError: if an argument has the wrong type.
        OSError: if the checkpoint cannot be had; the text says how to get it.
        ValueError: if it is no SigLIP2 checkpoint, or the device is not there.
    """
    check_dtype(dtype)
    source = CheckpointSource.of(model_name_or_path, revision, cache_dir, local_files_only)
    return shared_backbone(source, device, dtype).load()


def release_backbones() -> None:
    """Forget every shared backbone, so that their memory can be freed; metrics load theirs again when needed."""
    with _shared_lock:
        _shared.clear()
