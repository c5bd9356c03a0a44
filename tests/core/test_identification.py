"""MaSCIdentification: figures against a loop, states, copies, collections, several processes, invalid input."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support import processes
from support.batches import PATCHES, counted_encodings, images, masks
from torch import Tensor, nn
from torchmetrics import MetricCollection

from masc_metrics import MaSCConceptPreservation, MaSCIdentification, SigLIP2Backbone, load_backbone
from masc_metrics.functional import concept_matrix

NAMES = ["cat", "cup", "car", "cow"]
SAMPLES = 7
TARGETS = [NAMES[index] for index in (0, 1, 2, 3, 1, 1, 2)]
OWN = [NAMES.index(target) for target in TARGETS]


def gallery() -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    counts = (2, 1, 1, 3)
    return (
        [list(images(count, seed=index)) for index, count in enumerate(counts)],
        [list(masks(count, seed=index)) for index, count in enumerate(counts)],
    )


def identification(model: Any, **settings: Any) -> MaSCIdentification:
    return MaSCIdentification(NAMES, *gallery(), model_name_or_path=model, max_num_patches=PATCHES, **settings)


def generated() -> Tensor:
    return images(SAMPLES, seed=50)


def matrix(backbone: SigLIP2Backbone) -> list[list[float]]:
    rows: list[list[float]] = concept_matrix(
        generated(), *gallery(), backbone=backbone, max_num_patches=PATCHES
    ).tolist()
    return rows


def by_hand(rows: list[list[float]], own: list[int]) -> tuple[list[float], list[float]]:
    """Rank and margin of each sample."""
    ranks = [1.0 + sum(row[s] >= row[o] for s in range(len(row)) if s != o) for row, o in zip(rows, own, strict=True)]
    centred = [[value - sum(row) / len(row) for value in row] for row in rows]
    margins = []
    for row, o in zip(centred, own, strict=True):
        others = [other[o] for other, its in zip(centred, own, strict=True) if its != o]
        margins.append(row[o] - sum(others) / len(others))
    return ranks, margins


def expected_means(rows: list[list[float]], own: list[int]) -> dict[str, float]:
    ranks, margins = by_hand(rows, own)
    return {
        "identified": sum(rank == 1 for rank in ranks) / len(ranks),
        "mean_reciprocal_rank": sum(1 / rank for rank in ranks) / len(ranks),
        "margin": sum(margins) / len(margins),
    }


def assert_close(found: dict[str, Tensor], expected: dict[str, float]) -> None:
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, abs=1e-6)
    assert all(value.dtype == torch.float32 and value.ndim == 0 for value in found.values())


def test_figures_over_batches_equal_a_loop_over_all_samples(backbone: SigLIP2Backbone) -> None:
    metric = identification(backbone)
    for start, end in ((0, 3), (3, 4), (4, 7)):
        metric.update(generated()[start:end], TARGETS[start:end])
    expected = expected_means(matrix(backbone), OWN)
    assert 0 < expected["identified"] < 1  # so that ranks other than 1 occur
    assert_close(metric.compute(), expected)


def test_reduction_none_gives_rank_and_margin_of_each_sample(backbone: SigLIP2Backbone) -> None:
    metric = identification(backbone, reduction="none")
    metric.update(generated(), TARGETS)
    ranks, margins = by_hand(matrix(backbone), OWN)
    found = metric.compute()
    assert found["rank"].tolist() == ranks
    assert found["margin"].tolist() == pytest.approx(margins, abs=1e-6)
    metric.reset()
    metric.update(generated()[:1], TARGETS[:1])
    assert {name: value.shape for name, value in metric.compute().items()} == {"rank": (1,), "margin": (1,)}


def test_the_gallery_is_encoded_once(backbone: SigLIP2Backbone) -> None:
    metric = identification(backbone)
    backbone.cache.clear()
    with counted_encodings() as counts:
        for start in range(3):
            metric.update(generated()[start : start + 1], TARGETS[start : start + 1])
            backbone.cache.clear()
    assert counts["images"] == 7 + 3


def test_repeated_ids_count_once_and_conflicts_are_reported(backbone: SigLIP2Backbone) -> None:
    metric = identification(backbone)
    for part in ([0, 1, 2, 3], [3, 4, 5, 6], [0]):
        metric.update(generated()[part], [TARGETS[index] for index in part], sample_ids=part)
    assert_close(metric.compute(), expected_means(matrix(backbone), OWN))
    metric.update(generated()[:1], ["cow"], sample_ids=[5])
    with pytest.warns(UserWarning, match="sample_ids contain 5 more than once"):
        metric.compute()
    with pytest.raises(ValueError, match=r"^sample_ids holds 8 more than once in one update"):
        metric.update(generated()[:2], TARGETS[:2], sample_ids=[8, 8])


def test_forward_gives_the_figures_of_the_batch_and_accumulates(backbone: SigLIP2Backbone) -> None:
    metric, rows = identification(backbone), matrix(backbone)
    assert_close(metric(generated()[:4], TARGETS[:4]), expected_means(rows[:4], OWN[:4]))
    assert_close(metric(generated()[4:], TARGETS[4:]), {**expected_means(rows[4:], OWN[4:])})
    assert_close(metric.compute(), expected_means(rows, OWN))


def test_images_of_one_concept_have_no_margin(backbone: SigLIP2Backbone) -> None:
    metric = identification(backbone)
    metric.update(generated()[:2], ["cup", "cup"])
    found = metric.compute()
    assert found["margin"].isnan()
    assert not found["identified"].isnan()


def test_without_samples_all_figures_are_nan(backbone: SigLIP2Backbone) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert all(value.isnan() for value in identification(backbone).compute().values())


def test_copies_and_pickles_continue_with_their_states(backbone: SigLIP2Backbone) -> None:
    metric = identification(backbone)
    metric.update(generated()[:4], TARGETS[:4])
    expected = expected_means(matrix(backbone), OWN)
    pickled = pickle.dumps(metric)
    assert len(pickled) < 2_000_000  # the gallery's pixels, and no network
    for other in (copy.deepcopy(metric), pickle.loads(pickled), metric.clone()):
        other.update(generated()[4:], TARGETS[4:])
        assert_close(other.compute(), expected)


def test_merged_states_equal_one_metric(backbone: SigLIP2Backbone) -> None:
    first, second = identification(backbone), identification(backbone)
    first.update(generated()[:4], TARGETS[:4])
    second.update(generated()[4:], TARGETS[4:])
    first.merge_state(second)
    assert_close(first.compute(), expected_means(matrix(backbone), OWN))
    other = MaSCIdentification(NAMES[::-1], *gallery(), model_name_or_path=backbone, max_num_patches=PATCHES)
    with pytest.raises(ValueError, match="cannot merge"):
        first.merge_state(other)


def test_a_checkpoint_contains_nothing_of_it(backbone: SigLIP2Backbone) -> None:
    module = nn.Module()
    module.metric = identification(backbone)
    module.metric.update(generated(), TARGETS)
    assert module.state_dict() == {}
    assert not list(module.parameters())
    assert not list(module.buffers())


def test_collection_with_concept_preservation_picks_arguments(backbone: SigLIP2Backbone) -> None:
    pictures, marked = gallery()
    collection = MetricCollection(
        {
            "cp": MaSCConceptPreservation(backbone, max_num_patches=PATCHES),
            "all": identification(backbone),
            "first": identification(backbone, reference_reduction="max"),
        }
    )
    collection.update(
        generated_images=generated(),
        targets=TARGETS,
        reference_images=[pictures[own] for own in OWN],
        reference_masks=[marked[own] for own in OWN],
    )
    found = collection.compute()
    assert len(collection.compute_groups) == 3
    assert {name.rpartition("_")[2] for name in found} >= {"cp", "identified", "margin"}


def test_a_concept_without_a_subject_patch_is_an_error_that_changes_nothing(backbone: SigLIP2Backbone) -> None:
    pictures, marked = gallery()
    marked[1] = [torch.zeros_like(mask) for mask in marked[1]]
    metric = MaSCIdentification(NAMES, pictures, marked, model_name_or_path=backbone, max_num_patches=PATCHES)
    with pytest.raises(ValueError, match=r"^no patch of the references of 'cup' is more than half covered"):
        metric.update(generated(), TARGETS)
    assert metric.update_count == 0
    assert metric.scores == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"targets": ["cat"]},
            ValueError,
            r"^targets holds 1 samples but generated_images holds 2; give one for each$",
        ),
        ({"targets": ["cat", "dog"]}, ValueError, r"^targets\[1\] is 'dog'; give 'cat', 'cup', 'car' or 'cow'$"),
        ({"targets": ["cat", 1]}, TypeError, r"^targets\[1\] is an int; give a name of the gallery$"),
        ({"targets": "cat"}, TypeError, r"^targets is a str; give a list of names"),
        ({"sample_ids": [1]}, ValueError, r"^sample_ids holds 1 ids"),
    ],
)
def test_wrong_updates_are_refused(
    backbone: SigLIP2Backbone, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    metric = identification(backbone)
    with pytest.raises(error, match=message):
        metric.update(**{"generated_images": generated()[:2], "targets": ["cat", "cup"]} | change)
    assert metric.scores == []


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["cat", "cup", "car"], ValueError, r"^names holds 3 concepts but reference_images holds 4; give one"),
        (["cat", "cup", "car", "cat"], ValueError, r"^names contains 'cat' more than once; give several"),
        (["cat"], ValueError, r"^names holds 1 concepts; give at least two"),
        (["cat", None, "car", "cow"], TypeError, r"^names\[1\] is a NoneType; give a string"),
        ("cats", TypeError, r"^names is a str; give a list of strings"),
    ],
)
def test_wrong_galleries_are_refused(names: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MaSCIdentification(names, *gallery(), model_name_or_path="tiny")


# --- several processes ---


def work(rank: int, world: int, checkpoint: str) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {}
    shares = {
        "uneven": [list(range(1)), list(range(1, SAMPLES))][rank],
        "without data": [[], list(range(SAMPLES))][rank],
        "repeated": [[0, 1, 2, 3], [4, 5, 6, 0]][rank],
    }
    for reduction in ("mean", "none"):
        for name, share in shares.items():
            metric = identification(checkpoint, reduction=reduction)
            for index in share:
                ids = [index] if name == "repeated" else None
                metric.update(generated()[index : index + 1], TARGETS[index : index + 1], sample_ids=ids)
            results[f"{reduction} {name}"] = metric.compute()
    return results


def test_two_processes_equal_one(checkpoint: Path, tmp_path: Path) -> None:
    backbone = load_backbone(checkpoint)
    ranks, margins = by_hand(matrix(backbone), OWN)
    expected = expected_means(matrix(backbone), OWN)
    for found in processes.run(work, 2, tmp_path, str(checkpoint)):
        for share in ("uneven", "without data", "repeated"):
            assert_close(found[f"mean {share}"], expected)
            assert found[f"none {share}"]["rank"].tolist() == ranks
            assert found[f"none {share}"]["margin"].tolist() == pytest.approx(margins, abs=1e-6)


def test_generated_images_of_one_colour_are_warned_about(backbone: SigLIP2Backbone) -> None:
    metric, pictures = identification(backbone), generated()
    metric.update(pictures, TARGETS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric.compute()
    pictures[2] = 0
    metric.update(pictures, TARGETS)
    with pytest.warns(UserWarning, match="MaSCIdentification: 1 generated images have one colour"):
        metric.compute()
