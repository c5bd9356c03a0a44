"""``masc-metrics sensitivity``: how far wrong masks move the scores and the ranking of methods."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
import torch
from PIL import Image
from support.sample_lists import rows, write_csv, written

from masc_metrics import load_backbone
from masc_metrics.bench.agreement.protocols import agreement
from masc_metrics.bench.agreement.ratings import Scores
from masc_metrics.bench.sample import Sample
from masc_metrics.bench.sensitivity import sensitivity_command
from masc_metrics.bench.sensitivity.moves import SampleScores, moves, sentences, table_rows
from masc_metrics.cli import main
from masc_metrics.functional import concept_preservation
from masc_metrics.masks import Perturbation, perturb

PATCHES = 64
OPTIONS = ("--model", "tiny", "--max-num-patches", str(PATCHES), "--device", "cpu", "--quiet", "--workers", "0")
DILATION, TRANSFERRED = Perturbation("dilation", 5), Perturbation("transferred")


def sensitivity(samples: Path, *options: str) -> int:
    return main(["sensitivity", str(samples), "--out", str(samples.parent / "moves.json"), *OPTIONS, *options])


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "moves.json").read_text())
    return found


def sample(method: str, concept: str) -> Sample:
    return Sample(1, "1", "g.png", "gm.png", f"{concept}.png", "rm.png", "a cat", "cat", method=method, concept=concept)


def scores(cp: list[float], wrong: list[float], methods: str = "AABB") -> SampleScores:
    """Samples of two concepts, with CP alone moved."""
    unmoved = np.zeros(len(cp))
    return SampleScores(
        [sample(method.strip(), "xy"[number % 2]) for number, method in enumerate(methods)],
        {"cp": np.array(cp), "pf": unmoved},
        {"cp": {DILATION: np.array(wrong)}, "pf": {DILATION: unmoved, TRANSFERRED: unmoved}},
    )


def test_moves_are_over_the_samples_with_both_scores() -> None:
    cp, pf, _ = moves(scores([0.5, 0.6, math.nan, 0.4, 0.3], [0.6, 0.4, 0.2, math.nan, 0.3], "AABBB"))
    assert (cp.n, cp.became_undefined, cp.became_defined) == (3, 1, 1)
    assert cp.mean_absolute == pytest.approx(0.1)
    assert cp.percentile_95 == pytest.approx(0.19)  # of 0, 0.1 and 0.2: nine tenths of the way to the last
    assert cp.largest == pytest.approx(0.2)
    assert cp.mean_signed == pytest.approx(-0.1 / 3)
    assert pf.mean_absolute == 0


def test_ranking_moves_by_the_methods_means_over_concepts() -> None:
    cp = moves(scores([0.9, 0.7, 0.5, 0.5, 0.1, 0.1], [0.3, 0.3, 0.5, 0.5, 0.1, 0.1], "AABBCC"))[0]
    assert cp.methods == pytest.approx({"A": 0.3, "B": 0.5, "C": 0.1})
    assert (cp.pairs, cp.swapped) == (3, (("A", "B"),))
    assert cp.tau == pytest.approx(1 / 3)
    even = moves(scores([0.9, 0.9, 0.1, 0.6, 0.6], [0.9, 0.9, 0.0, 0.9, 0.9], "AAABB"))[0]
    assert even.methods["A"] == pytest.approx((0.45 + 0.9) / 2), "a concept counts once, with two samples too"


def test_without_two_methods_there_is_no_ranking() -> None:
    for methods in ("AAAA", "    "):
        cp = moves(scores([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], methods))[0]
        assert (cp.tau, cp.pairs, cp.swapped) == (None, 0, ())


def test_sentences_say_what_moved() -> None:
    kept, moved, lost = (
        list(sentences(moves(scores([0.5, 0.5, 0.4, 0.4], wrong))))
        for wrong in ([0.6, 0.6, 0.4, 0.4], [0.3, 0.3, 0.4, 0.4], [0.5, 0.5, 0.4, math.nan])
    )
    assert kept == [
        "5 px of dilation moves CP by 0.0500 in the mean and changes no rank; PF by 0.0000 in the mean and changes no "
        "rank.",
        "A transferred mask moves PF by 0.0000 in the mean and changes no rank.",
    ]
    assert "CP by 0.1000 in the mean and swaps 1 of 1 pairs of methods, 'A' and 'B'; PF" in moved[0]
    assert "CP by 0.0000 in the mean and changes no rank, and 1 sample becomes undefined; PF" in lost[0]
    nothing = list(sentences(moves(scores([math.nan] * 4, [0.1] * 4))))
    assert nothing[0].startswith("5 px of dilation moves no CP, because no sample has one with both masks; PF by")


RATED = {"A": [0.0, 1.0, 4.0, 3.0], "B": [1.0, 4.0, 2.0, 0.0]}
GIVEN = {"A": [0.1, 0.3, 0.9, 0.8], "B": [0.2, 0.9, 0.5, 0.1]}
WRONG = {"A": [0.7, 0.3, 0.2, 0.8], "B": [0.5, 0.1, math.nan, 0.4]}


def rated_scores() -> tuple[SampleScores, list[Scores]]:
    """Four samples of each of two methods, two of one key, and two groups of raters of which the second is higher."""
    samples = [
        dataclasses.replace(sample(method, "x"), key=f"object_0{number}_cup-0")
        for method in "AB"
        for number in range(4)
    ]
    pairs = [(each.method.lower(), each.key) for each in samples]
    ratings = [*RATED["A"], *RATED["B"]]
    groups = [
        Scores(name, dict(zip(pairs, values, strict=True)), True, {}, name, "mean")
        for name, values in (("ann", ratings), ("bob", [min(rating + 1, 4) for rating in ratings]))
    ]
    given, wrong = (np.array([*values["A"], *values["B"]]) for values in (GIVEN, WRONG))
    scores = SampleScores(
        samples, {"cp": given, "pf": given}, {"cp": {DILATION: wrong}, "pf": {DILATION: given, TRANSFERRED: given}}
    )
    return scores, groups


def test_alpha_with_people_is_that_of_agreement_on_the_samples_with_both_scores() -> None:
    scores, groups = rated_scores()
    cp, pf, transferred = moves(scores, {"cp": groups})
    assert (pf.alpha, transferred.alpha) == (None, None), "nobody rated PF"
    assert cp.alpha is not None
    assert cp.alpha.keys == 7
    both = [number for number in range(8) if number != 6]
    for found, values in zip(cp.alpha.alphas, (GIVEN, WRONG), strict=True):
        scaled = np.array([*values["A"], *values["B"]])[both]
        scaled = (scaled - scaled.min()) / np.ptp(scaled)
        to_groups = [
            krippendorff.alpha(
                [scaled, [list(group.values.values())[number] / 4 for number in both]], level_of_measurement="interval"
            )
            for group in groups
        ]
        assert found == pytest.approx(np.mean(to_groups), abs=1e-3)
    given, wrong = (value or math.nan for value in cp.alpha.alphas)
    assert cp.alpha.difference.value == pytest.approx(wrong - given)
    names = list(groups[0].values)
    by_hand = []
    for name, by_method in (("given", GIVEN), ("wrong", WRONG)):
        values = dict(zip(names, [*by_method["A"], *by_method["B"]], strict=True))
        del values["b", "object_02_cup-0"]
        by_hand.append(Scores(name, values, False, {}, name, "mean"))
    full = agreement(by_hand, groups, score="cp", compare=[("wrong", "given")])
    assert [scorer.alpha.value for scorer in full.scorers] == [*cp.alpha.alphas]
    assert full.differences[0].difference == cp.alpha.difference


def test_sentences_say_whether_alpha_moves() -> None:
    scores, groups = rated_scores()
    first = next(sentences(moves(scores, {"cp": groups, "pf": groups})))
    assert re.search(
        r"; PF by 0.0000 in the mean and changes no rank, and does not clearly move alpha of PF with people "
        r"\(0\.\d+ before, 0\.\d+ after; 95 % interval of the difference \+0.000 to \+0.000\)\.$",
        first,
    )
    assert re.search(r", and lowers alpha of CP with people from 0\.\d+ to -0\.\d+ \(95 % interval of the diff", first)
    assert "and 1 sample becomes undefined; PF" in first
    header, cp, *_ = table_rows(moves(scores, {"cp": groups}))
    assert header[-2:] == ["alpha", "alpha moves by"]
    assert re.fullmatch(r"-0\.\d{3} \[-[\d.]+, -[\d.]+\]", cp[-1].replace("-1", "-0", 1))
    assert "alpha" not in next(table_rows(moves(scores)))


def test_without_two_rated_keys_alpha_is_undefined() -> None:
    scores, groups = rated_scores()
    nothing = np.full(8, math.nan)
    scores = dataclasses.replace(scores, perturbed={"cp": {DILATION: nothing}, "pf": scores.perturbed["pf"]})
    assert moves(scores, {"cp": groups})[0].alpha is None


def test_command_reports_alpha_with_ratings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = written(tmp_path, 8)
    listed = rows(samples)
    people = [
        {"method": row["method"], "key": row["key"], "ann": number % 5, "bob": (number + 1) % 5, "mood": 3}
        for number, row in enumerate(listed)
    ]
    ratings = write_csv(tmp_path / "ratings.csv", people)
    groups = ("--group", "ann", "--group", "bob")
    plot = tmp_path / "moves.png"
    assert sensitivity(samples, "--pixels", "2", "--ratings", f"cp={ratings}", *groups, "--plot", str(plot)) == 0
    printed = capsys.readouterr().out
    found = report(tmp_path)
    assert main(["score", str(samples), "--out", str(tmp_path / "scores.csv"), *OPTIONS]) == 0
    out = tmp_path / "agreement.json"
    arguments = ["agreement", str(tmp_path / "scores.csv"), str(ratings), "--score", "cp", "--out", str(out)]
    assert main([*arguments, *groups, "--replicates", "0"]) == 0
    expected = json.loads(out.read_text())["scorers"][0]["alpha"]["value"]
    assert found["given"]["cp"]["alpha"] == expected
    assert "alpha" not in found["given"]["pf"]
    assert f"alpha of CP with people, with the given masks: {expected:.3f}, 8 rated keys" in printed
    for move in found["moves"]:
        assert (move["alpha"] is None) == (move["score"] == "pf")
        if move["alpha"] is not None:
            assert move["alpha"]["alphas"][0] == expected
    with Image.open(plot) as drawn:
        assert drawn.height > 1.4 * drawn.width, "a third row"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--ratings", "ratings.csv"], "--ratings is ratings.csv, which holds one score; give cp=ratings.csv or pf="),
        (["--ratings", "cp=no.csv"], "--ratings no.csv: no such file or folder"),
        (["--ratings", "cp=ratings.csv", "--ratings", "cp=ratings.csv"], "gives ratings of cp twice"),
        (["--group", "ann"], "--group is ann, but there are no ratings; give --ratings, or leave it out"),
        (["--ratings", "cp=ratings.csv"], "all scorers and groups must share a method; name methods alike"),
    ],
)
def test_unusable_ratings_are_named_before_anything_is_scored(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    text: str,
) -> None:
    samples = written(tmp_path, 2)
    write_csv(tmp_path / "ratings.csv", [{"method": "other", "key": "star-0", "ann": 1, "bob": 2}])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sensitivity_command, "load_scorer", lambda *_: pytest.fail("networks are loaded"))
    assert sensitivity(samples, *options) == 2
    assert text in capsys.readouterr().err


def test_command_writes_the_scores_with_given_and_with_wrong_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = written(tmp_path, 6)
    plot = tmp_path / "moves.png"
    assert sensitivity(samples, "--pixels", "4,2", "--batch-size", "4", "--plot", str(plot)) == 0
    printed = capsys.readouterr().out
    assert "2 px of dilation moves CP by 0.0" in printed
    found = report(tmp_path)
    names = [f"{kind} {pixels} px" for kind in ("dilation", "erosion", "jitter", "shift") for pixels in (2, 4)]
    names += ["dropout 10 %", "dropout 20 %", "bounding box", "transferred"]
    assert [each["name"] for each in found["moves"] if each["score"] == "pf"] == names
    assert [each["name"] for each in found["moves"] if each["score"] == "cp"] == names[:-1]
    assert (found["samples"], found["failed"], found["settings"]["seed"]) == (6, [], 0)
    assert main(["score", str(samples), "--out", str(tmp_path / "scores.csv"), *OPTIONS]) == 0
    for row, scored in zip(found["scores"], rows(tmp_path / "scores.csv"), strict=True):
        assert row["sample_id"] == scored["sample_id"]
        for score in ("cp", "pf"):
            assert row[score]["given"] == pytest.approx(float(scored[score]), abs=1e-6)
    listed = rows(samples)[0]
    image, reference = (
        torch.from_numpy(np.array(Image.open(tmp_path / listed[name]).convert("RGB"))).permute(2, 0, 1)[None]
        for name in ("generated_image", "reference_image")
    )
    mask = torch.from_numpy(np.array(Image.open(tmp_path / listed["reference_mask"]).convert("L"))) > 127
    wrong = perturb(mask, "shift", 4)[None]
    encoder = {"backbone": load_backbone("tiny"), "max_num_patches": PATCHES}
    expected = concept_preservation(image, reference, wrong, **encoder)
    assert found["scores"][0]["cp"]["shift 4 px"] == pytest.approx(expected.item(), abs=1e-6)
    with Image.open(plot) as drawn:
        assert drawn.format == "PNG"
        assert len(drawn.convert("RGB").getcolors(2**24) or ()) > 100, "it is not blank"


def test_bad_rows_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = written(tmp_path, 4)
    (tmp_path / "out" / "1.png").unlink()
    assert sensitivity(samples, "--pixels", "2") == 3
    errors = capsys.readouterr().err
    assert "line 3 (sample s1): generated_image" in errors
    assert "1 of 4 rows failed" in errors
    found = report(tmp_path)
    assert [(each["sample_id"], each["line"]) for each in found["failed"]] == [("s1", 3)]
    assert [each["sample_id"] for each in found["scores"]] == ["s0", "s2", "s3"]
    assert all(each["n"] == 3 for each in found["moves"] if each["name"] == "dilation 2 px")


def test_list_of_bad_rows_alone_has_no_figures(tmp_path: Path) -> None:
    samples = written(tmp_path, 1)
    (tmp_path / "out" / "0.png").unlink()
    assert sensitivity(samples, "--plot", str(tmp_path / "moves.png")) == 3
    assert {each["mean_absolute"] for each in report(tmp_path)["moves"]} == {None}


def test_limit_draws_samples_by_the_seed(tmp_path: Path) -> None:
    samples = written(tmp_path, 8)
    drawn = []
    for seed in ("0", "0", "1", "2"):
        assert sensitivity(samples, "--pixels", "2", "--limit", "3", "--seed", seed) == 0
        drawn.append([each["sample_id"] for each in report(tmp_path)["scores"]])
    assert all(len(each) == 3 and each == sorted(each) for each in drawn)
    assert drawn[0] == drawn[1]
    assert any(each != drawn[0] for each in drawn[2:])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--plot", "moves.jpg"], "--plot is moves.jpg; give a name that ends with .png"),
        (["--plot", "out/0.png"], "--plot is out/0.png, which is a file of a sample; give another file"),
        (["--out", "moves.csv"], "--out is moves.csv; give a name that ends with .json"),
    ],
)
def test_unusable_files_are_named_before_anything_is_scored(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    text: str,
) -> None:
    samples = written(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    assert sensitivity(samples, *options) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "moves.json").exists()


def test_both_masks_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = [row | {"generated_mask": ""} for row in rows(written(tmp_path, 2))]
    assert sensitivity(write_csv(tmp_path / "unmasked.csv", listed)) == 2
    assert "line 2: generated_mask is empty; give a file\n" in capsys.readouterr().err
