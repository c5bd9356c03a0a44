"""Input that is probably wrong although it can be scored is warned about once, with the remedy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.batches import CP_ARGUMENTS, PATCHES, PF_ARGUMENTS, batch, masks, only
from support.photographs import PROMPTS, pasted, photograph
from torchmetrics import MetricCollection

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing
from masc_metrics.images import check_image, is_one_colour
from masc_metrics.masks import looks_inverted, mask_planes, perturb
from masc_metrics.scenes import concept_benchmark


def warnings_of(function: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(warning.message) for warning in caught]


def metrics(checkpoint: Path) -> tuple[MaSCConceptPreservation, MaSCPromptFollowing]:
    settings: dict[str, Any] = {"max_num_patches": PATCHES}
    return MaSCConceptPreservation(checkpoint, **settings), MaSCPromptFollowing(checkpoint, **settings)


FORMS: dict[str, Callable[[torch.Tensor], Any]] = {
    "bool": lambda mask: mask,
    "0 and 1": lambda mask: mask.byte(),
    "0 to 255": lambda mask: mask.byte() * 255,
    "float": lambda mask: mask.float(),
    "channel": lambda mask: mask[:, None],
    "list": list,
    "PIL": lambda mask: [Image.fromarray(each.numpy()).convert("L") for each in mask],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inverted", [True, False])
def test_inverted_masks_are_warned_about_once_by_both_metrics(form: str, inverted: bool, checkpoint: Path) -> None:
    values = batch(2)
    for name in ("generated_masks", "reference_masks"):
        small = values[name].clone()
        small[:, :, 70:] = False
        values[name] = FORMS[form](~small if inverted else small)
    for metric, names in zip(metrics(checkpoint), (CP_ARGUMENTS, PF_ARGUMENTS), strict=True):

        def use(metric: Any = metric, names: tuple[str, ...] = names) -> None:
            for _ in range(2):
                metric.update(**only(values, names))
                metric.compute()

        texts = warnings_of(use)
        assert len(texts) == inverted, texts
        assert all("2 masks cover most of their image and almost all of its border" in text for text in texts)


def test_images_of_one_colour_are_warned_about_once_by_both_metrics(checkpoint: Path) -> None:
    values = batch(3)
    values["generated_images"][1] = 0
    for metric, names in zip(metrics(checkpoint), (CP_ARGUMENTS, PF_ARGUMENTS), strict=True):
        metric.update(**only(values, names))
        (text,) = warnings_of(metric.compute)
        assert "1 generated images have one colour, as a safety checker's black images do" in text
        metric.update(**only(values, names))
        assert warnings_of(metric.compute) == []


def test_photographs_and_rendered_scenes_raise_no_false_alarm() -> None:
    pairs = [photograph(name) for name in PROMPTS]
    pairs += [pasted(name, scene, 200, 300) for name in PROMPTS for scene in PROMPTS if name != scene]
    pictures = [(np.array(each.image), torch.from_numpy(np.array(each.mask)) > 0) for each in pairs]
    scenes = concept_benchmark(20, seed=0)
    for images, marked in (
        (scenes.reference_images, scenes.reference_masks),
        (scenes.generated_images, scenes.generated_masks),
    ):
        pictures += [
            (image.transpose(1, 2, 0), torch.from_numpy(mask)) for image, mask in zip(images, marked, strict=True)
        ]
    assert len(pictures) > 30
    for pixels, mask in pictures:
        assert not is_one_colour(check_image(torch.from_numpy(pixels).permute(2, 0, 1), "image"))
        for wrong in (mask, perturb(mask, "dilation", 10), perturb(mask, "bounding-box"), torch.ones_like(mask)):
            assert not looks_inverted(wrong)
    found = sum(bool(looks_inverted(~mask)) for _, mask in pictures)
    print(f"{len(pictures)} pictures, {found} inverted masks found")
    assert found > 0.7 * len(pictures), "most inverted masks are found; not those of subjects at the border"


@pytest.mark.parametrize("wrong", [("subject", "subjects"), ("sample_id", "sample_ids"), ("prompt", "prompts")])
def test_misspelled_keywords_that_a_collection_drops_are_warned_about(wrong: tuple[str, str], checkpoint: Path) -> None:
    name, meant = wrong
    values = batch(2) | {"sample_ids": [0, 1]}
    values[name] = values.pop(meant)
    collection = MetricCollection(dict(zip(("cp", "pf"), metrics(checkpoint), strict=True)))

    def update() -> None:
        for _ in range(2):
            try:
                collection.update(**values)
            except (TypeError, ValueError):
                assert meant == "prompts", "which are required"

    texts = [text for text in warnings_of(update) if "did you mean" in text]
    assert len(texts) == (2 if meant == "sample_ids" else 1), "one for each metric that has the argument"
    assert all(f"no argument {name}, so a MetricCollection drops it; did you mean {meant}?" in text for text in texts)


def test_other_keywords_are_not_warned_about(checkpoint: Path) -> None:
    """They are for other metrics of the collection, or for none."""
    values = batch(2) | {"sample_ids": [0, 1], "subject": ["x", "y"], "images": 3, "real": True, "target": None}
    collection = MetricCollection(dict(zip(("cp", "pf"), metrics(checkpoint), strict=True)))
    assert warnings_of(lambda: collection.update(**values)) == []


def test_positional_arguments_of_a_collection_name_the_remedy(checkpoint: Path) -> None:
    values = batch(2)
    collection = MetricCollection(dict(zip(("cp", "pf"), metrics(checkpoint), strict=True)))
    with pytest.raises((TypeError, ValueError), match="give update's arguments by name, such as generated_masks="):
        collection.update(*only(values, CP_ARGUMENTS).values())
    cp, _ = metrics(checkpoint)
    with pytest.raises(ValueError, match="generated_images") as raised:
        cp.update(values["generated_images"][:1], *list(only(values, CP_ARGUMENTS).values())[1:])
    assert "MetricCollection" not in str(raised.value)


def test_planes_of_masks_are_found_in_every_form() -> None:
    given = masks(2)
    nested = [[given[0]], given[1:]]
    for form in (given, list(given), given[:, None], nested, FORMS["PIL"](given)):
        planes = mask_planes(form)
        assert [plane.shape for plane in planes] == [given[0].shape] * 2
        assert all(torch.equal(plane > 0, mask) for plane, mask in zip(planes, given, strict=True))
    assert mask_planes("mask") == mask_planes(None) == []
