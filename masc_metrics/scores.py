"""Scores of patch features, on tensors: one score for each sample.

Shape suffixes: B samples, R reference patches, G generated patches, D feature width. All scores are float32 for any
dtype of the features, and NaN for undefined samples (without a patch to average over). What compares concepts takes a
matrix of scores, G pictures by R concepts, and keeps its dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from masc_metrics.arguments import check_type
from masc_metrics.precision import without_autocast

_BLOCK = 2**22
"""Maximum number of cosines in memory, 16 MiB: four samples of 1024 patches."""


def patch_similarity(reference_BRD: Tensor, generated_BGD: Tensor) -> Tensor:
    """Cosine of every reference patch with every generated patch.

    Args:
        reference_BRD: reference patch features, any floating dtype.
        generated_BGD: generated patch features of the same width.

    Returns:
        (B, R, G) float32 in [-1, 1].

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    _check_features(reference_BRD, generated_BGD)
    with without_autocast(reference_BRD.device):  # autocast would multiply in half precision
        return F.normalize(reference_BRD.float(), dim=-1) @ F.normalize(generated_BGD.float(), dim=-1).mT


def best_cosine(reference_BRD: Tensor, generated_BGD: Tensor, generated_valid_BG: Tensor) -> Tensor:
    r"""Best cosine of every reference patch to any patch of the generated image.

    .. math:: s_r = \max_{g\,\text{valid}} \cos(f_r, f_g)

    Args:
        reference_BRD: reference patch features.
        generated_BGD: generated patch features.
        generated_valid_BG: bool, False on padding.

    Returns:
        (B, R) float32 in [-1, 1]; NaN where no generated patch is valid.

    Raises:
        TypeError: if the mask is not boolean.
        ValueError: if the shapes do not fit each other.
    """
    _check_features(reference_BRD, generated_BGD)
    _check_mask("generated_valid_BG", generated_valid_BG, generated_BGD)
    candidates = max(1, generated_BGD.shape[1])
    best_BR = torch.cat(
        [
            torch.cat(
                [_best_of_block(rows, *generated) for rows in torch.split(block_BRD, max(1, _BLOCK // candidates), 1)],
                1,
            )
            for block_BRD, *generated in sample_blocks(reference_BRD, generated_BGD, generated_valid_BG)
        ]
    )
    # Rounding may leave a cosine slightly above 1.
    return best_BR.clamp(-1, 1).masked_fill(~generated_valid_BG.any(dim=1, keepdim=True), torch.nan)


def samples_per_block(reference_patches: int, generated_patches: int) -> int:
    """Number of samples whose cosines fit into memory, see :data:`_BLOCK`; at least one."""
    return max(1, _BLOCK // (max(1, reference_patches) * max(1, generated_patches)))


def sample_blocks(reference_BRD: Tensor, generated_BGD: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors into samples whose cosines fit into memory, see :data:`_BLOCK`; at least one sample each."""
    samples = samples_per_block(reference_BRD.shape[1], generated_BGD.shape[1])
    yield from zip(*(torch.split(each, samples) for each in (reference_BRD, generated_BGD, *others)), strict=True)


def _best_of_block(reference_BRD: Tensor, generated_BGD: Tensor, generated_valid_BG: Tensor) -> Tensor:
    similarity_BRG = patch_similarity(reference_BRD, generated_BGD)
    return similarity_BRG.masked_fill_(~generated_valid_BG[:, None, :], -torch.inf).amax(dim=2)


def weighted_max_cosine(
    reference_BRD: Tensor, weight_BR: Tensor, generated_BGD: Tensor, generated_valid_BG: Tensor
) -> Tensor:
    r"""Weighted mean, over the reference patches, of the best cosine to any generated patch.

    .. math:: \mathrm{CP}_w = \frac{\sum_r w_r \max_g \cos(f_r, f_g)}{\sum_r w_r}

    With coverage as weight this is the paper's ``weighted`` aggregation; with 1 on every patch of the reference its
    ``global`` one.

    Args:
        reference_BRD: reference patch features.
        weight_BR: weights, at least 0; 0 on padding.
        generated_BGD: generated patch features.
        generated_valid_BG: bool, False on padding.

    Returns:
        (B,) float32 in [-1, 1]; NaN where all weights are 0.

    Raises:
        TypeError: if a mask is not boolean.
        ValueError: if the shapes do not fit each other.

    Source: MaSC, arXiv 2605.22469.
    """
    best_BR = best_cosine(reference_BRD, generated_BGD, generated_valid_BG)
    _check_shape("weight_BR", weight_BR, reference_BRD)
    return weighted_mean(best_BR, weight_BR)


def weighted_mean(best_BR: Tensor, weight_BR: Tensor) -> Tensor:
    """Second half of :func:`weighted_max_cosine`, for several weights of one :func:`best_cosine`.

    Args:
        best_BR: best cosines of the reference patches.
        weight_BR: weights of any dtype, at least 0; 0 on padding.

    Returns:
        (B,) float32; NaN where all weights are 0.
    """
    weight_BR = weight_BR.float()
    weighted_BR = torch.where(weight_BR == 0, 0.0, best_BR * weight_BR)  # features of padding may be NaN
    return weighted_BR.sum(dim=1) / weight_BR.sum(dim=1)


def over_references(
    scores_P: Tensor, defined_P: Tensor, counts: Sequence[int], *, largest: bool = False
) -> tuple[Tensor, Tensor]:
    """One score for each sample from its scores with several references: the mean of those that are defined.

    Args:
        scores_P: (..., P) scores with all references of the first sample, of the second, and so on.
        defined_P: (P,) bool, whether the reference has a patch to average over.
        counts: number of references of each sample, B numbers with the sum P.
        largest: take the largest score instead of the mean.

    Returns:
        (..., B) float32 scores, NaN without a defined reference; and (B,) bool, whether there is one.
    """
    if all(count == 1 for count in counts):
        return scores_P, defined_P
    scores, defined = [], []
    for each_K, defined_K in zip(
        torch.split(scores_P, list(counts), dim=-1), torch.split(defined_P, list(counts)), strict=True
    ):
        if largest:
            found = torch.where(defined_K, each_K, -torch.inf).amax(dim=-1).masked_fill(~defined_K.any(), torch.nan)
        else:
            found = torch.where(defined_K, each_K, 0).sum(dim=-1) / defined_K.sum()
        scores.append(found)
        defined.append(defined_K.any())
    return torch.stack(scores, dim=-1), torch.stack(defined)


def masked_max_cosine(
    reference_BRD: Tensor, foreground_BR: Tensor, generated_BGD: Tensor, generated_valid_BG: Tensor
) -> Tensor:
    r"""Concept preservation: mean best cosine over the foreground patches of the reference.

    .. math:: \mathrm{CP} = \frac{1}{|F|} \sum_{r \in F} \max_g \cos(f_r, f_g)

    Every valid patch of the generated image is a candidate; the generated image's mask is not used.

    Args:
        reference_BRD: reference patch features.
        foreground_BR: bool, True on the subject's patches, False on padding.
        generated_BGD: generated patch features.
        generated_valid_BG: bool, False on padding.

    Returns:
        (B,) float32 in [-1, 1], higher is better; NaN where the reference has no foreground patch.

    Raises:
        TypeError: if a mask is not boolean.
        ValueError: if the shapes do not fit each other.

    Source: MaSC, arXiv 2605.22469.
    """
    _check_mask("foreground_BR", foreground_BR, reference_BRD)
    return weighted_max_cosine(reference_BRD, foreground_BR, generated_BGD, generated_valid_BG)


def mutual_recall(
    reference_BRD: Tensor,
    reference_valid_BR: Tensor,
    reference_foreground_BR: Tensor,
    generated_BGD: Tensor,
    generated_valid_BG: Tensor,
    generated_foreground_BG: Tensor,
) -> Tensor:
    r"""Fraction of the subject's mutual nearest neighbours that lie on the generated subject.

    A pair (r, g) is mutual if g is the patch most similar to r and r is the patch most similar to g. Among the mutual
    pairs whose reference patch is foreground, this is the fraction whose generated patch is also foreground. It is an
    ablation of :func:`masked_max_cosine`.

    Args:
        reference_BRD: reference patch features.
        reference_valid_BR: bool, False on padding.
        reference_foreground_BR: bool, True on the reference's subject.
        generated_BGD: generated patch features.
        generated_valid_BG: bool, False on padding.
        generated_foreground_BG: bool, True on the generated subject.

    Returns:
        (B,) float32 in [0, 1]; NaN where no mutual pair starts in the foreground.

    Raises:
        TypeError: if a mask is not boolean.
        ValueError: if the shapes do not fit each other.

    Source: MaSC, arXiv 2605.22469.
    """
    similarity_BRG = patch_similarity(reference_BRD, generated_BGD)
    for name, mask, features in (
        ("reference_valid_BR", reference_valid_BR, reference_BRD),
        ("reference_foreground_BR", reference_foreground_BR, reference_BRD),
        ("generated_valid_BG", generated_valid_BG, generated_BGD),
        ("generated_foreground_BG", generated_foreground_BG, generated_BGD),
    ):
        _check_mask(name, mask, features)
    padding_BRG = ~(reference_valid_BR[:, :, None] & generated_valid_BG[:, None, :])
    similarity_BRG = similarity_BRG.masked_fill(padding_BRG, -torch.inf)
    nearest_BR = similarity_BRG.argmax(dim=2)
    nearest_BG = similarity_BRG.argmax(dim=1)
    index_R = torch.arange(nearest_BR.shape[1], device=nearest_BR.device)
    mutual_BR = (nearest_BG.gather(1, nearest_BR) == index_R) & reference_valid_BR
    counted_BR = mutual_BR & reference_foreground_BR
    recalled_BR = counted_BR & generated_foreground_BG.gather(1, nearest_BR)
    return recalled_BR.sum(dim=1).float() / counted_BR.sum(dim=1).float()


def embedding_cosine(image_BD: Tensor, text_BD: Tensor) -> Tensor:
    r"""Prompt following: cosine of a pooled image embedding and a text embedding.

    .. math:: \mathrm{PF} = \cos(e_\text{image}, e_\text{text})

    Args:
        image_BD: image embeddings, pooled over the background patches; NaN rows stay NaN.
        text_BD: embeddings of the prompts without their subjects.

    Returns:
        (B,) float32 in [-1, 1], higher is better.

    Raises:
        ValueError: if the shapes differ.

    Source: MaSC, arXiv 2605.22469.
    """
    if image_BD.ndim != 2 or image_BD.shape != text_BD.shape:
        raise ValueError(
            f"image embeddings {tuple(image_BD.shape)} and text embeddings {tuple(text_BD.shape)} differ; give (B, D) "
            "embeddings from one backbone"
        )
    cosine_B = (F.normalize(image_BD.float(), dim=-1) * F.normalize(text_BD.float(), dim=-1)).sum(dim=-1)
    return cosine_B.clamp(-1, 1)  # rounding may leave a cosine slightly above 1


def concept_ranks(matrix_GR: Tensor, own_G: Tensor) -> Tensor:
    r"""Rank of each picture's own concept among all concepts, by their scores.

    .. math:: \mathrm{rank}_g = 1 + |\{r \ne o_g : C_{gr} \ge C_{g o_g}\}|

    A concept that ties with the own one is placed before it.

    Args:
        matrix_GR: concept preservation of G pictures against R concepts; a column of NaN is left out.
        own_G: int64, column of each picture's own concept.

    Returns:
        (G,) numbers from 1 (best) to R, in the dtype of the matrix; NaN where the own concept's score is NaN.

    Raises:
        TypeError, ValueError: if the arguments do not fit each other.
    """
    _check_matrix(matrix_GR, own_G)
    own_G1 = matrix_GR.gather(1, own_G[:, None])
    ranks_G = (matrix_GR >= own_G1).sum(dim=1).to(matrix_GR.dtype)  # the own concept is the 1
    return ranks_G.masked_fill(own_G1[:, 0].isnan(), torch.nan)


def double_centred(matrix_GR: Tensor, own_G: Tensor) -> Tensor:
    r"""Concept preservation centred by picture and by concept, without the pictures of the concept itself.

    .. math::

        D_{gr} = C_{gr} - \operatorname{mean}_s C_{gs}, \qquad
        M_{gr} = D_{gr} - \operatorname{mean}_{h : o_h \ne r} D_{hr}

    A number that is added to all scores of a picture, or to all scores of a concept, changes nothing: some pictures
    match any reference well, and some references match any picture well. In the column of a picture's own concept, M is
    its margin: how much better it matches its own concept than pictures of other subjects do. If all pictures match
    their own concept better by the same amount, M is that amount, for any number of concepts.

    Args:
        matrix_GR: concept preservation C of G pictures against R concepts; a column of NaN is left out.
        own_G: int64, column o of each picture's own concept.

    Returns:
        (G, R) in [-4, 4], higher is better, in the dtype of the matrix. NaN with fewer than two concepts, and in the
        column of a concept if there is no picture of another one.

    Raises:
        TypeError, ValueError: if the arguments do not fit each other.
    """
    _check_matrix(matrix_GR, own_G)
    others_GR = own_G[:, None] != torch.arange(matrix_GR.shape[1], device=matrix_GR.device)
    centred_GR = matrix_GR - matrix_GR.nanmean(dim=1, keepdim=True)
    floors_R = torch.where(others_GR, centred_GR, 0).sum(dim=0) / others_GR.sum(dim=0)
    return centred_GR - floors_R


def concept_margins(matrix_GR: Tensor, own_G: Tensor) -> Tensor:
    """:func:`double_centred` of each picture with its own concept, (G,)."""
    return double_centred(matrix_GR, own_G).gather(1, own_G[:, None])[:, 0]


def _check_matrix(matrix_GR: Tensor, own_G: Tensor) -> None:
    check_type("matrix_GR", matrix_GR, Tensor, "a tensor")
    check_type("own_G", own_G, Tensor, "a tensor")
    if own_G.dtype != torch.int64:
        raise TypeError(f"own_G is {own_G.dtype}; give torch.int64, the columns of the pictures' own concepts")
    if matrix_GR.ndim != 2 or own_G.shape != matrix_GR.shape[:1]:
        raise ValueError(
            f"matrix_GR is {tuple(matrix_GR.shape)} and own_G is {tuple(own_G.shape)}; give (G, R) and (G,)"
        )


def _check_features(reference_BRD: Tensor, generated_BGD: Tensor) -> None:
    if reference_BRD.ndim != 3 or generated_BGD.ndim != 3:
        raise ValueError(
            f"reference features {tuple(reference_BRD.shape)} or generated features {tuple(generated_BGD.shape)} have "
            "a wrong rank; give (B, N, D)"
        )
    if reference_BRD.shape[0] != generated_BGD.shape[0] or reference_BRD.shape[2] != generated_BGD.shape[2]:
        raise ValueError(
            f"reference features {tuple(reference_BRD.shape)} and generated features {tuple(generated_BGD.shape)} "
            "differ in batch size or width; give one pair for each sample, from one backbone"
        )


def _check_mask(name: str, mask: Tensor, features: Tensor) -> None:
    _check_shape(name, mask, features)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} is {mask.dtype}; give booleans, such as coverage > 0.5")


def _check_shape(name: str, values: Tensor, features: Tensor) -> None:
    check_type(name, values, Tensor, "a tensor")
    if values.shape != features.shape[:2]:
        raise ValueError(f"{name} is {tuple(values.shape)} but its features are {tuple(features.shape)}; give (B, N)")
