"""What was encoded already: tensors kept by the content that they were computed from, inside a byte bound.

Shape suffixes: B images, N patches, P values of a patch.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from functools import lru_cache

import torch
from torch import Tensor

DEFAULT_CACHE_BYTES = 512 * 2**20
"""About 113 images of 1024 patches in float32, 227 in bfloat16, for a backbone of width 1152."""

# Two independent 64-bit sums make a 128-bit digest: among a billion distinct images a collision stays unlikely.
_LANES = 2
_MULTIPLIER = 0x9E3779B97F4A7C15 - 2**64  # odd, high bits well mixed


class FeatureCache:
    """Tensors by key, least recently used out first, never above ``max_bytes`` in all.

    Args:
        max_bytes: bound on the summed size of the tensors kept; 0 keeps nothing.

    Raises:
        ValueError: if ``max_bytes`` is negative.
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes is {max_bytes}; give 0 to keep nothing, or a positive bound")
        self.max_bytes = max_bytes
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

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
            if tensor.nbytes > self.max_bytes:
                return
            while self._nbytes + tensor.nbytes > self.max_bytes:
                _, dropped = self._tensors.popitem(last=False)
                self._nbytes -= dropped.nbytes
            self._tensors[key] = tensor
            self._nbytes += tensor.nbytes

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._tensors.clear()
            self._nbytes = 0


@lru_cache(maxsize=64)
def _multipliers(count: int, salt: int, device: torch.device) -> Tensor:
    """(lanes, count) odd 64-bit numbers, the same in every process."""
    generator = torch.Generator().manual_seed(salt)
    numbers = torch.randint(-(2**63), 2**63 - 1, (_LANES, count), dtype=torch.int64, generator=generator, device="cpu")
    return (numbers | 1).to(device)


def content_digests(patches_BNP: Tensor) -> Tensor:
    """A 128-bit digest of each image's patches, computed on their device.

    A multilinear hash of the values' bits inside each patch, mixed, and a second one over the patches, so that equal
    patches in another order differ. It guards against chance, not against an adversary.

    Args:
        patches_BNP: float32, contiguous.

    Returns:
        (B, 2) int64.
    """
    bits_BNP = patches_BNP.contiguous().view(torch.int32).to(torch.int64)
    _, patches, values = bits_BNP.shape
    within = _multipliers(values, 1, bits_BNP.device)
    across = _multipliers(patches, 2, bits_BNP.device)
    lanes = []
    for lane in range(_LANES):
        sums_BN = (bits_BNP * within[lane]).sum(dim=2)
        # Wraps modulo 2**64; the shifts bring the well mixed high bits down. Masked, because >> copies the sign.
        mixed_BN = (sums_BN ^ ((sums_BN >> 29) & (2**35 - 1))) * _MULTIPLIER
        mixed_BN = mixed_BN ^ ((mixed_BN >> 32) & (2**32 - 1))
        lanes.append((mixed_BN * across[lane]).sum(dim=1))
    return torch.stack(lanes, dim=1)
