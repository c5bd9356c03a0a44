"""The two metrics: states that sum over batches and processes, around the functions of ``functional``.

Shape suffix: B samples.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torchmetrics.utilities import rank_zero_warn

from masc_metrics.backbone import DEFAULT_ENCODE_BATCH_SIZE, SigLIP2Backbone
from masc_metrics.checkpoint import DEFAULT_MODEL
from masc_metrics.functional import DEFAULT_POOLING, Pooling, check_pooling, concept_preservation, prompt_following
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.images import Images, check_images
from masc_metrics.masks import Masks
from masc_metrics.precision import DEFAULT_DTYPE
from masc_metrics.prompts import holds_subject
from masc_metrics.sample_ids import SampleIds, check_sample_ids
from masc_metrics.sample_metric import Reduction, SampleMetric


class MaSCConceptPreservation(SampleMetric):
    r"""Does the generated image keep the reference's subject?

    The mean, over the patches of the reference image that its mask marks as subject, of the best cosine to any patch
    of the generated image; see :func:`masc_metrics.scores.masked_max_cosine`. The metric is the mean over samples.

    Args:
        model_name_or_path: hub id or local folder of a SigLIP2 checkpoint, "tiny" (bundled), or a backbone from
            :func:`masc_metrics.load_backbone`, which is then used on its own device and in its own dtype. Nothing is
            downloaded or read before the first update, and the text tower never.
        revision: branch, tag or commit on the hub.
        cache_dir: where downloads are kept.
        local_files_only: never use the network.
        max_num_patches: patch budget of one image; 1024 is the paper's. Fixed-resolution checkpoints ignore it.
        dtype: precision of the backbone, whatever the surrounding module's or autocast's.
        reduction: "mean", or "none" for one score a sample.
        encode_batch_size: images encoded at a time: more is faster on a GPU and takes more memory.
        metric_kwargs: see ``torchmetrics.Metric``.

    Range [-1, 1], higher is better. A sample whose reference has no foreground patch is undefined: left out of the
    mean, NaN with "none", counted in ``undefined_count`` and said once in a warning.

    Raises:
        TypeError, ValueError: for settings that are not accepted.

    Example:
        The small bundled checkpoint on rendered pictures, a same and another subject; leave "tiny" out for real ones.

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

    _undefined_because = "no reference patch is more than half covered by its reference mask"

    def update(
        self,
        generated_images: Images,
        reference_images: Images,
        reference_masks: Masks,
        sample_ids: SampleIds | None = None,
    ) -> None:
        """Score a batch and add it.

        Args:
            generated_images: B images; (B, 3, H, W) uint8 or float in [0, 1], or a list of (3, H, W) tensors of any
                sizes or PIL images.
            reference_images: B images of the subject, in any of the same forms.
            reference_masks: B masks of the subject in the reference images; (B, H, W) or (B, 1, H, W), boolean,
                integer or float in [0, 1], or a list of (H, W) tensors or PIL images.
            sample_ids: B integers. Samples of one id count once, the first by rank and order, so that the repeats
                with which a distributed sampler pads its last batch change nothing.

        Raises:
            TypeError, ValueError: for input that is not accepted, before any state changes; the text names argument,
                sample and remedy.
            OSError: if the checkpoint cannot be had.
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
        )
        self.accumulate(scores_B, ids)


class MaSCPromptFollowing(SampleMetric):
    r"""Does the generated image follow the prompt, its subject aside?

    The cosine between the generated image, pooled by the checkpoint's attention head over the background patches
    alone, and the text embedding of the prompt without its subject; see
    :func:`masc_metrics.functional.prompt_following`. The metric is the mean over samples.

    Args:
        model_name_or_path: hub id or local folder of a SigLIP2 checkpoint, "tiny" (bundled), or a backbone from
            :func:`masc_metrics.load_backbone`, which is then used on its own device and in its own dtype. Nothing is
            downloaded or read before the first update.
        pooling: "background" (the paper's), "full" or "foreground": the patches of the image embedding.
        strip_subject: take the subject out of the prompt (the paper's).
        revision: branch, tag or commit on the hub.
        cache_dir: where downloads are kept.
        local_files_only: never use the network.
        max_num_patches: patch budget of one image; 1024 is the paper's. Fixed-resolution checkpoints ignore it.
        dtype: precision of the backbone, whatever the surrounding module's or autocast's.
        reduction: "mean", or "none" for one score a sample.
        encode_batch_size: images encoded at a time: more is faster on a GPU and takes more memory.
        metric_kwargs: see ``torchmetrics.Metric``.

    Range [-1, 1], higher is better. A sample without a patch to pool over is undefined: left out of the mean, NaN with
    "none", counted in ``undefined_count`` and said once in a warning.

    Raises:
        TypeError, ValueError: for settings that are not accepted.

    Example:
        The small bundled checkpoint on a rendered picture, a right and a wrong prompt; leave "tiny" out for real ones.

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

    _undefined_because = "their masks leave no patch of the generated image to pool over"

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
        pooling: Pooling = DEFAULT_POOLING,
        strip_subject: bool = True,
        **metric_kwargs: Any,
    ) -> None:
        check_pooling(pooling, strip_subject)
        self.pooling: Pooling = pooling  # before the states, which depend on it
        self.strip_subject = strip_subject
        self._warned_unstripped = False
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
        return (*super()._settings(), self.pooling, self.strip_subject)

    def update(
        self,
        generated_images: Images,
        generated_masks: Masks | None,
        prompts: Sequence[str],
        subjects: Sequence[str | None] | None = None,
        sample_ids: SampleIds | None = None,
    ) -> None:
        """Score a batch and add it.

        Args:
            generated_images: B images; (B, 3, H, W) uint8 or float in [0, 1], or a list of (3, H, W) tensors of any
                sizes or PIL images.
            generated_masks: B masks of the subject in the generated images; (B, H, W) or (B, 1, H, W), boolean,
                integer or float in [0, 1], or a list of (H, W) tensors or PIL images. May be None with
                ``pooling="full"``.
            prompts: B texts that the images were generated from.
            subjects: B names of the subject, as the prompts spell it; None, for all or for one, keeps the prompt.
            sample_ids: B integers. Samples of one id count once, the first by rank and order, so that the repeats
                with which a distributed sampler pads its last batch change nothing.

        Raises:
            TypeError, ValueError: for input that is not accepted, before any state changes; the text names argument,
                sample and remedy.
            OSError: if the checkpoint cannot be had.
        """
        generated = check_images(generated_images, "generated_images")
        ids = check_sample_ids(sample_ids, len(generated))
        scores_B = prompt_following(
            generated,
            generated_masks,
            prompts,
            subjects,
            backbone=self.backbone,
            max_num_patches=self.max_num_patches,
            encode_batch_size=self.encode_batch_size,
            pooling=self.pooling,
            strip_subject=self.strip_subject,
        )
        if self.strip_subject and subjects is not None and not self._warned_unstripped:
            self._warn_unstripped(prompts, subjects)
        self.accumulate(scores_B, ids)

    def _warn_unstripped(self, prompts: Sequence[str], subjects: Sequence[str | None]) -> None:
        """Say once that a subject is not in its prompt, so that the prompt was embedded whole."""
        for index, (prompt, subject) in enumerate(zip(prompts, subjects, strict=True)):
            if not holds_subject(prompt, subject):
                self._warned_unstripped = True
                rank_zero_warn(
                    f"subjects[{index}] {subject!r} does not stand in prompts[{index}] {prompt!r} as whole words, so "
                    "nothing is stripped from that prompt; this is said for the first such sample alone",
                    UserWarning,
                )
                return
