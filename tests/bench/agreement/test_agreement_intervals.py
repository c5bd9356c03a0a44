"""Intervals and paired tests: resampled concepts, known coverage, no p-value of zero."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from scipy import stats
from support.agreement_cases import GROUPS, KEYS, SCORERS, alpha, listed, report, scores

from masc_metrics.bench.agreement.names import concept_of


def interval(values: list[float]) -> tuple[float, float]:
    return tuple(np.percentile(values, [2.5, 97.5]))


def test_intervals_and_p_values_equal_those_of_resampled_concepts() -> None:
    names = ("good", "poor")
    found = report(*(scores(name, SCORERS[name]) for name in names), compare=[names], seed=5)
    concepts = sorted({concept_of(key) for _, key in KEYS})
    counts = np.random.default_rng(5).multinomial(5, np.full(5, 0.2), 50)
    pairs_of = {concept: [pair for pair in KEYS if concept_of(pair[1]) == concept] for concept in concepts}
    samples = [
        [pair for concept, times in zip(concepts, row, strict=True) for pair in pairs_of[concept] * times]
        for row in counts
    ]
    assert {len(sample) for sample in samples} == {len(KEYS)}  # 5 concepts of 3 prompts and both methods
    alphas: dict[str, list[float]] = {}
    rhos: dict[str, list[float]] = {}
    for name in names:
        low, high = min(SCORERS[name].values()), max(SCORERS[name].values())  # of the full sample
        scaled = {pair: 4 * (value - low) / (high - low) for pair, value in SCORERS[name].items()}
        alphas[name] = [
            statistics.mean(alpha(listed(scaled, sample), listed(group.values, sample)) for group in GROUPS)
            for sample in samples
        ]
        mean = {pair: (GROUPS[0].values[pair] + GROUPS[1].values[pair]) / 2 for pair in KEYS}
        rhos[name] = [stats.spearmanr(listed(scaled, each), listed(mean, each)).statistic for each in samples]
    for scorer in found.scorers:
        assert (scorer.alpha.low, scorer.alpha.high) == pytest.approx(interval(alphas[scorer.name]), abs=1e-9)
        assert (scorer.rho.low, scorer.rho.high) == pytest.approx(interval(rhos[scorer.name]), abs=1e-9)
    ceilings = [alpha(*(listed(group.values, sample) for group in GROUPS)) for sample in samples]
    assert (found.ceiling.low, found.ceiling.high) == pytest.approx(interval(ceilings), abs=1e-9)
    test = {each.statistic: each for each in found.differences}["alpha"]
    differences = [a - b for a, b in zip(alphas["good"], alphas["poor"], strict=True)]
    assert (test.difference.low, test.difference.high) == pytest.approx(interval(differences), abs=1e-9)
    a, b = (scorer.alpha.value or 0 for scorer in found.scorers)
    assert test.difference.value == pytest.approx(a - b, abs=1e-9)
    assert test.p_value == pytest.approx(2 * (1 + sum(each <= 0 for each in differences)) / 51)


def test_seed_determines_the_resamples() -> None:
    good = scores("good", SCORERS["good"])
    assert report(good).to_json() == report(good).to_json()
    assert report(good).scorers[0].alpha.low != report(good, seed=1).scorers[0].alpha.low


def test_interval_covers_a_known_alpha_at_its_confidence_level() -> None:
    # Ratings are 2 + concept + key + own noise: alpha is the shared part of the variance, 0.5 of 0.75.
    rng = np.random.default_rng(11)
    covered, runs = 0, 80
    for _ in range(runs):
        keys = [("m", f"object_{concept}_x-{prompt}") for concept in range(40) for prompt in range(4)]
        common = 2 + np.repeat(rng.normal(0, 0.5, 40), 4) + rng.normal(0, 0.5, 160)
        given = [common + rng.normal(0, 0.5, 160) for _ in range(2)]
        groups = [
            scores(f"g{index}", dict(zip(keys, values.tolist(), strict=True))) for index, values in enumerate(given)
        ]
        ceiling = report(scores("any", dict.fromkeys(keys, 1.0)), groups=groups, replicates=200).ceiling
        assert ceiling.low is not None
        assert ceiling.high is not None
        covered += ceiling.low <= 2 / 3 <= ceiling.high
    assert 0.85 <= covered / runs < 1


def test_scorer_does_not_differ_from_itself_and_no_p_value_is_zero() -> None:
    scorers = [scores("a", SCORERS["good"]), scores("b", SCORERS["good"]), scores("poor", SCORERS["poor"])]
    found = report(*scorers, compare=[("a", "b"), ("a", "poor"), ("poor", "a")], replicates=99)
    tests = {(each.a, each.b, each.statistic): each for each in found.differences}
    assert (tests["a", "b", "alpha"].difference.value, tests["a", "b", "alpha"].p_value) == (0, 1)
    assert tests["a", "poor", "rho"].p_value == 2 / 100
    assert tests["poor", "a", "rho"].p_value == 2 / 100
    assert (tests["poor", "a", "rho"].difference.high or 0) < 0


def test_resamples_without_low_or_high_ratings_are_left_out_and_counted() -> None:
    low = {pair: 0.0 if pair[1].startswith("object_00") else 4.0 for pair in KEYS}
    found = report(scores("good", SCORERS["good"]), groups=[scores("a", low), scores("b", low)], replicates=200)
    counts = np.random.default_rng(0).multinomial(5, np.full(5, 0.2), 200)
    concept = sorted({concept_of(key) for _, key in KEYS}).index("object_00_cup")
    assert found.scorers[0].auc.left_out == sum(counts[:, concept] % 5 == 0)
    assert found.scorers[0].auc.left_out > 0
