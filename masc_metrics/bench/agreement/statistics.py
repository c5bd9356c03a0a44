"""Measures of agreement, of a sample and of resamples of its concepts.

Letters in names: ``K`` keys, ``U`` raters, ``C`` concepts, ``R`` resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from masc_metrics.intervals import Numbers

Indices = NDArray[np.intp]

HIGH, LOW = 3.5, 0.5
"""For the AUC, images with a mean rating of at least ``HIGH`` are positives, those of at most ``LOW`` negatives."""

LIBRARY_CELLS = 2**22
"""``krippendorff`` builds arrays of keys x (distinct values)^2, too large for thousands of real-valued scores. Above
this number of cells the closed form is used, which is equal."""

_NO_SPREAD = 1e-12


def none_if_nan(value: float) -> float | None:
    """The value, or None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def auc(positives: Sequence[float] | Numbers, negatives: Sequence[float] | Numbers) -> float:
    """Area under the ROC curve: P(positive > negative) + P(equal) / 2, the Mann-Whitney statistic with midranks.

    Args:
        positives: scores that should be higher.
        negatives: scores that should be lower.

    Returns:
        A number in [0, 1], 0.5 at chance; NaN if one side has fewer than two scores.

    Raises:
        ValueError: if a score is NaN.
    """
    positive, negative = (np.asarray(side, dtype=np.float64) for side in (positives, negatives))
    for name, side in (("positives", positive), ("negatives", negative)):
        if np.isnan(side).any():
            raise ValueError(f"{name} hold {int(np.isnan(side).sum())} NaN; leave out undefined scores")
    if positive.size < 2 or negative.size < 2:
        return math.nan
    negative = np.sort(negative)
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float(int(below.sum() + not_above.sum()) / (2 * positive.size * negative.size))


def krippendorff_alpha(ratings_UK: Numbers) -> float:
    """Krippendorff's alpha, interval level: 1 - observed / expected disagreement; 1 is agreement, 0 is chance.

    Computed by the ``krippendorff`` package, or, if that needs too much memory (see ``LIBRARY_CELLS``), by the closed
    form of :func:`alpha_resamples`.

    Args:
        ratings_UK: (raters, keys); NaN is a gap, and keys with fewer than two ratings do not count.

    Returns:
        At most 1; NaN with fewer than two such keys, or if all their ratings are equal.

    Raises:
        ImportError: if krippendorff is not installed.
    """
    try:
        import krippendorff
    except ImportError as error:
        raise ImportError("agreement needs krippendorff: pip install 'masc-metrics[bench]'") from error
    paired_UK = ratings_UK[:, (~np.isnan(ratings_UK)).sum(axis=0) >= 2]
    keys = paired_UK.shape[1]
    distinct = len(np.unique(paired_UK[~np.isnan(paired_UK)]))
    if keys < 2 or distinct < 2:
        return math.nan
    if keys * distinct**2 > LIBRARY_CELLS:
        return float(alpha_resamples(paired_UK, np.zeros(keys, dtype=np.intp), np.ones((1, 1)))[0])
    return float(krippendorff.alpha(reliability_data=paired_UK, level_of_measurement="interval"))


def alpha_resamples(ratings_UK: Numbers, concepts_K: Indices, weights_RC: Numbers) -> Numbers:
    """Alpha of every resample, in closed form.

    Let v be the M values of all keys with two or more ratings, m the number of one key's. Then
    observed = (1 / M) sum over keys of 2 m^2 / (m - 1) Var(key) and expected = 2 M Var(v) / (M - 1), with population
    variances. For two raters, observed is the mean of (x - y)^2. Both are sums over concepts, so one matrix product
    gives all resamples.

    Args:
        ratings_UK: (raters, keys); NaN is a gap.
        concepts_K: concept of each key, 0..C-1.
        weights_RC: how often each resample holds each concept.

    Returns:
        (R,); NaN for a resample with fewer than two keys or without spread.
    """
    rated_UK = ~np.isnan(ratings_UK)
    m_K = rated_UK.sum(axis=0).astype(np.float64)
    m_K[m_K < 2] = 0
    counts_UK = rated_UK & (m_K > 0)
    if not counts_UK.any():
        return np.full(len(weights_RC), math.nan)
    centre = ratings_UK[counts_UK].mean()  # so that squares lose no digits
    values_UK = np.where(counts_UK, ratings_UK - centre, 0.0)
    sums_K, squares_K = values_UK.sum(axis=0), (values_UK**2).sum(axis=0)
    mean_K = sums_K / np.maximum(m_K, 1)
    within_K = (np.where(counts_UK, values_UK - mean_K, 0.0) ** 2).sum(axis=0)
    observed_K = 2 * m_K / np.maximum(m_K - 1, 1) * within_K
    columns = (m_K > 0, m_K, observed_K, sums_K, squares_K)
    concepts = weights_RC.shape[1]
    per_concept = np.stack([np.bincount(concepts_K, column, minlength=concepts) for column in columns], axis=1)
    keys, m, observed, sums, squares = (weights_RC @ per_concept).T
    defined = keys >= 2
    m = np.where(defined, m, 2.0)
    variance = squares / m - (sums / m) ** 2
    expected = 2 * m * variance / (m - 1)
    defined &= expected > _NO_SPREAD * squares_K.max()
    return np.where(defined, 1 - observed / m / np.where(defined, expected, 1.0), math.nan)


def rating_statistics(scores_K: Numbers, ratings_K: Numbers) -> Numbers:
    """Pearson's r, Spearman's rho, Kendall's tau-b and the AUC of scores against mean ratings.

    Args:
        scores_K: finite scores.
        ratings_K: mean ratings, 0..4.

    Returns:
        (4,): r, rho and tau in [-1, 1], NaN if scores or ratings are constant; the AUC of ratings of at least ``HIGH``
        against those of at most ``LOW``, NaN if there are none of either.
    """
    from scipy import stats

    r = rho = tau = math.nan
    if scores_K.size and np.ptp(scores_K) > 0 and np.ptp(ratings_K) > 0:
        r = float(stats.pearsonr(scores_K, ratings_K).statistic)
        rho = float(stats.spearmanr(scores_K, ratings_K).statistic)
        tau = float(stats.kendalltau(scores_K, ratings_K).statistic)
    return np.array([r, rho, tau, auc(scores_K[ratings_K >= HIGH], scores_K[ratings_K <= LOW])])


def rating_resamples(scores_K: Numbers, ratings_K: Numbers, concepts_K: Indices, weights_RC: Numbers) -> Numbers:
    """:func:`rating_statistics` of every resample, (R, 4), with concepts and weights as of :func:`alpha_resamples`."""
    resamples = (np.repeat(np.arange(len(scores_K)), weights_C[concepts_K]) for weights_C in weights_RC.astype(np.intp))
    return np.array([rating_statistics(scores_K[keys], ratings_K[keys]) for keys in resamples]).reshape(-1, 4)
