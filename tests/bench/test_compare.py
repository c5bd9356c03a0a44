"""``masc-metrics compare`` pairs samples, tests differences over concepts, and keeps its level."""

from __future__ import annotations

import json
import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from support.sample_lists import write_csv

from masc_metrics.bench.compare import MethodScores, compare, compare_all, holm, read_methods
from masc_metrics.cli import main

Values = dict[tuple[str, str, str], list[float]]


def method(name: str, values: Values) -> MethodScores:
    return MethodScores(name, {"cp": values})


def drawn(generator: np.random.Generator, concepts: int, difference: float = 0.0) -> list[MethodScores]:
    """Two methods on concepts x 9 prompts: a total variance of 1, of which concept and prompt share 0.3 and 0.2."""
    shared = 0.3**0.5 * generator.standard_normal((concepts, 1)) + 0.2**0.5 * generator.standard_normal((concepts, 9))
    found = []
    for name, shift in (("a", difference), ("b", 0.0)):
        scores = shared + 0.5**0.5 * generator.standard_normal((concepts, 9)) + shift
        cells = product(range(concepts), range(9))
        found.append(method(name, {(str(c), str(k), ""): [float(scores[c, k])] for c, k in cells}))
    return found


@pytest.mark.parametrize("concepts", [1, 3, 10])
def test_equal_methods_are_called_different_in_at_most_7_percent(concepts: int) -> None:
    generator = np.random.default_rng(concepts)
    found = [compare(*drawn(generator, concepts), "cp").p for _ in range(400)]
    assert np.mean([p is not None and p < 0.05 for p in found]) <= 0.07


def test_half_a_standard_deviation_over_10_concepts_is_found_in_90_percent() -> None:
    generator = np.random.default_rng(0)
    found = [compare(*drawn(generator, 10, 0.5), "cp") for _ in range(400)]
    assert np.mean([c.p is not None and c.p < 0.05 and (c.difference or 0) > 0 for c in found]) >= 0.9


def test_interval_of_the_difference_holds_its_level() -> None:
    generator = np.random.default_rng(4)
    found = [compare(*drawn(generator, 3, 0.5), "cp").interval_95 for _ in range(1000)]
    assert 0.92 <= np.mean([low <= 0.5 <= high for low, high in found if low is not None]) <= 0.98  # type: ignore[misc]


def test_difference_is_the_mean_over_concepts_of_paired_differences() -> None:
    first: Values = {("x", "1", ""): [0.9], ("x", "2", ""): [0.5], ("y", "1", ""): [0.4], ("z", "1", ""): [0.3]}
    second: Values = {("x", "1", ""): [0.5], ("x", "2", ""): [0.7], ("y", "1", ""): [0.1], ("w", "1", ""): [0.0]}
    found = compare(method("a", first), method("b", second), "cp")
    assert found.difference == pytest.approx((0.1 + 0.3) / 2)  # concept x: (0.4 - 0.2) / 2
    assert (found.pairs, found.concepts, found.unpaired, found.wins) == (3, 2, 2, pytest.approx(2 / 3))
    expected = stats.ttest_rel([0.1, 0.3], [0.0, 0.0])
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval_95 == pytest.approx(tuple(expected.confidence_interval()))
    assert (found.test, found.interval_over) == ("Student's t", "concepts")


def test_seeds_pair_where_they_are_known_and_average_where_not() -> None:
    seeded = compare(
        method("a", {("x", "1", "0"): [0.5], ("x", "1", "1"): [0.9]}),
        method("b", {("x", "1", "0"): [0.4], ("x", "1", "1"): [0.6]}),
        "cp",
    )
    assert (seeded.pairs, seeded.difference) == (2, pytest.approx(0.2))
    averaged = compare(method("a", {("x", "1", ""): [0.5, 0.9]}), method("b", {("x", "1", ""): [0.4, 0.6, 0.8]}), "cp")
    assert (averaged.pairs, averaged.difference, averaged.p) == (1, pytest.approx(0.1), None)
    assert averaged.verdict == "not testable"


def test_sign_flips_equal_the_enumeration_of_all_signs() -> None:
    units = np.random.default_rng(3).normal(0.3, 1, 12)
    first: Values = {(str(i), "k", ""): [float(value)] for i, value in enumerate(units)}
    found = compare(method("a", first), method("b", {cell: [0.0] for cell in first}), "cp")
    sums = [abs(sum(s * u for s, u in zip(signs, units, strict=True))) for signs in product((1, -1), repeat=12)]
    assert found.p == pytest.approx(np.mean([total >= abs(units.sum()) - 1e-12 for total in sums]))
    assert found.test == "sign flips, all"


def test_seeds_of_one_prompt_are_not_independent() -> None:
    """Equal methods with a prompt's own difference, shared by its seeds: 9 prompts x 4 seeds of one concept."""
    generator = np.random.default_rng(6)
    called = 0
    for _ in range(400):
        own = generator.standard_normal((9, 1)) + generator.standard_normal((9, 4))
        first: Values = {("x", str(k), str(s)): [float(own[k, s])] for k in range(9) for s in range(4)}
        found = compare(method("a", first), method("b", {cell: [0.0] for cell in first}), "cp")
        called += found.p is not None and found.p < 0.05
    assert called / 400 <= 0.07


def test_corrected_differences_can_be_significant_for_every_number_of_concepts() -> None:
    for concepts in range(3, 16):
        generator = np.random.default_rng(concepts)
        pairs = [drawn(generator, concepts, 20.0) for _ in range(30)]
        assert all(each.p_holm < 0.05 for each in holm([compare(*pair, "cp") for pair in pairs]))  # type: ignore[operator]


def test_random_sign_flips_agree_with_scipy_and_need_little_memory() -> None:
    units = np.random.default_rng(8).normal(0.2, 1, 40)
    first: Values = {(str(i), "k", ""): [float(value)] for i, value in enumerate(units)}
    found = compare(method("a", first), method("b", {cell: [0.0] for cell in first}), "cp")
    expected = stats.permutation_test((units,), np.mean, permutation_type="samples", n_resamples=20_000, rng=1)
    assert found.p == pytest.approx(expected.pvalue, abs=0.02)
    assert found.test == "sign flips, 20000"


def test_scale_of_the_scores_does_not_change_a_p_value() -> None:
    units = np.random.default_rng(19).normal(1.0, 1, 12)
    p_values = set()
    for scale in (1e-9, 1.0, 1e9):
        first: Values = {(str(i), "k", ""): [float(value) * scale] for i, value in enumerate(units)}
        p_values.add(compare(method("a", first), method("b", {cell: [0.0] for cell in first}), "cp").p)
    assert len(p_values) == 1


def test_p_values_of_identical_and_of_shifted_methods() -> None:
    cells: Values = {(str(i), "k", ""): [0.5] for i in range(5)}
    assert compare(method("a", cells), method("b", cells), "cp").p == 1.0
    shifted: Values = {cell: [0.75] for cell in cells}
    assert compare(method("a", shifted), method("b", cells), "cp").p is None, "no spread to test against"


def test_holm_corrects_all_comparisons_together() -> None:
    generator = np.random.default_rng(5)
    found = [compare(*drawn(generator, 10, shift), "cp") for shift in (0.0, 0.5, 0.2, 0.3)]
    corrected = holm(found)
    order = sorted(range(4), key=lambda index: found[index].p or 0)
    expected, largest = {}, 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (4 - rank) * (found[index].p or 0)))
        expected[index] = largest
    assert [each.p_holm for each in corrected] == pytest.approx([expected[index] for index in range(4)])


@pytest.fixture
def tables(tmp_path: Path) -> list[Path]:
    """Rank 4 and rank 16 of one subject, in a file each, without a column of methods."""
    generator = np.random.default_rng(0)
    files = []
    for name, shift in (("rank4", 0.0), ("rank16", 0.1)):
        (tmp_path / name).mkdir()
        rows: list[dict[str, object]] = [
            {
                "prompt": f"a dog in scene {scene}",
                "seed": seed,
                "reference_image": "../dog.jpg",
                "cp": f"{0.5 + shift + generator.normal(0, 0.02):.6f}",
                "pf": "nan" if (name, scene, seed) == ("rank4", 0, 0) else f"{generator.normal(0.1, 0.02):.6f}",
            }
            for scene in range(9)
            for seed in range(2)
        ]
        files.append(write_csv(tmp_path / name / f"{name}.csv", rows))
    return files


def test_command_tells_which_method_is_better_and_writes_json(
    tables: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "comparison.json"
    assert main(["compare", *map(str, tables), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "rank16 is higher" in printed
    assert "no difference shown" in printed
    assert "Comparisons of one concept hold for this concept only." in printed
    assert "rank4 and rank16, PF: samples without a partner, which are left out: 1" in printed
    found = json.loads(out.read_text())
    cp, pf = found["comparisons"]
    assert (cp["a"], cp["b"], cp["score"], cp["pairs"], cp["concepts"]) == ("rank4", "rank16", "cp", 18, 1)
    assert cp["difference"] == pytest.approx(-0.1, abs=0.02)
    assert cp["interval_95"][0] < cp["difference"] < cp["interval_95"][1] < 0
    assert cp["p"] <= cp["p_holm"] < 0.05
    assert cp["wins"] == 0
    assert pf["pairs"] == 17
    assert set(found["methods"]["rank4"]["cp"]) >= {"mean", "interval_95", "n", "concepts"}
    assert found["methods"]["rank16"]["cp"]["n"] == 18


def test_command_compares_only_the_methods_and_scores_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, object]] = [
        {"method": name, "concept": c, "key": k, "cp": (c + k) / 20 + index / 9 * k, "mine": k}
        for index, name in enumerate("xyz")
        for c in range(3)
        for k in range(4)
    ]
    file = write_csv(tmp_path / "scores.csv", rows)
    assert main(["compare", str(file), "--a", "y", "--b", "x", "--score", "cp"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("y - x") for line in lines) == 1
    assert not any(" - z" in line or "MINE" in line for line in lines)
    assert len(compare_all(*read_methods([file], ["cp", "mine"]))) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--a", "nobody"], "--a is 'nobody'; the methods are rank4, rank16"),
        (["--a", "rank4", "--b", "rank4"], "give two methods"),
        (["--score", "dino-i"], "lacks the column dino-i; --score accepts cp, pf, any column of numbers"),
        (["--score", "prompt"], "line 2: prompt is 'a dog in scene 0'; give a finite number"),
    ],
)
def test_unusable_arguments_are_named(
    arguments: list[str], message: str, tables: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, tables), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_tables_that_cannot_be_compared_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_csv(tmp_path / "one.csv", [{"method": "m", "concept": "x", "key": "1", "cp": 0.5}])
    same = write_csv(tmp_path / "same.csv", [{"method": "m", "concept": "y", "key": "1", "cp": 0.5}])
    other = write_csv(tmp_path / "other.csv", [{"method": "n", "concept": "x", "key": "2", "cp": 0.5}])
    bare = write_csv(tmp_path / "bare.csv", [{"method": "n", "key": "2", "cp": 0.5}])
    blank = write_csv(tmp_path / "blank.csv", [{"method": "n", "concept": "", "key": "2", "cp": 0.5}])
    infinite = write_csv(tmp_path / "infinite.csv", [{"method": "n", "concept": "x", "key": "1", "cp": "inf"}])
    for files, message in (
        ([one], "the tables have only the method m; give a table of another method"),
        ([one, same], "method 'm' is in"),
        ([one, other], "no samples can be paired"),
        ([one, bare], "has neither a column concept nor reference_image"),
        ([one, blank], "blank.csv, line 2 has neither a concept nor a reference_image"),
        ([one, infinite], "infinite.csv, line 2: cp is 'inf'; give a finite number, or an empty cell"),
        ([one, tmp_path / "none.csv"], "none.csv"),
    ):
        assert main(["compare", *map(str, files)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


def test_only_a_json_file_is_written(tables: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.csv"
    other.write_text("precious")
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for out, message in ((other, "give a name that ends with .json"), (pipe, "is not a regular file")):
        assert main(["compare", *map(str, tables), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert other.read_text() == "precious"
    assert pipe.is_fifo()


def test_files_of_one_name_are_told_apart_by_their_folders(
    tables: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [file.rename(file.with_name("scores.csv")) for file in tables]
    assert main(["compare", *map(str, files)]) == 0
    assert "rank4/scores - rank16/scores" in capsys.readouterr().out
