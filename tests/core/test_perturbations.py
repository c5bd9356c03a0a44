"""Masks that are wrong in a known way, and how far the scores move."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from support.batches import CP_ARGUMENTS, PATCHES, PF_ARGUMENTS, batch, counted_encodings, masks, only
from torch import Tensor

from masc_metrics import SigLIP2Backbone
from masc_metrics.functional import concept_preservation, mask_sensitivity, prompt_following
from masc_metrics.masks import Perturbation, PerturbationKind, perturb

KINDS: dict[PerturbationKind, float] = {
    "dilation": 3,
    "erosion": 3,
    "jitter": 3,
    "shift": 3,
    "dropout": 0.3,
    "bounding-box": 0,
}


def drawn(text: str) -> Tensor:
    """(H, W) mask with True at each #."""
    return torch.tensor([[character == "#" for character in line] for line in text.split()])


def within(mask: Tensor, radius: int) -> Tensor:
    """Pixels within a Euclidean distance of a marked one, by comparing all pairs."""
    places = torch.cartesian_prod(*(torch.arange(side) for side in mask.shape))
    marked = places[mask.flatten()]
    squared = (places[:, None] - marked[None]).pow(2).sum(dim=2)
    return (squared <= radius**2).any(dim=1).reshape(mask.shape)


def test_dilation_marks_a_disk_and_erosion_is_its_reverse() -> None:
    point = drawn("....... ....... ....... ...#... ....... ....... .......")
    disk = drawn("....... ...#... ..###.. .#####. ..###.. ...#... .......")
    assert torch.equal(perturb(point, "dilation", 2), disk)
    assert torch.equal(perturb(disk, "erosion", 1), drawn("....... ....... ...#... ..###.. ...#... ....... ......."))
    assert torch.equal(perturb(~point, "erosion", 2), ~disk)


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 9, 100])
def test_dilation_equals_the_comparison_of_all_pairs_of_pixels(radius: int) -> None:
    mask = torch.rand(17, 23, generator=torch.Generator().manual_seed(1)) > 0.98
    assert torch.equal(perturb(mask, "dilation", radius), within(mask, radius))


def test_border_of_the_image_is_not_background() -> None:
    assert perturb(torch.ones(5, 5, dtype=torch.bool), "erosion", 3).all()
    assert torch.equal(perturb(drawn("##.. ##.. ...."), "erosion", 1), drawn("#... .... ...."))


def test_bounding_box_marks_the_smallest_box() -> None:
    assert torch.equal(perturb(drawn("..... .#... ...#. ....."), "bounding-box"), drawn("..... .###. .###. ....."))


def test_shift_moves_the_mask_in_one_of_four_directions() -> None:
    mask = drawn("...... .#.... ..##.. ......")
    down, up = drawn("...... ...... ...... .#...."), drawn("..##.. ...... ...... ......")
    right, left = drawn("...... ...#.. ....## ......"), drawn("...... ...... ##.... ......")
    found = [perturb(mask, "shift", 2, seed) for seed in range(40)]
    for expected in (down, up, right, left):
        assert any(torch.equal(moved, expected) for moved in found)
    assert all(any(torch.equal(moved, expected) for expected in (down, up, right, left)) for moved in found)
    assert not perturb(mask, "shift", 9).any()


def test_dropout_unmarks_whole_blocks_closest_to_the_share() -> None:
    mask = torch.ones(8, 8, dtype=torch.bool)
    for seed in range(5):
        kept = perturb(mask, "dropout", 0.3, seed, block=2)
        blocks = kept.reshape(4, 2, 4, 2).float().mean(dim=(1, 3))
        assert set(blocks.flatten().tolist()) == {0.0, 1.0}
        assert int((blocks == 0).sum()) == 5, "16 blocks: 5 of them are closest to 30 %"
    uneven = drawn("##.# .... ....")
    assert {int(perturb(uneven, "dropout", 0.6, seed, block=2).sum()) for seed in range(20)} == {1, 2}, "1.8 of 3"
    assert torch.equal(perturb(mask, "dropout", 0), mask)
    assert not perturb(mask, "dropout", 1).any()


def test_jitter_moves_the_outline_by_at_most_its_amount() -> None:
    mask = torch.zeros(60, 80, dtype=torch.bool)
    mask[15:45, 20:60] = True
    for amount in (1, 4):
        moved = [perturb(mask, "jitter", amount, seed) for seed in range(10)]
        rows, columns = slice(15 - amount, 45 + amount), slice(20 - amount, 60 + amount)
        inner = (slice(15 + amount, 45 - amount), slice(20 + amount, 60 - amount))
        for each in moved:
            assert not torch.equal(each, mask)
            assert each[inner].all()
            assert each.sum() == each[rows, columns].sum()
        assert any(each[14].any() for each in moved)
        assert any(not each[15, 21:59].all() for each in moved)
    assert torch.equal(perturb(mask, "jitter", 0), mask)


@pytest.mark.parametrize(("kind", "amount"), KINDS.items())
def test_mask_of_a_batch_is_changed_as_it_would_be_alone(kind: PerturbationKind, amount: float) -> None:
    batch = masks(4, 40, 50)
    batch[3] = False
    before = batch.clone()
    together = perturb(batch, kind, amount, seed=7)
    assert together.shape == batch.shape
    assert together.dtype == torch.bool
    for index, mask in enumerate(batch):
        assert torch.equal(together[index], perturb(mask, kind, amount, seed=7))
        assert torch.equal(together[index], perturb(mask.clone(), kind, amount, seed=7))
    assert not together[3].any(), "an empty mask stays empty"
    assert torch.equal(batch, before)
    assert not torch.equal(together[:3], batch[:3]) or kind == "bounding-box"


@pytest.mark.parametrize("kind", ["jitter", "shift", "dropout"])
def test_seed_decides_random_kinds(kind: PerturbationKind) -> None:
    mask = masks(1, 60, 80)[0]
    found = [perturb(mask, kind, KINDS[kind], seed) for seed in range(10)]
    assert any(not torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(
    ("kind", "amount", "error", "text"),
    [
        ("blur", 1, ValueError, "kind is 'blur'; give 'dilation', 'erosion'"),
        ("dilation", 2.5, TypeError, "amount is 2.5, a float; give an integer, the pixels of 'dilation'"),
        ("shift", -1, ValueError, "amount is -1; give at least 0, the pixels of 'shift'"),
        ("dropout", 20, ValueError, "amount is 20; give a share of the subject in [0, 1] for 'dropout'"),
        ("dropout", float("nan"), ValueError, "amount is nan; give a share"),
        ("dropout", "10 %", TypeError, "amount is a str; give a number"),
        ("bounding-box", 3, ValueError, "amount is 3, but 'bounding-box' has no amount; give 0"),
        ("transferred", 0, ValueError, "'transferred', which needs references; call functional.mask_sensitivity"),
    ],
)
def test_wrong_kinds_and_amounts_are_named(kind: Any, amount: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        perturb(torch.ones(4, 4, dtype=torch.bool), kind, amount)


def test_wrong_masks_are_named() -> None:
    with pytest.raises(TypeError, match=r"mask is torch\.float32; give booleans"):
        perturb(torch.ones(4, 4), "dilation", 1)
    with pytest.raises(ValueError, match=re.escape("mask has shape (1, 1, 4, 4); give (H, W) or (B, H, W)")):
        perturb(torch.ones(1, 1, 4, 4, dtype=torch.bool), "dilation", 1)


def test_names_say_kind_and_amount() -> None:
    given = [("dilation", 5), ("dropout", 0.1), ("bounding-box", 0), ("transferred", 0)]
    names = [Perturbation(kind, amount).name for kind, amount in given]  # type: ignore[arg-type]
    assert names == ["dilation 5 px", "dropout 10 %", "bounding box", "transferred"]


# --- how far the scores move ---

PERTURBATIONS = [*(Perturbation(kind, amount) for kind, amount in KINDS.items()), Perturbation("transferred")]
SETTINGS = {"max_num_patches": PATCHES, "encode_batch_size": 2}


def samples() -> dict[str, Any]:
    """Five samples whose references have another shape than the generated images."""
    values = batch(5)
    values["reference_images"] = batch(5, seed=9, height=128, width=96)["generated_images"]
    values["reference_masks"] = list(batch(5, seed=9, height=128, width=96)["generated_masks"])
    return values


def test_given_masks_have_the_scores_of_the_metrics_to_the_last_bit(backbone: SigLIP2Backbone) -> None:
    values = samples()
    found = mask_sensitivity(**values, perturbations=PERTURBATIONS, backbone=backbone, **SETTINGS)
    backbone.cache.clear()
    cp = concept_preservation(**only(values, CP_ARGUMENTS), backbone=backbone, **SETTINGS)
    backbone.cache.clear()
    pf = prompt_following(**only(values, PF_ARGUMENTS), backbone=backbone, **SETTINGS)
    assert torch.equal(found.cp_B, cp)
    assert torch.equal(found.pf_B, pf)


def test_perturbed_masks_have_the_scores_of_masks_that_are_given_so(backbone: SigLIP2Backbone) -> None:
    values = samples()
    with counted_encodings() as counts:
        found = mask_sensitivity(**values, perturbations=PERTURBATIONS, seed=3, backbone=backbone, **SETTINGS)
    assert counts["images"] == 10, "each image once"
    assert counts["texts"] == 5
    assert list(found.cp) == PERTURBATIONS[:-1]
    assert list(found.pf) == PERTURBATIONS
    grid = backbone.checkpoint.processing.grid
    sizes = {"generated_masks": (96, 128), "reference_masks": (128, 96)}
    blocks = {name: math.ceil(size[0] / grid(*size, PATCHES)[0]) for name, size in sizes.items()}
    for each in PERTURBATIONS[:-1]:
        wrong = values | {
            name: [perturb(mask, each.kind, each.amount, 3, block=block) for mask in values[name]]
            for name, block in blocks.items()
        }
        cp = concept_preservation(**only(wrong, CP_ARGUMENTS), backbone=backbone, **SETTINGS)
        pf = prompt_following(**only(wrong, PF_ARGUMENTS), backbone=backbone, **SETTINGS)
        assert torch.equal(found.cp[each], cp), each
        assert torch.equal(found.pf[each], pf), each
    references = {name: values[name] for name in ("reference_images", "reference_masks")}
    arguments = only(values, PF_ARGUMENTS) | {"generated_masks": None} | references
    pf = prompt_following(**arguments, backbone=backbone, **SETTINGS)
    assert torch.equal(found.pf[Perturbation("transferred")], pf)


def test_soft_masks_are_perturbed_as_their_thresholded_selves(backbone: SigLIP2Backbone) -> None:
    values = samples()
    names = ("generated_masks", "reference_masks")
    soft = values | {name: [0.2 + 0.6 * mask.float() for mask in values[name]] for name in names}
    hard, softened = (
        mask_sensitivity(**each, perturbations=PERTURBATIONS[:1], backbone=backbone, **SETTINGS)
        for each in (values, soft)
    )
    assert torch.equal(hard.cp[PERTURBATIONS[0]], softened.cp[PERTURBATIONS[0]])
    assert torch.equal(hard.pf[PERTURBATIONS[0]], softened.pf[PERTURBATIONS[0]])


def test_sample_that_a_wrong_mask_leaves_nothing_of_is_undefined(backbone: SigLIP2Backbone) -> None:
    gone, full = Perturbation("dropout", 1), Perturbation("dilation", 200)
    found = mask_sensitivity(**samples(), perturbations=[gone, full], backbone=backbone, **SETTINGS)
    assert found.cp[gone].isnan().all()
    assert found.pf[full].isnan().all()
    assert not torch.stack([found.cp_B, found.pf_B, found.cp[full], found.pf[gone]]).isnan().any()


def test_something_else_than_a_perturbation_is_named(backbone: SigLIP2Backbone) -> None:
    with pytest.raises(TypeError, match=re.escape("perturbations[1] is a tuple; give a masc_metrics.masks.Perturb")):
        mask_sensitivity(
            **samples(), perturbations=[Perturbation("shift", 1), ("shift", 2)], backbone=backbone, **SETTINGS
        )
