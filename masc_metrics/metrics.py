"""The metric classes, which accumulate the scores of ``functional`` over batches and processes.

Shape suffix: B samples.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, get_args

from torch import Tensor

from masc_metrics.arguments import check_choice
from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.functional import (
    DEFAULT_POOLING,
    Pooling,
    check_pooling,
    concept_preservation,
    cut_prompt,
    prompt_following_variants,
)
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.images import Images, check_images
from masc_metrics.masks import Masks
from masc_metrics.precision import DEFAULT_DTYPE, Dtype
from masc_metrics.prompts import holds_subject
from masc_metrics.references import (
    ReferenceImages,
    ReferenceMasks,
)
from masc_metrics.sample_ids import SampleIds, check_sample_ids
from masc_metrics.sample_metric import Reduction, SampleMetric
from masc_metrics.settings import (
    DEFAULT_ENCODE_BATCH_SIZE,
    DEFAULT_MODEL,
    DEFAULT_REFERENCE_REDUCTION,
    ReferenceReduction,
)


class MaSCConceptPreservation(SampleMetric):
    r"""Concept preservation: how well a generated image preserves the subject of a reference image.

    For each subject patch of the reference image, the best cosine similarity to any patch of the generated image; a
    sample's score is the mean over these patches, see :func:`masc_metrics.scores.masked_max_cosine`. The metric is the
    mean over samples.

    Args:
        model_name_or_path: hub id or local folder of a SigLIP2 checkpoint, "tiny" (bundled), or a backbone from
            :func:`masc_metrics.load_backbone`, which keeps its device and dtype. Nothing is downloaded or read before
            the first update; the text tower is never read.
        revision: branch, tag or commit on the hub.
        cache_dir: folder for downloads.
        local_files_only: never use the network.
        max_num_patches: patch budget of one image; 1024 as in the paper. Fixed-resolution checkpoints ignore it.
        dtype: precision of the backbone, a torch.dtype or its name, such as "bfloat16"; independent of the surrounding
            module and of autocast.
        reduction: "mean", or "none" for one score for each sample.
        encode_batch_size: samples encoded together; larger batches are faster on a GPU and need more memory.
        reference_reduction: how several references of a sample give one score, "mean", "max" or "pool"; see
            :func:`masc_metrics.functional.concept_preservation`.
        metric_kwargs: see ``torchmetrics.Metric``.

    Range [-1, 1], higher is better. A sample is undefined if none of its references has a foreground patch: it is
    excluded from the mean, NaN with "none", counted in ``undefined_count``, and reported by one warning.

    Raises:
        TypeError, ValueError: if a setting is not accepted.

    Example:
        The same and a different subject, with the small bundled checkpoint; omit "tiny" for real images.

        >>> import torch
        >>> from masc_metrics.scenes import Subject, render
        >>> star, fish = Subject("star", "red", "blue", "striped"), Subject("fish", "green", "white", "dotted")
        >>> reference = render(star, "on a beach", seed=0)
        >>> generated = [render(subject, "in a forest", seed=1) for subject in (star, fish)]
        >>> metric = MaSCConceptPreservation("tiny", max_num_patches=64, reduction="none")
        >>> metric.update(
        ...     [torch.from_numpy(picture.image) for picture in generated],
        ...     [torch.from_numpy(reference.image)] * 2,
        ...     [torch.from_numpy(reference.mask)] * 2,
        ... )
        >>> metric.compute() > 0.6
        tensor([ True, False])

    Source: MaSC, arXiv 2605.22469.
    """

    _undefined_reason = "no reference patch is more than half covered by its reference mask"

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
        reference_reduction: ReferenceReduction = DEFAULT_REFERENCE_REDUCTION,
        **metric_kwargs: Any,
    ) -> None:
        check_choice("reference_reduction", reference_reduction, get_args(ReferenceReduction))
        self.reference_reduction: ReferenceReduction = reference_reduction  # before the states, which depend on it
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

    def _settings(self) -> tuple[object, ...]:
        return (*super()._settings(), self.reference_reduction)

    def update(
        self,
        generated_images: Images,
        reference_images: ReferenceImages,
        reference_masks: ReferenceMasks,
        sample_ids: SampleIds | None = None,
    ) -> None:
        """Score a batch and accumulate the scores.

        Args:
            generated_images: B images; (B, 3, H, W) uint8 or float in [0, 1], or a list of (3, H, W) tensors of any
                sizes or PIL images.
            reference_images: B images of the subject, in any of these forms. For several references of one sample, a
                list of them in place of the image, or a (B, k, 3, H, W) tensor; they count as one sample.
            reference_masks: B masks of the subject in the reference images; (B, H, W) or (B, 1, H, W), boolean,
                integer or float in [0, 1], or a list of (H, W) tensors or PIL images. In the same arrangement.
            sample_ids: B integers. Of samples with the same id, only the first by rank and order counts, so that
                the repeats with which a distributed sampler pads its last batch do not affect the result.

        Raises:
            TypeError, ValueError: if an argument is not accepted; the error text names argument, sample and remedy,
                and no state has changed.
            OSError: if the checkpoint is not available.
        """
        generated = check_images(generated_images, "generated_images")
        ids = check_sample_ids(sample_ids, len(generated))
        scores_B = concept_preservation(
            generated,
            reference_images,
            reference_masks,
            backbone=self.backbone,
            max_num_patches=self.max_num_patches,
            encode_batch_size=self.encode_batch_size,
            reference_reduction=self.reference_reduction,
        )
        self.accumulate(scores_B, ids)
        self._notice(generated, reference_masks)


class MaSCPromptFollowing(SampleMetric):
    r"""Prompt following: how well the background of a generated image matches the prompt without its subject.

    A sample's score is the cosine similarity of the image embedding, pooled by the checkpoint's attention head over
    background patches only, and the text embedding of the prompt without its subject; see
    :func:`masc_metrics.functional.prompt_following`. The metric is the mean over samples.

    Args:
        model_name_or_path: hub id or local folder of a SigLIP2 checkpoint, "tiny" (bundled), or a backbone from
            :func:`masc_metrics.load_backbone`, which keeps its device and dtype. Nothing is downloaded or read before
            the first update.
        pooling: patches to pool over: "background" (as in the paper), "full" or "foreground".
        strip_subject: remove the subject from the prompt (as in the paper).
        revision: branch, tag or commit on the hub.
        cache_dir: folder for downloads.
        local_files_only: never use the network.
        max_num_patches: patch budget of one image; 1024 as in the paper. Fixed-resolution checkpoints ignore it.
        dtype: precision of the backbone, a torch.dtype or its name, such as "bfloat16"; independent of the surrounding
            module and of autocast.
        reduction: "mean", or "none" for one score for each sample.
        encode_batch_size: samples encoded together; larger batches are faster on a GPU and need more memory.
        metric_kwargs: see ``torchmetrics.Metric``.

    Range [-1, 1], higher is better. A sample without a patch to pool over is undefined: it is excluded from the mean,
    NaN with "none", counted in ``undefined_count``, and reported by one warning.

    Without masks of the generated images, ``update`` finds the subject by reference images and their masks, and counts
    these images in ``transferred_count``. A mask that marks nothing is counted in ``empty_mask_count``, a
    prompt longer than the text tower in ``cut_prompt_count``, and a prompt without its subject in ``unstripped_count``;
    each of the three is reported by one warning.

    Raises:
        TypeError, ValueError: if a setting is not accepted.

    Example:
        A correct and a wrong prompt, with the small bundled checkpoint; omit "tiny" for real images.

        >>> import torch
        >>> from masc_metrics.scenes import Subject, render
        >>> picture = render(Subject("star", "red", "blue", "striped"), "on a beach", seed=0)
        >>> metric = MaSCPromptFollowing("tiny", max_num_patches=64, reduction="none")
        >>> metric.update(
        ...     [torch.from_numpy(picture.image)] * 2,
        ...     [torch.from_numpy(picture.mask)] * 2,
        ...     prompts=["a striped star on a beach", "a striped star in a forest"],
        ...     subjects=["striped star", "striped star"],
        ... )
        >>> metric.compute() > 0.1
        tensor([ True, False])

    Source: MaSC, arXiv 2605.22469.
    """

    _undefined_reason = "their masks leave no patch of the generated image to pool over"

    transferred_sum: Tensor
    empty_mask_sum: Tensor
    cut_prompt_sum: Tensor
    unstripped_sum: Tensor

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
        pooling: Pooling = DEFAULT_POOLING,
        strip_subject: bool = True,
        **metric_kwargs: Any,
    ) -> None:
        check_pooling(pooling, strip_subject)
        self.pooling: Pooling = pooling  # before the states, which depend on it
        self.strip_subject = strip_subject
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

    def _add_states(self) -> None:
        super()._add_states()
        for name in ("transferred_sum", "empty_mask_sum", "cut_prompt_sum", "unstripped_sum"):
            self._add_count(name)

    def _settings(self) -> tuple[object, ...]:
        return (*super()._settings(), self.pooling, self.strip_subject)

    def update(
        self,
        generated_images: Images,
        generated_masks: Masks | None = None,
        prompts: Sequence[str] | None = None,
        subjects: Sequence[str | None] | None = None,
        sample_ids: SampleIds | None = None,
        reference_images: ReferenceImages | None = None,
        reference_masks: ReferenceMasks | None = None,
    ) -> None:
        """Score a batch and accumulate the scores.

        Args:
            generated_images: B images; (B, 3, H, W) uint8 or float in [0, 1], or a list of (3, H, W) tensors of any
                sizes or PIL images.
            generated_masks: B masks of the subject in the generated images; (B, H, W) or (B, 1, H, W), boolean,
                integer or float in [0, 1], or a list of (H, W) tensors or PIL images. None transfers them from the
                references, see :func:`masc_metrics.functional.transfer_masks`; with ``pooling="full"`` no mask is used.
            prompts: B prompts that the images were generated from; required.
            subjects: B names of the subject, spelled as in the prompts; None leaves all prompts, or one, unchanged.
            sample_ids: B integers. Of samples with the same id, only the first by rank and order counts, so that
                the repeats with which a distributed sampler pads its last batch do not affect the result.
            reference_images: B images of the subject, or a list of B lists with several images each; ignored if masks
                are given.
            reference_masks: masks of the subject in them, in the same arrangement.

        Raises:
            TypeError, ValueError: if an argument is not accepted; the error text names argument, sample and remedy,
                and no state has changed.
            OSError: if the checkpoint is not available.
        """
        generated = check_images(generated_images, "generated_images")
        ids = check_sample_ids(sample_ids, len(generated))
        found = prompt_following_variants(
            generated,
            generated_masks,
            prompts,
            subjects,
            backbone=self.backbone,
            max_num_patches=self.max_num_patches,
            encode_batch_size=self.encode_batch_size,
            poolings=(self.pooling,),
            strip_subject=(self.strip_subject,),
            reference_images=reference_images,
            reference_masks=reference_masks,
        )
        self.accumulate(found.scores[self.pooling, self.strip_subject], ids)
        self._notice(generated, reference_masks if generated_masks is None else generated_masks)
        if found.transferred is not None:
            self.transferred_sum = self.transferred_sum + len(found.transferred)
        if found.unmasked_B is not None and self.pooling == "background":
            self.empty_mask_sum = self.empty_mask_sum + found.unmasked_B.sum().to(self.device)
        if any(found.cut_tokens) and prompts is not None:
            self.cut_prompt_sum = self.cut_prompt_sum + sum(count > 0 for count in found.cut_tokens)
            text = cut_prompt(prompts, found.cut_tokens, self.backbone)
            self._warn_once("cut", f"{text}. This warning is shown once; see cut_prompt_count")
        if self.strip_subject and prompts is not None and subjects is not None:
            self._count_unstripped(prompts, subjects)

    @property
    def transferred_count(self) -> int:
        """Number of images whose mask was transferred from a reference, on this process since the last reset.

        Samples with repeated ids are included.
        """
        return int(self.transferred_sum)

    @property
    def empty_mask_count(self) -> int:
        """Number of images whose mask, given or transferred, marks nothing.

        Their score is that of the complete image, subject included.
        """
        return int(self.empty_mask_sum)

    @property
    def cut_prompt_count(self) -> int:
        """Number of prompts that are longer than the text tower, 64 tokens in SigLIP2, and were cut."""
        return int(self.cut_prompt_sum)

    @property
    def unstripped_count(self) -> int:
        """Number of prompts in which their subject was not found, so that nothing was removed from them."""
        return int(self.unstripped_sum)

    def _counted(self) -> dict[str, tuple[Sequence[Tensor], str]]:
        return {
            **super()._counted(),
            "empty masks": (
                (self.empty_mask_sum,),
                "the masks of {} generated images mark nothing, so their score is that of the complete image. Look at "
                "these images and at what made the masks, or at the references' masks if they were transferred; see "
                "empty_mask_count.",
            ),
            "cut": (
                (self.cut_prompt_sum,),
                "{} prompts are longer than the text tower and were cut. Give shorter prompts.",
            ),
            "unstripped": (
                (self.unstripped_sum,),
                "the subject was not found in {} prompts, so nothing was removed from them.",
            ),
        }

    def _count_unstripped(self, prompts: Sequence[str], subjects: Sequence[str | None]) -> None:
        """Count prompts that do not contain their subject, so that nothing is removed from them."""
        pairs = enumerate(zip(prompts, subjects, strict=True))
        missing = [index for index, (prompt, subject) in pairs if not holds_subject(prompt, subject)]
        if missing:
            self.unstripped_sum = self.unstripped_sum + len(missing)
            index = missing[0]
            self._warn_once(
                "unstripped",
                f"subjects[{index}] {subjects[index]!r} does not occur as complete words in prompts[{index}] "
                f"{prompts[index]!r}, so nothing is removed from that prompt; give the subject as it is spelled in the "
                "prompt, or None. This warning is shown once; see unstripped_count",
            )
