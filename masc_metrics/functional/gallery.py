"""Every picture against every concept, and what a score is worth.

Shape suffixes: G generated images, R concepts, P references of all concepts, M their subject patches, N patches of a
generated image, D feature width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from masc_metrics.arguments import check_choice
from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.functional.encoding import check_settings, coverage_of, each_image, encoded, in_order
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.images import ImageBatch, Images, check_images
from masc_metrics.masks import FOREGROUND_THRESHOLD
from masc_metrics.precision import eager
from masc_metrics.references import (
    ReferenceImages,
    ReferenceMasks,
    References,
    check_references,
)
from masc_metrics.scores import best_cosine, over_references
from masc_metrics.settings import (
    DEFAULT_ENCODE_BATCH_SIZE,
    DEFAULT_REFERENCE_REDUCTION,
    ReferenceReduction,
)


@eager
def concept_matrix(
    generated_images: Images,
    reference_images: ReferenceImages,
    reference_masks: ReferenceMasks,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
    reference_reduction: ReferenceReduction = DEFAULT_REFERENCE_REDUCTION,
) -> Tensor:
    """Concept preservation of every generated image against every concept; each image is encoded once.

    The memory is bounded by the subject patches of all references, ``encode_batch_size`` generated images, and 16 MiB
    of cosines: 200 references of 1024 patches and width 1152, all of them subject, are 0.94 GB in float32.

    Args:
        generated_images: G images, in any form accepted by :func:`concept_preservation`.
        reference_images: R images, one of each concept; or a list of R lists, with several images of one concept each.
        reference_masks: masks of the subject in them, in the same arrangement.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        encode_batch_size: images encoded together.
        reference_reduction: how several references of a concept give one score, see :func:`concept_preservation`.

    Returns:
        (G, R) float32 on the backbone's device, in [-1, 1]; a column is NaN if no patch of any of its references is
        more than half covered. An element equals :func:`concept_preservation` of this image with these references, up
        to the rounding of float32 (1e-6), because the products have other shapes.

    Raises:
        TypeError, ValueError, OSError, RuntimeError: as for :func:`concept_preservation`.

    Source: MaSC, arXiv 2605.22469, for each element.
    """
    check_settings(backbone, max_num_patches, encode_batch_size)
    check_choice("reference_reduction", reference_reduction, get_args(ReferenceReduction))
    generated = check_images(generated_images, "generated_images")
    references = check_references(reference_images, reference_masks, None)
    bank = SubjectBank.of(references, backbone, max_num_patches, encode_batch_size)
    return bank.matrix(generated, backbone, max_num_patches, encode_batch_size, reference_reduction)


@dataclass(frozen=True, slots=True)
class ConceptAnchors:
    """What concept preservation is between reference images, as a scale for that of generated images.

    Attributes:
        ceiling_R: (R,) float32, mean score of each of a concept's references with its other references; NaN for a
            concept with fewer than two.
        floor_R: (R,) float32, mean score of the references of the other concepts with those of this concept, every
            other concept counting equally; NaN without another concept.
    """

    ceiling_R: Tensor
    floor_R: Tensor


@eager
def concept_anchors(
    reference_images: ReferenceImages,
    reference_masks: ReferenceMasks,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    encode_batch_size: int = DEFAULT_ENCODE_BATCH_SIZE,
    reference_reduction: ReferenceReduction = DEFAULT_REFERENCE_REDUCTION,
) -> ConceptAnchors:
    """What scores of a concept mean: the score of real images of the same subject, and of images of other subjects.

    Each reference image is scored as if it had been generated, with the other references of its concept (ceiling) and
    with the references of each other concept (floor). Both are on the backbone's device.

    Args:
        reference_images: R images, one of each concept; or a list of R lists, with several images of one concept each.
        reference_masks: masks of the subject in them, in the same arrangement.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        encode_batch_size: images encoded together.
        reference_reduction: how several references of a concept give one score, see :func:`concept_preservation`.

    Raises:
        TypeError, ValueError, OSError, RuntimeError: as for :func:`concept_preservation`.
    """
    check_settings(backbone, max_num_patches, encode_batch_size)
    check_choice("reference_reduction", reference_reduction, get_args(ReferenceReduction))
    references = check_references(reference_images, reference_masks, None)
    bank = SubjectBank.of(references, backbone, max_num_patches, encode_batch_size)
    return bank.anchors(references, backbone, max_num_patches, encode_batch_size, reference_reduction)


@dataclass(frozen=True, slots=True)
class SubjectBank:
    """Features of the subject patches of R concepts.

    Attributes:
        tokens_MD: in the backbone's dtype, those of the first reference of the first concept, of its second, and so on.
        counts: for each concept, the number of subject patches in each of its references.
    """

    tokens_MD: Tensor
    counts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls, references: Sequence[References], backbone: SigLIP2Backbone, max_num_patches: int, encode_batch_size: int
    ) -> SubjectBank:
        """Encode the references of R concepts, each image once."""
        images = [(image,) for each in references for image in each.images.images]
        masks = [mask for each in references for mask in each.masks.masks]
        subject: dict[int, Tensor] = {}
        for part, (features,) in encoded([images], backbone, max_num_patches, encode_batch_size):
            foreground_BN = coverage_of([masks[index] for index in part], features) > FOREGROUND_THRESHOLD
            for index, tokens_ND, foreground_N in zip(part, features.tokens_BND, foreground_BN, strict=True):
                subject[index] = tokens_ND[foreground_N]
        ordered = [subject[index] for index in range(len(images))]
        counts = iter([len(tokens) for tokens in ordered])
        return cls(torch.cat(ordered), tuple(tuple(itertools.islice(counts, len(each))) for each in references))

    def matrix(
        self,
        generated: ImageBatch,
        backbone: SigLIP2Backbone,
        max_num_patches: int,
        encode_batch_size: int,
        reduction: ReferenceReduction,
    ) -> Tensor:
        """(G, R), see :func:`concept_matrix`."""
        groups = [(sum(each),) for each in self.counts] if reduction == "pool" else self.counts
        patches = [count for each in groups for count in each]
        defined_P = torch.tensor([count > 0 for count in patches], device=self.tokens_MD.device)
        scored = []
        for part, (features,) in encoded([each_image(generated)], backbone, max_num_patches, encode_batch_size):
            scores_GR, defined_R = over_references(
                self._scores(features.tokens_BND, features.valid_BN, patches),
                defined_P,
                [len(each) for each in groups],
                largest=reduction == "max",
            )
            scored.append((part, scores_GR, defined_R.expand_as(scores_GR)))
        return in_order(scored, backbone)

    def _scores(self, tokens_GND: Tensor, valid_GN: Tensor, patches: Sequence[int]) -> Tensor:
        """(G, P): mean best cosine of every group of consecutive patches of the bank; NaN for a group of none."""
        best_GM = torch.cat(
            [
                best_cosine(self.tokens_MD[None], tokens_1ND, valid_1N)
                for tokens_1ND, valid_1N in zip(torch.split(tokens_GND, 1), torch.split(valid_GN, 1), strict=True)
            ]
        )
        return torch.stack([best_GK.mean(dim=1) for best_GK in torch.split(best_GM, list(patches), dim=1)], dim=1)

    def anchors(
        self,
        references: Sequence[References],
        backbone: SigLIP2Backbone,
        max_num_patches: int,
        encode_batch_size: int,
        reduction: ReferenceReduction,
    ) -> ConceptAnchors:
        """See :func:`concept_anchors`; ``references`` are those that the bank was made of."""
        pictures = ImageBatch(tuple(image for each in references for image in each.images.images))
        alone = SubjectBank(self.tokens_MD, tuple((count,) for each in self.counts for count in each))
        matrix_PP = alone.matrix(pictures, backbone, max_num_patches, encode_batch_size, "mean")
        counts_P = torch.tensor([count for each in self.counts for count in each], device=matrix_PP.device)
        groups = torch.split(torch.arange(len(counts_P), device=matrix_PP.device), [len(each) for each in self.counts])

        def of_references(picture_K: Tensor, reference_L: Tensor) -> Tensor:
            """Score of each of some pictures with some references of one concept."""
            scores_KL, counts_L = matrix_PP[picture_K][:, reference_L], counts_P[reference_L]
            if reduction == "pool":
                return torch.where(counts_L > 0, scores_KL * counts_L, 0).sum(dim=1) / counts_L.sum()
            return over_references(scores_KL, counts_L > 0, [len(counts_L)], largest=reduction == "max")[0][:, 0]

        ceilings, floors = [], []
        for own_L in groups:
            left_out = [of_references(own_L[own_L == one], own_L[own_L != one]) for one in own_L if len(own_L) > 1]
            others = [of_references(other_K, own_L).mean() for other_K in groups if other_K is not own_L]
            ceilings.append(torch.cat(left_out).nanmean() if left_out else matrix_PP.new_tensor(torch.nan))
            floors.append(torch.stack(others).mean() if others else matrix_PP.new_tensor(torch.nan))
        return ConceptAnchors(torch.stack(ceilings), torch.stack(floors))
