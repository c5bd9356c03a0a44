r"""Confidence intervals of means over few concepts.

Samples of one concept depend on each other, so a concept is one unit, however many samples it has. For the means
:math:`x_1 \dots x_U` of ``U`` concepts, with mean :math:`\bar x` and standard deviation :math:`s`, the interval is
Student's

.. math:: \bar x \pm t_{0.975,\,U - 1} \cdot s / \sqrt{U}

It holds for two concepts too. A bootstrap of a handful of concepts does not: with two concepts, its nominal 95 %
interval contains the truth in about half of all cases. Every concept counts equally. A mean over samples would follow
the largest concepts, and no simple interval for it holds if sizes differ much.

A score has a range, such as [-1, 1] of a cosine, and its mean lies in it. An interval that leaves the range ends at its
limit, which costs no coverage. Units that are all equal, such as concepts whose images were all identified, do not show
how far concepts differ: no interval is stated, instead of one of zero width.

With one concept, its samples are the units. Such an interval says nothing about other concepts.

Statistics without such a formula, such as alpha and rank correlations, have percentile intervals of resampled concepts
(:func:`concept_weights`, :func:`percentile_interval`). They need tens of concepts.

Source for inference with few clusters: Cameron, Gelbach and Miller, *Bootstrap-based improvements for inference with
clustered errors*, Review of Economics and Statistics 90, 2008.

Letters in names: ``N`` samples, ``S`` scores, ``U`` units, ``C`` concepts, ``R`` resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.float64]

CONFIDENCE = 0.95
"""Level of all intervals."""

Limits: TypeAlias = "tuple[float, float]"

UNLIMITED: Limits = (-math.inf, math.inf)

COSINES: Limits = (-1.0, 1.0)
"""Range of both scores, of their product, and of all other cosines."""

_PERCENTILES = (2.5, 97.5)

ROUNDING = 1e-12  # relative

OVER_CONCEPTS, ONE_CONCEPT = "concepts", "this concept only"
"""What an interval is over: several concepts, or the samples of the only one."""


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """A mean, or a function of means, with its interval.

    Attributes:
        value: the estimate; None if no unit has a value.
        standard_error: its standard error; None for fewer than two units, and for equal units.
        interval: both ends of its 95 % interval, within the range of the score; None without a standard error.
    """

    value: float | None
    standard_error: float | None
    interval: tuple[float, float] | None


def unit_means(values_NS: Numbers, concepts_N: NDArray[Any]) -> tuple[Numbers, str]:
    """Mean of each score over each concept's samples; with one concept, the samples themselves.

    Args:
        values_NS: scores, NaN where undefined.
        concepts_N: the concept of each sample.

    Returns:
        (U, S) means, NaN where a concept has no defined score; and ``OVER_CONCEPTS`` or ``ONE_CONCEPT``.
    """
    labels, concepts_N = np.unique(concepts_N, return_inverse=True)
    if len(labels) < 2:
        return values_NS, ONE_CONCEPT
    defined_NS = ~np.isnan(values_NS)
    sums_US, counts_US = (np.zeros((len(labels), values_NS.shape[1])) for _ in range(2))
    np.add.at(sums_US, concepts_N, np.where(defined_NS, values_NS, 0))
    np.add.at(counts_US, concepts_N, defined_NS)
    means_US: Numbers = np.divide(sums_US, counts_US, out=np.full(sums_US.shape, math.nan), where=counts_US > 0)
    return means_US, OVER_CONCEPTS


def mean(units_U: Numbers, limits: Limits = UNLIMITED) -> MeanEstimate:
    """Mean of the units that have a value, with its interval.

    Args:
        units_U: the units, NaN without a value.
        limits: smallest and largest value that a unit can have.
    """
    units_U = units_U[~np.isnan(units_U)]
    return _estimate(float(units_U.mean()) if len(units_U) else None, units_U, limits)


def product(units_U2: Numbers, limits: Limits = UNLIMITED) -> MeanEstimate:
    r"""Product of the means of two scores, with its interval by linearisation.

    .. math:: \bar x \bar y \pm t \cdot \operatorname{se}(\bar y x_u + \bar x y_u)

    The interval uses the units that have both scores.

    Args:
        units_U2: the units, NaN without a value.
        limits: smallest and largest value that the product can have.
    """
    x, y = (mean(units_U2[:, column]).value for column in range(2))
    if x is None or y is None:
        return MeanEstimate(None, None, None)
    linear_U = y * units_U2[:, 0] + x * units_U2[:, 1]
    return _estimate(x * y, linear_U[~np.isnan(linear_U)], limits)


def all_equal(units_U: Numbers) -> bool:
    """Whether units differ by no more than rounding."""
    return bool(np.ptp(units_U) <= ROUNDING * np.abs(units_U).max())


def _estimate(value: float | None, units_U: Numbers, limits: Limits) -> MeanEstimate:
    """With the interval of the units' mean, moved to the value."""
    count = len(units_U)
    if value is None or count < 2 or all_equal(units_U):
        return MeanEstimate(value, None, None)
    from scipy import stats

    error = float(units_U.std(ddof=1)) / math.sqrt(count)
    half_width = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    low, high = limits
    return MeanEstimate(value, error, (max(low, value - half_width), min(high, value + half_width)))


def concept_weights(concepts: int, replicates: int, seed: int) -> Numbers:
    """How often each resample holds each concept.

    Args:
        concepts: number of concepts, C.
        replicates: number of resamples, R. A single concept cannot be resampled, and gives none.
        seed: random seed.

    Returns:
        (R, C): C concepts drawn with replacement, counted.
    """
    if concepts < 2:
        return np.empty((0, concepts))
    chances = np.full(concepts, 1 / concepts)
    return np.random.default_rng(seed).multinomial(concepts, chances, size=replicates).astype(np.float64)


def percentile_interval(values_R: Numbers) -> tuple[float, float] | None:
    """Percentile interval of a statistic's resamples; NaN resamples are left out, and None is returned without any."""
    defined = values_R[~np.isnan(values_R)]
    if not defined.size:
        return None
    low, high = np.percentile(defined, _PERCENTILES)
    return float(low), float(high)
