"""Measures of agreement against hand-computed numbers, the libraries, and samples of known agreement."""

from __future__ import annotations

import math

import krippendorff
import numpy as np
import pytest
from scipy import stats

from masc_metrics.bench.agreement import statistics
from masc_metrics.bench.agreement.statistics import (
    alpha_resamples,
    auc,
    krippendorff_alpha,
    rating_resamples,
    rating_statistics,
)
from masc_metrics.intervals import Numbers

NAN = math.nan


def closed_form(ratings_UK: Numbers) -> float:
    keys = ratings_UK.shape[1]
    return float(alpha_resamples(ratings_UK, np.zeros(keys, dtype=np.intp), np.ones((1, 1)))[0])


@pytest.mark.parametrize(
    ("ratings", "alpha"),
    [
        ([[0, 1], [0, 1]], 1),
        # observed 1; expected 2 * 4 * (1 / 4) / 3
        ([[0, 1], [1, 0]], 1 - 1 / (2 / 3)),
        # observed 4 / 4; values 0 1 2 3 0 1 2 1 of variance 15 / 16; expected 2 * 8 * (15 / 16) / 7
        ([[0, 1, 2, 3], [0, 1, 2, 1]], 1 - 1 / (15 / 7)),
        # keys 00 and 243; observed (4 + 1 + 1) / 5; expected 2 * 64 / (5 * 4)
        ([[0, 2, NAN], [0, 4, 1], [NAN, 3, NAN]], 1 - (6 / 5) / (128 / 20)),
    ],
)
def test_alpha_equals_hand_computed_values(ratings: list[list[float]], alpha: float) -> None:
    ratings_UK = np.array(ratings, dtype=np.float64)
    assert krippendorff_alpha(ratings_UK) == pytest.approx(alpha, abs=1e-12)
    assert closed_form(ratings_UK) == pytest.approx(alpha, abs=1e-12)


@pytest.mark.parametrize("raters", [2, 3, 5])
@pytest.mark.parametrize("integers", [True, False])
def test_closed_form_equals_the_librarys_alpha_with_gaps(raters: int, integers: bool) -> None:
    rng = np.random.default_rng(raters)
    for _ in range(5):
        ratings_UK = rng.normal(7, 2, (raters, 40)) + rng.normal(0, 2, 40)
        ratings_UK = ratings_UK.round() if integers else ratings_UK
        ratings_UK[rng.random(ratings_UK.shape) < 0.3] = NAN
        expected = krippendorff.alpha(ratings_UK, level_of_measurement="interval")
        assert closed_form(ratings_UK) == pytest.approx(expected, abs=1e-10)
        assert krippendorff_alpha(ratings_UK) == pytest.approx(expected, abs=1e-10)


def test_alpha_of_resamples_is_the_librarys_of_repeated_keys() -> None:
    rng = np.random.default_rng(1)
    concepts_K = rng.integers(0, 6, 50)
    ratings_UK = rng.normal(size=(2, 50)) + concepts_K
    ratings_UK[0, :5] = NAN
    weights_RC = rng.multinomial(6, np.full(6, 1 / 6), 20).astype(np.float64)
    alphas = alpha_resamples(ratings_UK, concepts_K, weights_RC)
    for weights_C, alpha in zip(weights_RC, alphas, strict=True):
        drawn = np.repeat(np.arange(50), weights_C[concepts_K].astype(int))
        assert alpha == pytest.approx(krippendorff.alpha(ratings_UK[:, drawn]), abs=1e-10)


def test_many_distinct_scores_use_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    ratings_UK = rng.normal(size=(2, 60)) + rng.normal(size=60)
    by_library = krippendorff_alpha(ratings_UK)
    asked = []
    monkeypatch.setattr(krippendorff, "alpha", lambda **_: asked.append(1) or 0.25)
    assert krippendorff_alpha(ratings_UK) == 0.25
    monkeypatch.setattr(statistics, "LIBRARY_CELLS", 60 * 120**2 - 1)
    assert krippendorff_alpha(ratings_UK) == pytest.approx(by_library, abs=1e-10)
    assert len(asked) == 1
    monkeypatch.setattr(statistics, "LIBRARY_CELLS", 60 * 120**2)
    assert krippendorff_alpha(ratings_UK) == 0.25


def test_alpha_is_one_for_agreeing_and_zero_for_independent_raters() -> None:
    rng = np.random.default_rng(3)
    one, other = rng.integers(0, 5, (2, 9000)).astype(np.float64)
    assert krippendorff_alpha(np.stack([one, one])) == pytest.approx(1, abs=1e-12)
    assert krippendorff_alpha(np.stack([one, other])) == pytest.approx(0, abs=0.03)
    assert krippendorff_alpha(np.stack([one, 4 - one])) == pytest.approx(-1, abs=0.03)


@pytest.mark.parametrize("noise", [0.25, 0.5, 1.0, 2.0])
def test_alpha_under_noise_is_two_over_two_plus_variance(noise: float) -> None:
    rng = np.random.default_rng(4)
    one = rng.normal(size=40_000)
    alpha = krippendorff_alpha(np.stack([one, one + rng.normal(0, noise, one.size)]))
    assert alpha == pytest.approx(2 / (2 + noise**2), abs=0.012)


@pytest.mark.parametrize(
    "ratings", [[[1, 1, 1], [1, 1, 1]], [[1, NAN], [NAN, 1]], [[1, 2], [3, NAN]], [[0.1, 0.1], [0.1, 0.1]]]
)
def test_alpha_is_undefined_without_two_keys_or_two_values(ratings: list[list[float]]) -> None:
    assert math.isnan(krippendorff_alpha(np.array(ratings)))
    assert math.isnan(closed_form(np.array(ratings)))


def test_alpha_of_small_differences_far_from_zero_is_exact() -> None:
    ratings_UK = np.array([[0, 1, 2, 3], [0, 1, 2, 1]]) / 1024 + 4096  # all exact in binary
    assert closed_form(ratings_UK) == pytest.approx(1 - 7 / 15, abs=1e-9)


def test_auc_counts_pairs_and_halves_ties() -> None:
    assert auc([3, 2], [1, 0]) == 1
    assert auc([0, 0], [1, 2]) == 0
    assert auc([1, 2], [1, 3]) == (0.5 + 0 + 1 + 0) / 4
    assert auc([1, 1], [1, 1]) == 0.5
    rng = np.random.default_rng(5)
    positives, negatives = rng.integers(0, 9, 70), rng.integers(0, 7, 40)
    u = stats.mannwhitneyu(positives, negatives).statistic
    assert auc(positives.tolist(), negatives.astype(np.float64)) == pytest.approx(u / (70 * 40), abs=1e-12)


def test_auc_is_undefined_with_an_empty_side_and_refuses_nan() -> None:
    assert math.isnan(auc([], [1.0]))
    assert math.isnan(auc([1.0], np.array([])))
    with pytest.raises(ValueError, match=r"^negatives hold 1 NaN; leave out undefined scores$"):
        auc([1.0], [NAN, 2.0])


def sample() -> tuple[Numbers, Numbers, Numbers]:
    rng = np.random.default_rng(6)
    ratings_K = rng.integers(0, 9, 80) / 2
    scores_K = (ratings_K + rng.normal(0, 2, 80)).round(1)  # with ties
    return scores_K, ratings_K, rng.integers(0, 5, 80)


def test_rating_statistics_are_scipys() -> None:
    scores_K, ratings_K, _ = sample()
    r, rho, tau, area = rating_statistics(scores_K, ratings_K)
    assert r == pytest.approx(np.corrcoef(scores_K, ratings_K)[0, 1])
    assert rho == pytest.approx(stats.spearmanr(scores_K, ratings_K).statistic)
    assert tau == pytest.approx(stats.kendalltau(scores_K, ratings_K, variant="b").statistic)
    high, low = scores_K[ratings_K > 3.4], scores_K[ratings_K < 0.6]
    assert area == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a in high for b in low]))


def test_rating_statistics_of_resamples_are_those_of_repeated_keys() -> None:
    scores_K, ratings_K, concepts_K = sample()
    ratings_K[concepts_K > 2] = 2  # some resamples have a single rating, some no high or low one
    weights_RC = np.random.default_rng(7).multinomial(5, np.full(5, 0.2), 40).astype(np.float64)
    weights_RC[0] = [0, 0, 0, 3, 2]
    resamples = rating_resamples(scores_K, ratings_K, concepts_K, weights_RC)
    assert np.isnan(resamples[0]).all()
    assert not np.isnan(resamples).all(axis=1)[1:].any()
    for weights_C, (r, rho, tau, area) in zip(weights_RC[1:], resamples[1:], strict=True):
        drawn = np.repeat(np.arange(80), weights_C[concepts_K].astype(int))
        assert r == pytest.approx(np.corrcoef(scores_K[drawn], ratings_K[drawn])[0, 1], abs=1e-10)
        assert rho == pytest.approx(stats.spearmanr(scores_K[drawn], ratings_K[drawn]).statistic, abs=1e-10)
        assert tau == pytest.approx(stats.kendalltau(scores_K[drawn], ratings_K[drawn]).statistic, abs=1e-10)
        high, low = scores_K[drawn][ratings_K[drawn] >= 3.5], scores_K[drawn][ratings_K[drawn] <= 0.5]
        assert area == pytest.approx(auc(high, low), abs=1e-12, nan_ok=True)


def test_constant_scores_have_undefined_correlations_and_an_auc_of_one_half() -> None:
    ratings_K = np.array([0.0, 0.5, 3.5, 4.0])
    *correlations, area = rating_statistics(np.ones(4), ratings_K)
    assert ([math.isnan(value) for value in correlations], area) == ([True] * 3, 0.5)
    resamples = rating_resamples(np.ones(4), ratings_K, np.arange(4), np.ones((1, 4)))
    np.testing.assert_array_equal(resamples, [[NAN, NAN, NAN, 0.5]])
