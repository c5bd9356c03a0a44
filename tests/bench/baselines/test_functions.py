"""Scores by functions of the user's: called with the images of each pair, written next to all other scores."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.processes import command
from support.sample_lists import rows, written

from masc_metrics.bench.baselines.functions import FunctionResultError, FunctionScore
from masc_metrics.bench.run import Run
from masc_metrics.bench.scoring import Scorer
from masc_metrics.cli import main

TINY = ("--model", "tiny", "--max-num-patches", "16", "--device", "cpu", "--quiet", "--workers", "0")

MODULE = """
import torch

calls = []

def red(images, references):
    calls.append(len(images))
    assert all(image.dtype == torch.uint8 and image.ndim == 3 for image in images + references)
    return torch.stack([a[0].float().mean() - b[0].float().mean() for a, b in zip(images, references)])

def vandal(images, references):
    for image in images + references:
        image.zero_()
    return torch.zeros(len(images))

def nan_or_fails(images, references):
    means = [float(image[0].float().mean()) for image in images]
    if any(mean > 200 for mean in means):
        raise ValueError("too red:\\n see above")
    return torch.tensor([float("nan") if mean < 20 else mean for mean in means])

def exits(images, references):
    raise SystemExit(3)

def infinite(images, references):
    return torch.full((len(images),), float("inf"))

def grad(images, references):
    weight = torch.ones(1, requires_grad=True)
    return (weight * 0.25).expand(len(images)).to(torch.bfloat16)

def floats(images, references):
    return [0.0] * len(images)

def one(images, references):
    return torch.zeros(1, len(images))

class Methods:
    @staticmethod
    def score(images, references):
        return torch.arange(len(images))

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module that only it can be imported from."""
    (tmp_path / "own_scores.py").write_text(MODULE)
    (tmp_path / "broken_scores.py").write_text("import no_such_package\n")
    (tmp_path / "exiting_scores.py").write_text("import sys\nsys.exit('usage')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("own_scores", "broken_scores", "exiting_scores"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def score(samples: Path, scores: str, *options: str) -> int:
    return main(["score", str(samples), "--out", "scores.csv", *TINY, "--scores", scores, *options])


def _red_mean(file: Path) -> float:
    return float(np.asarray(Image.open(file).convert("RGB"), dtype=np.float64)[..., 0].mean())


def test_function_scores_stand_in_the_table_and_leave_the_others_unchanged(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(folder, 6)
    assert score(samples, "cp,pf") == 0
    expected = rows(folder / "scores.csv")
    assert score(samples, "cp,mine=own_scores:red,bad=own_scores:vandal,pf", "--batch-size", "4") == 0
    found = rows(folder / "scores.csv")
    assert [name for name in found[0] if name in ("cp", "mine", "bad", "pf")] == ["cp", "mine", "bad", "pf"]
    for name in ("cp", "pf"):
        assert [float(row[name]) for row in found] == pytest.approx([float(row[name]) for row in expected], abs=2e-6)
    for row in found:
        red = _red_mean(folder / row["generated_image"]) - _red_mean(folder / row["reference_image"])
        assert float(row["mine"]) == pytest.approx(red, abs=1e-3)
    assert sys.modules["own_scores"].calls == [4, 2]
    assert "MINE  " in capsys.readouterr().out


@pytest.mark.timeout(120)
def test_every_process_imports_the_function(folder: Path) -> None:
    samples = written(folder, 6)
    arguments = ["-m", "masc_metrics", "score", str(samples), "--out", str(folder / "scores.csv"), *TINY]
    command([sys.executable, *arguments, "--scores", "mine=own_scores:red", "--devices", "2"])
    assert all(math.isfinite(float(row["mine"])) for row in rows(folder / "scores.csv"))


def test_failing_sample_is_a_failed_row_and_nan_an_undefined_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(folder, 3)
    for number, red in ((0, 255), (1, 0), (2, 100)):
        Image.new("RGB", (48, 48), (red, 0, 0)).save(folder / f"out/{number}.png")
    assert score(samples, "cp,mine=own_scores:nan_or_fails") == 3
    found = rows(folder / "scores.csv")
    assert found[0]["error"] == "mine: own_scores:nan_or_fails failed: ValueError: too red: see above"
    assert [row["mine"] for row in found] == ["", "nan", "100"]
    assert all(row["cp"] for row in found), "its failure costs no other score"
    printed = capsys.readouterr()
    assert "line 3 (sample s1): MINE is undefined, because its function gave NaN" in printed.err
    assert "MINE  100.0000  1 samples of 1 concepts; 1 undefined" in printed.out
    assert score(samples, "mine=own_scores:infinite") == 3
    error = (
        "mine: own_scores:infinite failed: ValueError: a score is inf; give finite numbers, and NaN for an undefined"
    )
    assert [row["error"].startswith(error) for row in rows(folder / "scores.csv")] == [True] * 3


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (
            "floats",
            "--scores mine: the result of own_scores:floats is a list; give a tensor of one score for each sample",
        ),
        ("one", "is a torch.float32 tensor of shape (1, 2) for 2 samples; give real numbers of shape (2,)"),
    ],
)
def test_result_of_another_form_stops_the_run(
    folder: Path, name: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(written(folder, 2), f"mine=own_scores:{name}") == 2
    printed = capsys.readouterr().err
    assert error in printed
    assert "are kept in" not in printed, "there are none"


def test_any_real_tensor_is_accepted(folder: Path) -> None:
    images = [torch.zeros(3, 4, 5, dtype=torch.uint8)] * 2
    device = torch.device("cpu")
    assert FunctionScore("mine", "own_scores:grad", device).score(images, images) == [0.25, 0.25]
    assert FunctionScore("mine", "own_scores:Methods.score", device).score(images, images) == [0, 1]
    with pytest.raises(FunctionResultError):
        FunctionScore("mine", "own_scores:floats", device).score(images, images)


@pytest.mark.parametrize(
    ("scores", "error"),
    [
        ("mine=no_such_module:f", "--scores mine=no_such_module:f: no_such_module cannot be imported (ModuleNotFound"),
        ("mine=broken_scores:f", "broken_scores cannot be imported (ModuleNotFoundError: No module named 'no_such_pac"),
        ("mine=exiting_scores:f", "exiting_scores cannot be imported (SystemExit: usage)"),
        ("mine=own_scores:gone", "--scores mine=own_scores:gone: own_scores has no 'gone'; give MODULE:FUNCTION"),
        (
            "mine=own_scores:number",
            "--scores mine=own_scores:number is an int, which cannot be called; give a function",
        ),
        ("prompt=own_scores:red", "--scores names a function 'prompt', which is a column of another meaning"),
        ("seed=own_scores:red", "--scores names a function 'seed', which is a column of another meaning"),
        ("escaped_formulas=own_scores:red", "a function 'escaped_formulas', which is a column of another meaning"),
        ("cp,cp_times_pf=own_scores:red", "--scores names a function 'cp_times_pf', which is a column of another"),
    ],
)
def test_unusable_function_is_reported_before_networks_are_loaded(
    folder: Path, scores: str, error: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masc_metrics.bench.score_command.load_scorer", lambda *_: pytest.fail("networks are loaded"))
    assert score(written(folder, 1), scores) == 2
    assert error in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scores", "error"),
    [
        ("cp=own_scores:red", "'cp=own_scores:red' has the name of the score cp; give another name"),
        ("DINO-I=own_scores:red", "has the name of the score dino-i"),
        ("mine=own_scores.red", "'mine=own_scores.red' is not NAME=MODULE:FUNCTION, such as mine=package.module:score"),
        ("=own_scores:red", "'=own_scores:red' is not NAME=MODULE:FUNCTION"),
        ("a=own_scores:red,a=own_scores:one", "'a=own_scores:red' and 'a=own_scores:one' have one name"),
        ("mine", "unknown score 'mine'; give any of cp, pf,"),
    ],
)
def test_names_of_functions_are_checked(
    folder: Path, scores: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        score(folder / "samples.csv", scores)
    assert error in capsys.readouterr().err


def test_column_of_the_list_with_the_functions_name_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(folder, 1)
    header, row = samples.read_text().splitlines()
    samples.write_text(f"{header},mine\n{row},5\n")
    assert score(samples, "mine=own_scores:red") == 2
    assert "has a column 'mine', which the table of scores has too; rename or remove it" in capsys.readouterr().err


def test_resuming_with_another_function_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(folder, 2)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", interrupt)
        assert score(samples, "mine=own_scores:red") == 130
    assert score(samples, "mine=own_scores:grad") == 2
    assert 'scores was ["mine=own_scores:red"] and is ["mine=own_scores:grad"]' in capsys.readouterr().err
    assert score(samples, "mine=own_scores:red") == 0


def test_functions_are_read_from_a_configuration_file(folder: Path) -> None:
    (folder / "run.yaml").write_text("scores: [cp, 'mine=own_scores:red']\n")
    samples = written(folder, 1)
    assert main(["score", str(samples), "--out", "scores.csv", *TINY, "--config", "run.yaml"]) == 0
    assert {"cp", "mine"} <= rows(folder / "scores.csv")[0].keys()


def test_columns_are_the_names_of_scores_and_functions() -> None:
    run = Run(Path(), scores=("pf", "mine=a.b:c", "clip-i"))
    assert run.columns == ("pf", "mine", "clip-i")
    assert run.functions == {"mine": "a.b:c"}


def test_documented_dreamsim_example_fits_the_public_interface_of_dreamsim(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in with the shapes of DreamSim's README: ``preprocess`` gives (1, 3, 224, 224) in [0, 1]."""

    def preprocess(image: Image.Image) -> torch.Tensor:
        array = np.asarray(image.convert("RGB").resize((224, 224)), dtype=np.float32) / 255
        return torch.from_numpy(array).permute(2, 0, 1)[None]

    def model(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        assert first.shape == second.shape == (len(first), 3, 224, 224)
        return 1 - torch.cosine_similarity(first.flatten(1).double(), second.flatten(1).double())

    def dreamsim(pretrained: bool, device: str) -> Any:
        assert (pretrained, device) == (True, "cpu")
        return model, preprocess

    monkeypatch.setitem(sys.modules, "dreamsim", SimpleNamespace(dreamsim=dreamsim))
    page = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text()
    (example,) = (part for part in page.split("```python\n")[1:] if "dreamsim" in part)
    (folder / "my_scores.py").write_text(example.partition("```")[0])
    monkeypatch.delitem(sys.modules, "my_scores", raising=False)
    same, other = torch.full((3, 30, 40), 200, dtype=torch.uint8), torch.zeros(3, 50, 20, dtype=torch.uint8)
    other[0] = 9
    scores = FunctionScore("dreamsim", "my_scores:dreamsim_similarity", torch.device("cpu")).score(
        [same, other], [same, same]
    )
    assert scores == pytest.approx([1, 1 / math.sqrt(3)], abs=1e-5)


def test_function_that_ends_the_program_fails_its_rows_only(folder: Path) -> None:
    assert score(written(folder, 2), "cp,mine=own_scores:exits") == 3
    assert all("own_scores:exits failed: SystemExit: 3" in row["error"] for row in rows(folder / "scores.csv"))
