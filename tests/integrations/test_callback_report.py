"""MaSCValidation(report=...): the callback writes the report on a training run, also of a resumed one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
from support.concept_cases import PICTURES, RecordingModel, validation
from support.report_pages import page_data, page_pictures
from support.trainers import loader, noise, third_party_warnings_ignored, toy, trainer, validation_warnings


@pytest.fixture(autouse=True)
def _ignore_third_party_warnings() -> Iterator[None]:
    with third_party_warnings_ignored():
        yield


def test_a_training_has_its_report(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "reports" / "training.html"
    callback = validation(checkpoint, RecordingModel(), every_n_steps=2, report=file)
    run = trainer(lightning, tmp_path, callbacks=[callback])
    run.fit(toy(lightning), noise())
    data = page_data(file)
    assert data["training"]["steps"] == [2, 4]
    assert data["count"] == 2 * PICTURES
    assert data["scores"]["cp"][PICTURES:] == pytest.approx([image.cp for image in callback.table], rel=1e-5)
    kitten = [image.cp for image in callback.table if image.concept == "kitten"]
    assert data["training"]["concepts"]["kitten"]["cp"][-1] == pytest.approx(sum(kitten) / len(kitten))
    images = [block["images"] for block in page_pictures(file).values()]
    assert len(images) == 2 * PICTURES
    assert all(set(each) == {"reference", "generated", "match"} for each in images)


def test_a_resumed_training_goes_on_with_its_report_and_a_new_one_begins_another(
    checkpoint: Path, tmp_path: Path
) -> None:
    file, saved = tmp_path / "training.html", tmp_path / "half.ckpt"
    first = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, RecordingModel(), report=file)])
    first.fit(toy(lightning), noise())
    first.save_checkpoint(saved)
    second = trainer(
        lightning, tmp_path, max_epochs=2, callbacks=[validation(checkpoint, RecordingModel(), report=file)]
    )
    second.fit(toy(lightning), noise(), ckpt_path=saved)
    assert page_data(file)["training"]["steps"] == [4, 8]
    again = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, RecordingModel(), report=file)])
    again.fit(toy(lightning), noise())
    assert page_data(file)["training"]["steps"] == [4, 8]
    assert page_data(tmp_path / "training-v1.html")["training"]["steps"] == [4]


def test_resumed_trainings_go_on_with_their_own_reports(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = trainer(
            lightning, tmp_path, callbacks=[validation(checkpoint, RecordingModel(), report=tmp_path / "t.html")]
        )
        run.fit(toy(lightning), noise())
        run.save_checkpoint(tmp_path / f"{name}.ckpt")
    for name, file in (("a", "t.html"), ("b", "t-v1.html")):
        run = trainer(
            lightning,
            tmp_path,
            max_epochs=2,
            callbacks=[validation(checkpoint, RecordingModel(), report=tmp_path / "t.html")],
        )
        run.fit(toy(lightning), noise(), ckpt_path=tmp_path / f"{name}.ckpt")
        assert page_data(tmp_path / file)["training"]["steps"] == [4, 8]
    assert not (tmp_path / "t-v2.html").exists()


def test_a_validation_before_training_is_in_the_report_of_this_training(checkpoint: Path, tmp_path: Path) -> None:
    """A second run of the same program does not add its first step to the report of the first run."""
    for name in ("training", "training-v1"):
        callback = validation(checkpoint, RecordingModel(), report=tmp_path / "training.html")
        run, module = trainer(lightning, tmp_path, callbacks=[callback]), toy(lightning)
        run.validate(module, loader(1), verbose=False)
        run.fit(module, noise())
        assert page_data(tmp_path / f"{name}.html")["training"]["steps"] == [0, 4]


def test_a_callback_that_is_used_again_begins_another_report(checkpoint: Path, tmp_path: Path) -> None:
    callback = validation(checkpoint, RecordingModel(), report=tmp_path / "training.html")
    for name in ("training", "training-v1"):
        trainer(lightning, tmp_path, callbacks=[callback]).fit(toy(lightning), noise())
        assert page_data(tmp_path / f"{name}.html")["training"]["steps"] == [4]


def test_images_that_failed_are_undefined_in_the_report(checkpoint: Path, tmp_path: Path) -> None:
    def fails(module: Any, prompts: list[str], seed: int) -> Any:
        if any("kitten" in prompt for prompt in prompts):
            raise RuntimeError("intended failure")
        return RecordingModel().generate(module, prompts, seed)

    file = tmp_path / "training.html"
    settings: dict[str, Any] = {"batch_size": 1, "report": file}
    run = trainer(lightning, tmp_path, callbacks=[validation(checkpoint, RecordingModel(), generate=fails, **settings)])
    (text,) = validation_warnings(lambda: run.fit(toy(lightning), noise()))
    assert "intended failure" in text
    data = page_data(file)
    assert data["scores"]["cp"][:3] == ["nan"] * 3
    assert data["training"]["concepts"]["kitten"]["cp"] == [None]
    assert not math.isnan(data["training"]["concepts"]["rocket"]["cp"][0])


def test_reports_that_cannot_be_written_cause_a_warning(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    callback = validation(checkpoint, RecordingModel(), report=tmp_path / "file" / "training.html")
    run = trainer(lightning, tmp_path, callbacks=[callback])
    (text,) = validation_warnings(lambda: run.validate(toy(lightning), loader(1), verbose=False))
    assert re.search("the report could not be written, (NotADirectory|FileExists)Error", text)
    assert run.callback_metrics["val/masc_cp"].isfinite()


def test_fast_dev_run_writes_no_report(checkpoint: Path, tmp_path: Path) -> None:
    callback = validation(checkpoint, RecordingModel(), report=tmp_path / "training.html")
    trainer(lightning, tmp_path, fast_dev_run=True, callbacks=[callback]).fit(toy(lightning), noise(), loader(1))
    assert not list(tmp_path.glob("training*"))


def test_two_callbacks_do_not_share_a_report(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "training.html"
    callbacks = [validation(checkpoint, RecordingModel(), report=file, prefix=prefix) for prefix in ("a/", "b/")]
    with pytest.raises(ValueError, match=r"have report .*training\.html'; give distinct files"):
        trainer(lightning, tmp_path, callbacks=callbacks).fit(toy(lightning), noise())


def test_training_is_the_same_with_and_without_a_report(checkpoint: Path, tmp_path: Path) -> None:
    found = []
    for report in (None, tmp_path / "training.html"):
        lightning.seed_everything(0)
        callback = validation(checkpoint, RecordingModel(), every_n_steps=2, report=report)
        run, module = trainer(lightning, tmp_path, callbacks=[callback]), toy(lightning)
        run.fit(module, noise())
        found.append([parameter.tolist() for parameter in module.parameters()])
    assert found[0] == found[1]
