"""Sample ids: integers that identify repeated samples, on any number of ranks.

Shape suffix: B samples.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from masc_metrics.arguments import check_sequence, type_name

SampleIds = Tensor | Sequence[int]

CONFLICT_TOLERANCE = 1e-3
"""Scores of one sample differ by less, whichever batch or device computed them in float32."""

REPEAT_TOLERANCE = 1e-5
"""Scores of one sample that is repeated within a batch differ by less."""


def first_of_each_id(scores: Tensor, ids: Tensor) -> Tensor:
    """Scores sorted by id; of several samples with the same id, only the first is kept."""
    if not len(ids):
        return scores  # selecting rows would wait for the device
    order = ids.argsort(stable=True)
    ordered = ids[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return scores[order][first]


class Conflict(NamedTuple):
    """Two samples with one id and different scores: the first one, which counts, and a later one."""

    sample_id: int
    first: float
    later: float


def find_conflict(scores: Tensor, ids: Tensor, tolerance: float = CONFLICT_TOLERANCE) -> Conflict | None:
    """Find an id whose scores differ by more than the tolerance, or are only partly undefined."""
    if len(ids) < 2:
        return None
    order = ids.argsort(stable=True)
    scores, ids = scores[order], ids[order]
    differ = ((scores[1:] - scores[:-1]).abs() > tolerance) | (scores[1:].isnan() ^ scores[:-1].isnan())
    conflicts = (differ & (ids[1:] == ids[:-1])).nonzero()
    if not len(conflicts):
        return None
    later = int(conflicts[0]) + 1
    return Conflict(int(ids[later]), float(scores[later - 1]), float(scores[later]))


def check_repeats(scores: Tensor, ids: Tensor) -> None:
    """Raise ValueError if a batch holds different samples with one id.

    The same sample may be repeated: if the data has fewer samples than a batch, accelerate fills a batch with repeats.
    """
    if conflict := find_conflict(scores, ids, REPEAT_TOLERANCE):
        raise ValueError(
            f"sample_ids holds {conflict.sample_id} more than once in one update, for samples with different scores "
            f"({conflict.first:.4f} and {conflict.later:.4f}), of which only the first would count; give every image "
            "its own id, such as prompt_index * images_per_prompt + image_index"
        )


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
            f"sample_ids[{index}] is {value!r}, {type_name(value)}; give integers, such as the samples' dataset indices"
        ) from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"sample_ids[{index}] is {number}, which needs more than 64 bits; give a smaller id")
    return number
