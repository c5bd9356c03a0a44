"""Agreement of scores with people: the protocols step by step, and the contents of the report."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace

import krippendorff
import numpy as np
import pytest
from scipy import stats
from support.agreement_cases import GROUPS, KEYS, METHODS, SCORERS, alpha, drawn, listed, report, scores

from masc_metrics.bench.agreement.ratings import Scores
from masc_metrics.bench.agreement.report import Agreement


def test_pooled_alpha_has_one_range_for_all_methods_and_is_rounded_at_each_step() -> None:
    rounding_mattered = False
    for seed in range(20):
        groups, scorers = drawn(seed)
        # One method's scores are shifted, which a range per method would hide.
        values = {pair: value + (pair[0] == "emu2") * 0.3 for pair, value in scorers["fair"].items()}
        low, high = min(values.values()), max(values.values())
        scaled = [(value - low) / (high - low) for value in listed(values)]
        exact = [alpha(scaled, [rating / 4 for rating in listed(group.values)]) for group in groups]
        found = report(scores("fair", values), groups=groups, replicates=0).scorers[0]
        assert [found.alpha_to[group.name].value for group in groups] == [round(each, 3) for each in exact]
        expected = round((round(exact[0], 3) + round(exact[1], 3)) / 2, 3)
        assert found.alpha.value == expected
        assert found.scaling_range == (low, high)
        rounding_mattered |= expected != round(sum(exact) / 2, 3)
    assert rounding_mattered


def test_pooled_analysis_has_an_alpha_per_method_with_the_range_of_all_methods() -> None:
    # The scores of one method are reversed, and shifted, which a range per method would hide.
    values = {pair: 0.6 - value if pair[0] == "emu2" else value for pair, value in SCORERS["good"].items()}
    low, high = min(values.values()), max(values.values())
    found = report(scores("good", values)).scorers[0]
    for row, method in zip(found.methods, METHODS, strict=True):
        keys = [pair for pair in KEYS if pair[0] == method]
        scaled = [(value - low) / (high - low) for value in listed(values, keys)]
        people = [[rating / 4 for rating in listed(group.values, keys)] for group in GROUPS]
        each = [round(alpha(scaled, ratings), 3) for ratings in people]
        assert (row.method, row.keys, row.deviation) == (method, len(keys), None)
        assert row.runs == (row.mean,) == (round(sum(each) / 2, 3),)
        assert row.ceiling == round(alpha(*people), 3)
    assert [(row.mean or 0) > 0 for row in found.methods] == [True, False]
    assert found.positive_methods == 1
    assert report(scores("good", SCORERS["good"])).scorers[0].positive_methods == 2


def test_ceiling_is_the_alpha_of_the_groups_on_the_same_keys() -> None:
    some = {pair: value for pair, value in SCORERS["good"].items() if pair[1] != "object_00_cup-0"}
    keys = [pair for pair in KEYS if pair in some]
    found = report(scores("good", some))
    assert found.ceiling.value == round(alpha(*(listed(group.values, keys) for group in GROUPS)), 3)
    assert found.ceiling.value != round(alpha(*(listed(group.values) for group in GROUPS)), 3)


def test_three_groups_have_an_alpha_each_and_one_ceiling() -> None:
    third = scores("group3", {pair: float(rating > 1) * 3 for pair, rating in GROUPS[0].values.items()})
    found = report(scores("good", SCORERS["good"]), groups=[*GROUPS, third])
    each = [estimate.value for estimate in found.scorers[0].alpha_to.values()]
    assert len(each) == 3
    assert found.scorers[0].alpha.value == round(sum(value or 0 for value in each) / 3, 3)
    data = [listed(group.values) for group in (*GROUPS, third)]
    assert found.ceiling.value == round(krippendorff.alpha(data, level_of_measurement="interval"), 3)


def test_scorer_that_rates_0_to_4_is_scaled_like_people() -> None:
    rated = {pair: min(3.0, max(1.0, rating)) for pair, rating in GROUPS[0].values.items()}
    judge, stretched = (report(scores("judge", rated, rates=rates)).scorers[0] for rates in (True, False))
    assert (judge.scaled_like_people, judge.scaling_range) == (True, (0, 4))
    assert judge.alpha_to["group2"].value == round(alpha(listed(rated), listed(GROUPS[1].values)), 3)
    assert (stretched.scaled_like_people, stretched.scaling_range) == (False, (1, 3))
    assert stretched.alpha_to["group2"].value != judge.alpha_to["group2"].value


def test_group_as_scorer_agrees_with_itself_and_reaches_the_ceiling() -> None:
    found = report(replace(GROUPS[0], name="ann", rates_0_to_4=True))
    assert found.scorers[0].alpha_to["group1"].value == 1
    assert found.scorers[0].alpha_to["group2"].value == found.ceiling.value


def test_rating_statistics_compare_with_the_mean_of_the_groups() -> None:
    found = report(scores("fair", SCORERS["fair"])).scorers[0]
    mean = [(a + b) / 2 for a, b in zip(*(listed(group.values) for group in GROUPS), strict=True)]
    given = listed(SCORERS["fair"])
    assert found.r.value == pytest.approx(np.corrcoef(given, mean)[0, 1])
    assert found.rho.value == pytest.approx(stats.spearmanr(given, mean).statistic)
    assert found.tau.value == pytest.approx(stats.kendalltau(given, mean).statistic)
    high = [score for score, rating in zip(given, mean, strict=True) if rating >= 3.5]
    low = [score for score, rating in zip(given, mean, strict=True) if rating <= 0.5]
    assert found.auc.value == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a in high for b in low]))


def test_only_common_keys_count_and_the_others_are_reported() -> None:
    good = {pair: value for pair, value in SCORERS["good"].items() if pair[1] != "object_00_cup-0"}
    good[("unheard_of", "object_00_cup-1")] = 9.0
    fair = {pair: value for pair, value in SCORERS["fair"].items() if pair[1] != "object_01_car-2"}
    groups = [scores("group1", GROUPS[0].values, dropped={"empty or nan": 7}), GROUPS[1]]
    found = report(scores("good", good), scores("fair", fair), groups=groups)
    kept = sorted(pair for pair in KEYS if pair[1] not in ("object_00_cup-0", "object_01_car-2"))
    assert (found.keys, found.concepts, found.methods) == (len(kept), 5, METHODS)
    text = json.dumps([list(pair) for pair in kept])
    assert found.key_set_sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert found.scorers[0].scaling_range[1] < 9
    lacking = "key that another scorer or group lacks"
    assert [(each.source, each.reason, each.count) for each in found.dropped] == [
        ("group1", "empty or nan", 7),
        ("good", lacking, 2),
        ("good", "method unheard_of, which fair lacks", 1),
        ("fair", lacking, 2),
        ("group1", lacking, 4),
        ("group2", lacking, 4),
    ]


def test_named_scorers_define_the_keys_and_ranges_include_keys_without_ratings() -> None:
    missing, unrated = KEYS[0], KEYS[4]
    good = {pair: value for pair, value in SCORERS["good"].items() if pair != missing} | {unrated: 9.0}
    fair = {pair: v for pair, v in SCORERS["fair"].items() if pair[0] == "emu2" or pair[1].startswith("object_00")}
    groups = [
        scores(group.name, {pair: rating for pair, rating in group.values.items() if pair != unrated})
        for group in GROUPS
    ]
    found = report(scores("good", good), scores("fair", fair), groups=groups, keys_of=["good"])
    assert (found.keys, found.methods, found.keys_of) == (len(KEYS) - 1, METHODS, ("good",))
    text = json.dumps([list(pair) for pair in sorted(KEYS) if pair != missing])
    assert found.key_set_sha256 == hashlib.sha256(text.encode()).hexdigest()
    people = [pair for pair in KEYS if pair not in (missing, unrated)]
    assert found.ceiling.value == round(alpha(*(listed(group.values, people) for group in GROUPS)), 3)
    for scorer, values in zip(found.scorers, (good, fair), strict=True):
        own = [pair for pair in KEYS if pair in values and pair != missing]
        low, high = min(values[pair] for pair in own), max(values[pair] for pair in own)
        assert scorer.scaling_range == (low, high)
        rated = [pair for pair in own if pair != unrated]
        scaled = [(values[pair] - low) / (high - low) for pair in rated]
        for group in GROUPS:
            expected = round(alpha(scaled, [rating / 4 for rating in listed(group.values, rated)]), 3)
            assert scorer.alpha_to[group.name].value == expected
        assert scorer.keys == len(rated)
        mean = [sum(group.values[pair] for group in GROUPS) / 2 for pair in rated]
        assert scorer.rho.value == pytest.approx(stats.spearmanr([values[pair] for pair in rated], mean).statistic)
    assert found.scorers[0].scaling_range[1] == 9, "of a key without ratings"
    assert [(each.source, each.reason, each.count) for each in found.dropped] == [
        (name, "key that is not one of good", 1) for name in ("fair", "group1", "group2")
    ]
    both = report(scores("good", good), scores("fair", fair), groups=groups, keys_of=["good", "fair"])
    assert both.keys == len(good.keys() & fair.keys())


def test_digest_of_the_key_set_does_not_depend_on_order_or_scores() -> None:
    turned = dict(reversed(SCORERS["good"].items()))
    digests = {report(scores("s", values)).key_set_sha256 for values in (turned, SCORERS["good"], SCORERS["poor"])}
    assert len(digests) == 1


def test_prompt_following_leaves_out_style_collections_by_default() -> None:
    good = scores("good", SCORERS["good"])
    assert report(good).keys == report(good, score="pf", with_styles=True).keys == len(KEYS)
    assert report(good, score="pf", protocol="dreambench-plus").keys == len(KEYS), "the benchmark's own table"
    for found in (report(good, score="pf"), report(good, with_styles=False)):
        assert found.keys == len(KEYS) - 6
        assert [(each.reason, each.count) for each in found.dropped] == [("style collection", 6)] * 3


def test_extreme_score_changes_alpha_and_is_named() -> None:
    spoilt = SCORERS["good"] | {KEYS[7]: 3.0}
    honest, moved = (report(scores("good", values)).scorers[0] for values in (SCORERS["good"], spoilt))
    assert (honest.alpha.value or 0) - (moved.alpha.value or 0) > 0.3
    ends = {(each.end, each.rank): (each.method, each.key, each.value) for each in moved.extremes}
    assert ends["highest", 1] == (*KEYS[7], 3.0)
    order = sorted(KEYS, key=lambda pair: spoilt[pair])
    assert [ends["lowest", rank] for rank in (1, 2, 3)] == [(*pair, spoilt[pair]) for pair in order[:3]]
    assert ends["highest", 2] == (*order[-2], spoilt[order[-2]])


def test_dreambench_plus_has_an_alpha_per_method_with_gaps_and_runs() -> None:
    rng = np.random.default_rng(9)

    def with_gaps(part: Scores) -> Scores:
        return replace(part, values={pair: value for pair, value in part.values.items() if rng.random() > 0.15})

    groups = [with_gaps(group) for group in GROUPS]
    rated = [
        {pair: float(np.clip(v + rng.integers(-1, 2), 0, 4)) for pair, v in GROUPS[0].values.items()} for _ in range(3)
    ]
    judges = [with_gaps(scores("judge", values, rates=True)) for values in rated]
    found = report(*judges, groups=groups, protocol="dreambench-plus")

    def gapped(one: Scores, other: Scores, method: str) -> float:
        keys = sorted({pair for pair in (*one.values, *other.values) if pair[0] == method})
        data = [[part.values.get(pair, math.nan) for pair in keys] for part in (one, other)]
        return round(krippendorff.alpha(data, level_of_measurement="interval"), 3)

    means = []
    for row, method in zip(found.scorers[0].methods, METHODS, strict=True):
        runs = [round(sum(gapped(judge, group, method) for group in groups) / 2, 3) for judge in judges]
        assert (row.method, row.runs, row.ceiling) == (method, tuple(runs), gapped(*groups, method))
        assert (row.mean, row.deviation) == (round(statistics.mean(runs), 3), round(statistics.stdev(runs), 3))
        means.append(row.mean)
    assert found.scorers[0].alpha.value == round(statistics.mean(means), 3)
    assert found.ceiling.value == round(statistics.mean(gapped(*groups, method) for method in METHODS), 3)
    assert (found.scorers[0].alpha.low or 9) < found.scorers[0].alpha.value < (found.scorers[0].alpha.high or -9)


def test_dreambench_plus_keeps_keys_with_two_numbers_in_common_methods() -> None:
    single = ("emu2", "object_99_fan-0")  # rated by one group and scored by nobody
    ann = scores("ann", GROUPS[0].values | {single: 4.0, ("gan", "object_00_cup-0"): 1.0})
    good = scores("good", SCORERS["good"] | {("gan", "object_00_cup-0"): 1.0})
    found = report(good, groups=[ann, GROUPS[1]], protocol="dreambench-plus")
    assert (found.keys, found.methods) == (len(KEYS), METHODS)
    assert [(each.source, each.reason, each.count) for each in found.dropped] == [
        ("good", "method gan, which group2 lacks", 1),
        ("ann", "key without a second number to compare with", 1),
        ("ann", "method gan, which group2 lacks", 1),
    ]


def test_undefined_values_are_null_with_a_reason() -> None:
    flat = report(scores("flat", dict.fromkeys(KEYS, 0.5)), scores("good", SCORERS["good"]), compare=[("flat", "good")])
    scorer = flat.scorers[0]
    assert (scorer.alpha.value, scorer.rho.value, scorer.auc.value) == (None, None, 0.5)
    assert scorer.alpha.reason == "every score is 0.5, so there is no range to scale by"
    assert scorer.rho.reason == "the scores or the mean ratings are all equal"
    assert (flat.differences[0].p_value, flat.differences[0].difference.value) == (None, None)
    assert json.loads(flat.to_json())["scorers"][0]["alpha"]["value"] is None

    one_concept = {pair: value for pair, value in SCORERS["good"].items() if pair[1].startswith("object_00")}
    single = report(scores("good", one_concept)).scorers[0].alpha
    assert (single.value is None, single.low) == (False, None)
    assert single.reason.startswith("no interval")

    middling = [scores(name, {pair: 2.0 + (pair[1][-1] == "0") for pair in KEYS}) for name in ("a", "b")]
    no_ends = report(scores("good", SCORERS["good"]), groups=middling).scorers[0].auc
    assert (no_ends.value, no_ends.reason) == (None, "fewer than two images are rated 3.5 or more, or 0.5 or less")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda good: report(good, score="ap"), r"^score is 'ap'; give 'cp' or 'pf'$"),
        (lambda good: report(good, protocol="best"), r"^protocol is 'best'; give 'pooled' or 'dreambench-plus'$"),
        (lambda good: report(good, replicates=-1), r"^replicates is -1; give at least 0$"),
        (lambda good: report(good, good), r"^several scorers are named 'good'; give each its own name"),
        (lambda good: report(), r"^there are 0 scorers and 2 groups"),
        (lambda good: report(good, groups=GROUPS[:1]), r"^there are 1 scorers and 1 groups"),
        (lambda good: report(good, compare=[("good", "bad")]), r"^compare names 'bad'; give two of good$"),
        (lambda good: report(good, keys_of=["good", "bad"]), r"^keys_of names 'bad'; give any of good$"),
        (
            lambda good: report(good, keys_of=["good"], protocol="dreambench-plus"),
            r"^keys_of names 'good', but protocol",
        ),
        (
            lambda good: report(scores("x", {("gan", KEYS[0][1]): 1.0})),
            r"^all scorers and groups must share a method; .* Methods of x: gan; group1: dreambooth_sd, emu2; group2",
        ),
        (
            lambda good: report(scores("x", {("emu2", "a"): 1.0, ("emu2", "b"): 2.0})),
            r"^scorers and groups have fewer than 2 .* x has 2, such as \('emu2', 'a'\); group1 has 30, such as",
        ),
        (
            lambda good: report(scores("x", {("emu2", "a"): 1.0, ("emu2", "b"): 2.0}), protocol="dreambench-plus"),
            r"^scorers and groups have fewer than 2",
        ),
    ],
)
def test_unusable_input_is_named_with_the_remedy(change: Callable[[Scores], Agreement], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        change(scores("good", SCORERS["good"]))
