"""Sample ids: integers that identify repeated samples, on any number of ranks.

Shape suffix: B samples.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from masc_metrics.arguments import check_sequence

SampleIds = Tensor | Sequence[int]


def first_of_each_id(scores: Tensor, ids: Tensor) -> Tensor:
    """Scores sorted by id; of several samples with the same id, only the first is kept."""
    order = ids.argsort(stable=True)
    ordered = ids[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return scores[order][first]


def check_sample_ids(sample_ids: SampleIds | None, count: int) -> Tensor | None:
    """Return the ids as (B,) int64, or None if there are none.

    Raises:
        TypeError: if they are not integers.
        ValueError: if there is not one id for each sample, or an id does not fit into 64 bits.
    """
    if sample_ids is None:
        return None
    if isinstance(sample_ids, Tensor):
        if sample_ids.ndim != 1:
            raise ValueError(f"sample_ids has shape {tuple(sample_ids.shape)}; give (B,) integers")
        if sample_ids.is_floating_point() or sample_ids.is_complex() or sample_ids.dtype == torch.bool:
            raise TypeError(f"sample_ids is {sample_ids.dtype}; give integers, such as the samples' dataset indices")
        if sample_ids.dtype == torch.uint64:  # some of its values do not fit into int64
            return check_sample_ids(sample_ids.tolist(), count)
        ids = sample_ids.detach().to(torch.int64)
    else:
        check_sequence("sample_ids", sample_ids, "a (B,) tensor or a list of integers")
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
