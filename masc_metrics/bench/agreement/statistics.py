"""Measures of agreement, each on a sample and on many resamples of its concepts.

Letters in names: ``K`` keys, ``U`` raters, ``C`` concepts, ``R`` resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Indices = NDArray[np.intp]

HIGH, LOW = 3.5, 0.5
"""Mean ratings from which on, and up to which, the AUC calls a picture good and bad."""

LIBRARY_CELLS = 2**22
"""``krippendorff`` builds arrays of keys x distinct values squared, which thousands of real scores fill beyond any
memory; above so many cells the closed form, which is the same number, is taken."""

_TABLE_CELLS = 2**22
_NO_SPREAD = 1e-12


def auc(positives: Sequence[float] | Numbers, negatives: Sequence[float] | Numbers) -> float:
    """Area under the ROC curve: P(positive > negative) + P(equal) / 2, the Mann-Whitney statistic with midranks.

    Args:
        positives: scores that should be the higher ones.
        negatives: scores that should be the lower ones.

    Returns:
        A number in [0, 1], 0.5 for scores that tell nothing; nan if one side is empty.

    Raises:
        ValueError: if a score is nan, which has no rank.
    """
    positive, negative = (np.asarray(side, dtype=np.float64) for side in (positives, negatives))
    for name, side in (("positives", positive), ("negatives", negative)):
        if np.isnan(side).any():
            raise ValueError(f"{name} hold {int(np.isnan(side).sum())} nan; leave undefined scores out")
    if not positive.size or not negative.size:
        return math.nan
    negative = np.sort(negative)
    below = np.searchsorted(negative, positive, side="left")
    not_above = np.searchsorted(negative, positive, side="right")
    return float(int(below.sum() + not_above.sum()) / (2 * positive.size * negative.size))


def krippendorff_alpha(ratings_UK: Numbers) -> float:
    """Krippendorff's alpha, interval level: 1 - observed / expected disagreement; 1 is agreement, 0 is chance.

    It is the ``krippendorff`` package's, or, where that one needs too much memory (see ``LIBRARY_CELLS``), the closed
    form of :func:`alpha_resamples`.

    Args:
        ratings_UK: (raters, keys); nan is a gap, and keys with fewer than two ratings do not count.

    Returns:
        At most 1; nan with fewer than two such keys, or where all their ratings are the same.

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

    With the values v of all keys rated twice or more, M of them, m of one key:
    observed = (1 / M) sum over keys of 2 m^2 / (m - 1) Var(key), expected = 2 M Var(v) / (M - 1), population variances.
    For two raters observed is the mean of (x - y)^2. Both are sums over concepts, so all resamples are one product.

    Args:
        ratings_UK: (raters, keys); nan is a gap.
        concepts_K: each key's concept, 0..C-1.
        weights_RC: how often a resample holds a concept.

    Returns:
        (R,); nan where a resample has fewer than two keys or no spread.
    """
    there_UK = ~np.isnan(ratings_UK)
    m_K = there_UK.sum(axis=0).astype(np.float64)
    m_K[m_K < 2] = 0
    counts_UK = there_UK & (m_K > 0)
    if not counts_UK.any():
        return np.full(len(weights_RC), math.nan)
    centre = ratings_UK[counts_UK].mean()  # squares of what is left lose no digits
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


def rank_statistics(scores_K: Numbers, ratings_K: Numbers) -> Numbers:
    """Spearman's rho, Kendall's tau-b and the AUC of scores against mean ratings.

    Args:
        scores_K: finite scores.
        ratings_K: mean ratings, 0..4.

    Returns:
        (3,): rho and tau in [-1, 1], nan where one side is constant; the AUC of ratings from 3.5 on against those up to
        0.5, nan where there are none.

    Raises:
        ImportError: if scipy is not installed.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError("agreement needs scipy: pip install 'masc-metrics[bench]'") from error
    rho = tau = math.nan
    if scores_K.size and np.ptp(scores_K) > 0 and np.ptp(ratings_K) > 0:
        rho = float(stats.spearmanr(scores_K, ratings_K).statistic)
        tau = float(stats.kendalltau(scores_K, ratings_K).statistic)
    return np.array([rho, tau, auc(scores_K[ratings_K >= HIGH], scores_K[ratings_K <= LOW])])


def rank_resamples(scores_K: Numbers, ratings_K: Numbers, concepts_K: Indices, weights_RC: Numbers) -> Numbers:
    """:func:`rank_statistics` of every resample, from its counts by (rating, score).

    People give few different ratings, so the table is small; should it not be, resamples are written out.

    Returns:
        (R, 3): rho, tau-b, AUC.
    """
    scores, score_K = np.unique(scores_K, return_inverse=True)
    ratings, rating_K = np.unique(ratings_K, return_inverse=True)
    if len(scores) * len(ratings) > _TABLE_CELLS:
        samples = (
            np.repeat(np.arange(len(scores_K)), weights_C[concepts_K]) for weights_C in weights_RC.astype(np.intp)
        )
        return np.array([rank_statistics(scores_K[drawn], ratings_K[drawn]) for drawn in samples]).reshape(-1, 3)
    cells_K = rating_K * len(scores) + score_K
    result = np.full((len(weights_RC), 3), math.nan)
    for weights_C, row in zip(weights_RC, result, strict=True):
        counts = np.bincount(cells_K, weights_C[concepts_K], minlength=len(scores) * len(ratings))
        table: Numbers = counts.astype(np.float64)
        row[:] = _table_statistics(table.reshape(len(ratings), len(scores)), ratings)
    return result


def _table_statistics(table: Numbers, ratings: Numbers) -> tuple[float, float, float]:
    """Of counts whose rows ascend with the rating and whose columns ascend with the score."""
    by_rating, by_score = table.sum(axis=1), table.sum(axis=0)
    lower = table.cumsum(axis=1) - table
    total = by_score.sum()
    rho = tau = area = math.nan
    if np.count_nonzero(by_rating) > 1 and np.count_nonzero(by_score) > 1:
        rank_of_rating, rank_of_score = _midranks(by_rating), _midranks(by_score)
        middle = (total + 1) / 2
        spread = (by_rating @ (rank_of_rating - middle) ** 2) * (by_score @ (rank_of_score - middle) ** 2)
        rho = float((rank_of_rating - middle) @ table @ (rank_of_score - middle) / math.sqrt(spread))
        pairs = table @ lower.T  # [a, b]: pairs whose higher score is rated a and whose lower one b
        in_order = np.tril(pairs, -1).sum() - np.triu(pairs, 1).sum()
        untied = [(total * (total - 1) - (counts * (counts - 1)).sum()) / 2 for counts in (by_rating, by_score)]
        tau = float(in_order / math.sqrt(untied[0] * untied[1]))
    high, low = table[ratings >= HIGH].sum(axis=0), table[ratings <= LOW].sum(axis=0)
    if high.any() and low.any():
        area = float(high @ (low.cumsum() - low / 2) / (high.sum() * low.sum()))
    return rho, tau, area


def _midranks(counts: Numbers) -> Numbers:
    return np.asarray(counts.cumsum() - counts / 2 + 0.5)
