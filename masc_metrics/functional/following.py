"""Prompt following of each sample, and its ablations.

Shape suffixes: B samples, N patches.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from masc_metrics.arguments import (
    check_choice,
    check_sequence,
    check_type,
)
from masc_metrics.backbone import PatchFeatures, SigLIP2Backbone
from masc_metrics.functional.encoding import (
    Shown,
    check_settings,
    check_texts,
    coverage_of,
    each_image,
    encoded,
    encoded_references,
    followed,
    rearranged,
)
from masc_metrics.functional.transferring import Transferring
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.images import Images, check_images
from masc_metrics.masks import (
    FOREGROUND_THRESHOLD,
    MaskBatch,
    Masks,
    check_masks,
)
from masc_metrics.precision import eager
from masc_metrics.references import ReferenceImages, ReferenceMasks, References, check_references
from masc_metrics.settings import DEFAULT_ENCODE_BATCH_SIZE, DEFAULT_POOLING, Pooling
from masc_metrics.transfer import (
    TransferredMasks,
)


@eager
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
    found = prompt_following_variants(
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
    )
    if any(found.cut_tokens):
        warnings.warn(cut_prompt(prompts, found.cut_tokens, backbone), stacklevel=2)
    return found.scores[pooling, strip_subject]


def cut_prompt(prompts: Sequence[str], cut_tokens: Sequence[int], backbone: SigLIP2Backbone) -> str:
    """Warning for the prompt of which most tokens are ignored."""
    index = max(range(len(prompts)), key=cut_tokens.__getitem__)
    length = backbone.checkpoint.text_length
    return (
        f"prompts[{index}] has {length + cut_tokens[index]} tokens, of which the text tower reads the first {length}; "
        f"the rest does not affect its score: {prompts[index]!a:.80}... Give a shorter prompt"
    )


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Results of :func:`prompt_following_variants`.

    Attributes:
        scores: for each (pooling, strip_subject), what :func:`prompt_following` returns for them.
        transferred: the masks that were transferred from the references; None if masks were given or none are needed.
        unmasked_B: whether an image's mask marks nothing, (B,) bool, so that its score with the pooling "background" is
            that of the complete image; None if no masks are used.
        cut_tokens: number of tokens at the end of each prompt that did not fit into the text tower and are ignored; of
            the longer text if the prompt is embedded with and without its subject.
    """

    scores: dict[tuple[Pooling, bool], Tensor]
    transferred: TransferredMasks | None
    unmasked_B: Tensor | None
    cut_tokens: tuple[int, ...]


@eager
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
    check_settings(backbone, max_num_patches, encode_batch_size)
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
        references = check_references(reference_images, reference_masks, len(generated))
    texts = {strip: check_texts(prompts, subjects, len(generated), strip) for strip in strip_subject}

    settings = backbone, max_num_patches, encode_batch_size
    encoded_parts: Iterable[tuple[list[int], Shown | None, PatchFeatures]]
    if references is None:
        encoded_parts = ((part, None, features) for part, (features,) in encoded([each_image(generated)], *settings))
    else:
        encoded_parts = encoded_references(generated, references, *settings)
    transferred = Transferring(generated)
    unmasked: list[tuple[list[int], Tensor]] = []
    pooled: dict[Pooling, list[tuple[list[int], Tensor, Tensor]]] = {pooling: [] for pooling in poolings}
    for part, shown, features in encoded_parts:
        part_masks = None if masks is None else [masks.masks[index] for index in part]
        if shown is not None:
            part_masks = transferred.add(part, shown, features)
        foreground_BN = None
        if part_masks is not None and masked:
            coverage_BN = coverage_of(part_masks, features)
            foreground_BN = coverage_BN >= FOREGROUND_THRESHOLD
            unmasked.append((part, ~(coverage_BN > 0).any(dim=1)))
        for pooling, parts in pooled.items():
            keep_BN = features.valid_BN
            if foreground_BN is not None and pooling != "full":
                keep_BN = keep_BN & (foreground_BN if pooling == "foreground" else ~foreground_BN)
            parts.append((part, backbone.pool(features, keep_BN), keep_BN.any(dim=1)))
    # A GPU still encodes images while the texts are queued; what follows waits for it.
    embeddings = {
        strip: backbone.encode_texts(stripped, batch_size=encode_batch_size) for strip, stripped in texts.items()
    }
    cut = [backbone.cut_tokens(stripped) for stripped in texts.values()]
    found = None if references is None else transferred.masks(backbone)
    scores = {
        (pooling, strip): followed(parts, embeddings_BD, backbone)
        for strip, embeddings_BD in embeddings.items()
        for pooling, parts in pooled.items()
    }
    return PromptScores(
        scores,
        found,
        unmasked_B=rearranged(unmasked) if unmasked else None,
        cut_tokens=tuple(max(counts) for counts in zip(*cut, strict=True)),
    )


def background_maps(
    generated_images: Images,
    generated_masks: Masks,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
) -> list[Tensor]:
    """Maps of what :func:`prompt_following` looks at: the attention of the pooling head to the background's patches.

    Args:
        generated_images: B images, in any form accepted by :func:`prompt_following`.
        generated_masks: B masks of the subject in them.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image, which sets the resolution of the maps.
        encode_batch_size: samples encoded together.

    Returns:
        For each sample, (rows, columns) of its patch grid, float32: the weight of each patch, as a mean over the
        head's attention heads. The weights of an image sum to 1. NaN on patches that the mask hides, which it covers
        by at least half.

    Raises:
        TypeError, ValueError, OSError: as for :func:`prompt_following`.
    """
    check_settings(backbone, max_num_patches, encode_batch_size)
    generated = check_images(generated_images, "generated_images")
    masks = check_masks(generated_masks, "generated_masks", generated.sizes)
    maps: dict[int, Tensor] = {}
    for part, (features,) in encoded([each_image(generated)], backbone, max_num_patches, encode_batch_size):
        hidden_BN = coverage_of([masks.masks[index] for index in part], features) >= FOREGROUND_THRESHOLD
        weights_BN = backbone.attention(features, ~hidden_BN).masked_fill(hidden_BN, torch.nan)
        for index, (rows, columns), weights_N in zip(part, features.grids, weights_BN, strict=True):
            maps[index] = weights_N[: rows * columns].reshape(rows, columns)
    return [maps[index] for index in range(len(generated))]


def check_pooling(pooling: str, strip_subject: bool) -> None:
    """Raise ValueError unless the pooling is known, and TypeError unless ``strip_subject`` is a boolean."""
    check_choice("pooling", pooling, get_args(Pooling))
    check_type("strip_subject", strip_subject, bool, "True or False")
