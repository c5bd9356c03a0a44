"""Base class of the metrics: settings, states summed over batches and processes, and the mean over samples.

Shape suffix: B samples.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat, rank_zero_warn
from torchmetrics.utilities.distributed import gather_all_tensors

from masc_metrics.arguments import check_choice, check_positive, closest
from masc_metrics.backbone import SigLIP2Backbone, shared_backbone
from masc_metrics.checkpoint import CheckpointSource
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.images import ImageBatch, is_one_colour
from masc_metrics.locks import Lock
from masc_metrics.masks import looks_inverted, mask_planes
from masc_metrics.precision import DEFAULT_DTYPE, Dtype, check_dtype, eager, sum_dtype, to_device
from masc_metrics.sample_ids import check_repeats, find_conflict, first_of_each_id
from masc_metrics.settings import DEFAULT_ENCODE_BATCH_SIZE, DEFAULT_MODEL

Reduction = Literal["mean", "none"]

_NOTICED = {
    "one colour": "{} generated images have one colour, as a safety checker's black images do; their scores count in "
    "the mean. Switch the safety checker off, or leave them out.",
    "inverted": "{} masks cover most of their image and almost all of its border, as inverted masks do. True, 1 or "
    "255 marks the subject; if yours mark the background, give mask < 0.5.",
}
"""Warnings of images and masks that are probably wrong."""


class SampleMetric(Metric):
    """Mean of one score per sample, computed with a backbone that is shared within the process.

    Scores are accumulated in float64. Samples without an id are added to three scalar sums (``"mean"``) or to a list
    (``"none"``). Samples with an id are always kept in a list with their ids, because repeats are known only after
    synchronisation.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    score_sum: Tensor
    sample_count: Tensor
    undefined_sum: Tensor
    scores: list[Tensor]
    keyed_scores: list[Tensor]
    keyed_ids: list[Tensor]
    _undefined_reason: str
    _row_shape: tuple[int, ...] = ()
    """Shape of what is accumulated for one sample."""
    _settings_state: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep TorchScript out of properties, as torchmetrics does with its own, and of states with annotations."""
        super().__init_subclass__(**kwargs)
        cls.__jit_unused_properties__ = [name for name in dir(cls) if isinstance(getattr(cls, name, None), property)]
        annotated = [name for base in cls.__mro__ for name in inspect.get_annotations(base)]
        cls.__jit_ignored_attributes__ = [*Metric.__jit_ignored_attributes__, *annotated]

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] | SigLIP2Backbone = DEFAULT_MODEL,
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        dtype: Dtype = DEFAULT_DTYPE,
        reduction: Reduction = "mean",
        encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
        **metric_kwargs: Any,
    ) -> None:
        super().__init__(**metric_kwargs)
        check_choice("reduction", reduction, get_args(Reduction))
        check_positive("max_num_patches", max_num_patches)
        check_positive("encode_batch_size", encode_batch_size)
        checked_dtype = check_dtype(dtype)
        self.reduction = reduction
        self.max_num_patches = max_num_patches
        self.encode_batch_size = encode_batch_size
        # A given backbone keeps its device and dtype; otherwise the backbone follows the metric's device.
        self._given_backbone = model_name_or_path if isinstance(model_name_or_path, SigLIP2Backbone) else None
        self._backbone_dtype = self._given_backbone.dtype if self._given_backbone else checked_dtype
        self._source = (
            self._given_backbone.source
            if self._given_backbone
            else CheckpointSource.of(model_name_or_path, revision, cache_dir, local_files_only)  # type: ignore[arg-type]
        )
        self._warned: set[str] = set()
        self._noticed: dict[str, Tensor] = {}
        self._in_collection = False
        if self._device.type == "meta":  # states need values even if the metric is built under a meta-device context
            self._device = torch.device("cpu")
        self._add_states()

    def _settings(self) -> tuple[object, ...]:
        """All settings that affect a score."""
        return (self._source, self._backbone_dtype, self.max_num_patches, self.reduction)

    def extra_repr(self) -> str:
        """Model and settings in ``repr``."""
        _, *settings = self._settings()
        return ", ".join([repr(self._source.model), *map(str, settings)])

    @property
    def _keeps_samples(self) -> bool:
        """Whether every sample is kept, instead of sums."""
        return self.reduction == "none"

    def _add_states(self) -> None:
        if not self._keeps_samples:
            zero = torch.zeros((), dtype=sum_dtype(self._device), device=self._device)
            self.add_state("score_sum", zero, dist_reduce_fx="sum")
            self._add_count("sample_count")
            self._add_count("undefined_sum")
        else:
            self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("keyed_scores", [], dist_reduce_fx="cat")
        self.add_state("keyed_ids", [], dist_reduce_fx="cat")
        # A MetricCollection merges metrics into a compute group if the names of their states and, after the first
        # update, the values are equal. The name of this constant state separates metrics of different settings, whose
        # first scores may be equal by chance.
        digest = hashlib.sha256(repr((type(self).__name__, self._settings())).encode()).hexdigest()[:12]
        self._settings_state = f"settings_{digest}"
        self._add_count(self._settings_state)

    def add_state(self, name: str, *args: Any, **kwargs: Any) -> None:
        """As in torchmetrics, but a state that exists stays as it is."""
        if name not in self._defaults:
            super().add_state(name, *args, **kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle or copy; counts that a pickle of an older version lacks begin at 0."""
        super().__setstate__({"_warned": set(), "_noticed": {}, "_in_collection": False, **state})
        self._add_states()

    def _add_count(self, name: str) -> None:
        self.add_state(name, torch.zeros((), dtype=torch.int64, device=self._device), dist_reduce_fx="sum")

    def _concatenated(self, name: str) -> Tensor:
        """Concatenate a list state on the metric's device; an empty list gives an empty tensor of the right dtype."""
        value = getattr(self, name)
        if isinstance(value, list) and not value:
            if name == "keyed_ids":
                return torch.empty(0, dtype=torch.int64, device=self.device)
            return torch.empty(0, *self._row_shape, dtype=sum_dtype(self.device), device=self.device)
        tensor: Tensor = dim_zero_cat(value)
        return tensor.to(self.device)

    @property
    def backbone(self) -> SigLIP2Backbone:
        """Frozen backbone of this metric's checkpoint, device and dtype, shared within the process."""
        return self._given_backbone or shared_backbone(self._source, self.device, self._backbone_dtype)

    @property
    def undefined_count(self) -> int:
        """Number of undefined samples on this process since the last reset, including samples with repeated ids."""
        keyed = self._concatenated("keyed_scores").isnan().sum()
        if self.reduction == "mean":
            return int(self.undefined_sum + keyed)
        return int(self._concatenated("scores").isnan().sum() + keyed)

    def _compared(self, rows: Tensor) -> Tensor:
        """The number of each sample by which repeats of an id are told from different samples."""
        return rows

    def accumulate(self, scores_B: Tensor, ids: Tensor | None) -> None:
        """Add a batch of scores. States are replaced, since a reset in inference mode makes them inference tensors.

        Raises:
            ValueError: if different samples of the batch have one id.
        """
        scores_B = scores_B.to(self.device).to(sum_dtype(self.device))
        if ids is not None:
            check_repeats(self._compared(scores_B), to_device(ids, self.device))
            self.keyed_scores = [*self.keyed_scores, scores_B]
            self.keyed_ids = [*self.keyed_ids, to_device(ids, self.device)]
        elif self._keeps_samples:
            self.scores = [*self.scores, scores_B]
        else:
            undefined_B = scores_B.isnan()
            self.score_sum = self.score_sum + scores_B.nan_to_num(nan=0.0).sum()
            self.sample_count = self.sample_count + (~undefined_B).sum()
            self.undefined_sum = self.undefined_sum + undefined_B.sum()

    def compute(self) -> Tensor:
        """Mean over all defined samples, or, with ``reduction="none"``, the score of every sample.

        Returns:
            A float32 scalar, NaN if no sample is defined. With ``reduction="none"``, (n,) float32 with NaN for
            undefined samples: first the samples with an id, sorted by id, then the others in order of rank and update.
        """
        keyed_scores, keyed_ids = self._concatenated("keyed_scores"), self._concatenated("keyed_ids")
        self._warn_conflict(keyed_scores, keyed_ids)
        scores = first_of_each_id(keyed_scores, keyed_ids)
        if self.reduction == "none":
            scores = torch.cat([scores, self._concatenated("scores")])
        defined = ~scores.isnan()
        count, undefined = defined.sum(), (~defined).sum()
        if self.reduction == "mean":
            count, undefined = self.sample_count + count, self.undefined_sum + undefined
        text = (
            f"{{}} of {{}} samples are undefined, because {self._undefined_reason}; they are excluded from the mean "
            "and NaN in per-sample output. Check their masks."
        )
        self._warn_counted(undefined=((undefined, count + undefined), text))
        if self.reduction == "none":
            return scores.float()
        total = self.score_sum + scores[defined].sum() if len(scores) else self.score_sum
        mean: Tensor = (total / count).float()
        return mean

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_compute(compute)

        @eager
        @functools.wraps(compute)
        def compute_with_shape() -> Any:
            # torchmetrics squeezes a result with one element to a scalar
            return wrapped().reshape(-1) if self.reduction == "none" else wrapped()

        return compute_with_shape

    def _warn_once(self, subject: str, text: str) -> None:
        """Warn on rank 0, unless this metric has already warned of the subject."""
        if subject not in self._warned:
            self._warned.add(subject)
            rank_zero_warn(f"{type(self).__name__}: {text}", UserWarning)

    def _notice(self, generated: ImageBatch, masks: object) -> None:
        """Count images and masks that are probably wrong, without waiting for the device; ``compute`` warns of them."""
        flags = {
            "one colour": [is_one_colour(image) for image in generated.images],
            "inverted": [looks_inverted(mask) for mask in mask_planes(masks)],
        }
        for kind, found in flags.items():
            for flag in found if kind not in self._warned else ():
                count = self._noticed.get(kind)
                flag = flag.to(torch.int64)
                same_device = count is not None and count.device == flag.device
                self._noticed[kind] = count + flag if same_device and count is not None else flag

    def _counted(self) -> dict[str, tuple[Sequence[Tensor], str]]:
        """What ``compute`` warns of: for each kind, numbers, of which the first is not 0, and the text for them."""
        return {kind: ((count,), _NOTICED[kind]) for kind, count in self._noticed.items()}

    def _warn_counted(self, **further: tuple[Sequence[Tensor], str]) -> None:
        """Warn of what is counted, with one copy from the device; without any, if all was warned of."""
        counted = {kind: found for kind, found in (self._counted() | further).items() if kind not in self._warned}
        self._noticed = {}
        if not counted:
            return
        numbers = [to_device(number, self.device) for group, _ in counted.values() for number in group]
        values = iter(torch.stack(numbers).tolist())
        for kind, (group, text) in counted.items():
            count, *others = [next(values) for _ in group]
            if count:
                self._warn_once(kind, text.format(count, *others))

    def _filter_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        """As in torchmetrics, but a keyword that is dropped although it is nearly an argument is warned about."""
        self._in_collection = True
        known = {name for metric in _all_metrics() for name in inspect.signature(metric.update).parameters}
        for name in kwargs.keys() - known:
            meant = closest(name, sorted(known))
            if meant in self._update_signature.parameters and meant not in kwargs:
                self._warn_once(
                    f"keyword {name}",
                    f"update has no argument {name}, so a MetricCollection drops it; did you mean {meant}?",
                )
        filtered: dict[str, Any] = super()._filter_kwargs(**kwargs)
        return filtered

    def _warn_conflict(self, scores: Tensor, ids: Tensor) -> None:
        if conflict := find_conflict(self._compared(scores), ids):
            self._warn_once(
                "conflict",
                f"sample_ids contain {conflict.sample_id} more than once, with different scores "
                f"({conflict.first:.4f}, which counts, and {conflict.later:.4f}). An id identifies a sample, which is "
                "one generated image with one reference; give each sample its own id.",
            )

    def _wrap_update(self, update: Callable[..., Any]) -> Callable[..., Any]:
        # `forward` enables gradients, but none flow through the network.
        wrapped = super()._wrap_update(torch.no_grad()(update))
        lock = Lock()  # here and not an attribute, because a lock cannot be pickled

        @eager
        @functools.wraps(update)
        def atomic_update(*args: Any, **kwargs: Any) -> None:
            with lock:
                count = self._update_count  # torchmetrics counts an update even if it raises
                collected, self._in_collection = self._in_collection, False
                try:
                    wrapped(*args, **kwargs)
                except BaseException as error:
                    if collected and len(args) > 1 and type(error) in (TypeError, ValueError):
                        error.args = (
                            f"{error}; a MetricCollection passes positional arguments to every metric in this order: "
                            f"give update's arguments by name, such as {list(self._update_signature.parameters)[1]}=",
                        )
                    # The cached result stays discarded: a rank that returned it would not synchronise with the others.
                    self._update_count = count
                    raise

        return atomic_update

    @torch.jit.unused
    @eager
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Accumulate a batch and return its value; each image is encoded once.

        Takes the arguments of ``update`` and returns the result of ``compute`` for this batch.
        """
        # If scoring the batch raises, torchmetrics loses the accumulated states. Lists are copied because a reset
        # clears them in place; tensors are never modified in place.
        backup = {name: list(value) if isinstance(value, list) else value for name, value in vars(self).items()}
        try:
            return super().forward(*args, **kwargs)
        except BaseException:
            vars(self).update(backup)
            self._computed = None  # as after a failed update
            raise

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Append the samples of another metric of the same class and settings to this metric's samples.

        Args:
            incoming_state: the other metric, or its ``metric_state``.

        Raises:
            ValueError: if the other metric differs in class or settings.
        """
        if isinstance(incoming_state, SampleMetric):
            # The source is not compared, because the path of a checkpoint may differ between machines.
            if type(incoming_state) is not type(self) or incoming_state._settings()[1:] != self._settings()[1:]:
                raise ValueError(f"cannot merge {incoming_state} into {self}; merge metrics of one class and settings")
            states = incoming_state.metric_state
        elif isinstance(incoming_state, dict) and set(incoming_state) == set(self._defaults):
            states = incoming_state
        else:
            raise ValueError(
                "incoming_state does not match; give a metric of this class and settings, or its metric_state"
            )
        for name in self._defaults.keys() & states.keys():
            setattr(self, name, getattr(self, name) + states[name])
        self._computed = None  # discard the cached result
        self._update_count += getattr(incoming_state, "update_count", 1)

    def persistent(self, mode: bool = False) -> None:
        """Set whether ``state_dict`` contains the states; never the settings state, which depends on local paths."""
        super().persistent(mode)
        self._persistent[self._settings_state] = False

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Persistent states only; without any, not even version metadata is added."""
        states = super().state_dict(*args, **kwargs)
        if not any(self._persistent.values()):
            _drop_version_metadata(states, kwargs.get("prefix", ""))
        return states

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any = None) -> None:
        # For an empty list, torchmetrics gathers a float32 tensor, which may differ from the dtype of other ranks.
        for name, reduction in self._reductions.items():
            if reduction is dim_zero_cat:
                setattr(self, name, [self._concatenated(name)])
        super()._sync_dist(dist_sync_fn, process_group=process_group)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        """Follow the surrounding module to another device, but keep the dtype."""
        device = fn(torch.empty(0, dtype=torch.float32, device=self.device)).device

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, sum_dtype(device) if tensor.is_floating_point() else tensor.dtype)

        return super()._apply(move, exclude_state)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot one or more values; requires matplotlib.

        Args:
            val: a result of ``compute`` or ``forward``, or a list of results; None calls ``compute``.
            ax: matplotlib axes to draw into.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)


def _all_metrics() -> list[type[SampleMetric]]:
    return [metric for metric in SampleMetric.__subclasses__() if metric.update is not Metric.update]


def _drop_version_metadata(states: Any, prefix: str) -> None:
    """Remove torch's version metadata of a metric without persistent states, and of a collection around it.

    A checkpoint is then byte-identical with and without metrics. Version 1 is the default of every module.
    """
    metadata = getattr(states, "_metadata", {})
    module = prefix.removesuffix(".")
    for path in (module, module.rpartition(".")[0]):
        if path and metadata.get(path) == {"version": 1} and not any(key.startswith(f"{path}.") for key in states):
            del metadata[path]
