"""The Metric class that asks which concept of a gallery a generated image shows.

Shape suffixes: B samples of a batch, n of all batches, R concepts.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from masc_metrics.arguments import check_choice, check_count, check_sequence, check_type
from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.functional.gallery import SubjectBank
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.images import Images, check_images
from masc_metrics.precision import DEFAULT_DTYPE, Dtype, to_device
from masc_metrics.references import (
    ReferenceImages,
    ReferenceMasks,
    References,
    check_references,
)
from masc_metrics.sample_ids import SampleIds, check_sample_ids, first_of_each_id
from masc_metrics.sample_metric import Reduction, SampleMetric
from masc_metrics.scores import concept_margins, concept_ranks
from masc_metrics.settings import (
    DEFAULT_ENCODE_BATCH_SIZE,
    DEFAULT_MODEL,
    DEFAULT_REFERENCE_REDUCTION,
    ReferenceReduction,
)


class MaSCIdentification(SampleMetric):
    r"""Identification: whether generated images can be told apart by the subject that they should show.

    Every generated image is scored by concept preservation with every concept of a gallery, see
    :func:`masc_metrics.functional.concept_matrix`. ``compute`` returns a dict of

    ``identified``
        share of images whose own concept has the highest score, in [0, 1];
    ``mean_reciprocal_rank``
        mean of 1 / rank of the own concept, in (0, 1]. It is the mean average precision of the ranking view, because
        one concept of the gallery is relevant for each image. Ties count against the own concept;
    ``margin``
        mean margin, in [-4, 4]: how much better images match their own concept than images of other concepts do, after
        the mean of every image over all concepts is subtracted; see :func:`masc_metrics.scores.double_centred`. NaN if
        the images are all of one concept.

    .. math:: \mathrm{rank}_g = 1 + |\{r \ne o_g : C_{gr} \ge C_{g o_g}\}|

    Higher is better for all three. By chance ``identified`` is 1 / R, and the margin is 0.

    Args:
        names: names of the R concepts of the gallery, at least two.
        reference_images: R images, one of each concept; or a list of R lists, with several images of one concept each.
        reference_masks: masks of the subject in them, in the same arrangement.
        model_name_or_path: hub id or local folder of a SigLIP2 checkpoint, "tiny" (bundled), or a backbone from
            :func:`masc_metrics.load_backbone`, which keeps its device and dtype. Nothing is downloaded or read before
            the first update; the text tower is never read.
        revision: branch, tag or commit on the hub.
        cache_dir: folder for downloads.
        local_files_only: never use the network.
        max_num_patches: patch budget of one image; 1024 as in the paper. Fixed-resolution checkpoints ignore it.
        dtype: precision of the backbone, independent of the surrounding module and of autocast.
        reduction: "mean", or "none" for a dict of ``rank`` and ``margin`` with one value for each sample.
        encode_batch_size: images encoded together.
        reference_reduction: how several references of a concept give one score, "mean", "max" or "pool"; see
            :func:`masc_metrics.functional.concept_preservation`.
        metric_kwargs: see ``torchmetrics.Metric``.

    The gallery is encoded at the first update, once. The state holds R + 1 numbers for each sample, since a margin
    depends on the samples of all batches and processes.

    Raises:
        TypeError, ValueError: if a setting or the gallery is not accepted.

    Example:
        Two images, of which the second should show a fish, but shows the star.

        >>> import torch
        >>> from masc_metrics.scenes import Subject, render
        >>> star, fish = Subject("star", "red", "blue", "striped"), Subject("fish", "green", "white", "dotted")
        >>> references = [render(subject, "on a beach", seed=0) for subject in (star, fish)]
        >>> metric = MaSCIdentification(
        ...     ["star", "fish"],
        ...     [torch.from_numpy(picture.image) for picture in references],
        ...     [torch.from_numpy(picture.mask) for picture in references],
        ...     model_name_or_path="tiny",
        ...     max_num_patches=64,
        ... )
        >>> generated = [render(star, "in a forest", seed=seed) for seed in (1, 2)]
        >>> metric.update([torch.from_numpy(picture.image) for picture in generated], ["star", "fish"])
        >>> metric.compute()["identified"]
        tensor(0.5000)

    Source: MaSC, arXiv 2605.22469, for the scores; Finer-Personalization Rank, arXiv 2512.19026, for the ranking view.
    """

    _undefined_reason = "no reference patch is more than half covered by its reference mask"

    def __init__(
        self,
        names: Sequence[str],
        reference_images: ReferenceImages,
        reference_masks: ReferenceMasks,
        *,
        model_name_or_path: str | os.PathLike[str] | SigLIP2Backbone = DEFAULT_MODEL,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
        dtype: Dtype = DEFAULT_DTYPE,
        reduction: Reduction = "mean",
        encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
        reference_reduction: ReferenceReduction = DEFAULT_REFERENCE_REDUCTION,
        **metric_kwargs: Any,
    ) -> None:
        check_choice("reference_reduction", reference_reduction, get_args(ReferenceReduction))
        self.names = _check_names(names)
        self.reference_reduction: ReferenceReduction = reference_reduction
        self._gallery = check_references(reference_images, reference_masks, None)
        if len(self._gallery) != len(self.names):
            raise ValueError(
                f"names holds {len(self.names)} concepts but reference_images holds {len(self._gallery)}; give one "
                "image, or one list of images, for each"
            )
        self._digest = _digest(self.names, self._gallery)
        self._row_shape = (1 + len(self.names),)
        self._bank: tuple[tuple[torch.device, torch.dtype], SubjectBank] | None = None
        super().__init__(
            model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            max_num_patches=max_num_patches,
            dtype=dtype,
            reduction=reduction,
            encode_batch_size=encode_batch_size,
            **metric_kwargs,
        )

    @property
    def _keeps_samples(self) -> bool:
        return True

    def _settings(self) -> tuple[object, ...]:
        return (*super()._settings(), self.reference_reduction, f"{len(self.names)} concepts {self._digest}")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_bank": None}  # a copy encodes the gallery itself

    def update(
        self,
        generated_images: Images,
        targets: Sequence[str],
        sample_ids: SampleIds | None = None,
    ) -> None:
        """Score a batch with every concept and accumulate the scores.

        Args:
            generated_images: B images; (B, 3, H, W) uint8 or float in [0, 1], or a list of (3, H, W) tensors of any
                sizes or PIL images.
            targets: B names of the concepts that the images should show, each one of ``names``.
            sample_ids: B integers. Of samples with the same id, only the first by rank and order counts.

        Raises:
            TypeError, ValueError: if an argument is not accepted, or the masks of a concept leave none of its patches;
                the error text names argument, sample and remedy, and no state has changed.
            OSError: if the checkpoint is not available.
        """
        generated = check_images(generated_images, "generated_images")
        ids = check_sample_ids(sample_ids, len(generated))
        own_B = self._check_targets(targets, len(generated))
        matrix_BR = self._encoded_gallery().matrix(
            generated, self.backbone, self.max_num_patches, self.encode_batch_size, self.reference_reduction
        )
        own_B1 = to_device(own_B, matrix_BR.device)[:, None]
        self.accumulate(torch.cat([own_B1.to(matrix_BR.dtype), matrix_BR], dim=1), ids)
        self._notice(generated, None)

    def _check_targets(self, targets: Sequence[str], count: int) -> Tensor:
        """Columns of the targets, (B,) int64."""
        check_sequence("targets", targets, "a list of names of the gallery, one for each sample")
        check_count("targets", len(targets), count)
        column_of = {name: column for column, name in enumerate(self.names)}
        for index, target in enumerate(targets):
            check_type(f"targets[{index}]", target, str, "a name of the gallery")
            check_choice(f"targets[{index}]", target, column_of)
        return torch.tensor([column_of[target] for target in targets], dtype=torch.int64, device="cpu")

    def _encoded_gallery(self) -> SubjectBank:
        backbone = self.backbone
        key = backbone.device, backbone.dtype
        if self._bank is None or self._bank[0] != key:
            bank = SubjectBank.of(self._gallery, backbone, self.max_num_patches, self.encode_batch_size)
            for name, counts in zip(self.names, bank.counts, strict=True):
                if not any(counts):
                    raise ValueError(
                        f"no patch of the references of {name!r} is more than half covered by its mask; give masks "
                        "that mark the subject, or leave the concept out"
                    )
            self._bank = key, bank
        return self._bank[1]

    def _compared(self, rows: Tensor) -> Tensor:
        return rows[:, 1:].gather(1, rows[:, :1].long())[:, 0]

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        """Figures of all samples, or, with ``reduction="none"``, of every sample.

        Returns:
            ``identified``, ``mean_reciprocal_rank`` and ``margin``, float32 scalars, NaN without samples. With
            ``reduction="none"``, ``rank`` and ``margin``, (n,) float32: first the samples with an id, sorted by id,
            then the others in order of process and update.
        """
        self._warn_counted()
        keyed, ids = self._concatenated("keyed_scores"), self._concatenated("keyed_ids")
        self._warn_conflict(keyed, ids)
        rows = torch.cat([first_of_each_id(keyed, ids), self._concatenated("scores")])
        matrix_nR, own_n = rows[:, 1:], rows[:, 0].long()
        rank_n, margin_n = concept_ranks(matrix_nR, own_n), concept_margins(matrix_nR, own_n)
        if self.reduction == "none":
            return {"rank": rank_n.float(), "margin": margin_n.float()}
        return {
            "identified": (rank_n == 1).to(rank_n.dtype).mean().float(),
            "mean_reciprocal_rank": (1 / rank_n).mean().float(),
            "margin": margin_n.mean().float(),
        }

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super(SampleMetric, self)._wrap_compute(compute)

        @functools.wraps(compute)
        def compute_with_shape() -> Any:
            # torchmetrics squeezes a result with one element to a scalar
            return {name: value.reshape(-1) if self.reduction == "none" else value for name, value in wrapped().items()}

        return compute_with_shape


def _check_names(names: Sequence[str]) -> tuple[str, ...]:
    for index, name in enumerate(check_sequence("names", names, "a list of strings, one for each concept")):
        check_type(f"names[{index}]", name, str, "a string")
    if len(names) < 2:
        raise ValueError(f"names holds {len(names)} concepts; give at least two to choose from")
    if repeated := sorted({name for name in names if list(names).count(name) > 1}):
        raise ValueError(f"names contains {repeated[0]!r} more than once; give several references as one list")
    return tuple(names)


def _digest(names: Sequence[str], gallery: Sequence[References]) -> str:
    """Digest of a gallery, by which metrics of different galleries are kept apart."""
    digest = hashlib.sha256(repr(names).encode())
    for references in gallery:
        for tensor in (*references.images.images, *references.masks.masks):
            digest.update(repr((tensor.shape, tensor.dtype)).encode())
            digest.update(tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        digest.update(b";")
    return digest.hexdigest()[:12]
