"""MaSCValidation: right scores on schedule, pictures in the loggers, and a training that never notices."""

from __future__ import annotations

import copy
import os
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
from support.concept_cases import KITTEN, PICTURES, PROMPTS, SIZE, Studio, concepts, validation
from support.trainers import collection, lightnings_own_warnings_ignored, loader, noise, package, toy, trainer

from masc_metrics.integrations import picture_log
from masc_metrics.integrations.lightning import Concept, MaSCValidation

OVERALL = {"val/masc_cp", "val/masc_pf"}
ALL_PROMPTS = [prompt for prompts in PROMPTS.values() for prompt in prompts]
EVERY = OVERALL | {f"{name}/{concept}" for name in OVERALL for concept in PROMPTS}


@pytest.fixture(autouse=True)
def _ours_alone() -> Iterator[None]:
    with lightnings_own_warnings_ignored():
        yield


@pytest.fixture(scope="module")
def lightning() -> ModuleType:
    return package("lightning")


@pytest.fixture(params=["lightning", "pytorch_lightning"])
def either(request: pytest.FixtureRequest) -> ModuleType:
    return package(request.param)


def scores(run: Any) -> dict[str, float]:
    return {name: value.item() for name, value in run.callback_metrics.items() if "masc" in name}


def dice() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


def told(function: Callable[[], Any]) -> list[str]:
    """The callback's own warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(each.message) for each in caught if "MaSCValidation" in str(each.message)]


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


def test_its_scores_are_those_of_the_metrics(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    """Each picture against every reference of its concept, its prompt without its subject."""
    studio, module = Studio(), toy(lightning)
    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, studio)])
    run.validate(module, loader(1), verbose=False)
    assert set(scores(run)) == EVERY
    assert studio.modes == [(False, False)] * 3

    again, orders = Studio(), [(c, p) for c in concepts() for p in c.prompts]
    module.eval()
    cp: dict[str, list[float]] = {name: [] for name in PROMPTS}
    pf: dict[str, list[float]] = {name: [] for name in PROMPTS}
    for number, start in enumerate(range(0, PICTURES, 2)):
        batch = orders[start : start + 2]
        for seeded in (torch.manual_seed, np.random.seed, random.seed):
            seeded(number)
        pictures = again.generate(module, [prompt for _, prompt in batch], number)
        found = again.segment(pictures, [concept.noun for concept, _ in batch])
        for picture, mask, (concept, prompt) in zip(pictures, found, batch, strict=True):
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
        truth |= {f"val/masc_{name}/{concept}": float(np.mean(values)) for concept, values in per_concept.items()}
    assert scores(run) == pytest.approx(truth, abs=1e-6)


IN_LOOP, BY_ITSELF = True, False


@pytest.mark.parametrize(
    ("settings", "fit", "steps"),
    [
        ({}, {"max_epochs": 3}, [(4, IN_LOOP), (8, IN_LOOP), (12, IN_LOOP)]),
        ({"every_n_epochs": 2}, {"max_epochs": 5}, [(8, IN_LOOP), (16, IN_LOOP)]),
        ({"every_n_steps": 3}, {"max_epochs": 2}, [(3, BY_ITSELF), (6, BY_ITSELF)]),
        ({"every_n_steps": 2}, {"max_epochs": 2, "accumulate_grad_batches": 2}, [(2, BY_ITSELF), (4, BY_ITSELF)]),
        ({"every_n_steps": 50}, {"max_epochs": 2}, []),
        ({}, {"max_epochs": 2, "val_check_interval": 0.5}, [(4, IN_LOOP), (8, IN_LOOP)]),
        ({}, {"max_epochs": 2, "check_val_every_n_epoch": 2}, [(4, BY_ITSELF), (8, IN_LOOP)]),
        ({}, {"max_epochs": 2, "limit_val_batches": 0}, [(4, BY_ITSELF), (8, BY_ITSELF)]),
        ({}, {"max_steps": 6, "max_epochs": -1}, [(4, IN_LOOP), (6, BY_ITSELF)]),
    ],
)
def test_it_keeps_its_schedule(
    settings: dict[str, Any],
    fit: dict[str, Any],
    steps: list[tuple[int, bool]],
    lightning: ModuleType,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    """With the sanity check on, which it leaves out; inside the epoch's last validation loop if there is one."""
    studio = Studio()
    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, studio, panel_size=None, **settings)], **fit)
    run.fit(toy(lightning), noise(), loader(1))
    assert studio.steps[::3] == steps  # three batches each time
    assert studio.prompts == ALL_PROMPTS * len(steps)
    assert studio.seeds == [0, 1, 2] * len(steps), "the same dice every time, so that panels can be compared"


def test_averaged_weights_are_scored_if_it_stands_before_weight_averaging(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging", reason="needs lightning 2.6")
    seen = {}
    for first in (True, False):

        def look(module: Any, prompts: list[str], seed: int, first: bool = first) -> torch.Tensor:
            seen[first] = module.net[0].weight.detach().clone()
            return Studio().generate(module, prompts, seed)

        masc, mean = validation(checkpoint, Studio(), generate=look), averaging.WeightAveraging()
        module = toy(lightning)
        run = trainer(lightning, tmp_path, callbacks=[masc, mean] if first else [mean, masc], num_sanity_val_steps=0)
        weights: list[torch.Tensor] = []
        type(module).on_train_batch_end = lambda self, *_, weights=weights: weights.append(
            self.net[0].weight.detach().clone()
        )
        run.fit(module, noise(), loader(1))
    assert torch.equal(seen[False], weights[-1])
    assert torch.allclose(seen[True], torch.stack(weights).mean(dim=0), atol=1e-6)


@pytest.mark.parametrize("settings", [{"every_n_steps": 3}, {"every_n_epochs": 2}])
def test_a_resumed_run_keeps_the_schedule(
    settings: dict[str, int], lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    file, before, after = tmp_path / "half.ckpt", Studio(), Studio()
    first = trainer(lightning, tmp_path, max_epochs=1, callbacks=[validation(checkpoint, before, **settings)])
    first.fit(toy(lightning), noise())
    first.save_checkpoint(file)
    second = trainer(lightning, tmp_path, max_epochs=2, callbacks=[validation(checkpoint, after, **settings)])
    second.fit(toy(lightning), noise(), ckpt_path=file)
    assert [step for step, _ in before.steps[::3]] == ([3] if "every_n_steps" in settings else [])
    assert [step for step, _ in after.steps[::3]] == ([6] if "every_n_steps" in settings else [8])


def test_a_run_resumed_in_the_middle_of_an_epoch_keeps_the_schedule(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    studios = Studio(), Studio()
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=6, filename="sixth")  # in epochs of four
    for studio, settings in zip(
        studios, ({"max_epochs": 2, "enable_checkpointing": True}, {"max_epochs": 3}), strict=True
    ):
        callbacks = [validation(checkpoint, studio, every_n_steps=4, panel_size=None)]
        callbacks += [saving] if "enable_checkpointing" in settings else []
        run = trainer(lightning, tmp_path, callbacks=callbacks, **settings)
        run.fit(toy(lightning), noise(), ckpt_path=tmp_path / "sixth.ckpt" if studio is studios[1] else None)
    assert [step for step, _ in studios[0].steps[::3]] == [4, 8]
    assert [step for step, _ in studios[1].steps[::3]] == [8, 12]


def test_a_run_resumed_at_an_epochs_end_does_not_validate_it_again(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=False)
    settings = {"enable_checkpointing": True, "num_sanity_val_steps": 0}
    first = trainer(lightning, tmp_path, callbacks=[saving, validation(checkpoint, Studio())], **settings)
    first.fit(toy(lightning), noise(), loader(1))
    after = Studio()
    second = trainer(lightning, tmp_path, max_epochs=2, callbacks=[validation(checkpoint, after)])
    second.fit(toy(lightning), noise(), loader(1), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert [step for step, _ in after.steps[::3]] == [8]


@pytest.mark.parametrize("settings", [{"every_n_steps": 1}, {"every_n_epochs": 1}])
def test_training_beside_it_is_bit_identical(
    settings: dict[str, int], either: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """Dropout, shuffling and batch statistics included; a part that the user holds in eval mode stays there."""
    states = []
    for callbacks in ([], [validation(checkpoint, Studio(), **settings)]):
        module = toy(either)
        module.frozen = torch.nn.Dropout().eval()
        run = trainer(either, tmp_path, max_epochs=2, callbacks=callbacks)
        modes: list[bool] = []
        type(module).on_train_batch_start = lambda self, *_, modes=modes: modes.append(self.frozen.training)
        either.seed_everything(1, verbose=False)
        data = torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=2, shuffle=True)  # type: ignore[arg-type]
        run.fit(module, data, loader(1))
        kept = run.strategy.optimizers[0].state_dict()["state"]
        states.append((copy.deepcopy(module.state_dict()), kept, dice(), modes))
    bare, beside = states
    assert bare[0].keys() == beside[0].keys()
    assert all(torch.equal(value, beside[0][name]) for name, value in bare[0].items())
    assert all(torch.equal(state["exp_avg"], beside[1][index]["exp_avg"]) for index, state in bare[1].items())
    assert bare[2] == beside[2]
    assert bare[3] == beside[3]


def test_random_states_and_modes_are_restored_when_the_user_interrupts(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    class Interrupting(Studio):
        def generate(self, module: Any, prompts: list[str], seed: int) -> Any:
            super().generate(module, prompts, seed)
            raise KeyboardInterrupt

    module, callback = toy(lightning), validation(checkpoint, Interrupting())
    run = trainer(lightning, tmp_path, callbacks=[callback])
    run.strategy.connect(module)
    module.trainer = run
    module.net[1].eval()
    before = dice()
    with pytest.raises(KeyboardInterrupt):
        callback._validate(run, module, 0)
    assert dice() == before
    assert module.training
    assert not module.net[1].training


def test_generate_runs_in_the_trainers_precision_and_without_inference_tensors(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    found = []

    def look(module: Any, prompts: list[str], seed: int) -> torch.Tensor:
        made = module.net(torch.ones(1, 4))
        found.append((made.dtype, made.is_inference(), torch.is_autocast_enabled("cpu")))
        return Studio().generate(module, prompts, seed)

    for precision in ("bf16-mixed", "bf16-true"):
        callback = validation(checkpoint, Studio(), generate=look, batch_size=9)
        trainer(lightning, tmp_path, precision=precision, callbacks=[callback]).validate(
            toy(lightning), loader(1), verbose=False
        )
    assert found == [(torch.bfloat16, False, True), (torch.bfloat16, False, False)]


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
def test_checkpoints_and_early_stopping_can_watch_it(
    settings: dict[str, Any],
    fit: dict[str, Any],
    saving: dict[str, Any],
    stopping: dict[str, Any],
    lightning: ModuleType,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    """With the settings that docs/lightning.md gives: every checkpoint bears the score of its own weights."""
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    kept = ModelCheckpoint(
        tmp_path,
        monitor="val/masc_cp",
        mode="max",
        save_top_k=-1,
        filename="{step}-{val/masc_cp:.6f}",
        auto_insert_metric_name=False,
        **saving,
    )
    known: dict[int, float] = {}

    class Telling(lightning.Callback):  # type: ignore[misc,name-defined]
        def on_train_batch_start(self, run: Any, *_: Any) -> None:
            known.setdefault(run.global_step, scores(run).get("val/masc_cp", float("nan")))

        def on_train_end(self, run: Any, *_: Any) -> None:
            known[run.global_step] = scores(run)["val/masc_cp"]

    stop = EarlyStopping("val/masc_cp", mode="max", min_delta=10.0, patience=2, **stopping)
    callbacks = [kept, stop, Telling(), validation(checkpoint, Studio(), panel_size=None, **settings)]
    run = trainer(lightning, tmp_path, max_epochs=12, enable_checkpointing=True, callbacks=callbacks, **fit)
    run.fit(toy(lightning), noise(), loader(1))
    assert run.current_epoch < 12, "no rise by ten, so it stops"
    files = [file.stem.rsplit("/", 1)[-1] for file in tmp_path.rglob("*.ckpt")]
    names = [str(file.relative_to(tmp_path).with_suffix("")) for file in tmp_path.rglob("*.ckpt")]
    assert len(names) == len(files) >= 2
    for name in names:
        step, score = re.match(r"(\d+)-(-?\d\.\d+)", name).groups()  # type: ignore[union-attr]
        assert float(score) == pytest.approx(known[int(step)], abs=2e-6)
    assert "MaSCValidation" not in str(torch.load(kept.best_model_path, weights_only=False)["callbacks"].keys())


def test_a_dev_run_generates_one_batch_and_writes_nothing(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    for settings in ({"every_n_epochs": 7}, {"every_n_steps": 1}):
        studio = Studio()
        run = trainer(lightning, tmp_path, fast_dev_run=True, callbacks=[validation(checkpoint, studio, **settings)])
        run.fit(toy(lightning), noise(), loader(1))
        assert studio.prompts == PROMPTS[KITTEN][:2]
    assert not list(tmp_path.rglob("*.png"))


class Broken(Studio):
    """Fails where it is told to."""

    def __init__(self, *, generates: Any = None, segments: Any = None) -> None:
        super().__init__()
        self.bad_pictures, self.bad_masks = generates, segments

    def generate(self, module: Any, prompts: list[str], seed: int) -> Any:
        good = super().generate(module, prompts, seed)
        return self.bad_pictures(good) if self.bad_pictures and "rocket" in prompts[0] else good

    def segment(self, pictures: Any, nouns: list[str]) -> Any:
        good = super().segment(pictures, nouns)
        return self.bad_masks(good) if self.bad_masks and "rocket" in nouns[0] else good


def boom(_: Any) -> Any:
    raise RuntimeError("out of ideas")


@pytest.mark.parametrize(
    ("studio", "undefined", "reason"),
    [
        (Broken(generates=boom), {"cp", "pf"}, "generate raised RuntimeError: out of ideas"),
        (Broken(segments=boom), {"pf"}, "segment raised RuntimeError: out of ideas"),
        (Broken(generates=lambda good: good[:1]), {"cp", "pf"}, "what generate returned holds 1 images for 2 prompts"),
        (Broken(generates=lambda good: good.float()), {"cp", "pf"}, "what generate returned"),
        (Broken(generates=lambda good: None), {"cp", "pf"}, "what generate returned"),
        (Broken(segments=lambda good: good[:, :9]), {"pf"}, "what segment returned"),
        (Broken(segments=lambda good: None), {"pf"}, "segment raised TypeError: what segment returned is a NoneType"),
        (Broken(segments=lambda good: good[0]), {"pf"}, "what segment returned has shape"),
        (Broken(segments=lambda good: torch.ones_like(good)), {"pf"}, "marked 2 from edge to edge"),
        (
            Broken(segments=lambda good: torch.zeros_like(good)),
            set(),
            "of 5 pictures: the segmenter marked nothing in 2",
        ),
    ],
)
def test_what_fails_is_told_once_and_left_out(
    studio: Broken, undefined: set[str], reason: str, lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    module = toy(lightning)
    callback = validation(checkpoint, studio, batch_size=3)  # so that the rockets are alone in their batch
    run = trainer(lightning, tmp_path, max_epochs=2, callbacks=[callback])
    texts = told(lambda: run.fit(module, noise()))
    assert len(texts) == 2, texts  # one for each epoch
    assert all(reason in text for text in texts), texts
    assert not any("the reference masks leave" in text for text in texts), "each picture is counted with its own reason"
    assert all(("edge to edge" in text) == ("edge to edge" in reason) for text in texts)
    found = scores(run)
    for score in ("cp", "pf"):
        assert (found[f"val/masc_{score}/rocket"] != found[f"val/masc_{score}/rocket"]) == (score in undefined)
        assert found[f"val/masc_{score}"] == found[f"val/masc_{score}"]
        if score in undefined:
            assert found[f"val/masc_{score}"] == found[f"val/masc_{score}/kitten"]
    assert len(list((tmp_path / "masc_panels").glob("*.png"))) == 2
    plain = toy(lightning)
    trainer(lightning, tmp_path, max_epochs=2).fit(plain, noise())
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in module.state_dict().items())


def test_a_reference_without_a_patch_of_its_subject_is_left_out(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """One pixel of a mask is no patch; the picture keeps its score against the other reference."""
    pictures, marked = images(2, *SIZE, seed=80), masks(2, *SIZE, seed=80)
    pixel = torch.zeros_like(marked[1])
    pixel[0, 0] = True
    both = Concept("rocket", PROMPTS["rocket"], pictures, torch.stack([marked[0], pixel]))
    first = Concept("rocket", PROMPTS["rocket"], pictures[:1], marked[:1])
    found = []
    for concept in (both, first):
        studio = Studio()
        settings = {"model_name_or_path": checkpoint, "max_num_patches": PATCHES}
        callback = MaSCValidation([concept], studio.generate, studio.segment, **settings)
        run = trainer(lightning, tmp_path, callbacks=[callback])
        run.validate(toy(lightning), loader(1), verbose=False)
        found.append(scores(run))
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert found[0]["val/masc_cp"] == found[0]["val/masc_cp"]


def test_it_raises_if_asked_to(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    callback = validation(checkpoint, Broken(generates=boom), batch_size=3, on_error="raise")
    run = trainer(lightning, tmp_path, callbacks=[callback])
    with pytest.raises(RuntimeError, match=r"rank 0: generate raised RuntimeError: out of ideas \(first for 'rocket'"):
        run.validate(toy(lightning), loader(1), verbose=False)


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_a_panel_that_cannot_be_kept_is_a_warning(
    on_error: str, lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    callback = validation(checkpoint, Studio(), panel_dir=file, on_error=on_error)
    run = trainer(lightning, tmp_path, callbacks=[callback])
    (text,) = told(lambda: run.validate(toy(lightning), loader(1), verbose=False))
    assert re.search("the panel is lost, FileExistsError", text)
    assert set(scores(run)) == EVERY


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_a_panel_that_cannot_be_drawn_leaves_the_scores(
    on_error: str, lightning: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room for maps")

    monkeypatch.setattr("masc_metrics.integrations.concept_scores.match_maps", fail)
    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, Studio(), on_error=on_error)])
    (text,) = told(lambda: run.validate(toy(lightning), loader(1), verbose=False))
    assert re.search("of 5 pictures: the panel raised .*no room for maps", text)
    assert not any(np.isnan(value) for value in scores(run).values())


def test_what_failed_is_not_held_while_the_rest_is_generated(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """It may have failed for want of memory."""
    held: list[weakref.ref[torch.Tensor]] = []
    alive = []

    def fails_first(module: Any, prompts: list[str], seed: int) -> torch.Tensor:
        alive.append([each() is not None for each in held])
        large = Studio().generate(module, prompts, seed)
        if not held:
            held.append(weakref.ref(large))
            raise MemoryError
        return large

    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, Studio(), generate=fails_first)])
    (text,) = told(lambda: run.validate(toy(lightning), loader(1), verbose=False))
    assert re.search("MemoryError", text)
    assert alive == [[], [False], [False]]


def test_a_released_text_tower_is_not_read_again_for_known_prompts(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    callback = validation(checkpoint, Studio())
    run = trainer(lightning, tmp_path, callbacks=[callback])
    run.validate(toy(lightning), loader(1), verbose=False)
    first, backbone = scores(run), callback._scorer.pf.backbone
    assert backbone.text_tower_loaded
    backbone.release_text_tower()
    run.validate(toy(lightning), loader(1), verbose=False)
    assert scores(run) == first
    assert not backbone.text_tower_loaded


def test_prompts_are_known_after_a_validation_whose_generator_failed(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    def fails(*_: object) -> torch.Tensor:
        raise RuntimeError("no picture")

    callback = validation(checkpoint, Studio(), generate=fails)
    run = trainer(lightning, tmp_path, callbacks=[callback])
    told(lambda: run.validate(toy(lightning), loader(1), verbose=False))
    callback._scorer.pf.backbone.release_text_tower()
    callback.generate = Studio().generate
    run.validate(toy(lightning), loader(1), verbose=False)
    assert not callback._scorer.pf.backbone.text_tower_loaded


def test_every_batch_is_generated_in_evaluation_mode(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    modes = []

    def careless(module: Any, prompts: list[str], seed: int) -> torch.Tensor:
        modes.append(module.training)
        made = Studio().generate(module, prompts, seed)
        module.train()
        return made

    callback = validation(checkpoint, Studio(), generate=careless, batch_size=2)
    trainer(lightning, tmp_path, callbacks=[callback]).validate(toy(lightning), loader(1), verbose=False)
    assert len(modes) > 1
    assert not any(modes)


def test_a_missing_checkpoint_is_told_before_anything_is_trained(lightning: ModuleType, tmp_path: Path) -> None:
    module = toy(lightning)
    run = trainer(lightning, tmp_path, callbacks=[validation(tmp_path / "nothing", Studio())])
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
        (("cat", ["a cat", 3], PICTURE, MASK), TypeError, r"prompts\[1\] of 'cat' is a int"),
        (("cat", [" "], PICTURE, MASK), ValueError, r"prompts\[0\] of 'cat' is empty"),
        (("cat", ["a cat"], PICTURE.float(), MASK), ValueError, "reference_images"),
        (("cat", ["a cat"], PICTURE, MASK[:, :9]), ValueError, "reference_masks"),
        (("cat", ["a cat"], PICTURE, MASK[:0]), ValueError, "reference_masks"),
        (("cat", ["a cat"], PICTURE, MASK & False), ValueError, r"reference_masks\[0\] of 'cat' marks nothing"),
        (("cat", ["a cat"], PICTURE, MASK, 3), TypeError, "name is a int"),
    ],
)
def test_a_wrong_concept_is_refused_at_once(arguments: tuple[Any, ...], error: type[Exception], text: str) -> None:
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
        ({"seed": "x"}, TypeError, "seed is a str"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"generate": "x"}, TypeError, "generate is a str"),
        ({"reduction": "mean"}, TypeError, "reduction is no setting of MaSCValidation; .* max_num_patches"),
        ({"every_n_step": 3}, TypeError, "every_n_step is no setting"),
        ({"sync_on_compute": False}, TypeError, "sync_on_compute is no setting"),
        ({"prefix": None}, TypeError, "prefix is a NoneType"),
        ({"panel_dir": 3}, TypeError, "panel_dir is a int"),
        ({"panel_dir": ""}, ValueError, "panel_dir is ''; give a folder"),
        ({"panel_dir": "s3://bucket"}, ValueError, "panel_dir is 's3://bucket'; give a folder of this machine"),
        ({"panel_dir": Path("s3://bucket")}, ValueError, "give a folder of this machine"),
        ({"max_num_patches": 0}, ValueError, "max_num_patches"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        validation("tiny", Studio(), **settings)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ([], "concepts is empty"),
        ("kitten", "concepts is a str; give a list"),
        ([1], r"concepts\[0\] is a int"),
        (None, "concepts is a NoneType"),
    ],
)
def test_concepts_are_a_list_of_concept(wrong: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        MaSCValidation(wrong, Studio().generate, Studio().segment)


def test_a_concept_keeps_its_own_copy_of_the_references() -> None:
    pictures, marked = images(1, *SIZE), masks(1, *SIZE).float()
    concept = Concept("cat", ["a cat"], pictures, marked)
    kept = concept.references.images[0].clone(), concept.masks.masks[0].clone()
    pictures.zero_()
    marked.zero_()
    assert torch.equal(concept.references.images[0], kept[0])
    assert torch.equal(concept.masks.masks[0], kept[1])


@pytest.mark.parametrize("twice", ["two alike", "one of them, twice"])
def test_two_callbacks_of_one_prefix_are_refused(
    twice: str, lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """Lightning would log the mean of both."""
    first = validation(checkpoint, Studio())
    second = validation(checkpoint, Studio()) if twice == "two alike" else first
    run = trainer(lightning, tmp_path, callbacks=[first, second])
    with pytest.raises(ValueError, match="two MaSCValidation callbacks have prefix 'val/'"):
        run.fit(toy(lightning), noise())


def test_a_layer_that_merges_its_weights_for_evaluation_takes_them_apart_again(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """As some LoRA layers do in their own ``train``; a merged one would train without its adapter."""

    class Merging(torch.nn.Dropout):
        merged = False

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def train(self, mode: bool = True) -> Any:
            if self.merged == mode:
                self.merged = not mode
                self.scale.mul_(0.5 if mode else 2)  # in place, as a merge is
            return super().train(mode)

    module = toy(lightning)
    module.net[2], module.held = Merging(), Merging()
    with torch.no_grad():
        module.held.eval()
    seen = []
    type(module).on_train_batch_start = lambda self, *_: seen.append((self.net[2].merged, self.held.merged))
    callback = validation(checkpoint, Studio(), every_n_steps=1, panel_size=None)
    trainer(lightning, tmp_path, callbacks=[callback]).fit(module, noise())
    assert seen == [(False, True)] * 4
    assert not module.held.training


def test_a_generator_that_seeds_everything_leaves_lightnings_seeds(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank would shuffle its data by another seed."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)

    def seeding(module: Any, prompts: list[str], seed: int) -> torch.Tensor:
        lightning.seed_everything(seed, workers=True, verbose=False)
        return Studio().generate(module, prompts, seed)

    module = toy(lightning)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)
    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, Studio(), generate=seeding)])
    run.validate(module, loader(1), verbose=False)
    assert os.environ["PL_GLOBAL_SEED"] == "7"
    assert "PL_SEED_WORKERS" not in os.environ


def test_seeds_stay_in_the_range_that_every_generator_takes(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    studio = Studio()
    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, studio, seed=2**32 - 1)])
    run.validate(toy(lightning), loader(1), verbose=False)
    assert studio.seeds == [2**32 - 1, 0, 1]


def test_a_segmenter_that_paints_in_its_pictures_changes_no_score(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    class Painting(Studio):
        def segment(self, pictures: torch.Tensor, nouns: list[str]) -> torch.Tensor:
            found = super().segment(pictures, nouns)
            pictures[~found[:, None].expand_as(pictures)] = 0
            return found

    both = []
    for studio in (Studio(), Painting()):
        run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, studio)])
        run.validate(toy(lightning), loader(1), verbose=False)
        both.append(scores(run))
    assert both[0] == both[1]


def test_the_panel_shows_what_was_scored(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures, prompts, masks and match maps of its scores; beside a reference, the score against that one."""
    drawn: list[Any] = []
    real = picture_log.panel
    monkeypatch.setattr(picture_log, "panel", lambda found: drawn.append(found) or real(found))
    made: list[torch.Tensor] = []

    class Keeping(Studio):
        def generate(self, module: Any, prompts: list[str], seed: int) -> torch.Tensor:
            pictures: torch.Tensor = super().generate(module, prompts, seed)
            made.extend(pictures)
            return pictures

    callback = validation(checkpoint, Keeping(), panel_dir=tmp_path)
    run = trainer(lightning, tmp_path, callbacks=[callback])
    run.validate(toy(lightning), loader(1), verbose=False)
    (found,) = drawn
    assert [shot.caption for row in found for shot in row.shots] == ALL_PROMPTS
    marked = Studio().segment(torch.stack(made[:2]), ["", ""])
    for row, concept in zip(found, concepts(), strict=True):
        assert row.title.startswith(concept.name)
        assert torch.equal(row.reference, concept.references.images[0])
        assert torch.equal(row.mask, concept.masks.masks[0])
        for shot in row.shots:
            index = ALL_PROMPTS.index(shot.caption)
            assert torch.equal(shot.image, made[index])
            assert torch.equal(shot.mask, marked[index % 2])
            assert shot.cp == pytest.approx(shot.found.nanmean().item(), abs=1e-6)
    pf = [shot.pf for row in found for shot in row.shots]
    assert np.mean(pf) == pytest.approx(scores(run)["val/masc_pf"], abs=1e-6)
    kitten = [shot.cp for shot in found[0].shots]
    assert np.mean(kitten) == pytest.approx(scores(run)["val/masc_cp/kitten"], abs=1e-6)


def test_label_maps_of_a_segmenter_are_told_once_with_their_remedy(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    def labels(pictures: torch.Tensor, nouns: list[str]) -> torch.Tensor:
        return Studio().segment(pictures, nouns).byte() * 2

    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, Studio(), segment=labels)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.validate(toy(lightning), loader(1), verbose=False)
    (text,) = [str(each.message) for each in caught if "mark" in str(each.message)]
    assert re.search(r"marked nothing in 5, .*integers up to 2;.*mask == subject_id", text)
    assert text.count("subject_id") == 1


def test_a_folder_on_another_machine_is_a_warning_and_no_folder_here(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, Studio())])
    run._default_root_dir = "s3://bucket/runs"
    (text,) = told(lambda: run.validate(toy(lightning), loader(1), verbose=False))
    assert "s3://bucket/runs/masc_panels is no folder of this machine; give panel_dir" in text
    assert not (tmp_path / "s3:").exists()


def test_a_generator_that_freezes_its_model_does_not_freeze_the_training(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    def careless(module: Any, prompts: list[str], seed: int) -> torch.Tensor:
        made = Studio().generate(module, prompts, seed)
        module.requires_grad_(False).train()
        torch.set_default_dtype(torch.float64)
        return made

    plain = toy(lightning)
    trainer(lightning, tmp_path, max_epochs=2).fit(plain, noise())
    module = toy(lightning)
    callback = validation(checkpoint, Studio(), generate=careless, every_n_steps=3, batch_size=9)
    trainer(lightning, tmp_path, max_epochs=2, callbacks=[callback]).fit(module, noise())
    assert torch.get_default_dtype() == torch.float32
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in plain.state_dict().items())


def test_two_concepts_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two of the name 'kitten'"):
        MaSCValidation([concepts()[0]] * 2, Studio().generate, Studio().segment)


@pytest.mark.parametrize("settings", [{"every_n_steps": 3}, {}])
def test_tensorboard_gets_scalars_and_pictures(
    settings: dict[str, int], either: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """At every validation, however seldom the user logs training steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = getattr(either, "pytorch", either).loggers.TensorBoardLogger(tmp_path, name="", version="")
    callback = validation(checkpoint, Studio(), **settings)
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
def test_scores_stand_where_lightning_puts_the_loss(
    settings: dict[str, int], lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    """Two optimisers: the trainer's step grows twice as fast as the logger's."""
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
    callback = validation(checkpoint, Studio(), **settings)
    run = trainer(lightning, tmp_path, max_epochs=2, logger=logger, log_every_n_steps=1, callbacks=[callback])
    run.fit(module, noise())
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(8))
    places = [1, 3, 5, 7] if settings else [3, 7]
    assert [event.step for event in events.Scalars("val/masc_cp")] == places
    assert [event.step for event in events.Images("val/masc_panel")] == places


def test_wandb_gets_scalars_and_pictures(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = lightning.pytorch.loggers.WandbLogger(save_dir=tmp_path, offline=True, project="masc")
    try:
        run = trainer(lightning, tmp_path, logger=logger, callbacks=[validation(checkpoint, Studio())])
        run.fit(toy(lightning), noise(), loader(1))
        summary = dict(logger.experiment.summary)
    finally:
        wandb.finish()
        wandb.teardown()
    for name in EVERY:
        assert summary[name] == pytest.approx(scores(run)[name])
    (file,) = tmp_path.rglob("*.png")
    assert size_of(file)[0] > 600


@pytest.mark.parametrize("logger", ["none", "csv", "folder"])
def test_other_loggers_get_a_folder_of_pictures(
    logger: str, lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    from lightning.pytorch.loggers import CSVLogger

    own = CSVLogger(tmp_path / "csv") if logger == "csv" else False
    place = {"none": tmp_path, "csv": tmp_path / "csv/lightning_logs/version_0", "folder": tmp_path / "here"}[logger]
    callback = validation(checkpoint, Studio(), panel_dir=place if logger == "folder" else None)
    run = trainer(lightning, tmp_path, max_epochs=2, logger=own, callbacks=[callback])
    run.fit(toy(lightning), noise(), loader(1))
    found = sorted(file.relative_to(place) for file in tmp_path.rglob("*.png"))
    names = [Path(f"val-epoch={epoch:04d}-step={step:06d}.png") for epoch, step in ((0, 4), (1, 8))]
    assert found == (names if logger == "folder" else [Path("masc_panels") / name for name in names])


def test_no_panel_overwrites_another(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    callbacks = [validation(checkpoint, Studio(), prefix=prefix) for prefix in ("val/", "other/")]
    run = trainer(lightning, tmp_path, callbacks=callbacks)
    for _ in range(2):
        run.validate(toy(lightning), loader(1), verbose=False)
    name = "epoch=0000-step=000000"
    expected = {f"{prefix}-{name}{version}.png" for prefix in ("val", "other") for version in ("", "-v1")}
    assert {file.name for file in (tmp_path / "masc_panels").iterdir()} == expected
    assert {name.split("masc")[0] for name in scores(run)} == {"val/", "other/"}


def test_the_panel_can_be_made_small_or_left_out(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    sizes = []
    for panel_size in ((2, 6), (1, 6), (1, 1)):
        callback = validation(checkpoint, Studio(), panel_dir=tmp_path / str(panel_size), panel_size=panel_size)
        trainer(lightning, tmp_path, callbacks=[callback]).validate(toy(lightning), loader(1), verbose=False)
        (file,) = (tmp_path / str(panel_size)).iterdir()
        sizes.append(size_of(file))
    assert sizes[0][1] > sizes[1][1] == sizes[2][1]
    assert sizes[0][0] == sizes[1][0] > sizes[2][0]
