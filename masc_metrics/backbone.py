"""The frozen SigLIP2 network: one per process, checkpoint, device and dtype; it encodes each distinct image once.

Shape suffixes: B images or texts, N patches, P values of a patch, D feature width.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from masc_metrics.cache import DEFAULT_CACHE_BYTES, FeatureCache, content_digests
from masc_metrics.checkpoint import DEFAULT_MODEL, Checkpoint, CheckpointSource
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES, Grid, check_positive
from masc_metrics.images import Images, check_images, patchify
from masc_metrics.precision import DEFAULT_DTYPE, check_device, check_dtype, without_autocast
from masc_metrics.towers import TextTower, VisionTower

DEFAULT_ENCODE_BATCH_SIZE = 16

_ImageKey = tuple[Grid, tuple[int, int]]
"""What an image's features depend on: its grid and the digest of its patches."""

_Key = TypeVar("_Key", bound=Hashable)


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
        cache: features of images and texts encoded already.
    """

    def __init__(self, source: CheckpointSource, device: torch.device, dtype: torch.dtype) -> None:
        self.source = source
        self.device = device
        self.dtype = dtype
        self.cache = FeatureCache(DEFAULT_CACHE_BYTES)
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

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Neither gradients nor the surrounding precision and inference mode reach the network."""
        with (
            self._lock,
            torch.inference_mode(False),
            torch.no_grad(),
            without_autocast(self.device),
        ):
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
            batch_size: images in one pass of the tower.

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
            patches = [
                patchify(image, grid, processing).to(self.device)
                for image, grid in zip(batch.images, grids, strict=True)
            ]
            digests = torch.cat([content_digests(image_NP[None]) for image_NP in patches]).tolist()
            keys = [(grid, (high, low)) for grid, (high, low) in zip(grids, digests, strict=True)]
            patches_of = dict(zip(keys, patches, strict=True))

            def encode(part: list[_ImageKey]) -> Tensor:
                return self._vision.encode(torch.stack([patches_of[key] for key in part]), part[0][0])

            found: dict[_ImageKey, Tensor] = {}
            for grid in dict.fromkeys(grids):  # one grid at a time, so that nothing is padded
                found |= self._found_or_encoded([key for key in patches_of if key[0] == grid], encode, batch_size)
            tokens_BND = pad_sequence([found[key] for key in keys], batch_first=True)
            counts_B = torch.tensor([rows * columns for rows, columns in grids], device=self.device)
            valid_BN = torch.arange(tokens_BND.shape[1], device=self.device) < counts_B[:, None]
            return PatchFeatures(tokens_BND, valid_BN, grids)

    def _found_or_encoded(
        self, keys: list[_Key], encode: Callable[[list[_Key]], Tensor], batch_size: int
    ) -> dict[_Key, Tensor]:
        """What belongs to each of the distinct keys: from the cache, or encoded now and kept there."""
        found = {key: known for key in keys if (known := self.cache.get(key)) is not None}
        missing = [key for key in keys if key not in found]
        for start in range(0, len(missing), batch_size):
            part = missing[start : start + batch_size]
            for key, features in zip(part, encode(part), strict=True):
                found[key] = features.clone()  # a view would hold the whole batch in the cache
                self.cache.put(key, found[key])
        return found

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
            ValueError: if there is none.
            OSError: if the checkpoint cannot be had or has no tokenizer.
        """
        check_positive("batch_size", batch_size)
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise TypeError(f"texts is a {type(texts).__name__}; give a list of strings")
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{index}] is a {type(text).__name__}; give strings")
        if len(texts) == 0:
            raise ValueError("texts is empty; give at least one string")
        with self._frozen():
            lowered = [text.lower() for text in texts]
            distinct = list(dict.fromkeys(lowered))
            found = self._found_or_encoded(distinct, lambda part: self._text.encode(part).float(), batch_size)
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
