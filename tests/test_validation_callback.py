"""MaSCValidation: right scores on schedule, pictures in the loggers, and a training that never notices."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from batches import images, masks
from concept_cases import KITTEN, PICTURES, PROMPTS, SIZE, Studio, concepts, validation
from PIL import Image
from trainers import collection, lightnings_own_warnings_ignored, loader, noise, package, toy, trainer

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


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


def counted(studio: Studio) -> int:
    """Validations so far."""
    return len(studio.prompts) // PICTURES


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


@pytest.mark.parametrize(
    ("settings", "fit", "validations"),
    [
        ({}, {"max_epochs": 3}, 3),
        ({"every_n_epochs": 2}, {"max_epochs": 5}, 2),
        ({"every_n_steps": 3}, {"max_epochs": 2}, 2),  # after steps 3 and 6 of 8
        ({"every_n_steps": 2}, {"max_epochs": 2, "accumulate_grad_batches": 2}, 2),  # of 4 steps
        ({"every_n_steps": 50}, {"max_epochs": 2}, 0),
        ({}, {"max_epochs": 2, "val_check_interval": 0.5}, 2),
        ({}, {"max_epochs": 2, "check_val_every_n_epoch": 2}, 2),
        ({}, {"max_epochs": 2, "limit_val_batches": 0}, 2),
        ({}, {"max_steps": 6, "max_epochs": -1}, 2),
    ],
)
def test_it_keeps_its_schedule(
    settings: dict[str, Any],
    fit: dict[str, Any],
    validations: int,
    lightning: ModuleType,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    """With the sanity check on, which it leaves out."""
    studio = Studio()
    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, studio, panel_size=None, **settings)], **fit)
    run.fit(toy(lightning), noise(), loader(1))
    assert counted(studio) == validations
    assert studio.prompts == ALL_PROMPTS * validations
    assert studio.seeds == [0, 1, 2] * validations, "the same dice every time, so that panels can be compared"


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
    assert (counted(before), counted(after)) == ((1, 1) if "every_n_steps" in settings else (0, 1))


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


@pytest.mark.parametrize("settings", [{"every_n_steps": 4}, {}])
def test_checkpoints_and_early_stopping_can_watch_it(
    settings: dict[str, int], lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    kept = ModelCheckpoint(
        tmp_path,
        monitor="val/masc_cp",
        mode="max",
        filename="{val/masc_cp:.4f}",
        auto_insert_metric_name=False,
        every_n_train_steps=4 if settings else None,
    )
    watched = [kept, EarlyStopping("val/masc_cp", mode="max", min_delta=10.0, patience=1)]
    run = trainer(
        lightning,
        tmp_path,
        max_epochs=9,
        enable_checkpointing=True,
        callbacks=[*watched, validation(checkpoint, Studio(), **settings)],
    )
    run.fit(toy(lightning), noise(), loader(1))
    assert run.current_epoch == 2, "no rise by ten, so it stops"
    assert float(kept.best_model_score) == pytest.approx(scores(run)["val/masc_cp"], abs=0.2)
    assert f"{float(kept.best_model_score):.4f}" in kept.best_model_path
    assert "MaSCValidation" not in str(torch.load(kept.best_model_path, weights_only=False)["callbacks"].keys())


def test_a_dev_run_generates_one_batch_and_writes_nothing(
    lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    studio = Studio()
    run = trainer(lightning, tmp_path, fast_dev_run=True, callbacks=[validation(checkpoint, studio, every_n_epochs=7)])
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
        (Broken(generates=lambda good: good[:1]), {"cp", "pf"}, "what generate returned holds 1 items for 2 prompts"),
        (Broken(generates=lambda good: good.float()), {"cp", "pf"}, "what generate returned"),
        (Broken(generates=lambda good: None), {"cp", "pf"}, "what generate returned"),
        (Broken(segments=lambda good: good[:, :9]), {"pf"}, "what segment returned"),
        (Broken(segments=lambda good: None), {"pf"}, "segment raised TypeError"),
        (Broken(segments=lambda good: torch.ones_like(good)), {"pf"}, "the masks leave no patch to score"),
    ],
)
def test_what_fails_is_told_once_and_left_out(
    studio: Broken, undefined: set[str], reason: str, lightning: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    module = toy(lightning)
    callback = validation(checkpoint, studio, batch_size=3)  # so that the rockets are alone in their batch
    run = trainer(lightning, tmp_path, max_epochs=2, callbacks=[callback])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(module, noise())
    told = [str(each.message) for each in caught if "MaSC" in str(each.message)]
    assert len(told) == 2, told  # one for each epoch
    assert all(reason in text for text in told), told
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


def test_it_raises_if_asked_to(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    callback = validation(checkpoint, Broken(generates=boom), batch_size=3, on_error="raise")
    run = trainer(lightning, tmp_path, callbacks=[callback])
    with pytest.raises(RuntimeError, match=r"rank 0: generate raised RuntimeError: out of ideas \(first for 'rocket'"):
        run.validate(toy(lightning), loader(1), verbose=False)


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
        ({"reduction": "mean"}, TypeError, "reduction"),
        ({"max_num_patches": 0}, ValueError, "max_num_patches"),
    ],
)
def test_wrong_settings_are_refused_at_once(settings: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        validation("tiny", Studio(), **settings)


@pytest.mark.parametrize("wrong", [[], "kitten", [1], None])
def test_concepts_are_a_list_of_concept(wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="concepts"):
        MaSCValidation(wrong, Studio().generate, Studio().segment)


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


def test_the_panel_can_be_made_small_or_left_out(lightning: ModuleType, checkpoint: Path, tmp_path: Path) -> None:
    sizes = []
    for panel_size in ((2, 6), (1, 6), (1, 1)):
        callback = validation(checkpoint, Studio(), panel_dir=tmp_path / str(panel_size), panel_size=panel_size)
        trainer(lightning, tmp_path, callbacks=[callback]).validate(toy(lightning), loader(1), verbose=False)
        (file,) = (tmp_path / str(panel_size)).iterdir()
        sizes.append(size_of(file))
    assert sizes[0][1] > sizes[1][1] == sizes[2][1]
    assert sizes[0][0] == sizes[1][0] > sizes[2][0]
