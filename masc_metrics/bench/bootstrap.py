"""Bootstrap over concepts: samples of one concept depend on each other, so concepts are resampled with all of theirs.

Letters in names: ``C`` concepts, ``R`` resamples.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.float64]

CONFIDENCE = 0.95
"""Level of all intervals."""

REPLICATES = 1000
"""Number of resamples unless another is asked for."""

_PERCENTILES = (2.5, 97.5)


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


def interval(values_R: Numbers) -> tuple[float, float] | None:
    """Percentile interval of a statistic's resamples; NaN resamples are left out, and None is returned without any."""
    defined = values_R[~np.isnan(values_R)]
    if not defined.size:
        return None
    low, high = np.percentile(defined, _PERCENTILES)
    return float(low), float(high)
