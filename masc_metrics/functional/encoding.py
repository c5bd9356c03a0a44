"""What all functions of this package share: checks, parts of a batch through the network, results in order.

Shape suffixes: B samples, N patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import NoneType

import torch
import torch.nn.functional as F
from torch import Tensor

from masc_metrics.arguments import (
    check_count,
    check_positive,
    check_sequence,
    check_type,
)
from masc_metrics.backbone import PatchFeatures, PreparedImages, SigLIP2Backbone
from masc_metrics.images import ImageBatch, Images, check_images
from masc_metrics.masks import (
    grid_coverage,
)
from masc_metrics.precision import to_device
from masc_metrics.prompts import check_unicode
from masc_metrics.prompts import strip_subject as _strip_subject
from masc_metrics.reading import NotFiniteError
from masc_metrics.references import References
from masc_metrics.scores import embedding_cosine, samples_per_block


def check_settings(backbone: SigLIP2Backbone, max_num_patches: int, encode_batch_size: int) -> None:
    """Raise TypeError or ValueError unless the settings that all functions share are accepted."""
    check_type("backbone", backbone, SigLIP2Backbone, "the result of masc_metrics.load_backbone")
    check_positive("max_num_patches", max_num_patches)
    check_positive("encode_batch_size", encode_batch_size)


def check_pairs(generated_images: Images, reference_images: Images) -> tuple[ImageBatch, ImageBatch]:
    """Return checked images of both kinds, equally many."""
    generated = check_images(generated_images, "generated_images")
    references = check_images(reference_images, "reference_images")
    check_count("reference_images", len(references), len(generated))
    return generated, references


def check_texts(
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


def each_image(batch: ImageBatch) -> list[tuple[Tensor, ...]]:
    """Group of images for :func:`encoded`, one for each sample."""
    return [(image,) for image in batch.images]


def _parts(samples: Sequence[tuple[Tensor, ...]], size: int) -> Iterator[list[int]]:
    """Indices of the samples in parts, sorted by image size so that images of equal size are encoded together."""
    sizes = [(image.shape[1], image.shape[2]) for (image,) in samples]
    order = sorted(range(len(samples)), key=sizes.__getitem__)
    for start in range(0, len(order), size):
        yield order[start : start + size]


def encoded(
    groups: Sequence[Sequence[tuple[Tensor, ...]]],
    backbone: SigLIP2Backbone,
    max_num_patches: int,
    encode_batch_size: int,
) -> Iterator[tuple[list[int], list[PatchFeatures]]]:
    """For each part, the indices of its samples, and the features of their images in each group.

    A group, such as the references, holds the images of every sample; the last one has one image for each sample.
    """

    def images_of(part: list[int]) -> list[list[Tensor]]:
        return [[image for index in part for image in group[index]] for group in groups]

    yield from _encoded(groups[-1], images_of, backbone, max_num_patches, encode_batch_size)


def _encoded(
    samples: Sequence[tuple[Tensor, ...]],
    images_of: Callable[[list[int]], list[list[Tensor]]],
    backbone: SigLIP2Backbone,
    max_num_patches: int,
    encode_batch_size: int,
) -> Iterator[tuple[list[int], list[PatchFeatures]]]:
    """For each part, its samples and the features of each of its lists of images.

    A part is prepared before the previous one is encoded, so that a GPU always has work.
    """

    def encoded(part: list[int], counts: list[int], prepared: PreparedImages) -> tuple[list[int], list[PatchFeatures]]:
        return part, backbone.encode(prepared, batch_size=encode_batch_size).split(counts)

    previous: tuple[list[int], list[int], PreparedImages] | None = None
    for part in _parts(samples, encode_batch_size):
        lists = images_of(part)
        images = ImageBatch(tuple(image for each in lists for image in each))
        prepared = backbone.prepare(images, max_num_patches=max_num_patches)
        if previous is not None:
            yield encoded(*previous)
        previous = part, [len(each) for each in lists], prepared
    if previous is not None:
        yield encoded(*previous)


@dataclass(frozen=True, slots=True)
class Shown:
    """The distinct references of a part of the samples.

    Attributes:
        features: their patch features.
        coverage_RN: coverage of their patches by their masks; 0 on padding.
        rows: for each sample of the part, the rows of its references.
    """

    features: PatchFeatures
    coverage_RN: Tensor
    rows: list[list[int]]


def encoded_references(
    generated: ImageBatch,
    references: Sequence[References],
    backbone: SigLIP2Backbone,
    max_num_patches: int,
    encode_batch_size: int,
) -> Iterator[tuple[list[int], Shown, PatchFeatures]]:
    """For each part: indices of its samples, their references, and features of the generated images.

    References that samples of a part share are in memory once.
    """

    def pairs_of(index: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(references[index].images.images, references[index].masks.masks, strict=True))

    def distinct(part: list[int]) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        return {(id(image), id(mask)): (image, mask) for index in part for image, mask in pairs_of(index)}

    def images_of(part: list[int]) -> list[list[Tensor]]:
        return [[image for image, _ in distinct(part).values()], [generated.images[index] for index in part]]

    samples = each_image(generated)
    for part, (features, candidate) in _encoded(samples, images_of, backbone, max_num_patches, encode_batch_size):
        known = distinct(part)
        row_of = {key: row for row, key in enumerate(known)}
        rows = [[row_of[id(image), id(mask)] for image, mask in pairs_of(index)] for index in part]
        yield part, Shown(features, coverage_of([mask for _, mask in known.values()], features), rows), candidate


@dataclass(frozen=True, slots=True)
class Pairs:
    """Features of P pairs of a reference, or of a bank of several, and a generated image.

    Attributes:
        tokens_PRD, valid_PR, coverage_PR: patches of the references.
        generated_PGD, generated_valid_PG: patches of the generated images.
        subject_PG: coverage of these by the masks of the generated images; None without masks.
    """

    tokens_PRD: Tensor
    valid_PR: Tensor
    coverage_PR: Tensor
    generated_PGD: Tensor
    generated_valid_PG: Tensor
    subject_PG: Tensor | None


def pairs_of(shown: Shown, candidate: PatchFeatures, subject_BG: Tensor | None, *, pool: bool) -> Iterator[Pairs]:
    """All pairs of a sample and one of its references, in order, or with ``pool`` of a sample and all of them.

    With one reference for each sample, all pairs of the part come together; otherwise as many as fit into memory.
    """
    samples = list(enumerate(shown.rows))
    banks = samples if pool else [(sample, [row]) for sample, rows in samples for row in rows]
    width = shown.coverage_RN.shape[1]
    longest = max(len(rows) for _, rows in banks)
    several = any(len(rows) > 1 for rows in shown.rows)
    size = samples_per_block(longest * width, candidate.tokens_BND.shape[1]) if several else len(banks)
    for start in range(0, len(banks), size):
        chunk = banks[start : start + size]
        sample_P = [sample for sample, _ in chunk]
        row_PK = [rows + [-1] * (longest - len(rows)) for _, rows in chunk]
        features, coverage_RN = shown.features, shown.coverage_RN
        reference = features.tokens_BND, features.valid_BN, coverage_RN
        if row_PK != [[row] for row in range(len(coverage_RN))]:
            rows_PK = torch.tensor(row_PK, device="cpu")
            given_PM = to_device((rows_PK >= 0).repeat_interleave(width, dim=1), coverage_RN.device)
            rows_PK = to_device(rows_PK.clamp(min=0), coverage_RN.device)
            tokens, valid, coverage = (values[rows_PK].flatten(1, 2) for values in reference)
            reference = tokens, valid & given_PM, coverage * given_PM
        generated = candidate.tokens_BND, candidate.valid_BN, subject_BG
        if sample_P != list(range(len(candidate.grids))):
            rows_P = to_device(torch.tensor(sample_P, device="cpu"), coverage_RN.device)
            generated = generated[0][rows_P], generated[1][rows_P], None if subject_BG is None else subject_BG[rows_P]
        yield Pairs(*reference, *generated)


def encoded_pairs(
    generated: ImageBatch,
    references: ImageBatch,
    backbone: SigLIP2Backbone,
    max_num_patches: int,
    encode_batch_size: int,
) -> Iterator[tuple[list[int], PatchFeatures, PatchFeatures]]:
    """For each part: indices of its samples, features of the references and of the generated images."""
    groups = [each_image(references), each_image(generated)]
    for part, (reference, candidate) in encoded(groups, backbone, max_num_patches, encode_batch_size):
        yield part, reference, candidate


def finite(tokens_BND: Tensor, valid_BN: Tensor) -> Tensor:
    """Whether the features of all valid patches of an image are finite, (B,) bool."""
    return (tokens_BND.isfinite().all(dim=2) | ~valid_BN).all(dim=1)


def coverage_of(masks: Sequence[Tensor], features: PatchFeatures) -> Tensor:
    """Coverage of the patches by the masks of their images, (B, N); 0 on padding."""
    rows = [grid_coverage(mask, grid) for mask, grid in zip(masks, features.grids, strict=True)]
    width = features.valid_BN.shape[1]
    device = features.valid_BN.device
    if len({row.device for row in rows}) > 1:
        rows = [to_device(row, device) for row in rows]
    return to_device(torch.stack([F.pad(coverage_N, (0, width - len(coverage_N))) for coverage_N in rows]), device)


def rearranged(parts: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    """Values of all parts, each with the indices of its samples, in the order of the samples."""
    positions = torch.tensor([index for part, _ in parts for index in part], device="cpu")
    values_B = torch.cat([values for _, values in parts])
    return values_B[to_device(positions.argsort(), values_B.device)]


def in_order(scored: Sequence[tuple[list[int], Tensor, Tensor]], backbone: SigLIP2Backbone) -> Tensor:
    """Scores of all parts in the order of the samples, checked at the end so that parts do not wait for each other.

    Args:
        scored: for each part, the indices of its samples, their scores, one or a row of them for each, and whether the
            masks leave a patch to score.
        backbone: backbone of the features; NaN of a broken network must not be mistaken for an undefined sample.
    """
    scores_B = rearranged([(part, scores) for part, scores, _ in scored])
    defined_B = rearranged([(part, defined) for part, _, defined in scored])
    broken = (scores_B.isnan() & defined_B).nonzero()
    if len(broken):
        raise NotFiniteError(
            f"generated_images[{int(broken[0, 0])}] has patches to score, but {backbone} gave features that are not "
            "finite; run it in torch.bfloat16 or torch.float32, and check its weights"
        )
    return scores_B


def followed(
    pooled: Sequence[tuple[list[int], Tensor, Tensor]], embeddings_BD: Tensor, backbone: SigLIP2Backbone
) -> Tensor:
    """Prompt following of all samples from pooled parts, as :func:`in_order` takes scores, and their texts."""
    scored = []
    for part, pooled_BD, defined_B in pooled:
        texts_BD = torch.stack([embeddings_BD[index] for index in part])  # an index by a list would synchronise
        scored.append((part, embedding_cosine(pooled_BD, texts_BD), defined_B))
    return in_order(scored, backbone)
