"""How well scores agree with people: the protocols of MaSC and of DreamBench++, with intervals and paired tests.

Letters in names: ``K`` keys, ``G`` groups of raters, ``N`` runs of a scorer, ``M`` methods, ``R`` resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from masc_metrics.bench.agreement.keys import SampleKey, check_names, kept_keys, key_set_digest, score_matrix
from masc_metrics.bench.agreement.names import concept_of
from masc_metrics.bench.agreement.ratings import HIGHEST_RATING, SCORES, Scores
from masc_metrics.bench.agreement.report import (
    Agreement,
    Difference,
    Estimate,
    Extreme,
    MethodAlpha,
    ScorerAgreement,
    Source,
)
from masc_metrics.bench.agreement.statistics import (
    Indices,
    Numbers,
    alpha_resamples,
    krippendorff_alpha,
    rank_resamples,
    rank_statistics,
)

PROTOCOLS = ("pooled", "dreambench-plus")
CONFIDENCE = 0.95
STATISTICS = ("alpha", "rho", "tau", "auc")

_RANKED = 3  # extremes told at either end
_DECIMALS = 3  # of every alpha, in the paper's code
_NO_ALPHA = "no two keys with a partner, or no two different numbers"
_NO_AUC = "no picture is rated 3.5 or more, or none 0.5 or less"


def agreement(
    scorers: Sequence[Scores],
    groups: Sequence[Scores],
    *,
    score: str,
    protocol: str = "pooled",
    with_styles: bool | None = None,
    compare: Sequence[tuple[str, str]] = (),
    replicates: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Agreement of each scorer with each group of raters.

    "pooled" is MaSC's: only keys that every scorer and every group has, all methods in one sample. "dreambench-plus" is
    that benchmark's: one alpha a method, over every key that the two at hand both have; scorers of one name are runs of
    it, of which mean and sample standard deviation are given. Its table ends with the methods; the mean over them is
    added here, since an interval and a test need one number.

    Scores are scaled to [0, 1] by the lowest and highest kept one of all methods and runs, those that rate 0..4 and
    people by 1/4. Alphas are rounded to 3 decimals at each step: to each group, their mean, the mean over methods.
    Means of two often lie between two thousandths, so each protocol rounds as its authors' code does: MaSC's the number
    itself, as Python does, DreamBench++'s the thousandfold, as numpy does (0.7995 becomes 0.799 and 0.8).

    Intervals are percentiles over resamples of the concepts, drawn with replacement, a concept with all its keys in all
    methods; all scorers see the same resamples. The scaling range stays the full sample's, as a part of the scorer: an
    interval does not say how far another extreme score would move alpha. Alphas of resamples are not rounded. Resamples
    where a statistic is undefined are left out and counted. The p-value of a difference d, two-sided:
    min(1, 2 min(1 + #{d <= 0}, 1 + #{d >= 0}) / (1 + #resamples)).

    Args:
        scorers: what is compared; names are distinct, but for runs.
        groups: two or more groups of raters, 0..4.
        score: "cp" or "pf".
        protocol: one of ``PROTOCOLS``.
        with_styles: whether collections named ``style_*`` count. None: for CP they do, for PF they do not.
        compare: pairs of scorers' names to test against each other.
        replicates: number of resamples; 0 gives no intervals.
        seed: of the resamples.

    Raises:
        ValueError: if an argument is none of these, or scorers and groups have fewer than two keys in common.
        ImportError: if krippendorff or scipy is not installed.

    Source: MaSC, arXiv 2605.22469; DreamBench++, arXiv 2406.16855.
    """
    for name, value, choices in (("score", score, SCORES), ("protocol", protocol, PROTOCOLS)):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; give one of {', '.join(choices)}")
    if replicates < 0:
        raise ValueError(f"replicates is {replicates}; give 0 or more")
    pooled = protocol == "pooled"
    check_names(scorers, groups, compare, pooled)
    styles = score != "pf" if with_styles is None else with_styles
    kept, dropped = kept_keys(scorers, groups, styles, pooled)
    sample = _sample(kept, groups, pooled, replicates, seed)
    runs: dict[str, list[Scores]] = {}
    for scorer in scorers:
        runs.setdefault(scorer.name, []).append(scorer)
    measured = {name: _measure(name, parts, sample, pooled) for name, parts in runs.items()}
    return Agreement(
        protocol=protocol,
        score=score,
        with_styles=styles,
        groups=tuple(group.name for group in groups),
        ceiling=_estimate(
            sample.mean(sample.alphas(sample.ratings_GK)), sample.alpha_resamples(sample.ratings_GK), _NO_ALPHA
        ),
        scorers=tuple(scorer for scorer, _ in measured.values()),
        differences=tuple(_difference(measured[a], measured[b], at) for a, b in compare for at in range(4)),
        keys=len(kept),
        concepts=sample.weights_RC.shape[1],
        methods=tuple(sorted({method for method, _ in kept})),
        key_set_sha256=key_set_digest(kept),
        dropped=tuple(dropped),
        sources=tuple(Source(part.name, part.source, part.seeds) for part in (*scorers, *groups)),
        replicates=len(sample.weights_RC),
        seed=seed,
        confidence=CONFIDENCE,
        versions={name: version(name) for name in ("krippendorff", "scipy", "numpy")},
    )


@dataclass(frozen=True, slots=True)
class _Sample:
    """The kept keys, and what all scorers are measured by; a stratum is a part with an alpha of its own."""

    keys: Sequence[SampleKey]
    groups: Sequence[str]
    ratings_GK: Numbers
    people_K: Numbers
    strata: Mapping[str, Indices]
    concepts_K: Indices
    weights_RC: Numbers
    rounded: Callable[[float], float]

    def alphas(self, raters_UK: Numbers) -> list[float]:
        """Of each stratum, rounded."""
        return [self.rounded(krippendorff_alpha(raters_UK[:, part])) for part in self.strata.values()]

    def mean(self, values: Iterable[float]) -> float:
        """Rounded."""
        listed = list(values)
        return self.rounded(sum(listed) / len(listed))

    def alpha_resamples(self, raters_UK: Numbers) -> Numbers:
        """(R,): the mean over strata."""
        parts = [alpha_resamples(raters_UK[:, at], self.concepts_K[at], self.weights_RC) for at in self.strata.values()]
        return np.asarray(np.mean(parts, axis=0))


_Measured = tuple[ScorerAgreement, list[Numbers]]  # with the resamples of alpha, rho, tau and AUC


def _sample(kept: Sequence[SampleKey], groups: Sequence[Scores], pooled: bool, replicates: int, seed: int) -> _Sample:
    ratings_GK = score_matrix(groups, kept)
    concepts, concepts_K = np.unique([concept_of(key) for _, key in kept], return_inverse=True)
    methods, methods_K = np.unique([method for method, _ in kept], return_inverse=True)
    drawn = replicates if len(concepts) > 1 else 0
    chances = np.full(len(concepts), 1 / len(concepts))
    return _Sample(
        keys=kept,
        groups=[group.name for group in groups],
        ratings_GK=ratings_GK / HIGHEST_RATING,
        people_K=ratings_GK.mean(axis=0),  # nan where a group has a gap
        strata={"": np.arange(len(kept))}
        if pooled
        else {str(method): np.flatnonzero(methods_K == at) for at, method in enumerate(methods)},
        concepts_K=concepts_K,
        weights_RC=np.random.default_rng(seed).multinomial(len(concepts), chances, drawn).astype(np.float64),
        rounded=_rounded_by_python if pooled else _rounded_by_numpy,
    )


def _measure(name: str, runs: Sequence[Scores], sample: _Sample, pooled: bool) -> _Measured:
    scores_NK = score_matrix(runs, sample.keys)
    like_people = all(run.rates_0_to_4 for run in runs)
    low, high = (0.0, HIGHEST_RATING) if like_people else (float(np.nanmin(scores_NK)), float(np.nanmax(scores_NK)))
    constant = f"every score is {low:g}, so there is no range to scale by" if high == low else ""
    scaled_NK = np.full_like(scores_NK, math.nan) if constant else (scores_NK - low) / (high - low)
    pairs_GN = [[np.stack([scores_K, ratings_K]) for scores_K in scaled_NK] for ratings_K in sample.ratings_GK]
    alphas_GNM = [[sample.alphas(pair) for pair in pairs_N] for pairs_N in pairs_GN]
    resamples_GR = [np.mean([sample.alpha_resamples(pair) for pair in pairs_N], axis=0) for pairs_N in pairs_GN]
    alphas_MN = [
        [sample.mean(of_group[run][stratum] for of_group in alphas_GNM) for run in range(len(runs))]
        for stratum in range(len(sample.strata))
    ]
    alpha_R = np.asarray(np.mean(resamples_GR, axis=0))

    both_NK = ~np.isnan(scores_NK) & ~np.isnan(sample.people_K)
    pairs = [
        (scores_K[both_K], sample.people_K[both_K], sample.concepts_K[both_K])
        for scores_K, both_K in zip(scores_NK, both_NK, strict=True)
    ]
    ranks = np.mean([rank_statistics(scores_K, people_K) for scores_K, people_K, _ in pairs], axis=0)
    ranks_R3 = np.mean([rank_resamples(*pair, sample.weights_RC) for pair in pairs], axis=0)
    no_order = "the scores or the mean ratings are all the same"
    rho, tau, area = (
        _estimate(float(value), ranks_R3[:, at], reason)
        for at, (value, reason) in enumerate(zip(ranks, (no_order, no_order, _NO_AUC), strict=True))
    )
    scorer = ScorerAgreement(
        name=name,
        keys=int((~np.isnan(scores_NK).all(axis=0) & ~np.isnan(sample.ratings_GK).all(axis=0)).sum()),
        scaling_range=(low, high),
        scaled_like_people=like_people,
        alpha_to={
            group: _estimate(
                sample.mean(alpha for run in alphas_NM for alpha in run), resamples_R, constant or _NO_ALPHA
            )
            for group, alphas_NM, resamples_R in zip(sample.groups, alphas_GNM, resamples_GR, strict=True)
        },
        alpha=_estimate(sample.mean(sample.mean(alphas_N) for alphas_N in alphas_MN), alpha_R, constant or _NO_ALPHA),
        rho=rho,
        tau=tau,
        auc=area,
        extremes=_extremes(scores_NK, sample.keys),
        methods=() if pooled else tuple(_of_methods(alphas_MN, scores_NK, sample)),
    )
    return scorer, [alpha_R, *ranks_R3.T]


def _of_methods(alphas_MN: Sequence[Sequence[float]], scores_NK: Numbers, sample: _Sample) -> Iterable[MethodAlpha]:
    ceilings = sample.alphas(sample.ratings_GK)
    for (method, part), ceiling, alphas_N in zip(sample.strata.items(), ceilings, alphas_MN, strict=True):
        there_K = ~np.isnan(scores_NK[:, part]).all(axis=0) & ~np.isnan(sample.ratings_GK[:, part]).all(axis=0)
        deviation = round(float(np.std(alphas_N, ddof=1)), _DECIMALS) if len(alphas_N) > 1 else math.nan
        yield MethodAlpha(
            method=method,
            keys=int(there_K.sum()),
            ceiling=_defined(ceiling),
            runs=tuple(_defined(alpha) for alpha in alphas_N),
            mean=_defined(sample.mean(alphas_N)),
            deviation=_defined(deviation),
        )


def _difference(a: _Measured, b: _Measured, at: int) -> Difference:
    statistic = STATISTICS[at]
    one, other = (getattr(scorer, statistic).value for scorer, _ in (a, b))
    value = math.nan if one is None or other is None else round(one - other, 9)  # without the noise of the subtraction
    resamples_R = a[1][at] - b[1][at]
    difference = _estimate(value, resamples_R, f"{statistic} of one of them is undefined")
    defined = resamples_R[~np.isnan(resamples_R)]
    tail = min(1 + int((defined <= 0).sum()), 1 + int((defined >= 0).sum()))
    tested = difference.value is not None and defined.size
    return Difference(
        a=a[0].name,
        b=b[0].name,
        statistic=statistic,
        difference=difference,
        p_value=min(1.0, 2 * tail / (1 + defined.size)) if tested else None,
    )


def _estimate(value: float, resamples_R: Numbers, reason: str) -> Estimate:
    """With its interval; the reason is told if there is no value."""
    defined = resamples_R[~np.isnan(resamples_R)]
    left_out = len(resamples_R) - len(defined)
    if math.isnan(value):
        return Estimate(None, None, None, left_out, reason)
    if not defined.size:
        return Estimate(value, None, None, left_out, "no interval: no resample, or none in which it is defined")
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(defined, [tail, 100 - tail])
    return Estimate(value, float(low), float(high), left_out, "")


def _extremes(scores_NK: Numbers, keys: Sequence[SampleKey]) -> tuple[Extreme, ...]:
    places = np.argwhere(~np.isnan(scores_NK))
    order = sorted((float(scores_NK[run, at]), *keys[at]) for run, at in places)
    return tuple(
        Extreme(end, rank, method, key, value)
        for end, outermost in (("lowest", order), ("highest", order[::-1]))
        for rank, (value, method, key) in enumerate(outermost[:_RANKED], start=1)
    )


def _rounded_by_python(value: float) -> float:
    return round(value, _DECIMALS)


def _rounded_by_numpy(value: float) -> float:
    return float(np.round(value, _DECIMALS))


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
