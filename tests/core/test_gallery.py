"""Every picture against every concept, anchors, ranks and margins, against readable loops."""

from __future__ import annotations

import math
import random
from typing import Any, get_args

import numpy as np
import pytest
import torch
from support.batches import PATCHES, counted_encodings, images, masks
from support.reference_gallery import Gallery, different, separation
from torch import Tensor

from masc_metrics import SigLIP2Backbone
from masc_metrics.functional import concept_anchors, concept_matrix, concept_preservation
from masc_metrics.scores import concept_margins, concept_ranks, double_centred
from masc_metrics.settings import ReferenceReduction

REDUCTIONS = get_args(ReferenceReduction)
NAN = math.nan


@pytest.fixture
def settings(backbone: SigLIP2Backbone) -> dict[str, Any]:
    return {"backbone": backbone, "max_num_patches": PATCHES}


def concepts() -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Three concepts with 2, 1 and 3 references; one of the last marks nothing, another all."""
    sizes = ((96, 128), (128, 96), (112, 112))
    pictures = [list(images(count, *size, seed=count)) for count, size in zip((2, 1, 3), sizes, strict=True)]
    marked = [list(masks(count, *size, seed=count)) for count, size in zip((2, 1, 3), sizes, strict=True)]
    marked[2][0], marked[2][1] = torch.zeros_like(marked[2][0]), torch.ones_like(marked[2][1])
    return pictures, marked


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_element_is_the_score_of_its_pair(reduction: ReferenceReduction, settings: dict[str, Any]) -> None:
    generated, (pictures, marked) = [*images(3, seed=50), *images(2, 64, 200, seed=60)], concepts()
    settings["backbone"].cache.clear()
    with counted_encodings() as counts:
        found = concept_matrix(
            generated, pictures, marked, reference_reduction=reduction, encode_batch_size=2, **settings
        )
    assert counts["images"] == 5 + 6
    assert found.shape == (5, 3)
    for column in range(3):
        expected = concept_preservation(
            generated, [pictures[column]] * 5, [marked[column]] * 5, reference_reduction=reduction, **settings
        )
        assert torch.allclose(found[:, column], expected, atol=1e-6)


def test_diagonal_of_pairs_is_their_concept_preservation(settings: dict[str, Any]) -> None:
    pairs = images(4, seed=50), images(4), masks(4)
    found = concept_matrix(*pairs, **settings)
    assert torch.allclose(found.diagonal(), concept_preservation(*pairs, **settings), atol=1e-6)


def test_a_concept_without_a_subject_patch_is_a_column_of_nan(settings: dict[str, Any]) -> None:
    marked = masks(3)
    marked[1] = False
    found = concept_matrix(images(2, seed=50), images(3), marked, **settings)
    assert found.isnan().tolist() == [[False, True, False]] * 2
    none = concept_matrix(images(2, seed=50), images(1), marked[1:2], **settings)
    assert none.isnan().tolist() == [[True]] * 2


def test_features_that_are_not_finite_are_an_error(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from masc_metrics.towers import VisionTower

    encode = VisionTower.encode
    settings["backbone"].cache.clear()
    monkeypatch.setattr(VisionTower, "encode", lambda self, pixels: encode(self, pixels) * torch.inf)
    with pytest.raises(RuntimeError, match=r"^generated_images\[0\] has patches to score, but"):
        concept_matrix(images(2, seed=51), images(2, seed=52), masks(2), **settings)
    settings["backbone"].cache.clear()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_anchors_are_scores_of_the_references_themselves(
    reduction: ReferenceReduction, settings: dict[str, Any]
) -> None:
    pictures, marked = concepts()
    found = concept_anchors(pictures, marked, reference_reduction=reduction, **settings)

    def score(picture: Tensor, references: list[int], concept: int) -> float:
        chosen = [[values[concept][index] for index in references] for values in (pictures, marked)]
        pair = concept_preservation([picture], [chosen[0]], [chosen[1]], reference_reduction=reduction, **settings)
        return float(pair)

    def mean(values: list[float]) -> float:
        defined = [value for value in values if not math.isnan(value)]
        return sum(defined) / len(defined) if defined else NAN

    for concept, own in enumerate(pictures):
        numbers = range(len(own))
        ceiling = [score(own[j], [i for i in numbers if i != j], concept) for j in numbers if len(own) > 1]
        floor = [
            mean([score(picture, list(numbers), concept) for picture in other])
            for index, other in enumerate(pictures)
            if index != concept
        ]
        assert found.ceiling_R[concept].item() == pytest.approx(mean(ceiling), abs=1e-6, nan_ok=True)
        assert found.floor_R[concept].item() == pytest.approx(mean(floor), abs=1e-6)
    assert found.ceiling_R.isnan().tolist() == [False, True, False]


def test_one_concept_alone_has_no_floor(settings: dict[str, Any]) -> None:
    found = concept_anchors([list(images(2))], [list(masks(2))], **settings)
    assert found.floor_R.isnan().all()
    assert not found.ceiling_R.isnan().any()


# --- ranks and margins ---


def test_ranks_count_ties_against_the_own_concept() -> None:
    matrix = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.5, 0.5, 0.1], [0.2, NAN, 0.1], [0.2, NAN, 0.1]])
    ranks = concept_ranks(matrix, torch.tensor([0, 2, 0, 2, 1]))
    assert ranks.tolist()[:4] == [1, 3, 2, 2]
    assert ranks[4].isnan()


def test_double_centring_is_the_loop_over_others() -> None:
    numbers = random.Random(0)
    cells = [[numbers.uniform(-1, 1) for _ in range(4)] for _ in range(7)]
    own = [0, 1, 2, 3, 3, 0, 1]

    def centred(g: int, r: int) -> float:
        return cells[g][r] - sum(cells[g]) / 4

    def margin(g: int, r: int) -> float:
        others = [centred(h, r) for h in range(7) if own[h] != r]
        return centred(g, r) - sum(others) / len(others)

    expected = [[margin(g, r) for r in range(4)] for g in range(7)]
    matrix, columns = torch.tensor(cells, dtype=torch.float64), torch.tensor(own)
    found = double_centred(matrix, columns)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12)
    assert torch.equal(concept_margins(matrix, columns), found[torch.arange(7), columns])


@pytest.mark.parametrize("concept_count", [2, 3, 8])
def test_margin_is_what_the_own_concept_gains_whatever_pictures_and_references_give_to_all(concept_count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    own = torch.cat([torch.arange(concept_count), torch.zeros(3, dtype=torch.int64)])  # not equally many of each
    of_picture = torch.rand(len(own), 1, dtype=torch.float64, generator=generator)
    of_reference = torch.rand(1, concept_count, dtype=torch.float64, generator=generator)
    gain = 0.25 * torch.nn.functional.one_hot(own, concept_count)
    margins = concept_margins(of_picture + of_reference + gain, own)
    assert torch.allclose(margins, torch.full_like(margins, 0.25))


def test_margin_is_undefined_without_another_concept_or_a_picture_of_one() -> None:
    assert double_centred(torch.rand(2, 1), torch.tensor([0, 0])).isnan().all()
    assert concept_margins(torch.rand(2, 3), torch.tensor([0, 0])).isnan().all()
    undefined = torch.tensor([[0.9, NAN, 0.1], [0.2, NAN, 0.8]])
    without = concept_margins(undefined[:, [0, 2]], torch.tensor([0, 1]))
    assert concept_margins(undefined, torch.tensor([0, 2])).tolist() == pytest.approx(without.tolist())
    assert without.tolist() == pytest.approx([0.7, 0.7])


def test_matrices_of_another_form_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^own_G is torch.float32; give torch.int64"):
        concept_ranks(torch.rand(2, 2), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"^matrix_GR is \(2, 2\) and own_G is \(3,\); give"):
        double_centred(torch.rand(2, 2), torch.tensor([0, 1, 0]))


# --- rendered scenes ---


def test_figures_fall_with_the_number_of_changed_attributes() -> None:
    found = []
    for damage in (0, 2, 4):
        rng = np.random.default_rng(3)
        scenes = Gallery.of(different(rng, 6), rng, damage)
        matrix = scenes.matrix()
        if damage == 0:
            assert min(separation(matrix, scenes.own).values()) > 0.9
        identified = (concept_ranks(matrix, scenes.own) == 1).double().mean()
        found.append((float(identified), float(concept_margins(matrix, scenes.own).mean())))
    assert found == sorted(found, reverse=True)
    assert found[0][1] > 0.4
    assert found[2][1] < 0.1
