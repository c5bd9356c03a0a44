"""Cache of tensors under a limit in bytes, and keys of images by their content.

Shape suffixes: B images; H, W image sides in pixels; R rows of pixels in all channels; V 32-bit words of a row.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from masc_metrics.arguments import check_integer
from masc_metrics.grid import Grid
from masc_metrics.locks import Lock
from masc_metrics.precision import to_device

_Key = TypeVar("_Key", bound=Hashable)

DEFAULT_CACHE_BYTES = 512 * 2**20
"""About 113 images of 1024 patches in float32, or 227 in bfloat16, for a backbone of width 1152."""

DEFAULT_TEXT_CACHE_BYTES = 32 * 2**20
"""About 7000 texts, for a backbone of width 1152."""

# Two independent 64-bit sums form a 128-bit digest: a collision among a billion distinct images is unlikely.
_LANES = 2
_GPU_DIGEST_BATCH_SIZE = 16  # bounds the memory of int64 copies, which are up to eight times as large as the images
_MULTIPLIER = 0x9E3779B97F4A7C15 - 2**64  # odd, high bits well mixed


class FeatureCache:
    """Least-recently-used cache of tensors whose total size never exceeds ``max_bytes``.

    Args:
        max_bytes: maximum total size of the cached tensors; 0 disables the cache. It can be changed at any time.

    Raises:
        TypeError: if ``max_bytes`` is not an integer.
        ValueError: if it is negative.
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._nbytes = 0
        self._lock = Lock(on_lost=self._forget)
        self._max_bytes = 0
        self.max_bytes = max_bytes

    @property
    def max_bytes(self) -> int:
        """Maximum total size of the cached tensors in bytes; lowering it evicts tensors that no longer fit."""
        return self._max_bytes

    @max_bytes.setter
    def max_bytes(self, value: int) -> None:
        check_integer("max_bytes", value, least=0, hint=", such as 64 * 2**20")
        with self._lock:
            self._max_bytes = value
            self._evict_for(0)

    @property
    def nbytes(self) -> int:
        """Total size of the cached tensors in bytes."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._tensors)

    def get(self, key: Hashable) -> Tensor | None:
        """Return the tensor of a key and mark it as most recently used; None if the key is not cached."""
        with self._lock:
            tensor = self._tensors.get(key)
            if tensor is not None:
                self._tensors.move_to_end(key)
            return tensor

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Cache a tensor and evict the least recently used ones until all fit. A tensor above the limit is not cached.

        The tensor must own its memory: a view would keep its base tensor alive, which the limit does not count.
        """
        with self._lock:
            replaced = self._tensors.pop(key, None)
            if replaced is not None:
                self._nbytes -= replaced.nbytes
            if tensor.nbytes > self._max_bytes:
                return
            self._evict_for(tensor.nbytes)
            self._tensors[key] = tensor
            self._nbytes += tensor.nbytes

    def get_or_compute(
        self, keys: Sequence[_Key], compute: Callable[[list[_Key]], Tensor], batch_size: int
    ) -> dict[_Key, Tensor]:
        """Return the tensor of each key; compute and cache the missing ones.

        Args:
            keys: distinct keys.
            compute: returns a tensor for a list of keys, one row for each.
            batch_size: maximum number of keys in one call of ``compute``.
        """
        tensors = {key: cached for key in keys if (cached := self.get(key)) is not None}
        missing = [key for key in keys if key not in tensors]
        calls = math.ceil(len(missing) / batch_size)
        for index in range(calls):
            batch = missing[index::calls]  # of nearly equal sizes: 17 keys become 9 and 8 instead of 16 and 1
            for key, row in zip(batch, compute(batch), strict=True):
                tensors[key] = row.clone()  # a view would keep all rows in memory
                self.put(key, tensors[key])
        return tensors

    def _evict_for(self, nbytes: int) -> None:
        while self._nbytes + nbytes > self._max_bytes:
            _, evicted = self._tensors.popitem(last=False)
            self._nbytes -= evicted.nbytes

    def clear(self) -> None:
        """Remove all tensors."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._tensors.clear()
        self._nbytes = 0


class ImageKey(NamedTuple):
    """Key of an image's features: its patch grid and a digest of its resized pixels."""

    grid: Grid
    dtype: torch.dtype
    digest: tuple[int, int]


@lru_cache(maxsize=1024)
def _multipliers(count: int, salt: int, device: torch.device) -> Tensor:
    """Odd 64-bit numbers of shape (lanes, count), the same in every process."""
    generator = torch.Generator().manual_seed(salt)
    numbers = torch.randint(-(2**63), 2**63 - 1, (_LANES, count), dtype=torch.int64, generator=generator, device="cpu")
    return to_device(numbers | 1, device)


def content_digests(pixels_B3HW: Tensor) -> Tensor:
    """128-bit digests of the pixels of each image, computed on their device.

    A multilinear hash of the bits of each row of pixels, followed by a mixing step and a second multilinear hash over
    the rows, so that the order of rows matters. It is not cryptographic. Only digests of images of equal shape and
    dtype are comparable.

    Args:
        pixels_B3HW: uint8 or float32.

    Returns:
        (B, 2) int64.
    """
    # A GPU is fastest with few large kernels, a CPU with data that fits into its caches.
    batch_size = 1 if pixels_B3HW.device.type == "cpu" else _GPU_DIGEST_BATCH_SIZE
    return torch.cat([_digests(batch) for batch in torch.split(pixels_B3HW, batch_size)])


def _digests(pixels_B3HW: Tensor) -> Tensor:
    if pixels_B3HW.dtype == torch.uint8 and (over := pixels_B3HW.shape[-1] % 4):  # four values per word
        pixels_B3HW = F.pad(pixels_B3HW, (0, 4 - over))
    words_BRV = pixels_B3HW.contiguous().view(torch.int32).flatten(1, 2).to(torch.int64)
    _, rows, values = words_BRV.shape
    within = _multipliers(values, 1, words_BRV.device)
    across = _multipliers(rows, 2, words_BRV.device)
    lanes = []
    for lane in range(_LANES):
        sums_BR = (words_BRV * within[lane]).sum(dim=2)
        # Arithmetic is modulo 2**64. Shifts move the well-mixed high bits down; masks undo the sign extension of >>.
        mixed_BR = (sums_BR ^ ((sums_BR >> 29) & (2**35 - 1))) * _MULTIPLIER
        mixed_BR = mixed_BR ^ ((mixed_BR >> 32) & (2**32 - 1))
        lanes.append((mixed_BR * across[lane]).sum(dim=1))
    return torch.stack(lanes, dim=1)
