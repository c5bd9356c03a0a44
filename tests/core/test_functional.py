"""Variants of both scores from one pass of the images, against single calls and loops over features."""

from __future__ import annotations

import math
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
import torch
from support.batches import PATCHES, batch, counted_encodings
from torch import Tensor

from masc_metrics import SigLIP2Backbone
from masc_metrics.functional import (
    Aggregation,
    Pooling,
    background_maps,
    concept_preservation,
    concept_preservation_variants,
    prompt_following,
    prompt_following_variants,
)
from masc_metrics.masks import grid_coverage

AGGREGATIONS = get_args(Aggregation)


@pytest.fixture
def settings(backbone: SigLIP2Backbone) -> dict[str, Any]:
    return {"backbone": backbone, "max_num_patches": PATCHES}


def _pairs(count: int = 5) -> dict[str, Any]:
    names = ("generated_images", "reference_images", "reference_masks", "generated_masks")
    values = batch(count)
    values["generated_images"][0] = values["reference_images"][0].roll(30, dims=2)  # mutual pairs in the foreground
    values["reference_masks"] = 0.3 + 0.7 * values["reference_masks"].float()  # so that weights are not 0 and 1
    return {name: values[name] for name in names}


def test_variants_of_prompt_following_equal_single_calls_and_encode_images_once(settings: dict[str, Any]) -> None:
    values = batch(5)
    arguments = [values[name] for name in ("generated_images", "generated_masks", "prompts", "subjects")]
    backbone = settings["backbone"]
    with counted_encodings() as counts:
        found = prompt_following_variants(
            *arguments, poolings=get_args(Pooling), strip_subject=(True, False), encode_batch_size=2, **settings
        ).scores
    assert counts["images"] == 5
    assert list(found) == [(pooling, strip) for strip, pooling in product((True, False), get_args(Pooling))]
    for (pooling, strip), scores in found.items():
        backbone.cache.clear()
        expected = prompt_following(*arguments, pooling=pooling, strip_subject=strip, encode_batch_size=2, **settings)
        assert torch.equal(scores, expected)
    assert len({tuple(scores.tolist()) for scores in found.values()}) == 6


def _loop(name: str, reference: Tensor, generated: Tensor, weight: list[float], subject: list[float]) -> float:
    unit_R, unit_G = (features / np.linalg.norm(features, axis=1, keepdims=True) for features in (reference, generated))
    cosines = [[float(r @ g) for g in unit_G] for r in unit_R]
    best = [max(row) for row in cosines]
    inside = [coverage > 0.5 for coverage in weight]
    if name == "mutual-recall":
        pairs = [
            (r, g)
            for r, row in enumerate(cosines)
            for g, value in enumerate(row)
            if value == max(row) and value == max(other[g] for other in cosines) and inside[r]
        ]
        return sum(subject[g] >= 0.5 for _, g in pairs) / len(pairs) if pairs else math.nan
    weights = {"masked": inside, "weighted": weight, "global": [1.0] * len(best)}[name]
    return sum(w * b for w, b in zip(weights, best, strict=True)) / sum(weights)


def test_variants_of_concept_preservation_equal_loops_and_encode_images_once(settings: dict[str, Any]) -> None:
    pairs = _pairs()
    with counted_encodings() as counts:
        found = concept_preservation_variants(*pairs.values(), aggregations=AGGREGATIONS, **settings)
    assert counts["images"] == 10
    assert tuple(found) == AGGREGATIONS
    generated, references = (
        settings["backbone"].encode_images(pairs[name], max_num_patches=PATCHES)
        for name in ("generated_images", "reference_images")
    )
    for index in range(5):
        reference, image = (part.tokens_BND[index].double().numpy() for part in (references, generated))
        weight, subject = (
            grid_coverage(pairs[f"{which}_masks"][index].float(), part.grids[index]).tolist()
            for which, part in (("reference", references), ("generated", generated))
        )
        for name in AGGREGATIONS:
            expected = _loop(name, reference, image, weight, subject)
            assert float(found[name][index]) == pytest.approx(expected, abs=1e-5, nan_ok=True)
    assert 0 < float(found["mutual-recall"][0]) < 1
    assert len({round(float(scores[0]), 3) for scores in found.values()}) == 4
    del pairs["generated_masks"]
    assert torch.equal(found["masked"], concept_preservation(*pairs.values(), **settings))


def test_every_variant_is_undefined_only_where_its_own_patches_are_missing(settings: dict[str, Any]) -> None:
    pairs = _pairs(2)
    pairs["reference_masks"][1] = 0
    found = concept_preservation_variants(*pairs.values(), aggregations=AGGREGATIONS, **settings)
    assert {name: scores.isnan().tolist()[1] for name, scores in found.items()} == {
        "masked": True,
        "weighted": True,
        "global": False,
        "mutual-recall": True,
    }
    assert not found["masked"].isnan()[0]
    values = batch(2)
    values["generated_masks"][0], values["generated_masks"][1] = True, False
    arguments = [values[name] for name in ("generated_images", "generated_masks", "prompts", "subjects")]
    followed = prompt_following_variants(
        *arguments, poolings=get_args(Pooling), strip_subject=(True,), **settings
    ).scores
    assert {pooling: scores.isnan().tolist() for (pooling, _), scores in followed.items()} == {
        "background": [True, False],
        "full": [False, False],
        "foreground": [False, True],
    }


def test_variants_without_masks_need_none(settings: dict[str, Any]) -> None:
    pairs = _pairs(2)
    images = pairs["generated_images"], pairs["reference_images"]
    assert concept_preservation_variants(*images, None, aggregations=("global",), **settings)["global"].isfinite().all()
    with pytest.raises(TypeError, match=r"^reference_masks is None; give a mask of the subject"):
        concept_preservation_variants(*images, None, aggregations=("global", "weighted"), **settings)
    with pytest.raises(TypeError, match=r"^generated_masks is None; mutual-recall needs a mask"):
        concept_preservation_variants(*images, pairs["reference_masks"], aggregations=("mutual-recall",), **settings)
    with pytest.raises(ValueError, match=r"^aggregations is 'mean'; give 'masked', 'weighted', 'global' or 'mutual-"):
        concept_preservation_variants(*images, None, aggregations=("mean",), **settings)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^aggregations is a str; give a list"):
        concept_preservation_variants(*images, None, aggregations="global", **settings)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"generated_masks is None; pooling='foreground' needs a mask"):
        prompt_following_variants(
            images[0], None, ["a", "b"], poolings=("full", "foreground"), strip_subject=(True,), **settings
        )


def test_features_that_are_not_finite_are_an_error_of_mutual_recall(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = _pairs(2)
    encode = SigLIP2Backbone.encode

    def broken(self: SigLIP2Backbone, *arguments: Any, **options: Any) -> Any:
        features = encode(self, *arguments, **options)
        features.tokens_BND[3, 0] = torch.nan  # the second generated image
        return features

    monkeypatch.setattr(SigLIP2Backbone, "encode", broken)
    with pytest.raises(RuntimeError, match=r"generated_images\[1\] has patches to score, but .* not finite"):
        concept_preservation_variants(*pairs.values(), aggregations=("mutual-recall",), **settings)


def test_background_maps_are_the_weights_that_pool_the_patches(backbone: SigLIP2Backbone) -> None:
    """The mean over heads of torch's own weights; NaN where the mask hides a patch, or all of them."""
    generated = torch.randint(256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :32] = True
    masks[1] = True
    half, nothing = background_maps(generated, masks, backbone=backbone, max_num_patches=16)
    features = backbone.encode_images(generated, max_num_patches=16)
    head, visible = backbone._vision.network.head, features.tokens_BND[:1, 8:]
    with torch.no_grad():
        _, weights = head.attention(head.probe, visible, visible)
    torch.testing.assert_close(half[2:].flatten(), weights.flatten())
    assert half.shape == (4, 4)
    assert half[:2].isnan().all()
    assert float(half[2:].sum()) == pytest.approx(1, abs=1e-5)
    assert nothing.isnan().all()
