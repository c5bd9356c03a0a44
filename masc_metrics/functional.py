"""Scores of images, masks and prompts: one for each sample, as accumulated by the metric classes.

Shape suffixes: B samples, N patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from masc_metrics.arguments import (
    check_choice,
    check_count,
    check_integer,
    check_positive,
    check_sequence,
    check_type,
)
from masc_metrics.backbone import DEFAULT_ENCODE_BATCH_SIZE, PatchFeatures, PreparedImages, SigLIP2Backbone
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES, Grid
from masc_metrics.images import ImageBatch, Images, check_images
from masc_metrics.masks import (
    FOREGROUND_THRESHOLD,
    MaskBatch,
    Masks,
    Perturbation,
    check_masks,
    grid_coverage,
    perturb,
)
from masc_metrics.precision import to_device
from masc_metrics.prompts import check_unicode
from masc_metrics.prompts import strip_subject as _strip_subject
from masc_metrics.references import ReferenceImages, ReferenceMasks, References, check_references
from masc_metrics.scores import (
    best_cosine,
    embedding_cosine,
    masked_max_cosine,
    mutual_recall,
    weighted_max_cosine,
    weighted_mean,
)
from masc_metrics.transfer import (
    TransferredMasks,
    boxes_of_regions,
    find_subject,
    intersection_over_union,
    mask_of_patches,
    trials_of,
)

Pooling = Literal["background", "full", "foreground"]
DEFAULT_POOLING: Pooling = "background"

Aggregation = Literal["masked", "weighted", "global", "mutual-recall"]
DEFAULT_AGGREGATION: Aggregation = "masked"


def concept_preservation(
    generated_images: Images,
    reference_images: Images,
    reference_masks: Masks,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
) -> Tensor:
    """Concept preservation of each sample, see :func:`masc_metrics.scores.masked_max_cosine`.

    Args:
        generated_images: B images; (B, 3, H, W) uint8 or float in [0, 1], or a list of (3, H, W) tensors of any sizes
            or PIL images.
        reference_images: B images of the subject, in any of these forms.
        reference_masks: B masks of the subject in the reference images; (B, H, W) or (B, 1, H, W), boolean, integer or
            float in [0, 1], or a list of (H, W) tensors or PIL images.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        encode_batch_size: samples encoded together; larger batches are faster on a GPU and need more memory.

    Returns:
        (B,) float32 on the backbone's device, in [-1, 1], higher is better; NaN where no reference patch is more than
        half covered by its mask.

    Raises:
        TypeError, ValueError: if an argument is not accepted; the error text names argument, sample and remedy.
        OSError: if the checkpoint is not available.
        RuntimeError: if features of the network are not finite, such as after an overflow in float16.

    Source: MaSC, arXiv 2605.22469.
    """
    return concept_preservation_variants(
        generated_images,
        reference_images,
        reference_masks,
        aggregations=(DEFAULT_AGGREGATION,),
        backbone=backbone,
        max_num_patches=max_num_patches,
        encode_batch_size=encode_batch_size,
    )[DEFAULT_AGGREGATION]


def concept_preservation_variants(
    generated_images: Images,
    reference_images: Images,
    reference_masks: Masks | None,
    generated_masks: Masks | None = None,
    *,
    aggregations: Sequence[Aggregation],
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
) -> dict[Aggregation, Tensor]:
    """Concept preservation and the paper's ablations of it, from one pass of the images through the network.

    ============= ====================================================================================================
    masked        :func:`concept_preservation`
    weighted      coverage as weight, no threshold, see :func:`masc_metrics.scores.weighted_max_cosine`; NaN where the
                  mask covers no patch
    global        mean over all reference patches, no mask; always defined
    mutual-recall :func:`masc_metrics.scores.mutual_recall`, in [0, 1]: the reference's subject is the patches more
                  than half covered, the generated subject those at least half covered; NaN where no mutual pair begins
                  in the reference's subject
    ============= ====================================================================================================

    Args:
        generated_images: B images, in any form accepted by :func:`concept_preservation`.
        reference_images: B images of the subject.
        reference_masks: B masks of the subject in the reference images. May be None for "global" alone.
        generated_masks: B masks of the subject in the generated images, for "mutual-recall".
        aggregations: the variants to compute.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        encode_batch_size: samples encoded together.

    Returns:
        For each variant (B,) float32 on the backbone's device, higher is better.

    Raises:
        TypeError, ValueError, OSError, RuntimeError: as for :func:`concept_preservation`.

    Source: MaSC, arXiv 2605.22469.
    """
    _check_settings(backbone, max_num_patches, encode_batch_size)
    for aggregation in check_sequence("aggregations", aggregations, "a list of aggregations"):
        check_choice("aggregations", aggregation, get_args(Aggregation))
    generated, references = _check_pairs(generated_images, reference_images)
    masks = generated_subjects = None
    if set(aggregations) - {"global"}:
        if reference_masks is None:
            raise TypeError("reference_masks is None; give a mask of the subject for every reference image")
        masks = check_masks(reference_masks, "reference_masks", references.sizes)
    if "mutual-recall" in aggregations:
        if generated_masks is None:
            raise TypeError("generated_masks is None; mutual-recall needs a mask of the subject for every image")
        generated_subjects = check_masks(generated_masks, "generated_masks", generated.sizes)

    scored: dict[Aggregation, list[tuple[list[int], Tensor, Tensor]]] = {name: [] for name in aggregations}
    for part, reference, candidate in _encoded_pairs(
        generated, references, backbone, max_num_patches, encode_batch_size
    ):
        pair = reference.tokens_BND, candidate.tokens_BND, candidate.valid_BN
        coverage_BN = (
            reference.valid_BN if masks is None else _coverage([masks.masks[index] for index in part], reference)
        )
        foreground_BN = coverage_BN > FOREGROUND_THRESHOLD
        for aggregation, parts in scored.items():
            if aggregation == "masked":
                scores_B, defined_B = masked_max_cosine(pair[0], foreground_BN, *pair[1:]), foreground_BN.any(dim=1)
            elif aggregation == "mutual-recall" and generated_subjects is not None:
                subject_BN = (
                    _coverage([generated_subjects.masks[index] for index in part], candidate) >= FOREGROUND_THRESHOLD
                )
                scores_B = mutual_recall(
                    reference.tokens_BND, reference.valid_BN, foreground_BN, *pair[1:], subject_BN & candidate.valid_BN
                )
                # Neighbours of NaN are numbers too: what is not finite becomes a NaN that has no excuse.
                defined_B = ~(_finite(reference) & _finite(candidate))
                scores_B = scores_B.masked_fill(defined_B, torch.nan)
            else:
                weight_BN = reference.valid_BN if aggregation == "global" else coverage_BN
                scores_B, defined_B = weighted_max_cosine(pair[0], weight_BN, *pair[1:]), weight_BN.sum(dim=1) > 0
            parts.append((part, scores_B, defined_B))
    return {aggregation: _in_order(parts, backbone) for aggregation, parts in scored.items()}


def match_maps(
    generated_images: Images,
    reference_images: Images,
    reference_masks: Masks,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
) -> list[Tensor]:
    """Maps of the best cosines whose mean is :func:`concept_preservation`; they show which parts were preserved.

    Args:
        generated_images: B images, in any form accepted by :func:`concept_preservation`.
        reference_images: B images of the subject.
        reference_masks: B masks of the subject in the reference images.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image, which sets the resolution of the maps.
        encode_batch_size: samples encoded together.

    Returns:
        For each sample, the best cosine of every reference patch to any generated patch, see
        :func:`masc_metrics.scores.best_cosine`: (rows, columns) of the reference's patch grid, float32 in [-1, 1], NaN
        outside the subject. The mean over the subject is the sample's concept preservation.

    Raises:
        TypeError, ValueError, OSError, RuntimeError: as for :func:`concept_preservation`.
    """
    _check_settings(backbone, max_num_patches, encode_batch_size)
    generated, references = _check_pairs(generated_images, reference_images)
    masks = check_masks(reference_masks, "reference_masks", references.sizes)
    maps: dict[int, Tensor] = {}
    sums: list[tuple[list[int], Tensor, Tensor]] = []
    for part, reference, candidate in _encoded_pairs(
        generated, references, backbone, max_num_patches, encode_batch_size
    ):
        foreground_BN = _coverage([masks.masks[index] for index in part], reference) > FOREGROUND_THRESHOLD
        best_BN = best_cosine(reference.tokens_BND, candidate.tokens_BND, candidate.valid_BN)
        sums_B = torch.where(foreground_BN, best_BN, 0).sum(dim=1)
        sums.append((part, sums_B, torch.ones_like(sums_B, dtype=torch.bool)))
        found_BN = best_BN.masked_fill(~foreground_BN, torch.nan)
        for index, (rows, columns), found_N in zip(part, reference.grids, found_BN, strict=True):
            maps[index] = found_N[: rows * columns].reshape(rows, columns)
    _in_order(sums, backbone)
    return [maps[index] for index in range(len(generated))]


def prompt_following(
    generated_images: Images,
    generated_masks: Masks | None,
    prompts: Sequence[str],
    subjects: Sequence[str | None] | None = None,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
    pooling: Pooling = DEFAULT_POOLING,
    strip_subject: bool = True,
    reference_images: ReferenceImages | None = None,
    reference_masks: ReferenceMasks | None = None,
) -> Tensor:
    """Prompt following of each sample: cosine of the background's embedding and the embedding of the stripped prompt.

    Args:
        generated_images: B images; (B, 3, H, W) uint8 or float in [0, 1], or a list of (3, H, W) tensors of any sizes
            or PIL images.
        generated_masks: B masks of the subject in the generated images; (B, H, W) or (B, 1, H, W), boolean, integer or
            float in [0, 1], or a list of (H, W) tensors or PIL images. None transfers them from the references, see
            :func:`transfer_masks`; with ``pooling="full"`` no mask is used.
        prompts: B prompts that the images were generated from.
        subjects: B names of the subject, spelled as in the prompts; None leaves all prompts, or one, unchanged.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        encode_batch_size: samples encoded together; larger batches are faster on a GPU and need more memory.
        pooling: patches to pool over: "background" (as in the paper), "full" or "foreground".
        strip_subject: remove the subject from the prompt (as in the paper), see :func:`masc_metrics.strip_subject`.
        reference_images: images of the subject, as :func:`transfer_masks` takes them; ignored if masks are given.
        reference_masks: their masks.

    Returns:
        (B,) float32 on the backbone's device, in [-1, 1], higher is better; NaN where no patch is left to pool over
        (for "background", if the mask covers at least half of every patch).

    Raises:
        TypeError, ValueError: if an argument is not accepted; the error text names argument, sample and remedy.
        OSError: if the checkpoint is not available.
        RuntimeError: if features of the network are not finite, such as after an overflow in float16.

    Source: MaSC, arXiv 2605.22469.
    """
    return prompt_following_variants(
        generated_images,
        generated_masks,
        prompts,
        subjects,
        poolings=(pooling,),
        strip_subject=(strip_subject,),
        backbone=backbone,
        max_num_patches=max_num_patches,
        encode_batch_size=encode_batch_size,
        reference_images=reference_images,
        reference_masks=reference_masks,
    ).scores[pooling, strip_subject]


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Results of :func:`prompt_following_variants`.

    Attributes:
        scores: for each (pooling, strip_subject), what :func:`prompt_following` returns for them.
        transferred: the masks that were transferred from the references; None if masks were given or none are needed.
    """

    scores: dict[tuple[Pooling, bool], Tensor]
    transferred: TransferredMasks | None


def prompt_following_variants(
    generated_images: Images,
    generated_masks: Masks | None,
    prompts: Sequence[str] | None,
    subjects: Sequence[str | None] | None = None,
    *,
    poolings: Sequence[Pooling] = (DEFAULT_POOLING,),
    strip_subject: Sequence[bool] = (True,),
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
    reference_images: ReferenceImages | None = None,
    reference_masks: ReferenceMasks | None = None,
) -> PromptScores:
    """Prompt following by every combination of poolings and prompts, from one pass of the images through the network.

    Args:
        generated_images: B images, in any form accepted by :func:`prompt_following`.
        generated_masks: B masks of the subject in the generated images. None transfers them from the references; for
            the pooling "full" alone, no mask is used.
        prompts: B prompts that the images were generated from.
        subjects: B names of the subject, spelled as in the prompts.
        poolings: patches to pool over, each "background", "full" or "foreground".
        strip_subject: whether to remove the subject from the prompt; (True, False) computes both.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        encode_batch_size: samples encoded together.
        reference_images: images of the subject, as :func:`transfer_masks` takes them; ignored if masks are given.
        reference_masks: their masks.

    Returns:
        For each (pooling, strip_subject) what :func:`prompt_following` returns for them: NaN for "background" where the
        mask covers at least half of every patch, for "foreground" where it does so of none; "full" is always defined.
        With them, the transferred masks.

    Raises:
        TypeError, ValueError, OSError, RuntimeError: as for :func:`prompt_following`.

    Source: MaSC, arXiv 2605.22469.
    """
    _check_settings(backbone, max_num_patches, encode_batch_size)
    for pooling in check_sequence("poolings", poolings, "a list of poolings"):
        for strip in check_sequence("strip_subject", strip_subject, "a list of booleans"):
            check_pooling(pooling, strip)
    generated = check_images(generated_images, "generated_images")
    masked = [pooling for pooling in poolings if pooling != "full"]
    masks: MaskBatch | None = None
    references: tuple[References, ...] | None = None
    if generated_masks is not None:
        masks = check_masks(generated_masks, "generated_masks", generated.sizes)
    elif masked:
        if reference_images is None and reference_masks is None:
            raise TypeError(
                f"generated_masks is None; pooling={masked[0]!r} needs a mask of the subject for every image: give "
                "them, or reference_images and reference_masks to find the subject by"
            )
        for name, given in (("reference_images", reference_images), ("reference_masks", reference_masks)):
            if given is None:
                raise TypeError(f"{name} is None; without generated_masks, give reference_images and reference_masks")
        assert reference_images is not None
        assert reference_masks is not None
        references = check_references(reference_images, reference_masks, len(generated))
    texts = {strip: _check_texts(prompts, subjects, len(generated), strip) for strip in strip_subject}

    images = [_each(generated)] if references is None else [_all_of(references), _each(generated)]
    transferred = _Transferred(generated)
    pooled: dict[Pooling, list[tuple[list[int], Tensor, Tensor]]] = {pooling: [] for pooling in poolings}
    for part, (*shown, features) in _encoded(images, backbone, max_num_patches, encode_batch_size):
        part_masks = None if masks is None else [masks.masks[index] for index in part]
        if references is not None:
            part_masks = transferred.add(part, [references[index] for index in part], shown[0], features)
        foreground_BN = None
        if part_masks is not None and masked:
            foreground_BN = _coverage(part_masks, features) >= FOREGROUND_THRESHOLD
        for pooling, parts in pooled.items():
            keep_BN = features.valid_BN
            if foreground_BN is not None and pooling != "full":
                keep_BN = keep_BN & (foreground_BN if pooling == "foreground" else ~foreground_BN)
            parts.append((part, backbone.pool(features, keep_BN), keep_BN.any(dim=1)))
    # A GPU still encodes images while the texts are queued; what follows waits for it.
    embeddings = {
        strip: backbone.encode_texts(stripped, batch_size=encode_batch_size) for strip, stripped in texts.items()
    }
    found = None if references is None else transferred.masks(backbone)
    scores = {
        (pooling, strip): _followed(parts, embeddings_BD, backbone)
        for strip, embeddings_BD in embeddings.items()
        for pooling, parts in pooled.items()
    }
    return PromptScores(scores, found)


class Refiner(Protocol):
    """What :func:`transfer_masks` takes as ``refine``: a segmenter with SAM 2."""

    def masks_in_boxes(self, images: Images, boxes: Sequence[Tensor]) -> Sequence[Tensor]:
        """Masks of what is in the boxes of each image; see :class:`masc_metrics.segmenters.Segmenter`."""


def transfer_masks(
    generated_images: Images,
    reference_images: ReferenceImages,
    reference_masks: ReferenceMasks,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
    refine: Refiner | None = None,
) -> TransferredMasks:
    """Masks of the subject in generated images, found by the patch features of reference images and their masks.

    No other network is needed, and images that are scored too are encoded once. How a patch is assigned to the subject
    is described at :func:`masc_metrics.transfer.find_subject`. If the subject is not there, often the object that
    resembles it most is marked; the confidence is lower then. Scores with these masks are not the paper's protocol.

    Args:
        generated_images: B images, in any form accepted by :func:`concept_preservation`.
        reference_images: B images of the subject; or a list of B lists, with several images of one subject each.
        reference_masks: masks of the subject in them, in the same arrangement.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image, which sets the resolution of the masks.
        encode_batch_size: samples encoded together.
        refine: segmenter "grounded_sam2" or "owlv2_sam2" of :func:`masc_metrics.segmenters.load_segmenter`. Its SAM 2
            gets the box of each connected region of found patches, and returns a mask with pixel outlines. A mask
            stays as it was if SAM 2 marks nothing. The confidence is that of the transfer.

    Returns:
        B masks, each (H, W) bool of its image's size on the backbone's device, and a confidence for each. A mask is
        without True if nothing was found.

    Raises:
        TypeError, ValueError, OSError: as for :func:`concept_preservation`; ValueError also if ``refine`` has no SAM 2.
    """
    if refine is not None and not callable(getattr(refine, "masks_in_boxes", None)):
        raise TypeError(f"refine is a {type(refine).__name__}; give load_segmenter('grounded_sam2') or None")
    _check_settings(backbone, max_num_patches, encode_batch_size)
    generated = check_images(generated_images, "generated_images")
    references = check_references(reference_images, reference_masks, len(generated))
    transferred = _Transferred(generated)
    images = [_all_of(references), _each(generated)]
    for part, (shown, features) in _encoded(images, backbone, max_num_patches, encode_batch_size):
        transferred.add(part, [references[index] for index in part], shown, features)
    found = transferred.masks(backbone)
    if refine is None:
        return found
    refined = zip(refine.masks_in_boxes(generated, transferred.boxes()), found.masks, strict=True)
    masks = tuple(to_device(mask, rough.device) if mask.any() else rough for mask, rough in refined)
    return TransferredMasks(masks, found.confidence_B)


def check_transfer(
    reference_images: ReferenceImages,
    reference_masks: ReferenceMasks,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
) -> Tensor:
    r"""How well masks can be transferred with these references and this network: agreement with the given masks.

    With several references of a subject, the mask of each is transferred onto each of the others. With one, it is
    transferred onto an image made of it: the subject mirrored, reduced, in front of its own background turned upside
    down, which is easier than a new image. The given masks are the truth:

    .. math:: \mathrm{IoU} = \frac{|\text{transferred} \cap \text{given}|}{|\text{transferred} \cup \text{given}|}

    Args:
        reference_images: C images, or a list of C lists with several images of one subject each.
        reference_masks: masks of the subject in them, in the same arrangement.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        encode_batch_size: samples encoded together.

    Returns:
        (C,) float32, mean IoU of each subject, in [0, 1]. Below 0.6 (:data:`masc_metrics.transfer.TRUSTED_IOU`), give
        masks of the generated images instead.

    Raises:
        TypeError, ValueError, OSError: as for :func:`transfer_masks`.
    """
    _check_settings(backbone, max_num_patches, encode_batch_size)
    count = len(reference_images) if hasattr(reference_images, "__len__") else 0
    checked = check_references(reference_images, reference_masks, count)
    trials = [(number, trial) for number, each in enumerate(checked) for trial in trials_of(each)]
    found = transfer_masks(
        ImageBatch(tuple(trial.image for _, trial in trials)),
        [trial.references.images for _, trial in trials],
        [trial.references.masks for _, trial in trials],
        backbone=backbone,
        max_num_patches=max_num_patches,
        encode_batch_size=encode_batch_size,
    )
    agreement_T = torch.stack(
        [intersection_over_union(mask, trial.mask) for mask, (_, trial) in zip(found.masks, trials, strict=True)]
    )
    numbers_T = torch.tensor([number for number, _ in trials], device="cpu")
    return torch.stack([agreement_T[numbers_T == number].mean() for number in range(len(checked))])


@dataclass(frozen=True, slots=True)
class MaskSensitivity:
    """Results of :func:`mask_sensitivity`; all scores are (B,) float32 on the backbone's device, NaN if undefined.

    Attributes:
        cp_B: concept preservation with the given masks.
        pf_B: prompt following with the given masks.
        cp: concept preservation with each perturbation of the reference masks; "transferred" is not among them.
        pf: prompt following with each perturbation of the generated masks.
    """

    cp_B: Tensor
    pf_B: Tensor
    cp: dict[Perturbation, Tensor]
    pf: dict[Perturbation, Tensor]


def mask_sensitivity(
    generated_images: Images,
    generated_masks: Masks,
    reference_images: Images,
    reference_masks: Masks,
    prompts: Sequence[str],
    subjects: Sequence[str | None] | None = None,
    *,
    perturbations: Sequence[Perturbation],
    seed: int = 0,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
) -> MaskSensitivity:
    """Both scores with wrong masks: how much they depend on the masks.

    Every image and every text is encoded once. A perturbation costs a mean for concept preservation, and the pooling
    head for prompt following.

    Args:
        generated_images: B images, in any form accepted by :func:`concept_preservation`.
        generated_masks: B masks of the subject in them. Masks that are not boolean are perturbed as mask > 0.5.
        reference_images: B images of the subject.
        reference_masks: B masks of the subject in them, likewise.
        prompts: B prompts that the images were generated from.
        subjects: B names of the subject, spelled as in the prompts.
        perturbations: how the masks are made wrong, see :class:`masc_metrics.masks.Perturbation`. The blocks of
            "dropout" have the size of a patch.
        seed: random seed of the perturbations, see :func:`masc_metrics.masks.perturb`.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        encode_batch_size: samples encoded together.

    Returns:
        The scores with the given masks, which are those of :func:`concept_preservation` and :func:`prompt_following`,
        and the scores with each perturbation.

    Raises:
        TypeError, ValueError, OSError, RuntimeError: as for :func:`concept_preservation`.
    """
    _check_settings(backbone, max_num_patches, encode_batch_size)
    check_integer("seed", seed, least=0)
    for index, change in enumerate(check_sequence("perturbations", perturbations, "a list of Perturbation")):
        check_type(f"perturbations[{index}]", change, Perturbation, "a masc_metrics.masks.Perturbation")
    generated, references = _check_pairs(generated_images, reference_images)
    reference_given = check_masks(reference_masks, "reference_masks", references.sizes)
    generated_given = check_masks(generated_masks, "generated_masks", generated.sizes)
    texts = _check_texts(prompts, subjects, len(generated), strip_subject=True)

    transferred = _Transferred(generated)
    changes: list[Perturbation | None] = [None, *dict.fromkeys(perturbations)]
    preserved: dict[Perturbation | None, list[tuple[list[int], Tensor, Tensor]]] = {
        change: [] for change in changes if change is None or change.kind != "transferred"
    }
    pooled: dict[Perturbation | None, list[tuple[list[int], Tensor, Tensor]]] = {change: [] for change in changes}
    for part, reference, candidate in _encoded_pairs(
        generated, references, backbone, max_num_patches, encode_batch_size
    ):
        part_masks = [reference_given.masks[index] for index in part]
        best_BN = best_cosine(reference.tokens_BND, candidate.tokens_BND, candidate.valid_BN)
        for change, parts in preserved.items():
            foreground_BN = _coverage(_perturbed(part_masks, change, seed, reference), reference) > FOREGROUND_THRESHOLD
            parts.append((part, weighted_mean(best_BN, foreground_BN), foreground_BN.any(dim=1)))
        alone = _without_padding(candidate)  # as prompt following encodes them
        for change, parts in pooled.items():
            if change is not None and change.kind == "transferred":
                sources = [
                    References(ImageBatch((references.images[index],)), MaskBatch((reference_given.masks[index],)))
                    for index in part
                ]
                wrong: Sequence[Tensor] = transferred.add(part, sources, reference, candidate)
            else:
                wrong = _perturbed([generated_given.masks[index] for index in part], change, seed, alone)
            keep_BN = alone.valid_BN & (_coverage(wrong, alone) < FOREGROUND_THRESHOLD)
            parts.append((part, backbone.pool(alone, keep_BN), keep_BN.any(dim=1)))
    embeddings_BD = backbone.encode_texts(texts, batch_size=encode_batch_size)
    cp = {change: _in_order(parts, backbone) for change, parts in preserved.items()}
    pf = {change: _followed(parts, embeddings_BD, backbone) for change, parts in pooled.items()}
    return MaskSensitivity(
        cp_B=cp[None],
        pf_B=pf[None],
        cp={change: scores_B for change, scores_B in cp.items() if change is not None},
        pf={change: scores_B for change, scores_B in pf.items() if change is not None},
    )


def _perturbed(
    masks: Sequence[Tensor], change: Perturbation | None, seed: int, features: PatchFeatures
) -> Sequence[Tensor]:
    """The masks of a part with a perturbation; a mask that occurs several times is perturbed once."""
    if change is None:
        return masks
    keys = [(id(mask), -(-len(mask) // rows)) for mask, (rows, _) in zip(masks, features.grids, strict=True)]
    changed: dict[tuple[int, int], Tensor] = {}
    for key, mask in dict(zip(keys, masks, strict=True)).items():
        marked = mask if mask.dtype == torch.bool else mask > FOREGROUND_THRESHOLD
        changed[key] = perturb(marked, change.kind, change.amount, seed, block=key[1])
    return [changed[key] for key in keys]


def _without_padding(features: PatchFeatures) -> PatchFeatures:
    """The features without the columns that are padding in every image."""
    width = max(rows * columns for rows, columns in features.grids)
    return PatchFeatures(
        features.tokens_BND[:, :width].contiguous(), features.valid_BN[:, :width].contiguous(), features.grids
    )


class _Transferred:
    """Collects the transferred masks of all parts."""

    def __init__(self, generated: ImageBatch) -> None:
        self._sizes = generated.sizes
        self._found: dict[int, tuple[Tensor, Tensor]] = {}
        self._finite: list[tuple[list[int], Tensor]] = []
        self._margins: dict[int, tuple[Tensor, Grid]] = {}

    def add(
        self, part: list[int], references: Sequence[References], shown: PatchFeatures, generated: PatchFeatures
    ) -> list[Tensor]:
        """Masks of the generated images of a part; ``shown`` are the features of all their references."""
        coverage_BN = _coverage([mask for each in references for mask in each.masks.masks], shown)
        counts = [len(each.images) for each in references]
        finite_B = torch.stack([rows.all() for rows in torch.split(_finite(shown), counts)]) & _finite(generated)
        self._finite.append((part, finite_B))
        bank = [  # all patches of a sample's references in one row
            pad_sequence([rows.flatten(0, 1) for rows in torch.split(values, counts)], batch_first=True)
            for values in (shown.tokens_BND, coverage_BN, shown.valid_BN)
        ]
        tokens_BMD, coverage_BM, valid_BM = bank
        margin_BN, confidence_B = find_subject(
            tokens_BMD, coverage_BM, valid_BM, generated.tokens_BND, generated.valid_BN
        )
        masks = [
            mask_of_patches(margin_N, grid, self._sizes[index])
            for index, margin_N, grid in zip(part, margin_BN, generated.grids, strict=True)
        ]
        self._margins |= zip(part, zip(margin_BN, generated.grids, strict=True), strict=True)
        self._found |= zip(part, zip(masks, confidence_B, strict=True), strict=True)
        return masks

    def boxes(self) -> list[Tensor]:
        """Boxes of the found regions of each image."""
        return [boxes_of_regions(*self._margins[index], size) for index, size in enumerate(self._sizes)]

    def masks(self, backbone: SigLIP2Backbone) -> TransferredMasks:
        """Masks of all images; features that are not finite must not be mistaken for a subject that is not there."""
        finite_B = torch.cat([finite for _, finite in self._finite])
        if not bool(finite_B.all()):
            index = [index for part, _ in self._finite for index in part][int((~finite_B).nonzero()[0])]
            raise RuntimeError(
                f"{backbone} gave features that are not finite for generated_images[{index}] or its reference; run it "
                "in torch.bfloat16 or torch.float32, and check its weights"
            )
        found = [self._found[index] for index in range(len(self._sizes))]
        return TransferredMasks(tuple(mask for mask, _ in found), torch.stack([confidence for _, confidence in found]))


def check_pooling(pooling: str, strip_subject: bool) -> None:
    """Raise ValueError unless the pooling is known, and TypeError unless ``strip_subject`` is a boolean."""
    check_choice("pooling", pooling, get_args(Pooling))
    check_type("strip_subject", strip_subject, bool, "True or False")


def _check_settings(backbone: SigLIP2Backbone, max_num_patches: int, encode_batch_size: int) -> None:
    check_type("backbone", backbone, SigLIP2Backbone, "the result of masc_metrics.load_backbone")
    check_positive("max_num_patches", max_num_patches)
    check_positive("encode_batch_size", encode_batch_size)


def _check_pairs(generated_images: Images, reference_images: Images) -> tuple[ImageBatch, ImageBatch]:
    generated = check_images(generated_images, "generated_images")
    references = check_images(reference_images, "reference_images")
    check_count("reference_images", len(references), len(generated))
    return generated, references


def _check_texts(
    prompts: Sequence[str] | None, subjects: Sequence[str | None] | None, count: int, strip_subject: bool
) -> list[str]:
    """Return the texts to embed. Prompts must not be empty, but a prompt may become empty by stripping."""
    subjects = [None] * count if subjects is None else subjects
    given = [
        check_sequence(name, values, "a list of strings, one for each sample")
        for name, values in (("prompts", prompts), ("subjects", subjects))
    ]
    for name, values in zip(("prompts", "subjects"), given, strict=True):
        check_count(name, len(values), count)
    texts = []
    for index, (prompt, subject) in enumerate(zip(*given, strict=True)):
        check_type(f"prompts[{index}]", prompt, str, "a string")
        if not prompt.strip():
            raise ValueError(f"prompts[{index}] is empty; give the prompt that generated_images[{index}] was made from")
        check_type(f"subjects[{index}]", subject, (str, NoneType), "a string, or None to keep the prompt")
        check_unicode(f"prompts[{index}]", prompt)
        texts.append(_strip_subject(prompt, subject) if strip_subject else prompt)
    return texts


def _in_order(scored: Sequence[tuple[list[int], Tensor, Tensor]], backbone: SigLIP2Backbone) -> Tensor:
    """Scores of all parts in the order of the samples, checked at the end so that parts do not wait for each other.

    Args:
        scored: for each part, the indices of its samples, their scores, and whether the masks leave a patch to score.
        backbone: backbone of the features; NaN of a broken network must not be mistaken for an undefined sample.
    """
    positions = torch.tensor([index for part, *_ in scored for index in part], device="cpu")
    order = to_device(positions.argsort(), backbone.device)
    scores_B = torch.cat([scores for _, scores, _ in scored])[order]
    defined_B = torch.cat([defined for _, _, defined in scored])[order]
    broken = (scores_B.isnan() & defined_B).nonzero()
    if len(broken):
        raise RuntimeError(
            f"generated_images[{int(broken[0])}] has patches to score, but {backbone} gave features that are not "
            "finite; run it in torch.bfloat16 or torch.float32, and check its weights"
        )
    return scores_B


def _followed(
    pooled: Sequence[tuple[list[int], Tensor, Tensor]], embeddings_BD: Tensor, backbone: SigLIP2Backbone
) -> Tensor:
    """Prompt following of all samples from pooled parts, as :func:`_in_order` takes scores, and their texts."""
    scored = []
    for part, pooled_BD, defined_B in pooled:
        texts_BD = torch.stack([embeddings_BD[index] for index in part])  # an index by a list would synchronise
        scored.append((part, embedding_cosine(pooled_BD, texts_BD), defined_B))
    return _in_order(scored, backbone)


def _each(batch: ImageBatch) -> list[tuple[Tensor, ...]]:
    return [(image,) for image in batch.images]


def _all_of(references: Sequence[References]) -> list[tuple[Tensor, ...]]:
    return [each.images.images for each in references]


def _parts(samples: Sequence[tuple[Tensor, ...]], size: int) -> Iterator[list[int]]:
    """Indices of the samples in parts, sorted by image size so that images of equal size are encoded together."""
    sizes = [(image.shape[1], image.shape[2]) for (image,) in samples]
    order = sorted(range(len(samples)), key=sizes.__getitem__)
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _encoded(
    groups: Sequence[Sequence[tuple[Tensor, ...]]],
    backbone: SigLIP2Backbone,
    max_num_patches: int,
    encode_batch_size: int,
) -> Iterator[tuple[list[int], list[PatchFeatures]]]:
    """For each part, the indices of its samples, and the features of their images in each group.

    A group, such as the references, holds the images of every sample; the last one has one image for each sample. A
    part is prepared before the previous one is encoded, so that a GPU always has work.
    """

    def encoded(part: list[int], prepared: PreparedImages) -> tuple[list[int], list[PatchFeatures]]:
        features = backbone.encode(prepared, batch_size=encode_batch_size)
        return part, features.split([sum(len(group[index]) for index in part) for group in groups])

    previous: tuple[list[int], PreparedImages] | None = None
    for part in _parts(groups[-1], encode_batch_size):
        images = ImageBatch(tuple(image for group in groups for index in part for image in group[index]))
        prepared = backbone.prepare(images, max_num_patches=max_num_patches)
        if previous is not None:
            yield encoded(*previous)
        previous = part, prepared
    if previous is not None:
        yield encoded(*previous)


def _encoded_pairs(
    generated: ImageBatch,
    references: ImageBatch,
    backbone: SigLIP2Backbone,
    max_num_patches: int,
    encode_batch_size: int,
) -> Iterator[tuple[list[int], PatchFeatures, PatchFeatures]]:
    """For each part: indices of its samples, features of the references and of the generated images."""
    groups = [_each(references), _each(generated)]
    for part, (reference, candidate) in _encoded(groups, backbone, max_num_patches, encode_batch_size):
        yield part, reference, candidate


def _finite(features: PatchFeatures) -> Tensor:
    """Whether the features of all patches of an image are finite, (B,) bool."""
    return (features.tokens_BND.isfinite().all(dim=2) | ~features.valid_BN).all(dim=1)


def _coverage(masks: Sequence[Tensor], features: PatchFeatures) -> Tensor:
    """Coverage of the patches by the masks of their images, (B, N); 0 on padding."""
    rows = [grid_coverage(mask, grid) for mask, grid in zip(masks, features.grids, strict=True)]
    width = features.valid_BN.shape[1]
    device = features.valid_BN.device
    if len({row.device for row in rows}) > 1:
        rows = [to_device(row, device) for row in rows]
    return to_device(torch.stack([F.pad(coverage_N, (0, width - len(coverage_N))) for coverage_N in rows]), device)
