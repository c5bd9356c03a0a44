"""Sample ids: integers that tell a repeated sample from a new one, on any number of ranks.

Shape suffix: B samples.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

SampleIds = Tensor | Sequence[int]


def first_of_each_id(scores: Tensor, ids: Tensor) -> Tensor:
    """Scores in the order of ids, each id once, the first one that stands there."""
    order = ids.argsort(stable=True)
    ordered = ids[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return scores[order][first]


def check_sample_ids(sample_ids: SampleIds | None, count: int) -> Tensor | None:
    """The ids as (B,) int64, or None.

    Raises:
        TypeError: if they are not integers.
        ValueError: if they are not one a sample, or need more than 64 bits.
    """
    if sample_ids is None:
        return None
    if isinstance(sample_ids, Tensor):
        if sample_ids.ndim != 1:
            raise ValueError(f"sample_ids has shape {tuple(sample_ids.shape)}; give (B,) integers")
        if sample_ids.is_floating_point() or sample_ids.is_complex() or sample_ids.dtype == torch.bool:
            raise TypeError(f"sample_ids is {sample_ids.dtype}; give integers, such as the samples' dataset indices")
        if sample_ids.dtype == torch.uint64:  # some of its values need more than int64 has
            return check_sample_ids(sample_ids.tolist(), count)
        ids = sample_ids.detach().to(torch.int64)
    else:
        if isinstance(sample_ids, (str, bytes)) or not isinstance(sample_ids, Sequence):
            raise TypeError(f"sample_ids is a {type(sample_ids).__name__}; give a (B,) tensor or a list of integers")
        checked = [_check_id(index, value) for index, value in enumerate(sample_ids)]
        ids = torch.tensor(checked, dtype=torch.int64, device="cpu")
    if len(ids) != count:
        raise ValueError(f"sample_ids holds {len(ids)} ids but generated_images holds {count}; give one for each")
    return ids


def _check_id(index: int, value: object) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"sample_ids[{index}] is {value!r}, a {type(value).__name__}; give integers, such as the samples' dataset "
            "indices"
        ) from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"sample_ids[{index}] is {number}, which needs more than 64 bits; give a smaller id")
    return number
