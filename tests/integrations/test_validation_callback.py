"""MaSCValidation: scores, schedule, panels, failures, and isolation from training."""

from __future__ import annotations

import collections
import copy
import csv
import functools
import json
import math
import os
import pickle
import random
import re
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.batches import PATCHES, images, masks
from support.concept_cases import KITTEN, PICTURES, PROMPTS, SIZE, RecordingModel, concepts, three_concepts, validation
from support.segmenter_checkpoints import build_clipseg
from support.trainers import (
    collection,
    loader,
    noise,
    package,
    third_party_warnings_ignored,
    toy,
    trainer,
    validation_warnings,
)

from masc_metrics import load_backbone
from masc_metrics.functional import check_transfer, prompt_following
from masc_metrics.integrations.lightning import Concept, MaSCValidation
from masc_metrics.segmenters import Segmenter, load_segmenter
from masc_metrics.validation import checkpoint_step, concept_scores, log_validation, panels, validate_concepts

OVERALL = {"val/masc_cp", "val/masc_pf"}
INTERVALS = {f"{name}_{end}" for name in OVERALL for end in ("low", "high")}
ALL_PROMPTS = [prompt for prompts in PROMPTS.values() for prompt in prompts]
EVERY = OVERALL | INTERVALS | {f"{name}/{concept}" for name in OVERALL for concept in PROMPTS}


@pytest.fixture(autouse=True)
def _ignore_third_party_warnings() -> Iterator[None]:
    with third_party_warnings_ignored():
        yield


@pytest.fixture(scope="module")
def lightning() -> ModuleType:
    return package("lightning")


@pytest.fixture(params=["lightning", "pytorch_lightning"])
def either(request: pytest.FixtureRequest) -> ModuleType:
    return package(request.param)


def scores(run: Any) -> dict[str, float]:
    return {name: value.item() for name, value in run.callback_metrics.items() if "masc" in name}


def random_states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


def test_callback_scores_equal_the_metrics(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    """Each image is scored against every reference of its concept."""
    recorder, module = RecordingModel(), toy(lightning)
    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, recorder)])
    run.validate(module, loader(1), verbose=False)
    assert set(scores(run)) == EVERY
    assert recorder.modes == [(False, False)] * 3

    repeated, samples = RecordingModel(), [(c, p) for c in concepts() for p in c.prompts]
    module.eval()
    cp: dict[str, list[float]] = {name: [] for name in PROMPTS}
    pf: dict[str, list[float]] = {name: [] for name in PROMPTS}
    for number, start in enumerate(range(0, PICTURES, 2)):
        batch = samples[start : start + 2]
        for set_seed in (torch.manual_seed, np.random.seed, random.seed):
            set_seed(number)
        pictures = repeated.generate(module, [prompt for _, prompt in batch], number)
        segmented = repeated.segment(pictures, [concept.noun for concept, _ in batch])
        for picture, mask, (concept, prompt) in zip(pictures, segmented, batch, strict=True):
            metrics = collection(checkpoint)
            for reference, reference_mask in zip(concept.references.images, concept.masks.masks, strict=True):
                metrics.update(
                    generated_images=[picture],
                    generated_masks=[mask],
                    reference_images=[reference],
                    reference_masks=[reference_mask],
                    prompts=[prompt],
                    subjects=[concept.subject],
                )
            values = metrics.compute()
            cp[concept.name].append(values["val/cp"].item())
            pf[concept.name].append(values["val/pf"].item())
    truth = {}
    for name, per_concept in (("cp", cp), ("pf", pf)):
        truth[f"val/masc_{name}"] = float(np.mean([value for values in per_concept.values() for value in values]))
        means = {concept: float(np.mean(values)) for concept, values in per_concept.items()}
        truth |= {f"val/masc_{name}/{concept}": mean for concept, mean in means.items()}
        # Student's t with one degree of freedom, over the means of two concepts
        half_width = 12.706205 * float(np.std(list(means.values()), ddof=1)) / math.sqrt(2)
        truth[f"val/masc_{name}_low"] = float(np.mean(list(means.values()))) - half_width
        truth[f"val/masc_{name}_high"] = float(np.mean(list(means.values()))) + half_width
    assert scores(run) == pytest.approx(truth, abs=2e-6)


IN_LOOP, OUTSIDE_LOOP = True, False


@pytest.mark.parametrize(
    ("settings", "fit", "steps"),
    [
        ({}, {"max_epochs": 3}, [(4, IN_LOOP), (8, IN_LOOP), (12, IN_LOOP)]),
        ({"every_n_epochs": 2}, {"max_epochs": 5}, [(8, IN_LOOP), (16, IN_LOOP)]),
        ({"every_n_steps": 3}, {"max_epochs": 2}, [(3, OUTSIDE_LOOP), (6, OUTSIDE_LOOP)]),
        ({"every_n_steps": 2}, {"max_epochs": 2, "accumulate_grad_batches": 2}, [(2, OUTSIDE_LOOP), (4, OUTSIDE_LOOP)]),
        ({}, {"max_epochs": 2, "val_check_interval": 0.5}, [(4, IN_LOOP), (8, IN_LOOP)]),
        ({}, {"max_epochs": 2, "check_val_every_n_epoch": 2}, [(4, OUTSIDE_LOOP), (8, IN_LOOP)]),
        ({}, {"max_epochs": 2, "limit_val_batches": 0}, [(4, OUTSIDE_LOOP), (8, OUTSIDE_LOOP)]),
        ({}, {"max_steps": 6, "max_epochs": -1}, [(4, IN_LOOP), (6, OUTSIDE_LOOP)]),
    ],
)
def test_callback_validates_on_schedule(
    settings: dict[str, Any],
    fit: dict[str, Any],
    steps: list[tuple[int, bool]],
    lightning: ModuleType,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    """Inside the last validation loop of an epoch if there is one."""
    recorder = RecordingModel()
    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, recorder, panel_size=None, **settings)], **fit)
    run.fit(toy(lightning), noise(), loader(1))
    assert recorder.steps[::3] == steps  # three batches each time
    assert recorder.prompts == ALL_PROMPTS * len(steps)
    assert recorder.seeds == [0, 1, 2] * len(steps), "equal seeds in every validation, so that panels are comparable"


def test_averaged_weights_are_scored_if_the_callback_precedes_weight_averaging(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging", reason="needs lightning 2.6")
    seen = {}
    for first in (True, False):

        def look(module: Any, prompts: list[str], seed: int, first: bool = first) -> torch.Tensor:
            seen[first] = module.net[0].weight.detach().clone()
            return RecordingModel().generate(module, prompts, seed)

        masc, mean = validation(checkpoint, RecordingModel(), generate=look), averaging.WeightAveraging()
        module = toy(lightning)
        run = trainer(lightning, tmp_path, callbacks=[masc, mean] if first else [mean, masc], num_sanity_val_steps=0)
        weights: list[torch.Tensor] = []
        type(module).on_train_batch_end = lambda self, *_, weights=weights: weights.append(
            self.net[0].weight.detach().clone()
        )
        run.fit(module, noise(), loader(1))
    assert torch.equal(seen[False], weights[-1])
    assert torch.allclose(seen[True], torch.stack(weights).mean(dim=0), atol=1e-6)


# --- the check before training ---


def swapped(nouns: list[str], pictures: torch.Tensor) -> torch.Tensor:
    return masks(len(pictures), *SIZE) & pictures.bool().any()


Instances = collections.namedtuple("Instances", ["masks"])
Output = collections.namedtuple("Output", ["images", "nsfw"])
DETECTION = {"label": "cat", "score": 0.9, "mask": Image.new("L", SIZE[::-1], 255)}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"segment": swapped},
            r"segment raised AttributeError: 'list' .* \(first for 'kitten', 'a kitten on a beach'\), in the check "
            r"before training; it is called as segment\(images, nouns\); num_sanity_val_steps=0 skips the check",
        ),
        (
            {"generate": lambda module, seed, prompts: [noise() for _ in range(prompts)]},
            r"generate raised .*called as generate\(module, prompts, seed\)",
        ),
        (
            {"generate": lambda *_: Output(images(2, *SIZE), None)},
            "is an Output; return its images, such as output.images",
        ),
        ({"generate": lambda *_: (images(2, *SIZE), None)}, r"return its first item, output\[0\]"),
        (
            {"segment": lambda *_: torch.ones(2, 3, *SIZE)},
            r"3 masks for each image; return their union, masks.any\(1\)",
        ),
        ({"segment": lambda *_: [torch.ones(3, *SIZE)] * 2}, r"holds 3 masks of one image; .* mask.any\(0\)"),
        ({"segment": lambda *_: torch.ones(3, *SIZE), "batch_size": 1}, r"their union in a list, \[masks.any\(0\)\]"),
        (
            {"segment": lambda *_: [[DETECTION] * 2] * 2},
            r"\[0\] holds dicts, as transformers' pipelines return; .*numpy",
        ),
        ({"segment": lambda *_: Instances([])}, r"is an Instances; return one .* masks.any\(0\)"),
        ({"segment": lambda *_: {"masks": []}}, r"is a dict; return one .* masks.any\(0\)"),
    ],
)
@pytest.mark.parametrize("schedule", [{"every_n_steps": 2}, {}])
def test_broken_functions_stop_before_training(
    schedule: dict[str, int],
    settings: dict[str, Any],
    text: str,
    lightning: ModuleType,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    callback = validation(checkpoint, RecordingModel(), **schedule, **settings)
    run = trainer(lightning, tmp_path, callbacks=[callback], num_sanity_val_steps=2)
    with pytest.raises(RuntimeError, match=f"MaSCValidation, rank 0: .*{text}"):
        run.fit(toy(lightning), noise(), loader(1))
    assert run.global_step == 0
    assert not list(tmp_path.rglob("*.png"))


def test_panels_that_cannot_be_drawn_stop_before_training(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masc_metrics.validation.concept_scores.match_maps", lambda *_, **__: fail(None))
    callback = validation(checkpoint, RecordingModel())
    run = trainer(lightning, tmp_path, callbacks=[callback], num_sanity_val_steps=1)
    with pytest.raises(RuntimeError, match="the panel raised RuntimeError: intended failure"):
        run.fit(toy(lightning), noise())


@pytest.mark.parametrize("steps", [0, 2])
def test_one_batch_is_checked_before_training_and_leaves_nothing(
    steps: int, lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """Training is bit-identical with and without the check."""
    recorder, module = RecordingModel(), toy(lightning)
    callback = validation(checkpoint, recorder, every_n_steps=3)
    run = trainer(lightning, tmp_path, callbacks=[callback], num_sanity_val_steps=steps)
    run.fit(module, noise(), loader(1))
    after = random_states()
    assert recorder.prompts == ALL_PROMPTS[:2] * (steps > 0) + ALL_PROMPTS
    assert [file.stem for file in tmp_path.rglob("*.png")] == ["val-epoch=0000-step=000003"]
    plain = toy(lightning)
    trainer(lightning, tmp_path).fit(plain, noise(), loader(1))
    assert random_states() == after
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "fit", "text"),
    [
        ({"every_n_steps": 50}, {"max_steps": 6, "max_epochs": -1}, "every_n_steps is 50 and max_steps 6, so it never"),
        ({"every_n_steps": 50}, {"max_epochs": 2}, "every_n_steps is 50 and the number of steps 8, .* give at most 8"),
        ({"every_n_epochs": 3}, {"max_epochs": 2}, "every_n_epochs is 3 and max_epochs 2, so it never validates"),
        ({"every_n_steps": 50}, {"max_steps": 90, "max_epochs": 2}, "every_n_steps is 50 and the number of steps 8, "),
        ({"every_n_epochs": 3}, {"max_steps": 8, "max_epochs": -1}, "every_n_epochs is 3 and the number of epochs 2, "),
        ({"every_n_epochs": 3}, {"max_steps": 9, "max_epochs": -1}, ""),
        ({"every_n_steps": 8}, {"max_epochs": 2}, ""),
        ({"every_n_epochs": 2}, {"max_epochs": 2}, ""),
    ],
)
def test_schedules_that_never_validate_are_warned_about_before_training(
    settings: dict[str, int], fit: dict[str, Any], text: str, lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    recorder = RecordingModel()
    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, recorder, **settings)], **fit)
    texts = validation_warnings(lambda: run.fit(toy(lightning), noise()))
    assert len(texts) == bool(text)
    assert all(re.search(text, each) for each in texts)
    assert bool(recorder.prompts) != bool(text)


def test_a_trainer_without_a_logger_is_not_warned_about(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, RecordingModel())], logger=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(toy(lightning), noise())
    assert "val/masc_cp" in run.callback_metrics
    assert not [str(each.message) for each in caught if "no logger" in str(each.message)]


@pytest.mark.parametrize("settings", [{"every_n_steps": 3}, {"every_n_epochs": 2}])
def test_resumed_runs_keep_the_schedule(
    settings: dict[str, int], lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    file, before, after = tmp_path / "half.ckpt", RecordingModel(), RecordingModel()
    first = trainer(lightning, tmp_path, max_epochs=1, callbacks=[validation(checkpoint, before, **settings)])
    first.fit(toy(lightning), noise())
    first.save_checkpoint(file)
    second = trainer(lightning, tmp_path, max_epochs=2, callbacks=[validation(checkpoint, after, **settings)])
    second.fit(toy(lightning), noise(), ckpt_path=file)
    assert [step for step, _ in before.steps[::3]] == ([3] if "every_n_steps" in settings else [])
    assert [step for step, _ in after.steps[::3]] == ([6] if "every_n_steps" in settings else [8])


def test_runs_resumed_within_an_epoch_keep_the_schedule(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    recorders = RecordingModel(), RecordingModel()
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=6, filename="sixth")  # an epoch has four steps
    for recorder, settings in zip(
        recorders, ({"max_epochs": 2, "enable_checkpointing": True}, {"max_epochs": 3}), strict=True
    ):
        callbacks = [validation(checkpoint, recorder, every_n_steps=4, panel_size=None)]
        callbacks += [saving] if "enable_checkpointing" in settings else []
        run = trainer(lightning, tmp_path, callbacks=callbacks, **settings)
        run.fit(toy(lightning), noise(), ckpt_path=tmp_path / "sixth.ckpt" if recorder is recorders[1] else None)
    assert [step for step, _ in recorders[0].steps[::3]] == [4, 8]
    assert [step for step, _ in recorders[1].steps[::3]] == [8, 12]


def test_runs_resumed_at_the_end_of_an_epoch_do_not_validate_it_again(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=False)
    settings = {"enable_checkpointing": True, "num_sanity_val_steps": 0}
    first = trainer(lightning, tmp_path, callbacks=[saving, validation(checkpoint, RecordingModel())], **settings)
    first.fit(toy(lightning), noise(), loader(1))
    after = RecordingModel()
    second = trainer(lightning, tmp_path, max_epochs=2, callbacks=[validation(checkpoint, after)])
    second.fit(toy(lightning), noise(), loader(1), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert [step for step, _ in after.steps[::3]] == [8]


@pytest.mark.parametrize("settings", [{"every_n_steps": 1}, {"every_n_epochs": 1}])
def test_training_is_bit_identical_with_and_without_the_callback(
    settings: dict[str, int], either: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """This includes dropout, shuffling, batch statistics, and a submodule that the user keeps in eval mode."""
    states = []
    for callbacks in ([], [validation(checkpoint, RecordingModel(), concepts=three_concepts(), **settings)]):
        module = toy(either)
        module.frozen = torch.nn.Dropout().eval()
        run = trainer(either, tmp_path, max_epochs=2, callbacks=callbacks)
        modes: list[bool] = []
        type(module).on_train_batch_start = lambda self, *_, modes=modes: modes.append(self.frozen.training)
        either.seed_everything(1, verbose=False)
        data = torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=2, shuffle=True)  # type: ignore[arg-type]
        run.fit(module, data, loader(1))
        optimizer = run.strategy.optimizers[0].state_dict()["state"]
        states.append((copy.deepcopy(module.state_dict()), optimizer, random_states(), modes))
    plain, with_callback = states
    assert plain[0].keys() == with_callback[0].keys()
    assert all(torch.equal(value, with_callback[0][name]) for name, value in plain[0].items())
    assert all(torch.equal(state["exp_avg"], with_callback[1][index]["exp_avg"]) for index, state in plain[1].items())
    assert plain[2] == with_callback[2]
    assert plain[3] == with_callback[3]


def test_a_segmenter_segments_for_the_callback_and_adds_no_weights_to_checkpoints(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    segment = load_segmenter("clipseg", checkpoint=build_clipseg(tmp_path / "clipseg"))
    marked: list[torch.Tensor] = []

    def function(pictures: Any, nouns: list[str]) -> list[torch.Tensor]:
        marked.extend(segment([picture.clone() for picture in pictures], nouns))
        return marked[-len(nouns) :]

    files, values = [], []
    for name, given in (("function", function), ("segmenter", segment)):
        segment.cache.clear()
        module = toy(lightning)
        if given is segment:
            module.segment = segment
            module.save_hyperparameters({"segment": segment})
        callback = validation(checkpoint, RecordingModel(), segment=given)
        run = trainer(lightning, tmp_path, precision="bf16-true", callbacks=[callback])
        run.fit(module, noise(), loader(1))
        values.append(scores(run))
        files.append(tmp_path / f"{name}.ckpt")
        run.save_checkpoint(files[-1])
    assert len(marked) == PICTURES
    assert all(mask.shape == SIZE and mask.any() and not mask.all() for mask in marked)
    assert values[0] == values[1]
    assert set(values[0]) == EVERY
    plain, held = (torch.load(file, weights_only=False) for file in files)
    assert held["state_dict"].keys() == plain["state_dict"].keys()
    assert held["hyper_parameters"]["segment"] is segment
    assert files[1].stat().st_size < files[0].stat().st_size + 4000


def test_random_states_and_modes_are_restored_after_an_interrupt(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    class Interrupting(RecordingModel):
        def generate(self, module: Any, prompts: list[str], seed: int) -> Any:
            super().generate(module, prompts, seed)
            raise KeyboardInterrupt

    module, callback = toy(lightning), validation(checkpoint, Interrupting())
    run = trainer(lightning, tmp_path, callbacks=[callback])
    run.strategy.connect(module)
    module.trainer = run
    module.net[1].eval()
    before = random_states()
    with pytest.raises(KeyboardInterrupt):
        callback._validate(run, module, 0)
    assert random_states() == before
    assert module.training
    assert not module.net[1].training


def test_generate_runs_in_the_trainers_precision_and_without_inference_tensors(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    outputs = []

    def generate(module: Any, prompts: list[str], seed: int) -> torch.Tensor:
        output = module.net(torch.ones(1, 4))
        outputs.append((output.dtype, output.is_inference(), torch.is_autocast_enabled("cpu")))
        return RecordingModel().generate(module, prompts, seed)

    for precision in ("bf16-mixed", "bf16-true"):
        callback = validation(checkpoint, RecordingModel(), generate=generate, batch_size=9)
        trainer(lightning, tmp_path, precision=precision, callbacks=[callback]).validate(
            toy(lightning), loader(1), verbose=False
        )
    assert outputs == [(torch.bfloat16, False, True), (torch.bfloat16, False, False)]


@pytest.mark.parametrize(
    ("settings", "fit", "saving", "stopping"),
    [
        ({}, {}, {}, {}),
        ({"every_n_epochs": 2}, {}, {"every_n_epochs": 2}, {"strict": False}),
        ({}, {"val_check_interval": 0.5}, {"save_on_train_epoch_end": True}, {"check_on_train_epoch_end": True}),
        ({"every_n_steps": 4}, {}, {"every_n_train_steps": 4}, {}),
        ({"every_n_steps": 6}, {}, {"every_n_train_steps": 6}, {"strict": False}),
        ({"every_n_epochs": 2}, {"limit_val_batches": 0}, {"every_n_epochs": 2}, {"strict": False}),
    ],
)
def test_checkpoints_and_early_stopping_can_monitor_the_scores(
    settings: dict[str, Any],
    fit: dict[str, Any],
    saving: dict[str, Any],
    stopping: dict[str, Any],
    lightning: ModuleType,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    """With the settings in docs/lightning.md, the score in the name of a checkpoint is that of its weights."""
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    saving_callback = ModelCheckpoint(
        tmp_path,
        monitor="val/masc_cp",
        mode="max",
        save_top_k=-1,
        filename="{step}-{val/masc_cp:.6f}",
        auto_insert_metric_name=False,
        **saving,
    )
    known: dict[int, float] = {}

    class Recorder(lightning.Callback):  # type: ignore[misc,name-defined]
        def on_train_batch_start(self, run: Any, *_: Any) -> None:
            known.setdefault(run.global_step, scores(run).get("val/masc_cp", float("nan")))

        def on_train_end(self, run: Any, *_: Any) -> None:
            known[run.global_step] = scores(run)["val/masc_cp"]

    stop = EarlyStopping("val/masc_cp", mode="max", min_delta=10.0, patience=2, **stopping)
    masc = validation(checkpoint, RecordingModel(), panel_size=None, **settings)
    callbacks = [saving_callback, stop, Recorder(), masc]
    run = trainer(lightning, tmp_path, max_epochs=12, enable_checkpointing=True, callbacks=callbacks, **fit)
    run.fit(toy(lightning), noise(), loader(1))
    assert run.current_epoch < 12, "a score cannot rise by 10, so training stops"
    files = [file.stem.rsplit("/", 1)[-1] for file in tmp_path.rglob("*.ckpt")]
    names = [str(file.relative_to(tmp_path).with_suffix("")) for file in tmp_path.rglob("*.ckpt")]
    assert len(names) == len(files) >= 2
    for name in names:
        step, score = re.match(r"(\d+)-(-?\d\.\d+)", name).groups()  # type: ignore[union-attr]
        assert float(score) == pytest.approx(known[int(step)], abs=2e-6)
    saved = torch.load(saving_callback.best_model_path, weights_only=False)
    assert "MaSCValidation" not in str(saved["callbacks"].keys())


@pytest.mark.parametrize(
    ("settings", "saving", "early"),
    [
        ({"every_n_steps": 4}, {"every_n_train_steps": 2}, [2, 4, 6, 8]),
        ({"every_n_epochs": 2}, {"every_n_epochs": 1}, [4, 8, 12, 16]),
    ],
)
def test_a_checkpoint_between_two_validations_carries_the_last_score(
    settings: dict[str, int],
    saving: dict[str, int],
    early: list[int],
    lightning: ModuleType,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    """Without a validation loop, one before the first validation is left out, and training goes on."""
    from lightning.pytorch.callbacks import ModelCheckpoint, model_checkpoint

    model_checkpoint.warning_cache.clear()  # it warns once in a process
    saver = ModelCheckpoint(
        tmp_path,
        monitor="val/masc_cp",
        save_top_k=-1,
        filename="{step}-{val/masc_cp:.6f}",
        auto_insert_metric_name=False,
        **saving,
    )
    masc = validation(checkpoint, RecordingModel(), panel_size=None, **settings)
    run = trainer(lightning, tmp_path, max_epochs=4, enable_checkpointing=True, callbacks=[saver, masc])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(toy(lightning), noise())
    assert run.current_epoch == 4
    warned = any("could not find the monitored key" in str(each.message) for each in caught)
    assert warned == ("every_n_epochs" in saving)
    found: dict[int, str] = {}
    for file in tmp_path.rglob("*.ckpt"):
        step, score = re.match(r"(\d+)-.*?(-?\d\.\d+)", str(file.relative_to(tmp_path))).groups()  # type: ignore[union-attr]
        found[int(step)] = score
    none, own, stale, next_own = early
    assert none not in found
    assert found[own] == found[stale] != found[next_own]


def test_fast_dev_run_generates_one_batch_and_writes_nothing(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    for settings in ({"every_n_epochs": 7}, {"every_n_steps": 1}):
        recorder = RecordingModel()
        run = trainer(lightning, tmp_path, fast_dev_run=True, callbacks=[validation(checkpoint, recorder, **settings)])
        run.fit(toy(lightning), noise(), loader(1))
        assert recorder.prompts == PROMPTS[KITTEN][:2]
    assert not list(tmp_path.rglob("*.png"))


class Broken(RecordingModel):
    """Returns changed images or masks for the rocket, or raises."""

    def __init__(self, *, generates: Any = None, segments: Any = None) -> None:
        super().__init__()
        self.bad_pictures, self.bad_masks = generates, segments

    def generate(self, module: Any, prompts: list[str], seed: int) -> Any:
        pictures = super().generate(module, prompts, seed)
        return self.bad_pictures(pictures) if self.bad_pictures and "rocket" in prompts[0] else pictures

    def segment(self, pictures: Any, nouns: list[str]) -> Any:
        segmented = super().segment(pictures, nouns)
        return self.bad_masks(segmented) if self.bad_masks and "rocket" in nouns[0] else segmented


def fail(_: Any) -> Any:
    raise RuntimeError("intended failure")


@pytest.mark.parametrize(
    ("recorder", "undefined", "reason"),
    [
        (Broken(generates=fail), {"cp", "pf"}, "generate raised RuntimeError: intended failure"),
        (Broken(segments=fail), {"pf"}, "segment raised RuntimeError: intended failure"),
        (Broken(generates=lambda images: images[:1]), {"cp", "pf"}, "generate output holds 1 images for 2 prompts"),
        (Broken(generates=lambda images: images.float()), {"cp", "pf"}, r"generate output[0] is torch.float32"),
        (Broken(generates=lambda images: None), {"cp", "pf"}, "generate output is a NoneType"),
        (Broken(segments=lambda masks: masks[:, :9]), {"pf"}, "segment output[0] is (9, 128)"),
        (Broken(segments=lambda masks: None), {"pf"}, "segment raised TypeError: segment output is a NoneType"),
        (Broken(segments=lambda masks: masks[0]), {"pf"}, "segment output has shape"),
        (Broken(segments=lambda masks: torch.ones_like(masks)), {"pf"}, "marked 2 completely"),
        (
            Broken(segments=lambda masks: torch.zeros_like(masks)),
            set(),
            "of 5 images: the segmenter marked nothing in 2",
        ),
        (
            Broken(segments=lambda masks: ~masks),
            set(),
            "marked most of the image and almost all of its border in 2, as an inverted mask does",
        ),
        (
            Broken(generates=lambda images: images * 0),
            set(),
            "2 have one colour, as a safety checker's black images do",
        ),
    ],
)
def test_failures_are_warned_about_once_and_excluded(
    recorder: Broken, undefined: set[str], reason: str, lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    module = toy(lightning)
    callback = validation(checkpoint, recorder, batch_size=3)  # so that the second batch contains only rockets
    run = trainer(lightning, tmp_path, max_epochs=2, callbacks=[callback])
    texts = validation_warnings(lambda: run.fit(module, noise()))
    assert len(texts) == 2, texts  # one for each epoch
    assert all(reason in text for text in texts), texts
    assert not any("the reference masks leave" in text for text in texts), "each image is counted with one reason"
    assert all(("completely" in text) == ("completely" in reason) for text in texts)
    logged = scores(run)
    for score in ("cp", "pf"):
        assert np.isnan(logged[f"val/masc_{score}/rocket"]) == (score in undefined)
        assert not np.isnan(logged[f"val/masc_{score}"])
        if score in undefined:
            assert logged[f"val/masc_{score}"] == logged[f"val/masc_{score}/kitten"]
    assert len(list((tmp_path / "masc_panels").glob("*.png"))) == 2
    plain = toy(lightning)
    trainer(lightning, tmp_path, max_epochs=2).fit(plain, noise())
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in module.state_dict().items())


def test_references_without_a_subject_patch_are_excluded(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """A mask of one pixel covers no patch; the image keeps its score with the other reference."""
    pictures, marked = images(2, *SIZE, seed=80), masks(2, *SIZE, seed=80)
    pixel = torch.zeros_like(marked[1])
    pixel[0, 0] = True
    both = Concept("rocket", PROMPTS["rocket"], pictures, torch.stack([marked[0], pixel]))
    first = Concept("rocket", PROMPTS["rocket"], pictures[:1], marked[:1])
    logged = []
    for concept in (both, first):
        recorder = RecordingModel()
        settings = {"model_name_or_path": checkpoint, "max_num_patches": PATCHES}
        callback = MaSCValidation([concept], recorder.generate, recorder.segment, **settings)
        run = trainer(lightning, tmp_path, callbacks=[callback])
        run.validate(toy(lightning), loader(1), verbose=False)
        logged.append(scores(run))
    assert logged[0] == pytest.approx(logged[1], abs=1e-6)
    assert not np.isnan(logged[0]["val/masc_cp"])


def test_errors_are_raised_with_on_error_raise(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    callback = validation(checkpoint, Broken(generates=fail), batch_size=3, on_error="raise")
    run = trainer(lightning, tmp_path, callbacks=[callback])
    with pytest.raises(RuntimeError, match=r"rank 0: generate raised RuntimeError: intended .* \(first for 'rocket'"):
        run.validate(toy(lightning), loader(1), verbose=False)


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_panels_that_cannot_be_written_cause_a_warning(
    on_error: str, lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    callback = validation(checkpoint, RecordingModel(), panel_dir=file, on_error=on_error)
    run = trainer(lightning, tmp_path, callbacks=[callback])
    (text,) = validation_warnings(lambda: run.validate(toy(lightning), loader(1), verbose=False))
    assert "the panel could not be written, FileExistsError" in text
    assert "the table could not be written, FileExistsError" in text
    assert set(scores(run)) == EVERY


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_panels_that_cannot_be_drawn_do_not_affect_scores(
    on_error: str, lightning: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory for maps")

    monkeypatch.setattr("masc_metrics.validation.concept_scores.match_maps", fail)
    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, RecordingModel(), on_error=on_error)])
    (text,) = validation_warnings(lambda: run.validate(toy(lightning), loader(1), verbose=False))
    assert re.search("of 5 images: the panel raised .*out of memory for maps", text)
    assert not any(np.isnan(value) for value in scores(run).values())


def test_failed_batches_are_freed_before_the_next_batch(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """The batch may have failed because memory was full."""
    references: list[weakref.ref[torch.Tensor]] = []
    alive = []

    def fails_first(module: Any, prompts: list[str], seed: int) -> torch.Tensor:
        alive.append([reference() is not None for reference in references])
        large = RecordingModel().generate(module, prompts, seed)
        if not references:
            references.append(weakref.ref(large))
            raise MemoryError
        return large

    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, RecordingModel(), generate=fails_first)])
    (text,) = validation_warnings(lambda: run.validate(toy(lightning), loader(1), verbose=False))
    assert re.search("MemoryError", text)
    assert alive == [[], [False], [False]]


def test_released_text_towers_are_not_read_again_for_known_prompts(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    callback = validation(checkpoint, RecordingModel())
    run = trainer(lightning, tmp_path, callbacks=[callback])
    run.validate(toy(lightning), loader(1), verbose=False)
    first, backbone = scores(run), callback._scorer.pf.backbone
    assert backbone.text_tower_loaded
    backbone.release_text_tower()
    run.validate(toy(lightning), loader(1), verbose=False)
    assert scores(run) == first
    assert not backbone.text_tower_loaded


def test_prompts_are_encoded_even_if_the_generator_fails(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    def fails(*_: object) -> torch.Tensor:
        raise RuntimeError("no picture")

    callback = validation(checkpoint, RecordingModel(), generate=fails)
    run = trainer(lightning, tmp_path, callbacks=[callback])
    validation_warnings(lambda: run.validate(toy(lightning), loader(1), verbose=False))
    callback._scorer.pf.backbone.release_text_tower()
    callback.generate = RecordingModel().generate
    run.validate(toy(lightning), loader(1), verbose=False)
    assert not callback._scorer.pf.backbone.text_tower_loaded


def test_all_batches_are_generated_in_eval_mode(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    modes = []

    def generate_and_train(module: Any, prompts: list[str], seed: int) -> torch.Tensor:
        modes.append(module.training)
        pictures = RecordingModel().generate(module, prompts, seed)
        module.train()
        return pictures

    callback = validation(checkpoint, RecordingModel(), generate=generate_and_train, batch_size=2)
    trainer(lightning, tmp_path, callbacks=[callback]).validate(toy(lightning), loader(1), verbose=False)
    assert len(modes) > 1
    assert not any(modes)


def test_missing_checkpoints_raise_before_training(lightning: ModuleType, tmp_path: Path) -> None:
    module = toy(lightning)
    run = trainer(lightning, tmp_path, callbacks=[validation(tmp_path / "nothing", RecordingModel())])
    with pytest.raises(OSError, match="nothing"):
        run.fit(module, noise())
    assert run.global_step == 0


PICTURE, MASK = images(1, *SIZE), masks(1, *SIZE)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("", ["a cat"], PICTURE, MASK), ValueError, "subject is empty"),
        (("cat", "a cat", PICTURE, MASK), TypeError, "prompts is a str; give a list"),
        (("cat", [], PICTURE, MASK), ValueError, "prompts of 'cat' is empty"),
        (("cat", ["a cat", 3], PICTURE, MASK), TypeError, r"prompts\[1\] of 'cat' is an int"),
        (("cat", [" "], PICTURE, MASK), ValueError, r"prompts\[0\] of 'cat' is empty"),
        (("cat", ["a cat"], PICTURE.float(), MASK), ValueError, "reference_images"),
        (("cat", ["a cat"], PICTURE, MASK[:, :9]), ValueError, "reference_masks"),
        (("cat", ["a cat"], PICTURE, MASK[:0]), ValueError, "reference_masks"),
        (("cat", ["a cat"], PICTURE, MASK & False), ValueError, r"reference_masks\[0\] of 'cat' marks nothing"),
        (("cat", ["a cat"], PICTURE, MASK, 3), TypeError, "name is an int"),
    ],
)
def test_errors_for_invalid_concepts_name_the_argument(
    arguments: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        Concept(*arguments)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"every_n_epochs": 1, "every_n_steps": 1}, ValueError, "give one"),
        ({"every_n_epochs": 0}, ValueError, "every_n_epochs is 0"),
        ({"every_n_steps": 1.5}, TypeError, "every_n_steps"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"panel_size": (0, 2)}, ValueError, "panel_size"),
        ({"panel_size": 3}, TypeError, "panel_size"),
        ({"on_error": "ignore"}, ValueError, "on_error is 'ignore'"),
        ({"seed": "x"}, TypeError, "seed is 'x', a str; give an integer"),
        ({"seed": 2**32}, ValueError, r"seed is 4294967296; give an integer in \[0, 2\*\*32\)"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"generate": "x"}, TypeError, "generate is a str"),
        ({"generate": lambda prompts, seed: 0}, TypeError, r"called as generate\(module, prompts, seed\), but it is"),
        ({"segment": lambda images: 0}, TypeError, r"segment is called as segment\(images, nouns\), but it is"),
        ({"segment": 3}, TypeError, "segment is an int; give a function, the name of a segmenter, or None"),
        ({"segment": "sam9"}, ValueError, "segment is 'sam9'; give 'sam3', 'clipseg', 'grounded_sam2' or 'owlv2_sam2'"),
        (
            {"reduction": "mean"},
            TypeError,
            "reduction is not an argument of MaSCValidation; its arguments are concepts, .*dtype",
        ),
        (
            {"every_n_step": 3},
            TypeError,
            r"every_n_step is not an argument of MaSCValidation; did you mean every_n_steps\?",
        ),
        ({"sync_on_compute": False}, TypeError, "sync_on_compute is not an argument"),
        ({"prefix": None}, TypeError, "prefix is a NoneType"),
        ({"panel_dir": 3}, TypeError, "panel_dir is an int"),
        ({"panel_dir": ""}, ValueError, "panel_dir is ''; give a local folder"),
        ({"panel_dir": "s3://bucket"}, ValueError, "panel_dir is 's3://bucket'; give a local folder"),
        ({"panel_dir": Path("s3://bucket")}, ValueError, "give a local folder"),
        ({"max_num_patches": 0}, ValueError, "max_num_patches"),
    ],
)
def test_errors_for_invalid_settings_name_the_argument(
    settings: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        validation("tiny", RecordingModel(), **settings)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ([], "concepts is empty"),
        ("kitten", "concepts is a str; give a list"),
        ([1], r"concepts\[0\] is an int"),
        (None, "concepts is a NoneType"),
    ],
)
def test_concepts_must_be_a_list_of_concept(wrong: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        MaSCValidation(wrong, RecordingModel().generate, RecordingModel().segment)


def test_concepts_copy_their_references() -> None:
    pictures, marked = images(1, *SIZE), masks(1, *SIZE).float()
    concept = Concept("cat", ["a cat"], pictures, marked)
    image, mask = concept.references.images[0].clone(), concept.masks.masks[0].clone()
    pictures.zero_()
    marked.zero_()
    assert torch.equal(concept.references.images[0], image)
    assert torch.equal(concept.masks.masks[0], mask)


@pytest.mark.parametrize("callbacks", ["two callbacks", "one callback twice"])
def test_callbacks_of_equal_prefix_are_rejected(
    callbacks: str, lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """Lightning would log the mean of both."""
    first = validation(checkpoint, RecordingModel())
    second = validation(checkpoint, RecordingModel()) if callbacks == "two callbacks" else first
    run = trainer(lightning, tmp_path, callbacks=[first, second])
    with pytest.raises(ValueError, match="two MaSCValidation callbacks have prefix 'val/'"):
        run.fit(toy(lightning), noise())


def test_layers_that_merge_weights_in_eval_mode_are_unmerged(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """Some LoRA layers do so in ``train``; a merged layer would train without its adapter."""

    class Merging(torch.nn.Dropout):
        merged = False

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def train(self, mode: bool = True) -> Any:
            if self.merged == mode:
                self.merged = not mode
                self.scale.mul_(0.5 if mode else 2)  # in place, as in a merge
            return super().train(mode)

    module = toy(lightning)
    module.net[2], module.held = Merging(), Merging()
    with torch.no_grad():
        module.held.eval()
    seen = []
    type(module).on_train_batch_start = lambda self, *_: seen.append((self.net[2].merged, self.held.merged))
    callback = validation(checkpoint, RecordingModel(), every_n_steps=1, panel_size=None)
    trainer(lightning, tmp_path, callbacks=[callback]).fit(module, noise())
    assert seen == [(False, True)] * 4
    assert not module.held.training


def test_generators_that_seed_everything_do_not_change_lightnings_seeds(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, ranks would shuffle their data with different seeds."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)

    def seeding(module: Any, prompts: list[str], seed: int) -> torch.Tensor:
        lightning.seed_everything(seed, workers=True, verbose=False)
        return RecordingModel().generate(module, prompts, seed)

    module = toy(lightning)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)
    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, RecordingModel(), generate=seeding)])
    run.validate(module, loader(1), verbose=False)
    assert os.environ["PL_GLOBAL_SEED"] == "7"
    assert "PL_SEED_WORKERS" not in os.environ


def test_seeds_wrap_around_at_32_bits(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    recorder = RecordingModel()
    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, recorder, seed=2**32 - 1)])
    run.validate(toy(lightning), loader(1), verbose=False)
    assert recorder.seeds == [2**32 - 1, 0, 1]


def test_segmenters_that_modify_their_images_do_not_change_scores(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    class Modifying(RecordingModel):
        def segment(self, pictures: torch.Tensor, nouns: list[str]) -> torch.Tensor:
            segmented = super().segment(pictures, nouns)
            pictures[~segmented[:, None].expand_as(pictures)] = 0
            return segmented

    both = []
    for recorder in (RecordingModel(), Modifying()):
        run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, recorder)])
        run.validate(toy(lightning), loader(1), verbose=False)
        both.append(scores(run))
    assert both[0] == both[1]


def test_panel_contains_the_scored_images(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The panel has images, prompts, masks and match maps, and the CP of the reference that is shown."""
    drawn: list[Any] = []
    panel = panels.panel
    monkeypatch.setattr(panels, "panel", lambda rows: drawn.append(rows) or panel(rows))
    generated: list[torch.Tensor] = []

    class Collecting(RecordingModel):
        def generate(self, module: Any, prompts: list[str], seed: int) -> torch.Tensor:
            pictures: torch.Tensor = super().generate(module, prompts, seed)
            generated.extend(pictures)
            return pictures

    callback = validation(checkpoint, Collecting(), panel_dir=tmp_path)
    run = trainer(lightning, tmp_path, callbacks=[callback])
    run.validate(toy(lightning), loader(1), verbose=False)
    (rows,) = drawn
    assert [shot.caption for row in rows for shot in row.shots] == ALL_PROMPTS
    marked = RecordingModel().segment(torch.stack(generated[:2]), ["", ""])
    for row, concept in zip(rows, concepts(), strict=True):
        assert row.title.startswith(concept.name)
        assert torch.equal(row.reference, concept.references.images[0])
        assert torch.equal(row.mask, concept.masks.masks[0])
        for shot in row.shots:
            index = ALL_PROMPTS.index(shot.caption)
            assert torch.equal(shot.image, generated[index])
            assert torch.equal(shot.mask, marked[index % 2])
            assert shot.cp == pytest.approx(shot.found.nanmean().item(), abs=1e-6)
    pf = [shot.pf for row in rows for shot in row.shots]
    assert np.mean(pf) == pytest.approx(scores(run)["val/masc_pf"], abs=1e-6)
    kitten = [shot.cp for shot in rows[0].shots]
    assert np.mean(kitten) == pytest.approx(scores(run)["val/masc_cp/kitten"], abs=1e-6)


def test_label_maps_of_a_segmenter_are_warned_about_once_with_a_remedy(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    def labels(pictures: torch.Tensor, nouns: list[str]) -> torch.Tensor:
        return RecordingModel().segment(pictures, nouns).byte() * 2

    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, RecordingModel(), segment=labels)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.validate(toy(lightning), loader(1), verbose=False)
    (text,) = [str(warning.message) for warning in caught if "mark" in str(warning.message)]
    assert re.search(r"marked nothing in 5, .*integers up to 2, .*mask == subject_id", text)
    assert text.count("subject_id") == 1


def test_remote_folders_cause_a_warning_and_create_no_local_folder(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, RecordingModel())])
    run._default_root_dir = "s3://bucket/runs"
    (text,) = validation_warnings(lambda: run.validate(toy(lightning), loader(1), verbose=False))
    assert "s3://bucket/runs/masc_panels is not a local folder; give panel_dir" in text
    assert not (tmp_path / "s3:").exists()


def test_generators_that_freeze_the_model_do_not_affect_training(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    def generate_and_freeze(module: Any, prompts: list[str], seed: int) -> torch.Tensor:
        pictures = RecordingModel().generate(module, prompts, seed)
        module.requires_grad_(False).train()
        torch.set_default_dtype(torch.float64)
        return pictures

    plain = toy(lightning)
    trainer(lightning, tmp_path, max_epochs=2).fit(plain, noise())
    module = toy(lightning)
    callback = validation(checkpoint, RecordingModel(), generate=generate_and_freeze, every_n_steps=3, batch_size=9)
    trainer(lightning, tmp_path, max_epochs=2, callbacks=[callback]).fit(module, noise())
    assert torch.get_default_dtype() == torch.float32
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in plain.state_dict().items())


def test_concepts_of_equal_name_are_rejected() -> None:
    with pytest.raises(ValueError, match="two of the name 'kitten'"):
        MaSCValidation([concepts()[0]] * 2, RecordingModel().generate, RecordingModel().segment)


@pytest.mark.parametrize("settings", [{"every_n_steps": 3}, {}])
def test_tensorboard_receives_scores_and_panels(
    settings: dict[str, int], either: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """Scores are logged at every validation, independent of log_every_n_steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = getattr(either, "pytorch", either).loggers.TensorBoardLogger(tmp_path, name="", version="")
    callback = validation(checkpoint, RecordingModel(), **settings)
    run = trainer(either, tmp_path, max_epochs=2, logger=logger, log_every_n_steps=50, callbacks=[callback])
    run.fit(toy(either), noise(), loader(1))
    events = EventAccumulator(str(tmp_path)).Reload()
    steps = [2, 5] if settings else [3, 7]
    for name in EVERY:
        assert [event.step for event in events.Scalars(name)] == steps
    assert [event.step for event in events.Images("val/masc_panel")] == steps
    assert events.Scalars("val/masc_cp")[-1].value == pytest.approx(scores(run)["val/masc_cp"])
    assert min(event.width for event in events.Images("val/masc_panel")) > 600
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("settings", [{"every_n_steps": 4}, {}])
def test_scores_are_logged_at_the_step_of_the_loss(
    settings: dict[str, int], lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """With two optimisers, the trainer's step grows twice as fast as the logger's."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module = toy(lightning)
    module.automatic_optimization = False

    def step(self: Any, values: torch.Tensor, index: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.net(values).square().mean())
            optimizer.step()
        self.log("loss", float(index))

    type(module).training_step = step
    type(module).configure_optimizers = lambda self: [torch.optim.SGD(self.parameters(), 0.1) for _ in range(2)]
    logger = lightning.pytorch.loggers.TensorBoardLogger(tmp_path, name="", version="")
    callback = validation(checkpoint, RecordingModel(), **settings)
    run = trainer(lightning, tmp_path, max_epochs=2, logger=logger, log_every_n_steps=1, callbacks=[callback])
    run.fit(module, noise())
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(8))
    steps = [1, 3, 5, 7] if settings else [3, 7]
    assert [event.step for event in events.Scalars("val/masc_cp")] == steps
    assert [event.step for event in events.Images("val/masc_panel")] == steps


def test_wandb_receives_scores_and_panels(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = lightning.pytorch.loggers.WandbLogger(save_dir=tmp_path, offline=True, project="masc")
    try:
        run = trainer(lightning, tmp_path, logger=logger, callbacks=[validation(checkpoint, RecordingModel())])
        run.fit(toy(lightning), noise(), loader(1))
        summary = dict(logger.experiment.summary)
    finally:
        wandb.finish()
        wandb.teardown()
    for name in EVERY:
        assert summary[name] == pytest.approx(scores(run)[name])
    (file,) = tmp_path.rglob("*.png")
    assert size_of(file)[0] > 600
    (file,) = tmp_path.rglob("masc_table*.table.json")
    logged = json.loads(file.read_text())
    assert [row[logged["columns"].index("prompt")] for row in logged["data"]] == ALL_PROMPTS
    assert len(list((tmp_path / "masc_tables").iterdir())) == 1


@pytest.mark.parametrize("logger", ["none", "csv", "folder"])
def test_other_loggers_get_png_files(logger: str, lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    csv_logger = CSVLogger(tmp_path / "csv") if logger == "csv" else False
    folders = {"none": tmp_path, "csv": tmp_path / "csv/lightning_logs/version_0", "folder": tmp_path / "panels"}
    folder = folders[logger]
    callback = validation(checkpoint, RecordingModel(), panel_dir=folder if logger == "folder" else None)
    run = trainer(lightning, tmp_path, max_epochs=2, logger=csv_logger, callbacks=[callback])
    run.fit(toy(lightning), noise(), loader(1))
    files = sorted(file.relative_to(folder) for file in tmp_path.rglob("*.png"))
    names = [Path(f"val-epoch={epoch:04d}-step={step:06d}.png") for epoch, step in ((0, 4), (1, 8))]
    assert files == (names if logger == "folder" else [Path("masc_panels") / name for name in names])


def test_a_table_of_all_images_is_kept_and_written(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    callback = validation(checkpoint, RecordingModel(), seed=7)
    run = trainer(lightning, tmp_path, max_epochs=2, callbacks=[callback])
    run.fit(toy(lightning), noise(), loader(1))
    files = sorted((tmp_path / "masc_tables").iterdir())
    assert [file.name for file in files] == ["val-epoch=0000-step=000004.csv", "val-epoch=0001-step=000008.csv"]
    with files[1].open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [row["prompt"] for row in written] == ALL_PROMPTS
    assert [row["seed"] for row in written] == ["7", "7", "8", "8", "9"]
    assert {row["step"] for row in written} == {"7"}, "the step at which the scores are logged"
    assert [float(row["cp"]) for row in written] == [image.cp for image in callback.table]
    assert [row["concept"] for row in written] == [image.concept for image in callback.table]
    assert np.mean([image.pf for image in callback.table]) == pytest.approx(scores(run)["val/masc_pf"], abs=1e-6)


def test_three_concepts_are_told_apart_in_the_log_and_in_the_table(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    two, three = (
        validation(checkpoint, RecordingModel()),
        validation(checkpoint, RecordingModel(), concepts=three_concepts(), prefix="three/"),
    )
    run = trainer(lightning, tmp_path, callbacks=[two, three])
    run.fit(toy(lightning), noise(), loader(1))
    assert set(scores(run)) >= EVERY
    assert not {name for name in scores(run) if name.startswith("val/")} - EVERY
    ranks = [image.rank for image in three.table]
    assert scores(run)["three/masc_identified"] == pytest.approx(np.mean(np.equal(ranks, 1)))
    assert scores(run)["three/masc_mean_reciprocal_rank"] == pytest.approx(np.mean(np.reciprocal(ranks)))
    assert scores(run)["three/masc_margin"] == pytest.approx(np.mean([image.margin for image in three.table]))
    (file,) = (tmp_path / "masc_tables").glob("three-*.csv")
    with file.open(newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [float(row["rank"]) for row in written] == ranks
    assert [float(row["margin"]) for row in written] == [image.margin for image in three.table]
    assert [float(row["cp_floor"]) for row in written] == [image.cp_floor for image in three.table]


def test_a_copy_of_the_callback_leaves_encoded_references_out_and_validates_the_same(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    original = validation(checkpoint, RecordingModel(), concepts=three_concepts())
    module = toy(lightning)

    def validated(callback: MaSCValidation) -> list[tuple[float, ...]]:
        trainer(lightning, tmp_path, callbacks=[callback]).validate(module, loader(1), verbose=False)
        return [(image.cp, image.rank, image.margin, image.cp_floor) for image in callback.table]

    first = validated(original)
    copied = copy.deepcopy(original)
    assert original._scorer._bank is not None
    assert copied._scorer._bank is None
    assert validated(copied) == first


def test_panels_show_the_worst_images_on_request(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    panel = panels.panel
    monkeypatch.setattr(panels, "panel", lambda rows: drawn.append(rows) or panel(rows))
    settings: dict[str, Any] = {"panel": "worst", "panel_size": (1, 3), "seeds_per_prompt": 4, "panel_dir": tmp_path}
    callback = validation(checkpoint, RecordingModel(), **settings)
    run = trainer(lightning, tmp_path, callbacks=[callback])
    run.validate(toy(lightning), loader(1), verbose=False)
    kittens = [image for image in callback.table if image.concept == "kitten"]
    assert len(kittens) == 12
    by_cp, by_pf = (sorted(kittens, key=lambda image: getattr(image, name)) for name in ("cp", "pf"))
    alternating = dict.fromkeys(image for pair in zip(by_cp, by_pf, strict=True) for image in pair)
    expected = [f"seed {image.seed}: {image.prompt}" for image in alternating][:3]
    ((row,),) = drawn
    assert [shot.caption for shot in row.shots] == expected
    assert [shot.cp for shot in row.shots] == [image.cp for image in alternating][:3]
    assert all(shot.found.nanmean().item() == pytest.approx(shot.cp, abs=1e-6) for shot in row.shots)


def test_panels_never_overwrite_each_other(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    callbacks = [validation(checkpoint, RecordingModel(), prefix=prefix) for prefix in ("val/", "other/")]
    run = trainer(lightning, tmp_path, callbacks=callbacks)
    for _ in range(2):
        run.validate(toy(lightning), loader(1), verbose=False)
    name = "epoch=0000-step=000000"
    expected = {f"{prefix}-{name}{version}.png" for prefix in ("val", "other") for version in ("", "-v1")}
    assert {file.name for file in (tmp_path / "masc_panels").iterdir()} == expected
    assert {name.split("masc")[0] for name in scores(run)} == {"val/", "other/"}


def test_panel_size_limits_rows_and_columns(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    sizes = []
    for panel_size in ((2, 6), (1, 6), (1, 1)):
        callback = validation(checkpoint, RecordingModel(), panel_dir=tmp_path / str(panel_size), panel_size=panel_size)
        trainer(lightning, tmp_path, callbacks=[callback]).validate(toy(lightning), loader(1), verbose=False)
        (file,) = (tmp_path / str(panel_size)).glob("*.png")
        sizes.append(size_of(file))
    assert sizes[0][1] > sizes[1][1] == sizes[2][1]
    assert sizes[0][0] == sizes[1][0] > sizes[2][0]


@pytest.mark.parametrize("argument", [True, False])
def test_a_sweep_over_checkpoints_logs_at_the_step_of_each(
    argument: bool, lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """By Trainer.validate with their paths, or by validate_concepts without validation_step and dataloader."""
    from lightning.pytorch.callbacks import ModelCheckpoint
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    saving = ModelCheckpoint(tmp_path / "ckpt", save_top_k=-1, every_n_train_steps=3)
    run = trainer(lightning, tmp_path, max_epochs=3, enable_checkpointing=True, callbacks=[saving])
    module = toy(lightning)
    module.save_hyperparameters({"anything": RecordingModel()})  # torch does not unpickle it by default
    run.fit(module, noise())
    files = sorted((tmp_path / "ckpt").iterdir(), key=checkpoint_step)
    if argument:
        files = [file.rename(tmp_path / "ckpt" / f"{number}.ckpt") for number, file in enumerate(files)]
    logger = lightning.pytorch.loggers.TensorBoardLogger(tmp_path, name="logs", version="")
    recorder, shades = RecordingModel(), []
    for file in files:
        module = toy(lightning)
        if argument:
            callback = validation(checkpoint, recorder)
            run = trainer(lightning, tmp_path, logger=logger, callbacks=[callback])
            run.validate(module, loader(1), ckpt_path=file, weights_only=False, verbose=False)
            shades.append(scores(run)["val/masc_cp"])
        else:
            module.load_state_dict(torch.load(file, weights_only=False)["state_dict"])
            module.trainer = run
            result = validate_concepts(
                concepts(),
                functools.partial(recorder.generate, module),
                recorder.segment,
                modules=module,
                batch_size=2,
                model_name_or_path=checkpoint,
                max_num_patches=PATCHES,
            )
            log_validation(result, logger, checkpoint_step(file))
            shades.append(result.scores["cp"])
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [event.step for event in events.Scalars("val/masc_cp")] == [3, 6, 9, 12]
    assert [event.value for event in events.Scalars("val/masc_cp")] == pytest.approx(shades)
    assert len(set(shades)) == 4
    assert [event.step for event in events.Images("val/masc_panel")] == [3, 6, 9, 12]
    names = sorted(file.name for file in (tmp_path / "logs" / "masc_tables").iterdir())
    assert names == [f"val-step={step:06d}.csv" for step in (3, 6, 9, 12)]


# --- with a segmenter by its name, and masks of references from it ---


def without_masks() -> list[Concept]:
    first, second = concepts()
    return [
        first,
        Concept(second.subject, second.prompts, second.references, noun="toy"),
    ]


@pytest.fixture
def clipseg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Segmenter]:
    """CLIPSeg with random weights, which the callback also loads by its name."""
    load = functools.partial(load_segmenter, checkpoint=build_clipseg(tmp_path / "clipseg"))
    monkeypatch.setattr(concept_scores, "load_segmenter", load)
    return functools.partial(load, "clipseg")


@pytest.mark.parametrize("by_name", [True, False])
def test_missing_reference_masks_are_made_once_before_training(
    by_name: bool,
    clipseg: Callable[..., Segmenter],
    lightning: ModuleType,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts: list[list[str]] = []
    details = Segmenter.details
    monkeypatch.setattr(Segmenter, "details", lambda self, *given: texts.append(given[1]) or details(self, *given))
    _, rocket = concepts()
    recorder = RecordingModel()
    settings = {"batch_size": 2, "max_num_patches": PATCHES, "model_name_or_path": checkpoint}
    segment = "clipseg" if by_name else clipseg()
    callback = MaSCValidation(without_masks(), recorder.generate, segment, **settings)
    pickled, copied = pickle.dumps(callback), copy.deepcopy(callback)
    assert len(pickled) < 250_000  # the references; the network has 400 kB
    assert pickle.loads(pickled)._scorer.segment is copied._scorer.segment is callback._scorer.segment
    run = trainer(lightning, tmp_path, callbacks=[callback], max_epochs=2)
    run.fit(toy(lightning), noise(), loader(1))
    assert texts == [["toy", "toy"]]
    expected = clipseg()(rocket.references, ["toy"] * 2)
    assert all(0 < mask.float().mean() < 1 for mask in expected)
    made = callback._scorer.concepts[1].masks.masks
    assert all(torch.equal(mask, other) for mask, other in zip(made, expected, strict=True))
    given = [concepts()[0], without_masks()[1].with_masks(expected)]
    again = MaSCValidation(given, RecordingModel().generate, clipseg(), **settings)
    run_with_given = trainer(lightning, tmp_path, callbacks=[again], max_epochs=2)
    run_with_given.fit(toy(lightning), noise(), loader(1))
    assert scores(run) == scores(run_with_given)
    assert not math.isnan(scores(run)["val/masc_cp/rocket"])


def test_references_in_which_nothing_is_found_are_an_error_before_training(
    clipseg: Callable[..., Segmenter], lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    settings = {"max_num_patches": PATCHES, "model_name_or_path": checkpoint}
    segment = clipseg(threshold=1 - 1e-12)
    callback = MaSCValidation(without_masks(), RecordingModel().generate, segment, **settings)
    run = trainer(lightning, tmp_path, callbacks=[callback])
    expected = (
        r"reference_images\[0\] of concept 'rocket': segmenter 'clipseg' finds no 'toy' \(best score [01]\.\d\d, "
        r"threshold 1\); give another noun"
    )
    with pytest.raises(ValueError, match=expected):
        run.fit(toy(lightning), noise())
    assert run.global_step == 0


@pytest.mark.parametrize("segment", [None, RecordingModel().segment])
def test_missing_reference_masks_need_a_segmenter(segment: Any) -> None:
    with pytest.raises(ValueError, match=r"concept 'rocket' has no reference_masks, .*segment='sam3'"):
        MaSCValidation(without_masks(), RecordingModel().generate, segment, model_name_or_path="tiny")


# --- without a segmenter ---


def test_without_a_segmenter_masks_are_transferred_and_checked(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    class Keeping(RecordingModel):
        def generate(self, module: Any, prompts: list[str], seed: int) -> torch.Tensor:
            kept.append(super().generate(module, prompts, seed))
            return kept[-1]

    kept: list[torch.Tensor] = []
    callback = validation(checkpoint, Keeping(), segment=None)
    module = toy(lightning)
    run = trainer(lightning, tmp_path, callbacks=[callback])
    texts = validation_warnings(lambda: run.validate(module, loader(1), verbose=False))
    assert re.search(r"by an IoU below 0\.6 for .*; give a segmenter", texts[0])  # random weights find nothing
    encoder: dict[str, Any] = {"backbone": load_backbone(checkpoint), "max_num_patches": PATCHES}
    logged = scores(run)
    for concept in concepts():
        iou = check_transfer([concept.references.images], [concept.masks], **encoder).item()
        assert logged[f"val/masc_mask_iou/{concept.name}"] == pytest.approx(iou, abs=1e-6)
    samples = [(concept, prompt) for concept in concepts() for prompt in concept.prompts]
    expected = prompt_following(
        torch.cat(kept),
        None,
        [prompt for _, prompt in samples],
        [concept.subject for concept, _ in samples],
        reference_images=[concept.references.images for concept, _ in samples],
        reference_masks=[concept.masks for concept, _ in samples],
        **encoder,
    )
    assert logged["val/masc_pf"] == pytest.approx(expected.nanmean().item(), abs=1e-6)
