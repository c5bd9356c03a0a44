"""The report on a training: what it holds, and how it goes on after a resume, a kill and a new start."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from support.report_pages import page_data, page_pictures
from support.trainings import SETTINGS, validation

from masc_metrics.validation import add_to_report, training_report
from masc_metrics.validation.training_report import TrainingReport


def pictured_rows(file: Path) -> list[int]:
    return list(page_pictures(file))


def test_curves_are_means_over_concepts_and_means_of_each_concept(tmp_path: Path) -> None:
    file = tmp_path / "training.html"
    add_to_report(validation({"cat": [0.2, 0.4], "dog": [0.6, math.nan]}), file, 10)
    add_to_report(validation({"cat": [0.5, 0.7], "dog": [math.nan, math.nan]}), file, 20)
    found = page_data(file)["training"]
    assert found["steps"] == [10, 20]
    assert found["concepts"]["cat"]["cp"] == pytest.approx([0.3, 0.6])
    assert found["concepts"]["cat"]["pf"] == pytest.approx([0.15, 0.3])
    assert found["concepts"]["dog"]["cp"] == [pytest.approx(0.6), None]
    assert [point[0] for point in found["curves"]["cp"]] == pytest.approx([0.45, 0.6])
    assert found["anchors"] == {"cat": [None, 0.9], "dog": [None, 0.9]}


def test_the_table_holds_the_images_of_every_step_with_pictures(tmp_path: Path) -> None:
    file = tmp_path / "training.html"
    for step, shade in ((10, 0), (20, 90)):
        add_to_report(validation({"cat": [0.2, 0.4]}, shade=shade), file, step)
    data = page_data(file)
    methods = data["texts"]["method"]
    assert [methods["values"][row] for row in methods["rows"]] == ["step 10", "step 10", "step 20", "step 20"]
    assert data["scores"]["cp"] == [0.2, 0.4, 0.2, 0.4]
    assert pictured_rows(file) == [0, 1, 2, 3]


def test_the_last_step_is_compared_with_evenly_spaced_earlier_ones(tmp_path: Path) -> None:
    file = tmp_path / "training.html"
    for step in range(1, 9):
        add_to_report(validation({"cat": [0.1 * step, 0.1 * step], "dog": [0.1, 0.1]}), file, step)
    differences = re.findall(r"<bdi>step 8</bdi> <span class=.quiet.>.</span> <bdi>step (\d)</bdi>", file.read_text())
    assert differences[::2] == ["1", "3", "5", "7"]


def test_a_validation_of_the_same_step_takes_the_place_of_the_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "training.html"
    for value, step in ((0.1, 20), (0.2, 10), (0.3, 20)):
        add_to_report(validation({"cat": [value, value]}), file, step)
    assert page_data(file)["training"]["steps"] == [10, 20]
    assert page_data(file)["scores"]["cp"] == [0.2, 0.2, 0.3, 0.3]


def test_a_resumed_training_leaves_out_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    report = TrainingReport.of(tmp_path / "training.html")
    for step in (10, 20, 30):
        report.add(validation({"cat": [step / 100, 0.5]}), step)
    report.resume(20)
    report.add(validation({"cat": [0.9, 0.9]}), 25)
    assert page_data(report.file)["training"]["steps"] == [10, 20, 25]
    assert len(report.journal.read_text().splitlines()) == 5, "nothing is deleted"


def test_a_line_cut_short_by_a_kill_costs_only_its_validation(tmp_path: Path) -> None:
    report = TrainingReport.of(tmp_path / "training.html")
    for step in (10, 20):
        report.add(validation({"cat": [0.5, 0.5]}), step)
    report.journal.write_bytes(report.journal.read_bytes()[:-30])
    report.add(validation({"cat": [0.6, 0.6]}), 30)
    assert page_data(report.file)["training"]["steps"] == [10, 30]


def test_versions_keep_apart_trainings_that_start_anew(tmp_path: Path) -> None:
    report = TrainingReport.of(tmp_path / "training.html")
    assert report.unused() == report.newest() == report
    for name in ("training", "training-v1", "training-v2"):
        unused = report.unused()
        assert unused.file == tmp_path / f"{name}.html"
        unused.add(validation({"cat": [0.5, 0.5]}), 0)
        assert report.newest() == unused


def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    report = TrainingReport.of(tmp_path / "training.html")
    report.folder.mkdir()
    report.journal.write_text('{"image": "a.png"}\n')
    with pytest.raises(ValueError, match=r"validations\.jsonl does not hold validations of a report; rename it"):
        report.add(validation({"cat": [0.5, 0.5]}), 10)
    assert report.journal.read_text() == '{"image": "a.png"}\n'
    assert not report.file.exists()


def test_settings_that_change_between_steps_are_named(tmp_path: Path) -> None:
    file = tmp_path / "training.html"
    add_to_report(validation({"cat": [0.5, 0.5]}), file, 10)
    assert "are not comparable" not in file.read_text()
    for step in (20, 30):
        add_to_report(validation({"cat": [0.5, 0.5]}, settings={**SETTINGS, "dtype": "bfloat16"}), file, step)
    assert (
        "dtype changed from float32 to bfloat16 at step 20; scores before and after are not comparable"
        in file.read_text()
    )
    assert page_data(file)["training"]["eras"] == [0, 1, 1]
    assert re.findall("<bdi>step 30</bdi> <span class=.quiet.>.</span> <bdi>(step [0-9]+)", file.read_text()) == [
        "step 20",
        "step 20",
    ], "the last step is compared with steps of the same settings only"


def test_pictures_are_bounded_and_the_last_step_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "training.html"
    size = None
    for step in range(6):
        add_to_report(validation({"cat": [0.5, 0.5]}), file, step)
        size = size or json.loads((file.with_suffix(".masc") / "validations.jsonl").read_text())["picture_bytes"]
    assert pictured_rows(file) == list(range(12))
    monkeypatch.setattr(training_report, "PICTURE_BYTES", 3 * size)
    for step, rows in ((6, [0, 1, 8, 9, 12, 13]), (7, [0, 1, 8, 9, 14, 15]), (8, [0, 1, 8, 9, 16, 17])):
        add_to_report(validation({"cat": [0.5, 0.5]}), file, step)
        assert pictured_rows(file) == rows, "every fourth step from the first on, and the last"
    assert len(list(file.with_suffix(".masc").glob("step-*.json"))) == 3
    assert page_data(file)["count"] == 18


def test_prompts_that_changed_are_not_compared(tmp_path: Path) -> None:
    file = tmp_path / "training.html"
    add_to_report(validation({"cat": [0.5, 0.5]}), file, 10)
    add_to_report(validation({"cat": [0.5, 0.5]}, prompts=("at night", "on the moon")), file, 20)
    assert 'id="comparisons"' not in file.read_text()
    assert page_data(file)["training"]["steps"] == [10, 20]


@pytest.mark.parametrize(
    ("file", "step", "error", "message"),
    [
        ("report.txt", 1, ValueError, "report is 'report.txt'; give a local file whose name ends with .html"),
        ("s3://bucket/report.html", 1, ValueError, "give a local file"),
        (3, 1, TypeError, "report is an int; give the name of an HTML file, or None"),
        ("report.html", -1, ValueError, "step is -1"),
    ],
)
def test_mistakes_are_named(
    file: Any, step: int, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        add_to_report(validation({"cat": [0.5, 0.5]}), file, step)
    assert not list(tmp_path.iterdir())
