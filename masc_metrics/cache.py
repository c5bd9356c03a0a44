"""What was encoded already: tensors kept by the content that they were computed from, inside a byte bound.

Shape suffixes: B images; H, W sides in pixels; R rows of pixels, of all channels; V 32-bit words of a row.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from masc_metrics.arguments import check_integer
from masc_metrics.grid import Grid
from masc_metrics.precision import to_device

_Key = TypeVar("_Key", bound=Hashable)

DEFAULT_CACHE_BYTES = 512 * 2**20
"""About 113 images of 1024 patches in float32, 227 in bfloat16, for a backbone of width 1152."""

DEFAULT_TEXT_CACHE_BYTES = 32 * 2**20
"""About 7000 texts, for a backbone of width 1152."""

# Two independent 64-bit sums make a 128-bit digest: among a billion distinct images a collision stays unlikely.
_LANES = 2
_DIGESTED = 16  # images at a time: their bits are spread over eight times as many bytes
_MULTIPLIER = 0x9E3779B97F4A7C15 - 2**64  # odd, high bits well mixed


class FeatureCache:
    """Tensors by key, least recently used out first, never above ``max_bytes`` in all.

    Args:
        max_bytes: bound on the summed size of the tensors kept; 0 keeps nothing. May be set anew at any time.

    Raises:
        TypeError: if ``max_bytes`` is no integer.
        ValueError: if it is negative.
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()
        self._max_bytes = 0
        self.max_bytes = max_bytes

    @property
    def max_bytes(self) -> int:
        """Bound on the summed size of the tensors kept; a smaller one drops what no longer fits."""
        return self._max_bytes

    @max_bytes.setter
    def max_bytes(self, value: int) -> None:
        check_integer("max_bytes", value, least=0, hint=", such as 64 * 2**20")
        with self._lock:
            self._max_bytes = value
            self._make_room(0)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors kept now."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._tensors)

    def get(self, key: Hashable) -> Tensor | None:
        """The tensor kept under the key, now the most recently used one; None if there is none."""
        with self._lock:
            tensor = self._tensors.get(key)
            if tensor is not None:
                self._tensors.move_to_end(key)
            return tensor

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a tensor, dropping the least recently used ones until all fit. One too large alone is not kept.

        The tensor must own its memory: a view would keep its whole base alive behind the bound.
        """
        with self._lock:
            replaced = self._tensors.pop(key, None)
            if replaced is not None:
                self._nbytes -= replaced.nbytes
            if tensor.nbytes > self._max_bytes:
                return
            self._make_room(tensor.nbytes)
            self._tensors[key] = tensor
            self._nbytes += tensor.nbytes

    def get_or_compute(
        self, keys: Sequence[_Key], make: Callable[[list[_Key]], Tensor], at_a_time: int
    ) -> dict[_Key, Tensor]:
        """What belongs to each of the distinct keys: kept already, or made now and kept.

        Args:
            keys: distinct ones.
            make: a tensor for some of the keys, one row a key.
            at_a_time: keys that ``make`` is given at once, at most.
        """
        found = {key: known for key in keys if (known := self.get(key)) is not None}
        missing = [key for key in keys if key not in found]
        calls = math.ceil(len(missing) / at_a_time)
        for index in range(calls):
            part = missing[index::calls]  # of equal sizes: 17 by 16 are 9 and 8, not 16 and a lonely one
            for key, row in zip(part, make(part), strict=True):
                found[key] = row.clone()  # a view would hold all rows in the cache
                self.put(key, found[key])
        return found

    def _make_room(self, nbytes: int) -> None:
        while self._nbytes + nbytes > self._max_bytes:
            _, dropped = self._tensors.popitem(last=False)
            self._nbytes -= dropped.nbytes

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._tensors.clear()
            self._nbytes = 0


class ImageKey(NamedTuple):
    """What an image's features depend on: its grid, and its pixels there."""

    grid: Grid
    dtype: torch.dtype
    digest: tuple[int, int]


def image_keys(grids: Sequence[Grid], pixels: Sequence[Tensor]) -> list[ImageKey]:
    """A key for each image, given what :func:`masc_metrics.images.resize` made of it; waits once for their device."""
    alike: dict[tuple[Grid, torch.dtype], list[int]] = {}
    for index, (grid, image) in enumerate(zip(grids, pixels, strict=True)):
        alike.setdefault((grid, image.dtype), []).append(index)
    parts = [part[start : start + _DIGESTED] for part in alike.values() for start in range(0, len(part), _DIGESTED)]
    digests = torch.cat([content_digests(torch.stack([pixels[index] for index in part])) for part in parts])
    order = [index for part in parts for index in part]
    digest_of = {index: (high, low) for index, (high, low) in zip(order, digests.tolist(), strict=True)}
    return [ImageKey(grid, pixels[index].dtype, digest_of[index]) for index, grid in enumerate(grids)]


@lru_cache(maxsize=1024)
def _multipliers(count: int, salt: int, device: torch.device) -> Tensor:
    """(lanes, count) odd 64-bit numbers, the same in every process."""
    generator = torch.Generator().manual_seed(salt)
    numbers = torch.randint(-(2**63), 2**63 - 1, (_LANES, count), dtype=torch.int64, generator=generator, device="cpu")
    return to_device(numbers | 1, device)


def content_digests(pixels_B3HW: Tensor) -> Tensor:
    """A 128-bit digest of each image's pixels, computed on their device.

    A multilinear hash of the values' bits inside each row of pixels, mixed, and a second one over the rows, so that
    equal rows in another order differ. It guards against chance, not against an adversary. Only digests of images of
    one shape and dtype compare.

    Args:
        pixels_B3HW: uint8 or float32.

    Returns:
        (B, 2) int64.
    """
    # On a GPU few large kernels are quick, on a CPU what stays in its cache.
    at_a_time = 1 if pixels_B3HW.device.type == "cpu" else len(pixels_B3HW)
    return torch.cat([_digests(part) for part in torch.split(pixels_B3HW, at_a_time)])


def _digests(pixels_B3HW: Tensor) -> Tensor:
    if pixels_B3HW.dtype == torch.uint8 and (over := pixels_B3HW.shape[-1] % 4):  # four values a word
        pixels_B3HW = F.pad(pixels_B3HW, (0, 4 - over))
    words_BRV = pixels_B3HW.contiguous().view(torch.int32).flatten(1, 2).to(torch.int64)
    _, rows, values = words_BRV.shape
    within = _multipliers(values, 1, words_BRV.device)
    across = _multipliers(rows, 2, words_BRV.device)
    lanes = []
    for lane in range(_LANES):
        sums_BR = (words_BRV * within[lane]).sum(dim=2)
        # Wraps modulo 2**64; the shifts bring the well mixed high bits down. Masked, because >> copies the sign.
        mixed_BR = (sums_BR ^ ((sums_BR >> 29) & (2**35 - 1))) * _MULTIPLIER
        mixed_BR = mixed_BR ^ ((mixed_BR >> 32) & (2**32 - 1))
        lanes.append((mixed_BR * across[lane]).sum(dim=1))
    return torch.stack(lanes, dim=1)
