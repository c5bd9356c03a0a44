"""What the two metrics share: settings, states that add up over batches and processes, and the mean over samples.

Shape suffix: B samples.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn

from masc_metrics.backbone import (
    DEFAULT_DTYPE,
    DEFAULT_ENCODE_BATCH_SIZE,
    SigLIP2Backbone,
    check_dtype,
    shared_backbone,
)
from masc_metrics.checkpoint import DEFAULT_MODEL, CheckpointSource
from masc_metrics.functional import check_positive
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES

Reduction = Literal["mean", "none"]
SampleIds = Tensor | Sequence[int]


class SampleMetric(Metric):
    """A metric whose value is the mean of one score a sample, from the process's shared backbone.

    Scores arrive one a sample and in float64. Samples without an id add to three scalar sums (``"mean"``) or to a list
    (``"none"``); samples with an id always go into a list with their ids, because whether one is a repeat is known
    only when the ranks' lists stand together.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    _undefined_because: str

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] | SigLIP2Backbone = DEFAULT_MODEL,
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        dtype: torch.dtype = DEFAULT_DTYPE,
        reduction: Reduction = "mean",
        encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
        **metric_kwargs: Any,
    ) -> None:
        super().__init__(**metric_kwargs)
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction is {reduction!r}; give 'mean' or 'none'")
        check_positive("max_num_patches", max_num_patches)
        check_positive("encode_batch_size", encode_batch_size)
        check_dtype(dtype)
        self.reduction = reduction
        self.max_num_patches = max_num_patches
        self.encode_batch_size = encode_batch_size
        # A given backbone keeps its own device and dtype; a source is looked up anew on whatever device this is.
        self._given_backbone = model_name_or_path if isinstance(model_name_or_path, SigLIP2Backbone) else None
        self._backbone_dtype = self._given_backbone.dtype if self._given_backbone else dtype
        self._source = (
            self._given_backbone.source
            if self._given_backbone
            else CheckpointSource.of(model_name_or_path, revision, cache_dir, local_files_only)  # type: ignore[arg-type]
        )
        self._warned_undefined = False
        if self._device.type == "meta":  # built under a meta-device context: states are real all the same
            self._device = torch.device("cpu")
        self._add_states()

    def _settings(self) -> tuple[object, ...]:
        """All that decides a score; metrics that differ in it never share states."""
        return (self._source, self._backbone_dtype, self.max_num_patches, self.reduction)

    def _add_states(self) -> None:
        # A MetricCollection lets metrics share states whose names and values agree after the first batch, so two
        # settings that happen to agree there would be one for ever. Names that spell the settings prevent it.
        digest = hashlib.sha256(repr((type(self).__name__, self._settings())).encode()).hexdigest()[:12]
        self._names = {
            role: f"{role}_{digest}"
            for role in ("score_sum", "sample_count", "undefined_count", "scores", "keyed_scores", "keyed_ids")
        }
        if self.reduction == "mean":
            zero = torch.zeros((), dtype=_float_dtype(self._device), device=self._device)
            count = torch.zeros((), dtype=torch.int64, device=self._device)
            self.add_state(self._names["score_sum"], zero, dist_reduce_fx="sum")
            self.add_state(self._names["sample_count"], count, dist_reduce_fx="sum")
            self.add_state(self._names["undefined_count"], count.clone(), dist_reduce_fx="sum")
        else:
            self.add_state(self._names["scores"], [], dist_reduce_fx="cat")
        self.add_state(self._names["keyed_scores"], [], dist_reduce_fx="cat")
        self.add_state(self._names["keyed_ids"], [], dist_reduce_fx="cat")

    def _state(self, role: str) -> Any:
        return getattr(self, self._names[role])

    def _listed(self, role: str) -> Tensor:
        """A list state as one tensor: empty, and of the right dtype, where there is nothing."""
        value = self._state(role)
        if isinstance(value, list) and not value:
            dtype = torch.int64 if role == "keyed_ids" else _float_dtype(self.device)
            return torch.empty(0, dtype=dtype, device=self.device)
        tensor: Tensor = dim_zero_cat(value)
        return tensor.to(self.device)

    @property
    def backbone(self) -> SigLIP2Backbone:
        """The process's shared frozen backbone for this metric's checkpoint, device and dtype."""
        return self._given_backbone or shared_backbone(self._source, self.device, self._backbone_dtype)

    @property
    def undefined_count(self) -> int:
        """Samples so far, on this process, that have no score; repeats by id included."""
        keyed = self._listed("keyed_scores").isnan().sum()
        if self.reduction == "mean":
            return int(self._state("undefined_count") + keyed)
        return int(self._listed("scores").isnan().sum() + keyed)

    def accumulate(self, scores_B: Tensor, ids: Tensor | None) -> None:
        """Add one batch of scores; never in place, since a reset under inference mode leaves inference tensors."""
        scores_B = scores_B.to(self.device).to(_float_dtype(self.device))
        if ids is not None:
            self._append("keyed_scores", scores_B)
            self._append("keyed_ids", ids.to(self.device))
        elif self.reduction == "none":
            self._append("scores", scores_B)
        else:
            undefined_B = scores_B.isnan()
            for role, addend in (
                ("score_sum", scores_B.nan_to_num(nan=0.0).sum()),
                ("sample_count", (~undefined_B).sum()),
                ("undefined_count", undefined_B.sum()),
            ):
                setattr(self, self._names[role], self._state(role) + addend)

    def _append(self, role: str, values: Tensor) -> None:
        setattr(self, self._names[role], [*self._state(role), values])

    def compute(self) -> Tensor:
        """The mean over all defined samples, or with ``reduction="none"`` every sample's score.

        Returns:
            A float32 scalar, NaN if no sample is defined; or (n,) float32 with NaN where a sample is undefined, in
            the order of ids, then the samples without id in the order of ranks and updates.
        """
        keyed = _first_of_each_id(self._listed("keyed_scores"), self._listed("keyed_ids"))
        if self.reduction == "none":
            every = torch.cat([keyed, self._listed("scores")])
            self._warn_undefined(every.isnan().sum(), every.numel())
            return every.float()
        defined = ~keyed.isnan()
        total = self._state("score_sum") + keyed[defined].sum()
        count = self._state("sample_count") + defined.sum()
        undefined = self._state("undefined_count") + (~defined).sum()
        self._warn_undefined(undefined, int(count + undefined))
        mean: Tensor = (total / count).float()
        return mean

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def in_shape() -> Any:
            # torchmetrics makes a scalar of anything with one element
            return wrapped().reshape(-1) if self.reduction == "none" else wrapped()

        return in_shape

    def _warn_undefined(self, undefined: Tensor, samples: int) -> None:
        if not self._warned_undefined and int(undefined):
            self._warned_undefined = True
            rank_zero_warn(
                f"{type(self).__name__}: {int(undefined)} of {samples} samples are undefined, because "
                f"{self._undefined_because}; they are left out of the mean and are NaN in per-sample output. Check "
                "their masks.",
                UserWarning,
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Score one batch alone and add it to the rest, with one pass of the encoder.

        Takes what ``update`` takes and returns what ``compute`` returns, for this batch.
        """
        # torchmetrics sets the accumulated states aside while it scores the batch, and loses them if that raises.
        attributes, states = dict(vars(self)), self._copy_state_dict()
        try:
            return super().forward(*args, **kwargs)
        except BaseException:
            vars(self).update(attributes)
            vars(self).update(states)
            raise

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        # A rank without data offers an empty list, for which torchmetrics gathers float32 whatever the others hold.
        for role, name in self._names.items():
            if self._reductions.get(name) is dim_zero_cat:
                setattr(self, name, [self._listed(role)])
        if dist_sync_fn is None:
            super()._sync_dist(process_group=process_group)
        else:
            super()._sync_dist(dist_sync_fn, process_group=process_group)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        """Follow the surrounding module to its device, but never to its dtype."""
        device = fn(torch.empty(0, dtype=torch.float32, device=self.device)).device

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, _float_dtype(device) if tensor.is_floating_point() else tensor.dtype)

        return super()._apply(move, exclude_state)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one or several values within the metric's bounds, -1 and 1; needs matplotlib.

        Args:
            val: a result of ``compute`` or ``forward``, or a list of them; None calls ``compute``.
            ax: matplotlib axes to draw into.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)


def _float_dtype(device: torch.device) -> torch.dtype:
    """float64, so that a mean over many samples keeps its last digits; float32 where the device has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def _first_of_each_id(scores: Tensor, ids: Tensor) -> Tensor:
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
        ids = sample_ids.detach().to(torch.int64)
    else:
        if isinstance(sample_ids, (str, bytes)) or not isinstance(sample_ids, Sequence):
            raise TypeError(f"sample_ids is a {type(sample_ids).__name__}; give a (B,) tensor or a list of integers")
        ids = torch.tensor([_check_id(index, value) for index, value in enumerate(sample_ids)], dtype=torch.int64)
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
