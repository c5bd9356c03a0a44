"""The command ``agreement``, from files on disk to the table and the JSON."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.agreement_cases import GROUPS, KEYS, SCORERS, Values, report, scores

from masc_metrics.cli import main

Run = Callable[..., int]
SETTINGS = {"dreambooth_sd": "_gs7_5_step100_seed42_torch_float16", "emu2": "_gs3_step50_seed42_torch_bfloat16"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command, in a folder with scores.csv, gpt/, gpt2/, ratings.csv and data_human_rating/."""
    monkeypatch.chdir(tmp_path)
    table("scores.csv", {"cp": SCORERS["good"], "pf": SCORERS["poor"], "dino-i": SCORERS["fair"]}, SETTINGS)
    table("ratings.csv", {group.name: group.values for group in GROUPS})
    for shift, folder in enumerate(("gpt", "gpt2")):
        ratings = {pair: min(4.0, value + shift) for pair, value in GROUPS[0].values.items()}
        by_method(Path(folder), "{}.json", ratings)
    for group in GROUPS:
        by_method(Path("data_human_rating/merged_data", group.name), "{}-cp.json", group.values)
    return lambda *arguments: main(["agreement", "--replicates", "60", *arguments])


def table(
    file: str,
    columns: dict[str, Values],
    settings: dict[str, str] | None = None,
    keys: Sequence[tuple[str, str]] = KEYS,
) -> None:
    with open(file, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["method", "key", *columns])
        for method, key in keys:
            folder = method + (settings or {}).get(method, "")
            writer.writerow([folder, key, *(values[method, key] for values in columns.values())])


def by_method(folder: Path, name: str, values: Values) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for method in SETTINGS:
        content = {key: value for (other, key), value in values.items() if other == method}
        (folder / name.format(method)).write_text(json.dumps(content))


def read(file: str) -> Any:
    return json.loads(Path(file).read_text())


def test_scores_and_ratings_give_a_table_and_json(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scores.csv", "ratings.csv", "--score", "cp", "--out", "found.json") == 0
    found = read("found.json")
    expected = report(scores("cp", SCORERS["good"]), replicates=60)
    alpha = expected.scorers[0].alpha
    assert [scorer["name"] for scorer in found["scorers"]] == ["cp"]
    assert found["scorers"][0]["alpha"] == {
        "value": alpha.value, "low": alpha.low, "high": alpha.high, "left_out": 0, "reason": ""
    }  # fmt: skip
    assert found["key_set_sha256"] == expected.key_set_sha256
    assert found["scorers"][0]["scaling_range"] == list(expected.scorers[0].scaling_range)
    assert [source["path"] for source in found["sources"]] == ["scores.csv", "ratings.csv", "ratings.csv"]
    assert found["versions"]["numpy"] == np.__version__
    assert set(found["versions"]) == {"krippendorff", "scipy", "numpy"}

    lines = capsys.readouterr().out.splitlines()
    header, row = (next(line for line in lines if line.startswith(start)) for start in ("scorer ", "cp "))
    assert header.split() == [
        "scorer",
        "alpha",
        "group1",
        "alpha",
        "group2",
        "alpha",
        "r",
        "rho",
        "tau",
        "AUC",
        "n",
        "range",
    ]
    assert f"{alpha.value:.3f} [{alpha.low:.3f}, {alpha.high:.3f}]" in row
    assert [f"{estimate.value:.3f}" for estimate in expected.scorers[0].alpha_to.values()] == row.split()[1:3]
    assert f"ceiling: alpha {expected.ceiling.value:.3f} [" in "\n".join(lines)
    means = {row.method: row.mean for row in expected.scorers[0].methods}
    assert {row["method"]: row["mean"] for row in found["scorers"][0]["methods"]} == means
    by_method = lines.index(next(line for line in lines if line.startswith("alpha by method")))
    assert [line.split()[-1] for line in lines[by_method + 1 : by_method + 3]] == [
        f"{mean:.3f}" for mean in means.values()
    ]
    assert lines[by_method + 3].split() == ["above", "0", "2", "of", "2"]
    lowest = expected.scorers[0].extremes[0]
    assert f"cp: lowest {lowest.value:.4g} ({lowest.method}, {lowest.key})" in "\n".join(lines)


def test_several_scorers_columns_and_names(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--score", "cp", "--column", "dino-i", "--out", "found.json", "--compare", "masc:cp", "GPT-4o")
    assert run(*given, "masc=scores.csv", "GPT-4o:judge=gpt", "gpt2", "data_human_rating") == 0
    found = read("found.json")
    assert [scorer["name"] for scorer in found["scorers"]] == ["masc:cp", "masc:dino-i", "GPT-4o", "gpt2"]
    assert [scorer["scaled_like_people"] for scorer in found["scorers"]] == [False, False, True, False]
    assert found["scorers"][2]["alpha_to"]["group1"]["value"] == 1
    assert {(test["a"], test["b"]) for test in found["differences"]} == {("masc:cp", "GPT-4o")}
    printed = capsys.readouterr().out
    assert "masc:cp - GPT-4o" in printed
    assert [line.split()[0] for line in printed.splitlines() if line.endswith("0..4 (judge)")] == ["GPT-4o"]


def test_judge_that_never_gives_the_ends_is_divided_by_4(run: Run) -> None:
    by_method(Path("judge"), "{}.json", {pair: min(3.0, max(1.0, v)) for pair, v in GROUPS[0].values.items()})
    shutil.copytree("judge", "data_gpt_rating/full")
    given = ("judge", "named:judge=judge", ":judge=judge/../judge", "gpt4v=data_gpt_rating/full", "ratings.csv")
    assert run(given[0], *given[1:2], *given[3:], "--score", "cp", "--out", "found.json") == 0
    found = {scorer["name"]: scorer["scaling_range"] for scorer in read("found.json")["scorers"]}
    assert found == {"judge": [1, 3], "named": [0, 4], "gpt4v": [0, 4]}
    assert run(given[2], given[4], "--score", "cp", "--out", "found.json") == 0
    assert [(scorer["name"], scorer["scaling_range"]) for scorer in read("found.json")["scorers"]] == [
        ("judge", [0, 4])
    ]


def test_keys_can_be_those_of_named_scorers(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    table("few.csv", {"cp": dict(list(SCORERS["fair"].items())[:20])}, keys=KEYS[:20])
    given = ("all=scores.csv", "few=few.csv", "ratings.csv", "--score", "cp", "--out", "found.json")
    for option, keys, counts in (
        ((), 20, [20, 20]),
        (("--keys-of", "all"), 30, [30, 20]),
        (("--keys-of", "all, few"), 20, [20, 20]),
    ):
        assert run(*given, *option) == 0
        found = read("found.json")
        assert found["keys"] == keys
        assert [scorer["keys"] for scorer in found["scorers"]] == counts
    assert "CP, pooled, with style collections: 20 keys of all, few, " in capsys.readouterr().out
    assert run(*given, "--keys-of", "all,none") == 2
    assert "keys_of names 'none'; give any of all, few" in capsys.readouterr().err


def test_file_name_may_hold_an_equals_sign(run: Run) -> None:
    Path("scores.csv").rename("run=2.csv")
    assert run("run=2.csv", "ratings.csv", "--score", "cp", "--out", "found.json") == 0
    assert read("found.json")["sources"][0] == {
        "name": "cp",
        "path": "run=2.csv",
        "seeds": "mean",
        "averaged_keys": 0,
    }


def test_two_scorers_are_compared_by_default(run: Run) -> None:
    assert run("scores.csv", "gpt", "ratings.csv", "--score", "cp", "--out", "found.json") == 0
    tests = read("found.json")["differences"]
    assert [(test["a"], test["b"], test["statistic"]) for test in tests] == [
        ("cp", "gpt", statistic) for statistic in ("alpha", "r", "rho", "tau", "auc")
    ]


def test_repeated_name_gives_runs_of_one_scorer_for_dreambench_plus(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("judge=gpt", "judge=gpt2", "ratings.csv", "--score", "cp", "--out", "found.json")
    assert run(*given, "--protocol", "dreambench-plus") == 0
    rows = read("found.json")["scorers"][0]["methods"]
    assert [row["method"] for row in rows] == ["dreambooth_sd", "emu2"]
    shown = f"{rows[1]['ceiling']:.3f}   {rows[1]['mean']:.3f} +- {rows[1]['deviation']:.3f}"
    assert f"emu2             {shown}" in capsys.readouterr().out
    assert run(*given) == 2
    assert "several scorers are named 'judge'" in capsys.readouterr().err


def test_style_collections_count_for_cp_and_not_for_pf_by_default(run: Run) -> None:
    for score, option, keys in (("cp", [], 30), ("pf", [], 24), ("cp", ["--without-styles"], 24),
                                ("pf", ["--with-styles"], 30)):  # fmt: skip
        assert run("scores.csv", "ratings.csv", "--score", score, "--out", "found.json", *option) == 0
        assert read("found.json")["keys"] == keys


def test_seeds_are_averaged_or_the_last_counts(run: Run) -> None:
    with open("scores.csv", "a") as stream:
        stream.write(f"emu2{SETTINGS['emu2']},{KEYS[-1][1]},99,,\n")
    highest = []
    for rule in ("mean", "last"):
        assert run("scores.csv", "ratings.csv", "--score", "cp", "--seeds", rule, "--out", "found.json") == 0
        highest.append(read("found.json")["scorers"][0]["scaling_range"][1])
    assert highest == [pytest.approx((99 + SCORERS["good"][KEYS[-1]]) / 2), 99]


def test_several_numbers_of_one_key_are_counted_where_they_are_averaged(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    doubled = [*KEYS, KEYS[0], KEYS[0], KEYS[3]]
    table("twice.csv", {group.name: group.values for group in GROUPS}, keys=doubled)
    assert run("scores.csv", "ratings.csv", "--score", "cp") == 0
    assert "averaged" not in capsys.readouterr().out
    assert run("scores.csv", "twice.csv", "--score", "cp", "--out", "found.json") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("averaged")]
    assert lines == [
        f"averaged in twice.csv: 2 keys of {group.name} have several numbers; their mean counts (--seeds last takes "
        "the last)"
        for group in GROUPS
    ]
    assert [source["averaged_keys"] for source in read("found.json")["sources"]] == [0, 2, 2]


def test_undefined_statistics_are_explained_below_the_table(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    table("flat.csv", {"cp": dict.fromkeys(KEYS, 1.0)})
    assert run("flat.csv", "ratings.csv", "--score", "cp") == 0
    assert "cp, alpha: every score is 1, so there is no range to scale by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none.csv", "ratings.csv"], "none.csv does not exist; give SCORES as files or folders"),
        (["a=none.csv", "ratings.csv"], "none.csv does not exist"),
        (["scores.csv", "none"], "none is neither a folder nor a table"),
        (["scores.csv", "none.csv"], "none.csv"),
        (["scores.csv", "ratings.csv", "--column", "clip"], "--column is 'clip', which no score file has"),
        (["scores.csv", "ratings.csv", "--group", "x"], "--group is 'x'; the groups of ratings.csv are"),
        (["scores.csv", "ratings.csv", "--compare", "cp", "x"], "compare names 'x'"),
        (["scores.csv", "ratings.csv", "--out", "ratings.csv"], "--out is ratings.csv, which is an input"),
        (["a=scores.csv", "ratings.csv", "--out", "scores.csv"], "--out is scores.csv, which is an input"),
        (
            ["scores.csv", "ratings.csv", "--out", "no/found.json"],
            "give a name that ends with .json, in a folder that exists",
        ),
        (["scores.csv", "ratings.csv", "--with-styles", "--without-styles"], "exclude each other; give one of them"),
    ],
)
def test_unusable_input_is_reported_with_exit_code_2(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    before = Path("ratings.csv").read_text() + Path("scores.csv").read_text()
    assert run(*arguments, "--score", "cp") == 2
    error = capsys.readouterr().err
    assert error.startswith("masc-metrics: ")
    assert text in error
    assert Path("ratings.csv").read_text() + Path("scores.csv").read_text() == before


@pytest.mark.parametrize(
    "arguments", [["scores.csv", "--score", "cp"], ["scores.csv", "ratings.csv"],
                  ["scores.csv", "ratings.csv", "--score", "cp", "--replicates", "-1"]]
)  # fmt: skip
def test_missing_arguments_exit_with_2(run: Run, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(*arguments)
    assert left.value.code == 2


def test_nothing_is_printed_if_the_file_cannot_be_written(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path) -> None:
        raise OSError(f"{file}: no space left on device")

    monkeypatch.setattr("masc_metrics.bench.agreement.agreement_command.replacing", full)
    assert run("scores.csv", "ratings.csv", "--score", "cp", "--out", "found.json") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "masc-metrics: found.json: no space left on device\n"
