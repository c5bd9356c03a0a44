"""Frozen SigLIP2 networks, shared within a process by checkpoint, device and dtype, with caches of their outputs.

Shape suffixes: B images or texts, N patches, D feature width.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from masc_metrics.arguments import check_positive
from masc_metrics.cache import DEFAULT_CACHE_BYTES, DEFAULT_TEXT_CACHE_BYTES, FeatureCache, ImageKey, content_digests
from masc_metrics.checkpoint import Checkpoint, CheckpointSource
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES, Grid
from masc_metrics.images import ImageBatch, Images, check_images, resize_all
from masc_metrics.locks import Lock
from masc_metrics.precision import (
    DEFAULT_DTYPE,
    Dtype,
    HostCopy,
    check_device,
    check_dtype,
    eager,
    stack_on_device,
    to_device,
    without_autocast,
)
from masc_metrics.prompts import check_texts
from masc_metrics.reading import usable
from masc_metrics.settings import DEFAULT_ENCODE_BATCH_SIZE, DEFAULT_MODEL
from masc_metrics.towers import TextTower, VisionTower

_CPU_PATCHES_PER_PASS = 1024
"""More patches exceed the caches of a CPU and are slower."""


@dataclass(frozen=True, slots=True)
class PatchFeatures:
    """Patch features of B images, padded to the largest number of patches.

    Attributes:
        tokens_BND: last hidden state of the vision tower after its final layer norm, in the backbone's dtype; 0 on
            padding.
        valid_BN: bool, False on padding.
        grids: patch rows and columns of each image; its patches are the first rows * columns, in row-major order.
    """

    tokens_BND: Tensor
    valid_BN: Tensor
    grids: tuple[Grid, ...]

    def split(self, counts: Sequence[int]) -> list[PatchFeatures]:
        """The features of the first images, of the next ones, and so on, without a copy."""
        ends = list(itertools.accumulate(counts))
        rows = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        return [PatchFeatures(self.tokens_BND[each], self.valid_BN[each], self.grids[each]) for each in rows]


@dataclass(frozen=True, slots=True)
class _Group:
    """Resized images of one grid and dtype.

    Attributes:
        grid: their patch rows and columns.
        pixels_B3HW: on the backbone's device.
        digests: (B, 2) of their pixels.
    """

    grid: Grid
    pixels_B3HW: Tensor
    digests: HostCopy

    def image_keys(self) -> list[ImageKey]:
        return [ImageKey(self.grid, self.pixels_B3HW.dtype, (high, low)) for high, low in self.digests.tolist()]


@dataclass(frozen=True, slots=True)
class PreparedImages:
    """B images that :meth:`SigLIP2Backbone.encode` takes.

    Attributes:
        grids: patch rows and columns of each image.
        groups: the distinct images, by grid and dtype.
        positions: index of each image's group, and of its row there.
    """

    grids: tuple[Grid, ...]
    groups: tuple[_Group, ...]
    positions: tuple[tuple[int, int], ...]


class SigLIP2Backbone:
    """A frozen SigLIP2 checkpoint on one device in one dtype, created by :func:`load_backbone`.

    It is not a ``torch.nn.Module``: a metric or LightningModule that holds it gains no parameters, state_dict keys or
    hooks. A copy is the same object, and a pickle contains the source instead of the weights. The vision tower is read
    when an image is first encoded, the text tower when a text is first encoded.

    Attributes:
        source: source of the checkpoint.
        device: device of the network.
        dtype: precision of the network, independent of autocast and of the surrounding module.
        cache: features of encoded images; ``cache.max_bytes`` bounds their size.
        text_cache: embeddings of encoded texts, in a separate cache so that images never evict them.
    """

    def __init__(self, source: CheckpointSource, device: torch.device, dtype: torch.dtype) -> None:
        self.source = source
        self.device = device
        self.dtype = dtype
        self.cache = FeatureCache(DEFAULT_CACHE_BYTES)
        self.text_cache = FeatureCache(DEFAULT_TEXT_CACHE_BYTES)
        self._lock = Lock()
        self._checkpoint: Checkpoint | None = None
        self._vision_tower: VisionTower | None = None
        self._text_tower: TextTower | None = None
        self._warned_gradient = False
        self._cut_tokens: dict[str, int] = {}  # of the texts that are too long

    def __repr__(self) -> str:
        return f"SigLIP2Backbone({self.source.model!r}, device={str(self.device)!r}, dtype={self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> SigLIP2Backbone:
        return self

    def __copy__(self) -> SigLIP2Backbone:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_backbone, (self.source, self.device, self.dtype)

    # No functools.cached_property: before Python 3.12 it has a lock of its own, which a forked child would wait for.
    @property
    @eager
    def checkpoint(self) -> Checkpoint:
        """The checkpoint on this machine; downloaded at first use."""
        with self._lock:
            if self._checkpoint is None:
                self._checkpoint = self.source.resolve()
            return self._checkpoint

    @property
    def _vision(self) -> VisionTower:
        with self._lock:
            if self._vision_tower is None:
                self._vision_tower = VisionTower.read(self.checkpoint, self.device, self.dtype)
            return self._vision_tower

    @property
    def _text(self) -> TextTower:
        with self._lock:
            if self._text_tower is None:
                self._text_tower = TextTower.read(self.checkpoint, self.device, self.dtype)
            return self._text_tower

    @property
    def text_tower_loaded(self) -> bool:
        """Whether the text tower is in memory."""
        return self._text_tower is not None

    @eager
    def load(self, *, text_tower: bool = False) -> SigLIP2Backbone:
        """Read the vision tower, and optionally the text tower, now instead of at first use.

        Raises:
            OSError: if the checkpoint is not available; the error text says how to get it.
            ValueError: if it is not a SigLIP2 checkpoint.
        """
        with self._lock:
            self._vision  # noqa: B018  # the first access reads the tower
            if text_tower:
                self._text  # noqa: B018
        return self

    def release_text_tower(self) -> None:
        """Free the memory of the text tower, three fifths of the network's; a new text reads it again.

        Embeddings stay in ``text_cache``, so that repeated prompts do not need the text tower.
        """
        with self._lock:
            self._text_tower = None

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Run the network without gradients, outside the surrounding autocast and inference mode."""
        with (
            self._lock,
            torch.inference_mode(False),
            torch.no_grad(),
            without_autocast(self.device),
            usable(self.source.model),
        ):
            yield

    def encode_images(
        self,
        images: Images,
        *,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
    ) -> PatchFeatures:
        """Patch features of images; each distinct image that is not in the cache passes through the vision tower once.

        Images of equal grid are batched without padding, so that features do not depend on the rest of the batch.

        Args:
            images: any form that :func:`masc_metrics.images.check_images` accepts, of any sizes.
            max_num_patches: patch budget of one image; fixed-resolution checkpoints ignore it.
            batch_size: maximum number of images in one pass; on a CPU, a pass has at most 1024 patches.

        Returns:
            Features on the backbone's device, in the order of the images.

        Raises:
            TypeError, ValueError: if images or settings are not accepted.
            OSError: if the checkpoint is not available.
        """
        check_positive("batch_size", batch_size)
        return self.encode(self.prepare(images, max_num_patches=max_num_patches), batch_size=batch_size)

    @eager
    def prepare(self, images: Images, *, max_num_patches: int = DEFAULT_MAX_NUM_PATCHES) -> PreparedImages:
        """First half of :meth:`encode_images`: resize images, copy them to the device, and hash them there.

        On a GPU, this queues work and waits for nothing. If the next images are prepared before the last ones are
        encoded, the GPU never waits for them.

        Args:
            images: as in :meth:`encode_images`.
            max_num_patches: as in :meth:`encode_images`.

        Raises:
            TypeError, ValueError, OSError: as :meth:`encode_images`.

        Warns:
            UserWarning: once per backbone, if images require gradients while gradients are enabled.
        """
        check_positive("max_num_patches", max_num_patches)
        batch = check_images(images, "images")
        self._warn_of_gradients(batch)
        with self._frozen():
            processing = self.checkpoint.processing
            grids = tuple(processing.grid(height, width, max_num_patches) for height, width in batch.sizes)
            # A tensor that is given several times, such as the reference of a concept, is copied and hashed once.
            places = [_memory(image) for image in batch.images]
            first = {place: index for index, place in reversed(list(enumerate(places)))}
            distinct = sorted(first.values())
            pixels = resize_all(
                [batch.images[index] for index in distinct], [grids[index] for index in distinct], processing
            )
            members: dict[tuple[Grid, torch.dtype], dict[int, Tensor]] = {}
            for index, resized in zip(distinct, pixels, strict=True):
                members.setdefault((grids[index], resized.dtype), {})[index] = resized
            groups: list[_Group] = []
            position_of: dict[int, tuple[int, int]] = {}
            for (grid, _), group in members.items():
                pixels_B3HW = stack_on_device(list(group.values()), self.device)
                groups.append(_Group(grid, pixels_B3HW, HostCopy(content_digests(pixels_B3HW))))
                position_of |= {index: (len(groups) - 1, row) for row, index in enumerate(group)}
            return PreparedImages(grids, tuple(groups), tuple(position_of[first[place]] for place in places))

    def _warn_of_gradients(self, batch: ImageBatch) -> None:
        if self._warned_gradient or not torch.is_grad_enabled():
            return
        if any(image.requires_grad for image in batch.images):
            self._warned_gradient = True
            warnings.warn(
                "images require gradients, but none flow through the frozen network, so scores and features are "
                "constants to autograd; give image.detach(), or compute scores under torch.no_grad()",
                UserWarning,
                stacklevel=2,
            )

    @eager
    def encode(self, prepared: PreparedImages, *, batch_size: int = DEFAULT_ENCODE_BATCH_SIZE) -> PatchFeatures:
        """Second half of :meth:`encode_images`: features of the prepared images, from the cache or the vision tower.

        Args:
            prepared: from :meth:`prepare` of this backbone.
            batch_size: as in :meth:`encode_images`.
        """
        check_positive("batch_size", batch_size)
        with self._frozen():
            keys = [group.image_keys() for group in prepared.groups]
            tokens_of: dict[ImageKey, Tensor] = {}
            for group, group_keys in zip(prepared.groups, keys, strict=True):  # of one grid, so that nothing is padded
                pixels_of = dict(zip(group_keys, group.pixels_B3HW, strict=True))

                def encode(batch: list[ImageKey], pixels_of: dict[ImageKey, Tensor] = pixels_of) -> Tensor:
                    return self._vision.encode(torch.stack([pixels_of[key] for key in batch]))

                images_per_pass = self._images_per_pass(group.grid, batch_size)
                tokens_of |= self.cache.get_or_compute(list(pixels_of), encode, images_per_pass)
            tokens_BND = pad_sequence(
                [tokens_of[keys[group][row]] for group, row in prepared.positions], batch_first=True
            )
            counts_B = torch.tensor([rows * columns for rows, columns in prepared.grids], device="cpu")
            valid_BN = torch.arange(tokens_BND.shape[1], device="cpu") < counts_B[:, None]
            return PatchFeatures(tokens_BND, to_device(valid_BN, self.device), prepared.grids)

    def _images_per_pass(self, grid: Grid, batch_size: int) -> int:
        cpu_limit = max(1, _CPU_PATCHES_PER_PASS // (grid[0] * grid[1]))
        return min(batch_size, cpu_limit) if self.device.type == "cpu" else batch_size

    @eager
    def pool(self, features: PatchFeatures, keep_BN: Tensor) -> Tensor:
        """Image embeddings of selected patches, by the attention-pooling head of the checkpoint.

        Args:
            features: patch features from this backbone.
            keep_BN: bool, True on patches to pool over; padding is excluded in any case.

        Returns:
            (B, D) float32 in the space of :meth:`encode_texts`; NaN in rows without a patch to pool over.

        Raises:
            ValueError: if ``keep_BN`` and the features differ in shape.
        """
        keep_BN = _kept(features, keep_BN)
        with self._frozen():
            empty_B = ~keep_BN.any(dim=1)
            # Attention over no patches is not NaN in every kernel: such rows attend to all patches, then become NaN.
            pooled_BD = self._vision.pool(features.tokens_BND, keep_BN | empty_B[:, None])
            return pooled_BD.masked_fill(empty_B[:, None], torch.nan)

    @eager
    def attention(self, features: PatchFeatures, keep_BN: Tensor) -> Tensor:
        """How much :meth:`pool` attends to each selected patch: the mean of the weights of its heads.

        Args:
            features: patch features from this backbone.
            keep_BN: as in :meth:`pool`.

        Returns:
            (B, N) float32; each row sums to 1, and is 0 on patches that are not selected. NaN in rows without a patch.

        Raises:
            ValueError: if ``keep_BN`` and the features differ in shape.
        """
        keep_BN = _kept(features, keep_BN)
        with self._frozen():
            empty_B = ~keep_BN.any(dim=1)
            weights_BN = self._vision.attention(features.tokens_BND, keep_BN | empty_B[:, None]).mean(dim=1)
            return weights_BN.masked_fill(empty_B[:, None], torch.nan)

    @eager
    def encode_texts(self, texts: Sequence[str], *, batch_size: int = DEFAULT_ENCODE_BATCH_SIZE) -> Tensor:
        """Text embeddings; each distinct text that is not in the cache passes through the text tower once.

        Texts are lower-cased, padded and truncated on the right to the length of the text tower (64 tokens in
        SigLIP2), see :meth:`cut_tokens`. As in training, padding is attended to.

        Args:
            texts: strings, which may be empty.
            batch_size: maximum number of texts in one pass.

        Returns:
            (B, D) float32 on the backbone's device.

        Raises:
            TypeError: if the texts are not a list of strings.
            ValueError: if the list is empty, or a text cannot be encoded as Unicode.
            OSError: if the checkpoint is not available or has no tokenizer.
        """
        check_positive("batch_size", batch_size)
        check_texts(texts, "texts")
        if len(texts) == 0:
            raise ValueError("texts is empty; give at least one string")
        with self._frozen():
            lowered = [text.lower() for text in texts]
            distinct = list(dict.fromkeys(lowered))

            def encode(batch: list[str]) -> Tensor:
                cut = zip(batch, self._text.cut_tokens(batch), strict=True)
                self._cut_tokens |= {text: count for text, count in cut if count}
                return self._text.encode(batch).float()

            embeddings = self.text_cache.get_or_compute(distinct, encode, batch_size)
            return torch.stack([embeddings[text] for text in lowered])

    def cut_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens at the end of each text that its embedding ignores; 0 if all fit, or not yet encoded."""
        return [self._cut_tokens.get(text.lower(), 0) for text in texts]


def _kept(features: PatchFeatures, keep_BN: Tensor) -> Tensor:
    """Selected patches without padding."""
    if keep_BN.shape != features.valid_BN.shape:
        raise ValueError(
            f"keep_BN is {tuple(keep_BN.shape)} but the features are {tuple(features.valid_BN.shape)}; give one "
            "boolean for each patch"
        )
    return keep_BN.bool() & features.valid_BN


def _memory(image: Tensor) -> tuple[object, ...]:
    """Where a tensor's values lie: two live tensors that share all of it have equal values."""
    return image.data_ptr(), image.shape, image.stride(), image.dtype, image.device


_shared: dict[tuple[CheckpointSource, torch.device, torch.dtype], SigLIP2Backbone] = {}
_shared_lock = Lock()


@eager
def shared_backbone(source: CheckpointSource, device: str | int | torch.device, dtype: torch.dtype) -> SigLIP2Backbone:
    """Backbone of this source, device and dtype, shared within the process; files are read at first use."""
    device = check_device(device)  # "cuda" becomes "cuda:0", so that both give the same backbone
    with _shared_lock:
        key = (source, device, dtype)
        if key not in _shared:
            _shared[key] = SigLIP2Backbone(source, device, dtype)
        return _shared[key]


def load_backbone(
    model_name_or_path: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    device: str | int | torch.device = "cpu",
    dtype: Dtype = DEFAULT_DTYPE,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> SigLIP2Backbone:
    """Load a frozen backbone, which is shared within the process; its vision tower is read immediately.

    Args:
        model_name_or_path: hub id or local folder of a SigLIP2 checkpoint, NaFlex or fixed-resolution; "tiny" is the
            small bundled checkpoint, trained only on rendered scenes.
        device: device of the network; "cuda" is the current GPU, and a number the GPU of this index.
        dtype: precision of the network, a torch.dtype or its name; float32 reproduces the paper, bfloat16 is faster.
        revision: branch, tag or commit on the hub.
        cache_dir: folder for downloads.
        local_files_only: never use the network.

    Returns:
        The same object for the same arguments, until :func:`release_backbones` is called.

    Raises:
        TypeError: if an argument has the wrong type.
        OSError: if the checkpoint is not available; the error text says how to get it.
        ValueError: if it is not a SigLIP2 checkpoint, or the device or dtype is not available.
    """
    checked_dtype = check_dtype(dtype)
    source = CheckpointSource.of(model_name_or_path, revision, cache_dir, local_files_only)
    return shared_backbone(source, device, checked_dtype).load()


def release_backbones() -> None:
    """Drop all shared backbones so that their memory can be freed; metrics load their backbone again when needed."""
    with _shared_lock:
        _shared.clear()
