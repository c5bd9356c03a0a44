"""Several references of a sample: forms, reductions, undefined references, and how often they are encoded."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from support.batches import PATCHES, counted_encodings, images, masks
from torch import Tensor
from torch.utils.data import default_collate

from masc_metrics import MaSCConceptPreservation, SigLIP2Backbone
from masc_metrics.functional import Aggregation, concept_preservation, concept_preservation_variants, match_maps
from masc_metrics.references import check_references
from masc_metrics.settings import ReferenceReduction

COUNTS = (3, 1, 2)


@pytest.fixture
def settings(backbone: SigLIP2Backbone) -> dict[str, Any]:
    return {"backbone": backbone, "max_num_patches": PATCHES}


def nested(counts: tuple[int, ...] = COUNTS) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """References of each sample, of different sizes, and their masks."""
    pictures = [list(images(count, 96 + 16 * index, 128, seed=index)) for index, count in enumerate(counts)]
    marked = [list(masks(count, 96 + 16 * index, 128, seed=index)) for index, count in enumerate(counts)]
    return pictures, marked


def by_hand(generated: Tensor, pictures: list[Tensor], marked: list[Tensor], reduction: str, settings: Any) -> float:
    """From the match map of each reference alone."""
    found = [
        match_maps([generated], [picture], [mask], **settings)[0]
        for picture, mask in zip(pictures, marked, strict=True)
    ]
    values = [[value for value in each.flatten().tolist() if not math.isnan(value)] for each in found]
    if reduction == "pool":
        values = [[value for each in values for value in each]]
    means = [sum(each) / len(each) for each in values if each]
    if not means:
        return math.nan
    return max(means) if reduction == "max" else sum(means) / len(means)


@pytest.mark.parametrize("reduction", get_args(ReferenceReduction))
def test_references_are_reduced_as_a_loop_over_them(reduction: ReferenceReduction, settings: dict[str, Any]) -> None:
    generated, (pictures, marked) = images(3, seed=50), nested()
    marked[2][1] = torch.zeros_like(marked[2][1])  # one of two references marks nothing
    found = concept_preservation(generated, pictures, marked, reference_reduction=reduction, **settings)
    expected = [
        by_hand(image, *each, reduction, settings) for image, *each in zip(generated, pictures, marked, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_three_reductions_differ(settings: dict[str, Any]) -> None:
    generated, (pictures, marked) = images(1, seed=50), nested((3,))
    marked[0][0] = torch.ones_like(marked[0][0])  # so that references have different numbers of patches
    found = {
        float(concept_preservation(generated, pictures, marked, reference_reduction=name, **settings))
        for name in get_args(ReferenceReduction)
    }
    assert len(found) == 3


def test_a_sample_is_undefined_only_if_all_its_references_are(settings: dict[str, Any]) -> None:
    generated, (pictures, marked) = images(2, seed=50), nested((2, 2))
    marked[0] = [torch.zeros_like(mask) for mask in marked[0]]
    marked[1][0] = torch.zeros_like(marked[1][0])
    alone = concept_preservation(generated[1:], [pictures[1][1]], [marked[1][1]], **settings)
    for reduction in get_args(ReferenceReduction):
        found = concept_preservation(generated, pictures, marked, reference_reduction=reduction, **settings)
        assert found.isnan().tolist() == [True, False]
        assert found[1].item() == pytest.approx(alone.item(), abs=1e-6)


@pytest.mark.parametrize("reduction", get_args(ReferenceReduction))
def test_variants_with_several_references(reduction: ReferenceReduction, settings: dict[str, Any]) -> None:
    generated, (pictures, marked) = images(3, seed=50), nested()
    generated_masks = masks(3, seed=50)
    aggregations = get_args(Aggregation)
    found = concept_preservation_variants(
        generated,
        pictures,
        marked,
        generated_masks,
        aggregations=aggregations,
        reference_reduction=reduction,
        **settings,
    )
    without_masks = concept_preservation_variants(
        generated, pictures, None, aggregations=["global"], reference_reduction=reduction, **settings
    )
    assert torch.equal(without_masks["global"], found["global"])
    for sample in range(3):
        alone = concept_preservation_variants(
            [generated[sample]] * COUNTS[sample],
            pictures[sample],
            marked[sample],
            [generated_masks[sample]] * COUNTS[sample],
            aggregations=aggregations,
            **settings,
        )
        for name in aggregations if reduction != "pool" or COUNTS[sample] == 1 else ("global",):
            values = alone[name].tolist()  # with "pool", references of one size count equally
            expected = max(values) if reduction == "max" else sum(values) / len(values)
            assert found[name][sample].item() == pytest.approx(expected, abs=1e-6), name


def test_pooled_mutual_recall_looks_for_neighbours_in_all_references(settings: dict[str, Any]) -> None:
    picture = images(1, seed=3)
    generated = picture.roll(30, dims=3)
    full = torch.ones(1, 96, 128, dtype=torch.bool)
    half = full.clone()
    half[:, :, 64:] = False

    def recall(references: list[list[Tensor]], marked: list[list[Tensor]]) -> float:
        return float(
            concept_preservation_variants(
                generated,
                references,
                marked,
                half,
                aggregations=["mutual-recall"],
                reference_reduction="pool",
                **settings,
            )["mutual-recall"]
        )

    alone = recall([[picture[0]]], [[full[0]]])
    assert 0 < alone < 1
    assert recall([[picture[0], picture[0]]], [[full[0], full[0] & False]]) == pytest.approx(alone)
    # Every patch of the generated image is nearest to itself; five of nine columns are at least half marked.
    assert recall([[picture[0], generated[0]]], [[full[0], full[0]]]) == pytest.approx(5 / 9)


def test_forms_of_several_references_are_equal(settings: dict[str, Any]) -> None:
    generated, pictures, marked = (
        images(2, seed=50),
        images(6).reshape(2, 3, 3, 96, 128),
        masks(6).reshape(2, 3, 96, 128),
    )
    expected = concept_preservation(generated, pictures, marked, **settings)
    for form in (
        ([list(each) for each in pictures], [list(each) for each in marked]),
        (list(pictures), list(marked)),
        (pictures, marked[:, :, None]),
        (tuple(tuple(each) for each in pictures), tuple(tuple(each) for each in marked)),
    ):
        assert torch.equal(concept_preservation(generated, *form, **settings), expected)


def test_one_reference_in_a_list_equals_the_reference_alone_bit_for_bit(settings: dict[str, Any]) -> None:
    generated, pictures, marked = images(3, seed=50), images(3), masks(3)
    flat = concept_preservation(generated, pictures, marked, **settings)
    for reduction in get_args(ReferenceReduction):
        listed = concept_preservation(
            generated,
            [[each] for each in pictures],
            [[each] for each in marked],
            reference_reduction=reduction,
            **settings,
        )
        assert torch.equal(listed, flat)


def test_a_list_may_mix_single_references_and_lists(settings: dict[str, Any]) -> None:
    generated, pictures, marked = images(2, seed=50), images(3), masks(3)
    mixed = concept_preservation(
        generated, [pictures[0], list(pictures[1:])], [marked[0], list(marked[1:])], **settings
    )
    alone = [
        concept_preservation(generated[:1], pictures[:1], marked[:1], **settings),
        concept_preservation(generated[1:], [list(pictures[1:])], [list(marked[1:])], **settings),
    ]
    assert torch.allclose(mixed, torch.cat(alone), atol=1e-6)


def test_default_collate_is_recognised_and_the_remedy_works(settings: dict[str, Any]) -> None:
    generated, pictures, marked = images(2, seed=50), *nested((3, 3))
    pictures[1], marked[1] = list(images(3, seed=8)), list(masks(3, seed=8))
    collated = [default_collate(values) for values in (pictures, marked)]
    assert [len(collated[0]), len(collated[0][0])] == [3, 2]
    with pytest.raises(
        ValueError, match=r"3 lists of 2 images but generated_images holds 2, as torch's default collate"
    ):
        concept_preservation(generated, *collated, **settings)
    remedy = [list(zip(*values, strict=True)) for values in collated]
    assert torch.equal(
        concept_preservation(generated, *remedy, **settings),
        concept_preservation(generated, pictures, marked, **settings),
    )


def test_a_flat_list_of_all_references_is_refused_with_the_nested_form(settings: dict[str, Any]) -> None:
    message = r"reference_images holds 6 samples but generated_images holds 2; .*3 references of each.*2 lists$"
    with pytest.raises(ValueError, match=message):
        concept_preservation(images(2), images(6), masks(6), **settings)


def test_a_missing_mask_is_not_read_as_one_that_marks_the_complete_image(settings: dict[str, Any]) -> None:
    pictures, marked = nested((2, 1))
    for given in (pictures, [pictures[0][0], pictures[1]]):
        with pytest.raises(
            TypeError, match=r"^reference_masks\[0\] is None; give the mask of every image of reference_"
        ):
            concept_preservation(images(2), given, [None, marked[1]], **settings)


def test_unknown_reduction_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^reference_reduction is 'median'; give 'mean', 'max' or 'pool'$"):
        concept_preservation(images(1), images(1), masks(1), reference_reduction="median", **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^reference_reduction is 'median'"):
        MaSCConceptPreservation("tiny", reference_reduction="median")  # type: ignore[arg-type]


def test_a_shared_list_is_checked_and_encoded_once(settings: dict[str, Any]) -> None:
    pictures, marked = list(images(3).float() / 255), list(masks(3).float())
    checked = check_references([pictures] * 5, [marked] * 5, 5)
    assert all(each is checked[0] for each in checked)
    settings["backbone"].cache.clear()
    with counted_encodings() as counts:
        found = concept_preservation(images(5, seed=50), [pictures] * 5, [marked] * 5, **settings)
    assert counts["images"] == 5 + 3
    alone = concept_preservation(images(5, seed=50)[4:], [pictures], [marked], **settings)
    assert found[4].item() == pytest.approx(alone.item(), abs=1e-6)


def test_match_maps_of_a_list_are_a_list(settings: dict[str, Any]) -> None:
    generated, (pictures, marked) = images(3, seed=50), nested()
    maps = match_maps(generated, pictures, marked, **settings)
    assert [len(each) for each in maps] == list(COUNTS)
    for sample in range(3):
        for number, found in enumerate(maps[sample]):
            alone = match_maps([generated[sample]], [pictures[sample][number]], [marked[sample][number]], **settings)
            assert torch.allclose(found, alone[0], atol=1e-6, equal_nan=True)
    means = [float(torch.stack([each.nanmean() for each in found]).mean()) for found in maps]
    assert concept_preservation(generated, pictures, marked, **settings).tolist() == pytest.approx(means, abs=1e-6)


def test_metric_counts_several_references_as_one_sample(settings: dict[str, Any]) -> None:
    generated, (pictures, marked) = images(3, seed=50), nested()
    for reduction in get_args(ReferenceReduction):
        metric = MaSCConceptPreservation(
            settings["backbone"], max_num_patches=PATCHES, reduction="none", reference_reduction=reduction
        )
        metric.update(generated, pictures, marked, sample_ids=[2, 1, 0])
        metric.update(generated[:1], pictures[:1], marked[:1], sample_ids=[2])
        expected = concept_preservation(generated, pictures, marked, reference_reduction=reduction, **settings)
        assert torch.allclose(metric.compute(), expected.flip(0), atol=1e-6)
