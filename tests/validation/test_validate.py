"""validate_concepts: scores, table and panel without Lightning, on one process and on two."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import processes
from support.batches import PATCHES, images, masks
from support.concept_cases import PROMPTS, SIZE, concepts, three_concepts

from masc_metrics import MaSCIdentification, functional, load_backbone
from masc_metrics.validation import Concept, ConceptValidation, validate_concepts


class Model(torch.nn.Module):
    """Generates images that depend on its weight, on the prompts and on torch's random state."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout())
        torch.nn.init.constant_(self.net[0].weight, 0.5)
        self.calls: list[tuple[list[str], int]] = []

    def generate(self, prompts: list[str], seed: int) -> torch.Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.calls.append((prompts, seed))
        noise = images(len(prompts), *SIZE, seed=int(torch.randint(1000, ())) + random.randrange(1000))
        return (noise * (0.5 + self.net[0].weight.item() / 2)).to(torch.uint8)


def segment(pictures: Any, nouns: list[str]) -> torch.Tensor:
    return masks(len(pictures), *SIZE, seed=5)


def validate(checkpoint: Path | str, model: Model, **settings: Any) -> ConceptValidation:
    settings = {"segment": segment, "batch_size": 2, "max_num_patches": PATCHES, "modules": model} | settings
    chosen, generate = settings.pop("concepts", concepts()), settings.pop("generate", model.generate)
    return validate_concepts(chosen, generate, model_name_or_path=checkpoint, **settings)


def test_the_table_has_every_image_and_its_means_are_the_scores(checkpoint: Path) -> None:
    result = validate(checkpoint, Model(), seed=7)
    table = result.table
    assert [row.index for row in table] == list(range(5))
    assert [row.prompt for row in table] == [prompt for prompts in PROMPTS.values() for prompt in prompts]
    assert [row.concept for row in table] == ["kitten"] * 3 + ["rocket"] * 2
    assert [row.seed for row in table] == [7, 7, 8, 8, 9]
    assert {row.mask_source for row in table} == {"function"}
    expected = [float(masks(count, *SIZE, seed=5)[row].float().mean()) for count, row in ((2, 0), (2, 1)) * 2]
    assert [row.mask_coverage for row in table[:4]] == pytest.approx(expected, abs=1e-6)
    assert all(math.isnan(row.mask_confidence) for row in table)
    for name in ("cp", "pf"):
        values = {concept: [getattr(row, name) for row in table if row.concept == concept] for concept in PROMPTS}
        for concept, each in values.items():
            assert result.scores[f"{name}/{concept}"] == pytest.approx(np.mean(each), abs=1e-6)
        assert result.scores[name] == pytest.approx(np.mean([getattr(row, name) for row in table]), abs=1e-6)
        centre = (result.scores[f"{name}_low"] + result.scores[f"{name}_high"]) / 2
        assert centre == pytest.approx(np.mean([np.mean(each) for each in values.values()]), abs=1e-6)
    assert result.panel is not None
    assert result.panel.width > 600
    assert result.problems == ""
    assert not {"identified", "mean_reciprocal_rank", "margin"} & result.scores.keys()
    assert all(math.isnan(row.rank) and math.isnan(row.margin) for row in table), "of two concepts"


def reference_of(prompt: str) -> torch.Tensor:
    """The first reference of the concept in the prompt, except that rockets in the snow show the kitten."""
    named = {concept.name: concept.references.images[0] for concept in three_concepts()}
    name = next(name for name in named if name in prompt)
    return named["kitten" if name == "rocket" and "snow" in prompt else name]


def test_images_of_three_concepts_are_ranked_by_whether_they_show_their_own(checkpoint: Path) -> None:
    chosen = three_concepts()
    result = validate(
        checkpoint,
        Model(),
        concepts=chosen,
        generate=lambda prompts, seed: [reference_of(prompt) for prompt in prompts],
    )
    assert [row.rank == 1 for row in result.table] == [True, True, True, True, False, True]
    assert result.scores["identified"] == pytest.approx(5 / 6)
    assert result.table[4].margin < 0 < result.table[3].margin
    found = {}
    for reduction in ("mean", "none"):
        metric = MaSCIdentification(
            [concept.name for concept in chosen],
            [concept.references for concept in chosen],
            [concept.masks for concept in chosen],
            model_name_or_path=checkpoint,
            max_num_patches=PATCHES,
            reduction=reduction,
        )
        metric.update([reference_of(row.prompt) for row in result.table], [row.concept for row in result.table])
        found[reduction] = metric.compute()
    for name, value in found["mean"].items():
        assert result.scores[name] == pytest.approx(value.item(), abs=1e-6)
    for name, values in found["none"].items():
        assert [getattr(row, name) for row in result.table] == pytest.approx(values.tolist(), abs=1e-6)


def test_failed_images_have_no_rank_and_change_no_other(checkpoint: Path) -> None:
    """A segmenter that fails costs no rank."""

    def generate(prompts: list[str], seed: int) -> list[torch.Tensor]:
        if "forest" in prompts[0]:
            raise RuntimeError("intended failure")
        return [reference_of(prompt) for prompt in prompts]

    def fails(pictures: Any, nouns: list[str]) -> torch.Tensor:
        raise RuntimeError("no segmenter")

    with pytest.warns(UserWarning, match="intended failure"):
        result = validate(
            checkpoint, Model(), concepts=three_concepts(), generate=generate, segment=fails, batch_size=1
        )
    assert [math.isnan(row.rank) for row in result.table] == [False, False, True, False, False, False]
    assert [math.isnan(row.margin) for row in result.table] == [False, False, True, False, False, False]
    assert result.scores["identified"] == pytest.approx(4 / 5)
    kitten = three_concepts()[0]
    without = Concept("kitten", kitten.prompts[:2], kitten.references, kitten.masks)
    with pytest.warns(UserWarning, match="no segmenter"):
        fewer = validate(
            checkpoint,
            Model(),
            concepts=[without, *three_concepts()[1:]],
            generate=generate,
            segment=fails,
            batch_size=1,
        )
    for name in ("identified", "mean_reciprocal_rank", "margin"):
        assert result.scores[name] == pytest.approx(fewer.scores[name], abs=1e-6)


def test_a_concept_without_a_subject_patch_costs_the_ranks_of_its_own_images_only(checkpoint: Path) -> None:
    kitten, *others = three_concepts()
    pixel = torch.zeros(1, *SIZE, dtype=torch.bool)
    pixel[0, 0, 0] = True
    unmarked = Concept("kitten", kitten.prompts, kitten.references, pixel)
    with pytest.warns(UserWarning, match="the reference masks leave no patch of the subject for 3"):
        result = validate(
            checkpoint,
            Model(),
            concepts=[unmarked, *others],
            generate=lambda prompts, seed: [reference_of(prompt) for prompt in prompts],
        )
    assert [math.isnan(row.rank) for row in result.table] == [True] * 3 + [False] * 3
    assert [math.isnan(row.margin) for row in result.table] == [True] * 3 + [False] * 3
    assert {row.rank for row in result.table[3:]} <= {1, 2}
    assert math.isnan(result.anchors["kitten"].floor)
    assert result.anchors["rocket"].floor == pytest.approx(
        validate(checkpoint, Model(), concepts=three_concepts()).anchors["rocket"].floor, abs=1e-6
    )


def test_anchors_are_scores_of_references_with_those_of_their_own_and_of_other_concepts(checkpoint: Path) -> None:
    result = validate(checkpoint, Model())
    kitten, rocket = (list(zip(each.references.images, each.masks.masks, strict=True)) for each in concepts())
    settings: dict[str, Any] = {"backbone": load_backbone(checkpoint), "max_num_patches": PATCHES}

    def score(picture: tuple[torch.Tensor, torch.Tensor], reference: tuple[torch.Tensor, torch.Tensor]) -> float:
        image, mask = reference
        return functional.concept_preservation([picture[0]], [image], [mask], **settings).item()

    own = (score(rocket[0], rocket[1]) + score(rocket[1], rocket[0])) / 2
    kitten_floor = (score(rocket[0], kitten[0]) + score(rocket[1], kitten[0])) / 2
    rocket_floor = (score(kitten[0], rocket[0]) + score(kitten[0], rocket[1])) / 2
    anchors = result.anchors
    assert math.isnan(anchors["kitten"].ceiling), "one reference"
    assert anchors["rocket"].ceiling == pytest.approx(own, abs=1e-6)
    assert anchors["kitten"].floor == pytest.approx(kitten_floor, abs=1e-6)
    assert anchors["rocket"].floor == pytest.approx(rocket_floor, abs=1e-6)
    assert [row.cp_floor for row in result.table] == [anchors[row.concept].floor for row in result.table]
    assert [row.cp_ceiling for row in result.table[3:]] == [anchors["rocket"].ceiling] * 2


def test_transferred_masks_are_in_the_table_with_their_confidence(checkpoint: Path) -> None:
    with (
        pytest.warns(UserWarning, match="validate_concepts: masks transferred between the references"),
        pytest.warns(UserWarning, match="validate_concepts: of 5 images: the transferred mask marks nothing in 3"),
    ):
        result = validate(checkpoint, Model(), segment=None)
    assert {row.mask_source for row in result.table} == {"transferred"}
    assert all(math.isnan(row.mask_confidence) == (row.mask_coverage == 0) for row in result.table)
    assert any(row.mask_coverage > 0 for row in result.table)
    assert set(result.scores) >= {"mask_iou/kitten", "mask_iou/rocket"}


def test_each_prompt_gets_several_images_with_seeds_of_their_own(checkpoint: Path) -> None:
    """The first image of a prompt is the one of a validation with one seed."""
    model = Model()
    single, several = validate(checkpoint, Model()), validate(checkpoint, model, seeds_per_prompt=3, batch_size=9)
    assert [seed for _, seed in model.calls] == [0, 1, 2]
    assert all(len(set(prompts)) == 5 for prompts, _ in model.calls)
    model = Model()
    several = validate(checkpoint, model, seeds_per_prompt=3)
    assert [seed for _, seed in model.calls] == list(range(9))
    assert len(several.table) == 15
    for prompt in PROMPTS["kitten"]:
        assert len({row.seed for row in several.table if row.prompt == prompt}) == 3
    assert [(row.cp, row.pf) for row in several.table[:5]] == [(row.cp, row.pf) for row in single.table]
    assert len({row.cp for row in several.table}) == 15


def test_modes_random_states_and_requires_grad_are_restored(checkpoint: Path) -> None:
    model = Model()
    model.net[1].eval()
    model.net[0].bias.requires_grad_(False)
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    validate(checkpoint, model)
    assert model.training
    assert not model.net[1].training
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


def test_failed_batches_are_undefined_and_counted_in_one_warning(checkpoint: Path) -> None:
    class Failing(Model):
        def generate(self, prompts: list[str], seed: int) -> torch.Tensor:
            if "rocket" in prompts[-1]:
                raise RuntimeError("intended failure")
            return super().generate(prompts, seed)

    with pytest.warns(UserWarning, match="validate_concepts: CP is undefined for 2 .*intended failure") as caught:
        result = validate(checkpoint, Failing(), batch_size=3)
    assert len(caught) == 1
    assert result.problems in str(caught[0].message)
    assert [row.index for row in result.table if math.isnan(row.cp)] == [3, 4]
    assert result.table[4].mask_source == ""
    with pytest.raises(RuntimeError, match="validate_concepts, rank 0: generate raised RuntimeError: intended"):
        validate(checkpoint, Failing(), batch_size=3, on_error="raise")


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"modules": [1]}, TypeError, r"modules\[0\] is a int; give torch modules"),
        ({"modules": None}, TypeError, r"modules is None; give torch modules, such as pipeline.unet, or \(\)"),
        ({"device": "gpu"}, ValueError, "device 'gpu' is not available"),
        ({"seeds_per_prompt": 0}, ValueError, "seeds_per_prompt is 0"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"segment": 3}, TypeError, "segment is an int"),
    ],
)
def test_errors_name_the_argument(settings: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        validate("tiny", Model(), **settings)


def work(rank: int, world: int, checkpoint: str) -> dict[str, Any]:
    model = Model()
    several = validate(checkpoint, model, seeds_per_prompt=2, panel="worst", panel_size=(2, 2))
    assert several.panel is not None

    def fails(prompts: list[str], seed: int) -> torch.Tensor:
        if rank == 1:
            raise MemoryError("out of memory")
        return model.generate(prompts, seed)

    several_calls = list(model.calls)
    three = validate(checkpoint, Model(), concepts=three_concepts(), panel_size=None)
    try:
        validate_concepts(
            concepts(),
            fails,
            segment,
            model_name_or_path=checkpoint,
            max_num_patches=PATCHES,
            batch_size=2,
            on_error="raise",
            modules=model,
        )
    except RuntimeError as error:
        raised = str(error)
    return {
        "scores": several.scores,
        "table": several.table,
        "panel": several.panel.tobytes(),
        "calls": several_calls,
        "three": three,
        "raised": raised,
    }


def test_two_ranks_share_the_batches_and_return_the_result_of_one_process(checkpoint: Path, tmp_path: Path) -> None:
    ranks = processes.run(work, 2, tmp_path, str(checkpoint))
    model = Model()
    single = validate(checkpoint, model, seeds_per_prompt=2, panel="worst", panel_size=(2, 2))
    assert single.panel is not None
    three = validate(checkpoint, Model(), concepts=three_concepts(), panel_size=None)
    assert sorted(ranks[0]["calls"] + ranks[1]["calls"]) == sorted(model.calls)
    for rank in ranks:
        assert len(rank["calls"]) == 3
        assert rank["scores"] == pytest.approx(single.scores, abs=1e-6)
        assert rank["scores"] == ranks[0]["scores"]
        assert str(rank["table"]) == str(ranks[0]["table"])  # NaN is not equal to itself
        assert [row.cp for row in rank["table"]] == pytest.approx([row.cp for row in single.table], abs=1e-6)
        assert [row.seed for row in rank["table"]] == [row.seed for row in single.table]
        assert rank["panel"] == single.panel.tobytes(), "each rank keeps enough of its worst images"
        assert rank["three"].scores == ranks[0]["three"].scores == pytest.approx(three.scores, abs=1e-6)
        assert [row.rank for row in rank["three"].table] == [row.rank for row in three.table]
        assert [row.margin for row in rank["three"].table] == pytest.approx(
            [row.margin for row in three.table], abs=1e-6
        )
        assert rank["raised"].startswith("validate_concepts, rank 1: generate raised MemoryError: out of memory")


def test_lightning_is_not_imported() -> None:
    program = "import sys, masc_metrics.validation; print(any(name.startswith('lightning.p') for name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "False"
