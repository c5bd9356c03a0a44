"""Masks transferred from references: how good they are, and what prompt following does with them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.batches import PATCHES, batch, counted_encodings, images, masks, rows
from support.transfer_quality import Scenes, auc, iou
from torchmetrics import MetricCollection

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing, SigLIP2Backbone, load_backbone
from masc_metrics.functional import check_transfer, prompt_following, prompt_following_variants, transfer_masks
from masc_metrics.scenes import SCENES, Subject, render
from masc_metrics.towers import VisionTower
from masc_metrics.transfer import POINTS, TRUSTED_IOU, find_subject, prompts_of_regions

REFERENCES = ("reference_images", "reference_masks")


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes.of(200, seed=3)


def settings(backbone: SigLIP2Backbone) -> dict[str, Any]:
    return {"backbone": backbone, "max_num_patches": PATCHES}


def pf_arguments(samples: dict[str, Any]) -> dict[str, Any]:
    """Arguments of prompt following with references instead of masks."""
    return {name: samples[name] for name in ("generated_images", "prompts", "subjects", *REFERENCES)}


def uniform_features(*values: float) -> torch.Tensor:
    """(1, N, 3) features in a plane, by their angle in degrees."""
    angles = torch.tensor(values).deg2rad()
    return torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], dim=1)[None]


# --- how good they are ---


def test_transferred_masks_overlap_the_true_ones(scenes: Scenes) -> None:
    undamaged = scenes.damage == 0
    overlap = scenes.overlap(scenes.transferred.masks)
    assert overlap[undamaged].mean() >= 0.80
    assert overlap[undamaged].mean() > scenes.overlap(scenes.ellipses)[undamaged].mean() + 0.25


def test_prompt_following_tells_scenes_apart_as_well_as_with_exact_masks(scenes: Scenes) -> None:
    exact = scenes.prompt_auc(scenes.exact)
    assert scenes.prompt_auc(scenes.transferred.masks) >= exact - 0.01
    assert scenes.prompt_auc(None) < exact - 0.01


def test_confidence_tells_whether_the_subject_is_there(scenes: Scenes) -> None:
    undamaged = scenes.damage == 0
    there = scenes.transferred.confidence_B[undamaged].nan_to_num(-1)
    elsewhere = scenes.transferred_from_others.confidence_B[undamaged].nan_to_num(-1)
    assert auc(there, elsewhere) >= 0.95


# --- how they are found ---


def test_patches_go_to_the_group_that_they_resemble() -> None:
    reference = uniform_features(0, 5, 10, 90, 95)
    coverage = torch.tensor([[1.0, 1.0, 0.9, 0.0, 0.1]])
    generated = uniform_features(2, 30, 80, 100)
    valid = torch.tensor([[True, True, True, True]])
    margin, confidence = find_subject(reference, coverage, torch.ones(1, 5, dtype=torch.bool), generated, valid)
    assert (margin > 0).tolist() == [[True, True, False, False]]
    cos = np.cos(np.deg2rad([[0, 28, 78, 98], [28, 0, 50, 70]]))  # of the first two patches with all
    expected = cos[:, :2].mean(axis=1) - cos[:, 2:].mean(axis=1)
    np.testing.assert_allclose(margin[0, :2].numpy(), expected, atol=1e-5)
    # Best cosines to the subject at 0, 5 and 10 degrees: 2 degrees to 0, and 20 degrees to 10.
    assert confidence.item() == pytest.approx(np.cos(np.deg2rad([2, 20])).mean(), abs=1e-5)


def test_outline_patches_belong_to_neither_group() -> None:
    reference, generated = uniform_features(0, 90, 45), uniform_features(0, 90)
    valid = torch.ones(1, 3, dtype=torch.bool)
    without, _ = find_subject(reference[:, :2], torch.tensor([[1.0, 0]]), valid[:, :2], generated, valid[:, :2])
    outline, _ = find_subject(reference, torch.tensor([[1.0, 0.0, 0.3]]), valid, generated, valid[:, :2])
    assert torch.equal(without, outline)


def test_reference_without_background_is_compared_with_the_generated_image() -> None:
    reference, coverage = uniform_features(0, 10), torch.ones(1, 2)
    valid = torch.ones(1, 4, dtype=torch.bool)
    margin, _ = find_subject(reference, coverage, valid[:, :2], uniform_features(5, 80, 90, 100), valid)
    assert (margin > 0).tolist() == [[True, False, False, False]]


def test_reference_without_a_subject_patch_finds_nothing() -> None:
    valid = torch.ones(1, 2, dtype=torch.bool)
    margin, confidence = find_subject(
        uniform_features(0, 90), torch.tensor([[0.4, 0.0]]), valid, uniform_features(0, 90), valid
    )
    assert not (margin > 0).any()
    assert confidence.isnan().all()


@pytest.mark.parametrize(("seed", "finds"), [(0, True), (136, False)])
def test_padding_is_never_found_and_changes_nothing(seed: int, finds: bool) -> None:
    """If nothing is found, the confidence is NaN with and without padding."""
    random = torch.Generator().manual_seed(seed)
    reference, generated = torch.rand(1, 6, 8, generator=random), torch.rand(1, 9, 8, generator=random)
    coverage = torch.tensor([[1.0, 1, 1, 0, 0, 0]])
    full = find_subject(
        reference, coverage, torch.ones(1, 6, dtype=torch.bool), generated, torch.ones(1, 9, dtype=torch.bool)
    )

    def padded(values: torch.Tensor, value: float = 0) -> torch.Tensor:
        return torch.cat([values, torch.full_like(values[:, :3], value)], dim=1)

    valid_R, valid_G = (torch.arange(count + 3)[None] < count for count in (6, 9))
    margin, confidence = find_subject(padded(reference, 1), padded(coverage), valid_R, padded(generated, 1), valid_G)
    torch.testing.assert_close(margin[:, :9], full[0])
    torch.testing.assert_close(confidence, full[1], equal_nan=True)
    assert confidence.isnan().item() is not finds
    assert (margin[:, 9:] == -2).all()


# --- forms of references ---


def test_masks_have_the_size_of_their_images_and_do_not_depend_on_the_batch(backbone: SigLIP2Backbone) -> None:
    samples = batch(4)
    generated = [
        images(1, *size, seed=index)[0] for index, size in enumerate([(96, 128), (50, 200), (61, 61), (96, 128)])
    ]
    references = [list(samples["reference_images"][:count]) for count in (1, 3, 2, 1)]
    their_masks = [list(samples["reference_masks"][:count]) for count in (1, 3, 2, 1)]
    together = transfer_masks(generated, references, their_masks, encode_batch_size=3, **settings(backbone))
    for index, image in enumerate(generated):
        assert together[index].shape == image.shape[1:]
        assert together[index].dtype == torch.bool
        alone = transfer_masks(
            [image], references[index : index + 1], their_masks[index : index + 1], **settings(backbone)
        )
        assert torch.equal(alone[0], together[index])
        assert torch.allclose(alone.confidence_B[0], together.confidence_B[index], atol=1e-6, equal_nan=True)


def test_one_reference_in_a_list_equals_the_reference_alone(backbone: SigLIP2Backbone) -> None:
    samples = batch(3)
    flat = transfer_masks(samples["generated_images"], *(samples[name] for name in REFERENCES), **settings(backbone))
    nested = [[[value] for value in samples[name]] for name in REFERENCES]
    for form in (nested, [[value[None] for value in samples[name]] for name in REFERENCES]):
        found = transfer_masks(samples["generated_images"], *form, **settings(backbone))
        assert all(torch.equal(a, b) for a, b in zip(found.masks, flat.masks, strict=True))


def test_errors_for_references_name_the_sample(backbone: SigLIP2Backbone) -> None:
    pictures, marked = images(2), masks(2)
    for references, their_masks, error, message in (
        (pictures[:1], marked[:1], ValueError, "reference_images holds 1"),
        ([[pictures[0]]], [[marked[0]]], ValueError, "reference_images holds 1"),
        ([[pictures[0]], []], [[marked[0]], []], ValueError, r"reference_images\[1\] is empty"),
        ([[pictures[0]], [pictures[1]]], [[marked[0]], []], ValueError, r"reference_masks\[1\] holds 0 masks for 1"),
        ([[pictures[0]], pictures[1]], [[marked[0]], [marked[1]]], TypeError, r"reference_masks\[1\] is a list"),
        ([[pictures[0]], [pictures[1]]], None, TypeError, "reference_masks is None; give"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            transfer_masks(pictures, references, their_masks, **settings(backbone))  # type: ignore[arg-type]


# --- prompt following without masks ---


def test_prompt_following_without_masks_equals_that_with_transferred_masks(backbone: SigLIP2Backbone) -> None:
    samples = batch(5)
    transferred = transfer_masks(
        samples["generated_images"], *(samples[name] for name in REFERENCES), **settings(backbone)
    )
    arguments = {name: samples[name] for name in ("generated_images", "prompts", "subjects")}
    given = prompt_following(generated_masks=transferred, **arguments, **settings(backbone))
    found = prompt_following_variants(generated_masks=None, **pf_arguments(samples), **settings(backbone))
    assert torch.equal(found.scores["background", True], given)
    assert found.transferred is not None
    assert all(torch.equal(a, b) for a, b in zip(found.transferred.masks, transferred.masks, strict=True))
    assert not torch.equal(
        given, prompt_following(generated_masks=samples["generated_masks"], **arguments, **settings(backbone))
    )


def test_given_masks_win_and_references_are_not_even_encoded(backbone: SigLIP2Backbone) -> None:
    samples = batch(3)
    arguments = {name: samples[name] for name in ("generated_images", "generated_masks", "prompts", "subjects")}
    expected = prompt_following(**arguments, **settings(backbone))
    backbone.cache.clear()
    with counted_encodings() as counts:
        found = prompt_following(**arguments, **{name: samples[name] for name in REFERENCES}, **settings(backbone))
    assert torch.equal(found, expected)
    assert counts["images"] == 3
    full = prompt_following_variants(
        generated_masks=None, poolings=["full"], **pf_arguments(samples), **settings(backbone)
    )
    assert full.transferred is None


def test_collection_needs_no_masks_of_generated_images(checkpoint: Path) -> None:
    samples = batch(4)
    options: dict[str, Any] = {"max_num_patches": PATCHES}
    metrics = MetricCollection(
        {"cp": MaSCConceptPreservation(checkpoint, **options), "pf": MaSCPromptFollowing(checkpoint, **options)}
    )
    metrics.update(**pf_arguments(samples))
    found = prompt_following_variants(
        generated_masks=None, **pf_arguments(samples), **settings(load_backbone(checkpoint))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = metrics.compute()["pf"]
    assert value == pytest.approx(found.scores["background", True].nanmean().item(), abs=1e-6)
    assert metrics["pf"].transferred_count == 4


def test_transferred_masks_are_counted_through_forward_merge_and_reset(checkpoint: Path) -> None:
    samples = batch(3)
    blank = rows(samples, 0) | {"reference_masks": torch.zeros_like(samples["reference_masks"][:1])}
    first, second = (MaSCPromptFollowing(checkpoint, max_num_patches=PATCHES) for _ in range(2))
    with pytest.warns(UserWarning, match="the masks of 1 generated images mark nothing.* at the references' masks"):
        first.forward(**pf_arguments(blank))
    second.update(**pf_arguments(rows(samples, 1, 2)))
    first.merge_state(second)
    assert (first.transferred_count, first.empty_mask_count) == (3, 1 + second.empty_mask_count)
    whole = prompt_following(
        blank["generated_images"], None, blank["prompts"], blank["subjects"], pooling="full",
        **settings(load_backbone(checkpoint)),
    )  # fmt: skip
    third = MaSCPromptFollowing(checkpoint, max_num_patches=PATCHES, reduction="none")
    third.update(**pf_arguments(blank))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(third.compute(), whole)  # an empty mask hides nothing
    first.reset()
    assert (first.transferred_count, first.empty_mask_count) == (0, 0)
    first.update(generated_masks=samples["generated_masks"], **pf_arguments(samples))
    assert first.transferred_count == 0


def test_neither_masks_nor_references_nor_prompts_are_optional(checkpoint: Path) -> None:
    metric = MaSCPromptFollowing(checkpoint, max_num_patches=PATCHES)
    samples = batch(2)
    for missing, message in (
        ("reference_masks", "reference_masks is None; give reference_images together"),
        ("reference_images", "reference_images is None"),
        ("prompts", "prompts is a NoneType; give a list of strings"),
    ):
        arguments = {name: value for name, value in pf_arguments(samples).items() if name != missing}
        with pytest.raises(TypeError, match=message):
            metric.update(**arguments)
    with pytest.raises(
        TypeError, match=r"generated_masks is None; .* give them, or reference_images and reference_masks"
    ):
        metric.update(**{name: samples[name] for name in ("generated_images", "prompts", "subjects")})
    assert metric.update_count == 0


def test_features_that_are_not_finite_are_not_a_missing_subject(
    backbone: SigLIP2Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = batch(2)
    encode = VisionTower.encode

    def broken(self: VisionTower, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        tokens_BND = encode(self, pixels_B3HW).clone()
        tokens_BND[0, 0] = torch.nan  # the first image of the pass, which is a reference
        return tokens_BND

    monkeypatch.setattr(VisionTower, "encode", broken)
    references = [samples[name] for name in REFERENCES]
    for call in (
        lambda: transfer_masks(samples["generated_images"], *references, **settings(backbone)),
        lambda: check_transfer(*references, **settings(backbone)),
        lambda: prompt_following(generated_masks=None, **pf_arguments(samples), **settings(backbone)),
    ):
        with pytest.raises(RuntimeError, match=r"not finite for generated_images\[0\] or its reference"):
            call()
        backbone.cache.clear()


def test_a_tensor_of_several_references_for_each_image_equals_the_lists(backbone: SigLIP2Backbone) -> None:
    samples = batch(4)
    pictures, marked = (samples[name].unflatten(0, (2, 2)) for name in REFERENCES)
    generated = samples["generated_images"][:2]
    stacked = transfer_masks(generated, pictures, marked, **settings(backbone))
    listed = transfer_masks(
        generated, [list(each) for each in pictures], [list(each) for each in marked], **settings(backbone)
    )
    assert all(torch.equal(a, b) for a, b in zip(stacked.masks, listed.masks, strict=True))


def test_references_that_images_share_are_in_memory_once_and_change_nothing(
    backbone: SigLIP2Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = batch(5)
    pictures, marked = (list(samples[name][:3]) for name in REFERENCES)
    counts = [3, 1, 2, 3, 2]
    arguments = [pictures[:count] for count in counts], [marked[:count] for count in counts]
    alone = [
        transfer_masks(
            samples["generated_images"][row : row + 1], *([each[row]] for each in arguments), **settings(backbone)
        )
        for row in range(5)
    ]
    prepared: list[int] = []
    prepare = SigLIP2Backbone.prepare

    def counted(self: SigLIP2Backbone, images: Any, **options: Any) -> Any:
        prepared.append(len(images))
        return prepare(self, images, **options)

    monkeypatch.setattr(SigLIP2Backbone, "prepare", counted)
    together = transfer_masks(samples["generated_images"], *arguments, **settings(backbone))
    assert prepared == [3 + 5], "three references and five images"
    for row, single in enumerate(alone):
        assert torch.equal(together.masks[row], single.masks[0])
    expected = torch.cat([single.confidence_B for single in alone])
    torch.testing.assert_close(together.confidence_B, expected, equal_nan=True)


# --- the check ---


def test_check_compares_references_with_each_other() -> None:
    subject = Subject("star", "red", "blue", "striped")
    shown = [render(subject, scene, seed=index) for index, scene in enumerate(SCENES[:3])]
    pictures = [torch.from_numpy(one.image) for one in shown]
    marked = [torch.from_numpy(one.mask) for one in shown]
    tiny = {"backbone": load_backbone("tiny"), "max_num_patches": 64}
    several = check_transfer([pictures], [marked], **tiny)
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    found = transfer_masks(
        [pictures[b] for _, b in pairs], [pictures[a] for a, _ in pairs], [marked[a] for a, _ in pairs], **tiny
    )
    expected = np.mean([iou(mask, marked[b]) for mask, (_, b) in zip(found.masks, pairs, strict=True)])
    assert several.tolist() == [pytest.approx(expected, abs=1e-6)]
    single = check_transfer(pictures, [mask.float() * 0.9 for mask in marked], **tiny)
    assert single.shape == (3,)
    assert (single > TRUSTED_IOU).all()
    # The mask of another object cannot be found again.
    wrong = torch.zeros_like(marked[0])
    wrong[:40, :40] = True
    assert check_transfer(pictures[:1], [wrong & ~marked[0]], **tiny).item() < TRUSTED_IOU


def test_each_connected_region_has_a_box() -> None:
    margin = torch.tensor([[1, -1, -1, -1], [-1, 1, -1, -1], [-1, -1, -1, 1], [-1, -1, -1, 1.0]])
    padded = torch.cat([margin.flatten(), torch.full((3,), -2.0)])
    boxes, points = prompts_of_regions(padded, (4, 4), (80, 40))
    assert sorted(boxes.tolist()) == [[0, 0, 20, 40], [30, 40, 40, 80]]
    assert points.shape == (2, POINTS, 2)
    boxes, points = prompts_of_regions(torch.full((16,), -1.0), (4, 4), (80, 40))
    assert (boxes.shape, points.shape) == ((0, 4), (0, POINTS, 2))


def test_points_of_a_region_are_its_best_patches_well_inside() -> None:
    margin = torch.full((6, 8), -1.0)
    margin[1:6, 1:7] = 0.5  # to the lower edge of the image, which does not end the region
    margin[1, 1] = 0.9  # the best, but at the outline
    margin[5, 3], margin[2, 5], margin[3, 2] = 0.8, 0.7, 0.6
    margin[0, 7] = 0.0
    ((box,), (points,)) = prompts_of_regions(margin.flatten(), (6, 8), (60, 160))
    assert box.tolist() == [20, 10, 140, 60]
    assert points.tolist() == [[70, 55], [110, 25], [50, 35]]


def test_a_region_without_inner_patches_has_its_best_ones_as_points() -> None:
    margin = torch.full((3, 3), -1.0)
    margin[0, 0], margin[0, 1] = 0.2, 0.4
    margin[0, 2] = -0.1
    _, (points,) = prompts_of_regions(margin.flatten(), (3, 3), (30, 30))
    assert points.tolist() == [[15, 5], [5, 5], [15, 5]], "the best of two is repeated"


def test_refined_masks_replace_those_in_which_something_is_marked() -> None:
    class Refiner:
        def masks_in_boxes(self, given: Any, boxes: Any, points: Any) -> list[torch.Tensor]:
            self.boxes, self.points = boxes, points
            marked = [torch.zeros(size, dtype=torch.bool) for size in given.sizes]
            marked[0][3, 4] = True
            return marked

    refiner = Refiner()
    backbone = load_backbone("tiny")
    pictures = [render(Subject("ball", "red", "blue", "striped"), SCENES[0], seed=n, size=(96, 96)) for n in range(2)]
    shown = torch.stack([torch.from_numpy(picture.image) for picture in pictures])
    arguments = (shown, shown, torch.stack([torch.from_numpy(picture.mask) for picture in pictures]))
    rough = transfer_masks(*arguments, **settings(backbone))
    refined = transfer_masks(*arguments, **settings(backbone), refine=refiner)
    assert rough.masks[1].any()
    assert refined.masks[0].nonzero().tolist() == [[3, 4]]
    assert torch.equal(refined.masks[1], rough.masks[1]), "nothing marked: the mask stays as it was"
    assert torch.equal(refined.confidence_B, rough.confidence_B)
    assert all((corners[:, 2:] > corners[:, :2]).all() and len(corners) for corners in refiner.boxes)
    for corners, points, mask in zip(refiner.boxes, refiner.points, rough.masks, strict=True):
        assert points.shape == (len(corners), POINTS, 2)
        column, row = points.flatten(0, 1).long().unbind(dim=1)
        assert mask[row, column].all(), "points are on what was found"
    with pytest.raises(TypeError, match=r"refine is a function; give load_segmenter\('grounded_sam2'\) or None"):
        transfer_masks(*arguments, **settings(backbone), refine=lambda: None)  # type: ignore[arg-type]
