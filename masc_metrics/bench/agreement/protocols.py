"""Agreement of scores with people: the protocols of MaSC and of DreamBench++, with intervals and paired tests.

Letters in names: ``K`` keys, ``G`` groups of raters, ``N`` runs of a scorer, ``M`` methods, ``R`` resamples.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from masc_metrics.arguments import check_choice, check_integer
from masc_metrics.bench.agreement.names import concept_of
from masc_metrics.bench.agreement.ratings import HIGHEST_RATING, Scores
from masc_metrics.bench.agreement.report import (
    Agreement,
    AlphaPair,
    Difference,
    Dropped,
    Estimate,
    Extreme,
    MethodAlpha,
    ScorerAgreement,
)
from masc_metrics.bench.agreement.statistics import (
    Indices,
    alpha_resamples,
    krippendorff_alpha,
    none_if_nan,
    rating_resamples,
    rating_statistics,
)
from masc_metrics.bench.commands import PROTOCOLS, RATED_SCORES, REPLICATES
from masc_metrics.intervals import CONFIDENCE, Numbers, concept_weights, percentile_interval

SampleKey = tuple[str, str]
"""Method and key."""


class TooFewKeysError(ValueError):
    """Scorers and groups share fewer than two keys."""


STATISTICS = ("alpha", "r", "rho", "tau", "auc")

_EXTREMES = 3  # at each end
_DECIMALS = 3  # of every alpha, in the paper's code
_NO_ALPHA = "fewer than two keys with two numbers, or no two different numbers"
_NO_ORDER = "the scores or the mean ratings are all equal"
_NO_AUC = "fewer than two images are rated 3.5 or more, or 0.5 or less"


def agreement(
    scorers: Sequence[Scores],
    groups: Sequence[Scores],
    *,
    score: str,
    protocol: str = "pooled",
    with_styles: bool | None = None,
    keys_of: Sequence[str] = (),
    compare: Sequence[tuple[str, str]] = (),
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Agreement:
    """Agreement of each scorer with each group of raters.

    "pooled" is MaSC's protocol: keys that all scorers and groups have, all methods in one sample. With ``keys_of``, the
    keys are those that the named scorers have. Every other scorer and every group has those of these keys that it has,
    and a scorer's range is over them, keys without ratings included: as in MaSC's table of CP. "dreambench-plus" is
    that benchmark's: one alpha per method, over the keys that both sides of a comparison have. Scorers of one name are
    runs of a scorer, reported by mean and sample standard deviation. Its published table ends with the methods; the
    mean over methods is added, since an interval and a test need one number.

    Scores are scaled to [0, 1] by the lowest and highest kept score of all methods and runs; ratings, of
    people and of judges, are divided by 4. Alphas are rounded to 3 decimals at each step: of each group, their mean,
    the mean over methods. A mean of two is often halfway between two thousandths, and each protocol rounds as its
    authors' code does: MaSC's rounds the number, as Python does, DreamBench++'s its thousandfold, as numpy does (0.7995
    becomes 0.799 and 0.8). Both protocols report the alpha of each method; the pooled one scales scores by the range of
    all methods there too.

    Intervals are percentiles over resampled concepts, drawn with replacement with all their keys in all methods; all
    scorers have the same resamples. The scaling range is that of the full sample in all resamples, as a part of the
    scorer: an interval does not cover the effect of another extreme score. Alphas of resamples are not rounded.
    Resamples in which a statistic is undefined are left out and counted. The two-sided p-value of a difference d is
    min(1, 2 min(1 + #{d <= 0}, 1 + #{d >= 0}) / (1 + #resamples)).

    Args:
        scorers: the scorers; their names are distinct, except for runs.
        groups: two or more groups of raters, 0..4.
        score: "cp" or "pf".
        protocol: one of ``PROTOCOLS``.
        with_styles: whether collections named ``style_*`` count. None: they do, but not for PF by the
            protocol "pooled".
        keys_of: names of the scorers that define the keys of the protocol "pooled"; empty for all scorers and groups.
        compare: pairs of scorers' names to test against each other.
        replicates: number of resamples; 0 gives no intervals.
        seed: random seed of the resamples.

    Raises:
        ValueError: if an argument is not accepted, or a scorer shares fewer than two keys with the groups.
        ImportError: if krippendorff is not installed.

    Source: MaSC, arXiv 2605.22469; DreamBench++, arXiv 2406.16855.
    """
    check_choice("score", score, RATED_SCORES)
    check_choice("protocol", protocol, PROTOCOLS)
    check_integer("replicates", replicates, least=0)
    pooled = protocol == "pooled"
    _check_names(scorers, groups, compare, keys_of, pooled)
    styles = (score, protocol) != ("pf", PROTOCOLS[0]) if with_styles is None else with_styles
    kept, dropped = _kept_keys(scorers, groups, styles, keys_of, pooled)
    sample = _Sample(kept, groups, pooled, replicates, seed)
    runs: dict[str, list[Scores]] = {}
    for scorer in scorers:
        runs.setdefault(scorer.name, []).append(scorer)
    measured = {name: _measure(name, parts, sample) for name, parts in runs.items()}
    return Agreement(
        protocol=protocol,
        score=score,
        with_styles=styles,
        keys_of=tuple(keys_of),
        groups=tuple(group.name for group in groups),
        ceiling=_estimate(
            sample.mean(sample.alphas(sample.ratings_GK, sample.strata)),
            sample.alpha_resamples(sample.ratings_GK),
            _NO_ALPHA,
        ),
        scorers=tuple(scorer for scorer, _ in measured.values()),
        differences=tuple(
            _difference(measured[a], measured[b], index) for a, b in compare for index in range(len(STATISTICS))
        ),
        keys=len(kept),
        concepts=sample.weights_RC.shape[1],
        methods=tuple(sorted({method for method, _ in kept})),
        key_set_sha256=hashlib.sha256(json.dumps(kept, ensure_ascii=False).encode()).hexdigest(),
        dropped=tuple(dropped),
        sources=tuple(
            {"name": part.name, "path": part.source, "seeds": part.seeds, "averaged_keys": part.averaged}
            for part in (*scorers, *groups)
        ),
        replicates=len(sample.weights_RC),
        seed=seed,
        confidence=CONFIDENCE,
        versions={name: version(name) for name in ("krippendorff", "scipy", "numpy")},
    )


def alpha_pair(
    first: Scores,
    second: Scores,
    groups: Sequence[Scores],
    *,
    score: str,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> AlphaPair:
    """Alpha of two scorers by the protocol "pooled", on the keys that both have; arguments as of :func:`agreement`.

    Raises:
        TooFewKeysError: if the scorers share fewer than two keys with all groups.
        ImportError: if krippendorff is not installed.
    """
    kept, _ = _kept_keys([first, second], groups, score != "pf", (), pooled=True)
    sample = _Sample(kept, groups, True, replicates, seed)
    found = [_alpha([scorer], sample) for scorer in (first, second)]
    alphas = [alpha.value(sample) for alpha in found]
    return AlphaPair(
        keys=len(kept),
        alphas=(none_if_nan(alphas[0]), none_if_nan(alphas[1])),
        difference=_estimate(round(alphas[1] - alphas[0], 9), found[1].resamples_R - found[0].resamples_R, _NO_ALPHA),
    )


def _check_names(
    scorers: Sequence[Scores],
    groups: Sequence[Scores],
    compare: Sequence[tuple[str, str]],
    keys_of: Sequence[str],
    pooled: bool,
) -> None:
    """Raise ValueError for too few scorers or groups, repeated names if pooled, or unknown names."""
    names = [scorer.name for scorer in scorers]
    if not names or len(groups) < 2:
        raise ValueError(f"there are {len(names)} scorers and {len(groups)} groups; give at least 1 and 2")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice and pooled:
        raise ValueError(
            f"several scorers are named {twice[0]!r}; give each its own name (NAME=FILE), or, if they are runs of one "
            "scorer, give --protocol dreambench-plus"
        )
    unknown = [name for pair in compare for name in pair if name not in names]
    if unknown:
        raise ValueError(f"compare names {unknown[0]!r}; give two of {', '.join(dict.fromkeys(names))}")
    if keys_of and not pooled:
        raise ValueError(f"keys_of names {keys_of[0]!r}, but protocol 'dreambench-plus' keeps all keys; leave it out")
    unknown = [name for name in keys_of if name not in names]
    if unknown:
        raise ValueError(f"keys_of names {unknown[0]!r}; give any of {', '.join(names)}")


def _kept_keys(
    scorers: Sequence[Scores], groups: Sequence[Scores], styles: bool, keys_of: Sequence[str], pooled: bool
) -> tuple[list[SampleKey], list[Dropped]]:
    """Select the keys of an analysis.

    In a pooled analysis, all scorers of ``keys_of`` must have a key, or all scorers and groups; else one group and any
    other must.

    Returns:
        The sorted keys, of methods that all scorers and groups have unless ``keys_of`` is given, and what was left out,
        here and by the readers.
    """
    parts = [*scorers, *groups]
    key_sets = [{pair for pair in part.values if styles or not pair[1].startswith("style_")} for part in parts]
    defining = [keys for part, keys in zip(scorers, key_sets, strict=False) if part.name in keys_of]
    method_sets = [{method for method, _ in keys} for keys in key_sets]
    lacking: dict[str, str] = {}  # first part without a method
    for part, methods in zip(parts, method_sets, strict=True) if not defining else ():
        for method in set.union(*method_sets) - methods:
            lacking.setdefault(method, part.name)
    if lacking.keys() >= set.union(*method_sets):
        listing = "; ".join(
            f"{part.name}: {', '.join(sorted(methods))}" for part, methods in zip(parts, method_sets, strict=True)
        )
        raise TooFewKeysError(f"all scorers and groups must share a method; name methods alike. Methods of {listing}")
    rated = set.union(*key_sets[len(scorers) :])
    times = Counter(pair for keys in key_sets for pair in keys)
    kept = {
        pair
        for pair, count in times.items()
        if pair[0] not in lacking and (count == len(parts) if pooled else count > 1 and pair in rated)
    }
    if defining:
        kept = set.intersection(*defining)
    if any(len(kept & keys & rated) < 2 for keys in key_sets[: len(scorers)]):
        listing = "; ".join(
            f"{part.name} has {len(keys)}, such as {min(keys, default='none')}"
            for part, keys in zip(parts, key_sets, strict=True)
        )
        raise TooFewKeysError(
            f"scorers and groups have fewer than 2 (method, key) pairs in common; write keys alike. {listing}"
        )

    def reason(pair: SampleKey) -> str:
        if not styles and pair[1].startswith("style_"):
            return "style collection"
        if pair[0] in lacking:
            return f"method {pair[0]}, which {lacking[pair[0]]} lacks"
        if defining:
            return f"key that is not one of {', '.join(keys_of)}"
        return "key that another scorer or group lacks" if pooled else "key without a second number to compare with"

    dropped = [Dropped(part.name, why, count) for part in parts for why, count in part.dropped.items()]
    for part in parts:
        reasons = Counter(reason(pair) for pair in sorted(part.values) if pair not in kept)
        dropped += [Dropped(part.name, why, count) for why, count in reasons.items()]
    return sorted(kept), dropped


class _Sample:
    """The keys of an analysis with their ratings in [0, 1] and resamples; each stratum of keys has its own alpha."""

    def __init__(
        self, keys: Sequence[SampleKey], groups: Sequence[Scores], pooled: bool, replicates: int, seed: int
    ) -> None:
        self.keys, self.groups, self.pooled = keys, [group.name for group in groups], pooled
        ratings_GK = _matrix(groups, keys)
        self.ratings_GK = ratings_GK / HIGHEST_RATING
        self.mean_ratings_K = ratings_GK.mean(axis=0)  # of 0..4; NaN where a group has a gap
        concepts, self.concepts_K = np.unique([concept_of(key) for _, key in keys], return_inverse=True)
        self.weights_RC = concept_weights(len(concepts), replicates, seed)
        methods, methods_K = np.unique([method for method, _ in keys], return_inverse=True)
        self.methods = {str(method): np.flatnonzero(methods_K == index) for index, method in enumerate(methods)}
        self.strata = {"": np.arange(len(keys))} if pooled else self.methods

    def rounded(self, value: float) -> float:
        return round(value, _DECIMALS) if self.pooled else float(np.round(value, _DECIMALS))

    def alphas(self, raters_UK: Numbers, strata: Mapping[str, Indices]) -> list[float]:
        """Alpha of each stratum, rounded."""
        return [self.rounded(krippendorff_alpha(raters_UK[:, part])) for part in strata.values()]

    def group_means(self, alphas_GNM: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
        """(M, N): mean over groups of the alphas of each stratum and run."""
        alphas_NGM = zip(*alphas_GNM, strict=True)
        means_NM = [[self.mean(alphas_G) for alphas_G in zip(*alphas_GM, strict=True)] for alphas_GM in alphas_NGM]
        return [list(means_N) for means_N in zip(*means_NM, strict=True)]

    def mean(self, values: Iterable[float]) -> float:
        """Mean, rounded."""
        listed = list(values)
        return self.rounded(sum(listed) / len(listed))

    def alpha_resamples(self, raters_UK: Numbers) -> Numbers:
        """(R,): the mean over strata."""
        parts = [
            alpha_resamples(raters_UK[:, keys], self.concepts_K[keys], self.weights_RC) for keys in self.strata.values()
        ]
        return np.asarray(np.mean(parts, axis=0))


_Measured = tuple[ScorerAgreement, list[Numbers]]  # with resamples of STATISTICS


def _matrix(parts: Sequence[Scores], keys: Sequence[SampleKey]) -> Numbers:
    """(parts, keys); NaN where a part has no number."""
    return np.array([[part.values.get(pair, math.nan) for pair in keys] for part in parts], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Alpha:
    """Alpha of the runs of a scorer.

    Attributes:
        scores_NK: the scores, NaN where there is none.
        scaling_range: scores that are scaled to 0 and 1.
        like_people: whether that range is that of ratings.
        alphas_GNM: of each group, run and stratum.
        pairs_GN: (2, K) scaled scores and ratings of each group and run.
        resamples_GR: of each group, the mean over runs.
    """

    scores_NK: Numbers
    scaling_range: tuple[float, float]
    like_people: bool
    alphas_GNM: list[list[list[float]]]
    pairs_GN: list[list[Numbers]]
    resamples_GR: list[Numbers]

    def value(self, sample: _Sample) -> float:
        """Mean over groups, runs and strata."""
        return sample.mean(map(sample.mean, sample.group_means(self.alphas_GNM)))

    @property
    def resamples_R(self) -> Numbers:  # noqa: N802
        """Mean over groups of the resamples."""
        return np.asarray(np.mean(self.resamples_GR, axis=0))


def _alpha(runs: Sequence[Scores], sample: _Sample) -> _Alpha:
    scores_NK = _matrix(runs, sample.keys)
    like_people = all(run.rates_0_to_4 for run in runs)
    low, high = (0.0, HIGHEST_RATING) if like_people else (float(np.nanmin(scores_NK)), float(np.nanmax(scores_NK)))
    scaled_NK = np.full_like(scores_NK, math.nan) if high == low else (scores_NK - low) / (high - low)
    pairs_GN = [[np.stack([scores_K, ratings_K]) for scores_K in scaled_NK] for ratings_K in sample.ratings_GK]
    return _Alpha(
        scores_NK,
        (low, high),
        like_people,
        [[sample.alphas(pair, sample.strata) for pair in pairs_N] for pairs_N in pairs_GN],
        pairs_GN,
        [np.mean([sample.alpha_resamples(pair) for pair in pairs_N], axis=0) for pairs_N in pairs_GN],
    )


def _measure(name: str, runs: Sequence[Scores], sample: _Sample) -> _Measured:
    alpha = _alpha(runs, sample)
    scores_NK, (low, high) = alpha.scores_NK, alpha.scaling_range
    constant = f"every score is {low:g}, so there is no range to scale by" if high == low else ""
    by_method_GNM = [[sample.alphas(pair, sample.methods) for pair in pairs_N] for pairs_N in alpha.pairs_GN]
    methods = tuple(_method_alphas(sample.group_means(by_method_GNM), scores_NK, sample))

    both_NK = ~np.isnan(scores_NK) & ~np.isnan(sample.mean_ratings_K)
    pairs = [
        (scores_K[both_K], sample.mean_ratings_K[both_K], sample.concepts_K[both_K])
        for scores_K, both_K in zip(scores_NK, both_NK, strict=True)
    ]
    values = np.mean([rating_statistics(scores_K, ratings_K) for scores_K, ratings_K, _ in pairs], axis=0)
    resamples_R4 = np.mean([rating_resamples(*pair, sample.weights_RC) for pair in pairs], axis=0)
    reasons = (_NO_ORDER, _NO_ORDER, _NO_ORDER, _NO_AUC)
    r, rho, tau, area = (
        _estimate(float(value), resamples_R, reason)
        for value, resamples_R, reason in zip(values, resamples_R4.T, reasons, strict=True)
    )
    scorer = ScorerAgreement(
        name=name,
        keys=int((~np.isnan(scores_NK).all(axis=0) & ~np.isnan(sample.ratings_GK).all(axis=0)).sum()),
        scaling_range=alpha.scaling_range,
        scaled_like_people=alpha.like_people,
        alpha_to={
            group: _estimate(
                sample.mean(value for run in alphas_NM for value in run), resamples_R, constant or _NO_ALPHA
            )
            for group, alphas_NM, resamples_R in zip(sample.groups, alpha.alphas_GNM, alpha.resamples_GR, strict=True)
        },
        alpha=_estimate(alpha.value(sample), alpha.resamples_R, constant or _NO_ALPHA),
        r=r,
        rho=rho,
        tau=tau,
        auc=area,
        extremes=_extremes(scores_NK, sample.keys),
        methods=methods,
        positive_methods=sum((method.mean or 0) > 0 for method in methods),
    )
    return scorer, [alpha.resamples_R, *resamples_R4.T]


def _method_alphas(alphas_MN: Sequence[Sequence[float]], scores_NK: Numbers, sample: _Sample) -> Iterable[MethodAlpha]:
    ceilings = sample.alphas(sample.ratings_GK, sample.methods)
    for (method, part), ceiling, alphas_N in zip(sample.methods.items(), ceilings, alphas_MN, strict=True):
        rated_K = ~np.isnan(scores_NK[:, part]).all(axis=0) & ~np.isnan(sample.ratings_GK[:, part]).all(axis=0)
        deviation = round(float(np.std(alphas_N, ddof=1)), _DECIMALS) if len(alphas_N) > 1 else math.nan
        yield MethodAlpha(
            method=method,
            keys=int(rated_K.sum()),
            ceiling=none_if_nan(ceiling),
            runs=tuple(none_if_nan(alpha) for alpha in alphas_N),
            mean=none_if_nan(sample.mean(alphas_N)),
            deviation=none_if_nan(deviation),
        )


def _difference(a: _Measured, b: _Measured, index: int) -> Difference:
    statistic = STATISTICS[index]
    value_a, value_b = (getattr(scorer, statistic).value for scorer, _ in (a, b))
    # Rounded, to remove the noise of the subtraction.
    value = math.nan if value_a is None or value_b is None else round(value_a - value_b, 9)
    resamples_R = a[1][index] - b[1][index]
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
    """A value with its interval, or the reason why it is undefined."""
    left_out = int(np.isnan(resamples_R).sum())
    if math.isnan(value):
        return Estimate(None, None, None, left_out, reason)
    bounds = percentile_interval(resamples_R)
    if bounds is None:
        return Estimate(value, None, None, left_out, "no interval: there is no resample in which it is defined")
    return Estimate(value, *bounds, left_out, "")


def _extremes(scores_NK: Numbers, keys: Sequence[SampleKey]) -> tuple[Extreme, ...]:
    order = sorted((float(scores_NK[run, key]), *keys[key]) for run, key in np.argwhere(~np.isnan(scores_NK)))
    return tuple(
        Extreme(end, rank, method, key, value)
        for end, outermost in (("lowest", order), ("highest", order[::-1]))
        for rank, (value, method, key) in enumerate(outermost[:_EXTREMES], start=1)
    )
