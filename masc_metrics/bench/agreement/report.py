"""Results of an agreement analysis, JSON-serialisable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic with its bootstrap interval.

    Attributes:
        value: value on the full sample; None if it is undefined.
        low: lower end of the interval; None if there is no interval.
        high: upper end.
        left_out: number of resamples in which the statistic is undefined.
        reason: why there is no value or no interval; empty if there are both.
    """

    value: float | None
    low: float | None
    high: float | None
    left_out: int
    reason: str


@dataclass(frozen=True, slots=True)
class Extreme:
    """One of a scorer's lowest or highest scores. The first at each end sets the range by which all are scaled.

    Attributes:
        end: "lowest" or "highest".
        rank: rank from that end, from 1.
        method, key: the image.
        value: the score before scaling.
    """

    end: str
    rank: int
    method: str
    key: str
    value: float


@dataclass(frozen=True, slots=True)
class MethodAlpha:
    """A scorer's alpha on the images of one method; in DreamBench++'s protocol, a row of its table.

    Attributes:
        keys: number of keys that at least one run and one group have.
        ceiling: alpha of the groups with each other; None if undefined.
        runs: for each run the mean of its alphas to the groups; None if undefined.
        mean: mean over runs; None if undefined.
        deviation: sample standard deviation over runs; None for one run.
    """

    method: str
    keys: int
    ceiling: float | None
    runs: tuple[float | None, ...]
    mean: float | None
    deviation: float | None


@dataclass(frozen=True, slots=True)
class ScorerAgreement:
    """Agreement of one scorer with people.

    Attributes:
        name: name of the scorer.
        keys: number of keys that it and at least one group have.
        scaling_range: scores that are scaled to 0 and 1.
        scaled_like_people: whether that range is 0..4 because the scorer is a judge, which rates as people do.
        alpha_to: Krippendorff's alpha to each group.
        alpha: mean of these alphas.
        r: Pearson's r against the mean of the groups.
        rho: Spearman's rho against the mean of the groups.
        tau: Kendall's tau-b against the mean of the groups.
        auc: AUC of mean ratings of at least 3.5 against those of at most 0.5.
        extremes: the lowest and highest scores.
        methods: alpha of each method, with scores scaled by the range of all methods.
        positive_methods: number of methods whose alpha is above 0.
    """

    name: str
    keys: int
    scaling_range: tuple[float, float]
    scaled_like_people: bool
    alpha_to: Mapping[str, Estimate]
    alpha: Estimate
    r: Estimate
    rho: Estimate
    tau: Estimate
    auc: Estimate
    extremes: tuple[Extreme, ...]
    methods: tuple[MethodAlpha, ...]
    positive_methods: int


@dataclass(frozen=True, slots=True)
class AlphaPair:
    """Alpha of two scorers on the same keys.

    Attributes:
        keys: number of keys that both scorers and all groups have.
        alphas: alpha of each, as :attr:`ScorerAgreement.alpha`; None if undefined.
        difference: the second minus the first, with the interval of resampled concepts.
    """

    keys: int
    alphas: tuple[float | None, float | None]
    difference: Estimate


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired test of two scorers on the same resamples.

    Attributes:
        a, b: names of the scorers.
        statistic: "alpha" (the mean over groups), "r", "rho", "tau" or "auc".
        difference: value of a minus value of b.
        p_value: two-sided p-value in (0, 1]; None without resamples.
    """

    a: str
    b: str
    statistic: str
    difference: Estimate
    p_value: float | None


@dataclass(frozen=True, slots=True)
class Dropped:
    """Cells or keys that were left out.

    Attributes:
        source: name of the scorer or group.
        reason: why they were left out.
        count: number of cells or keys.
    """

    source: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """An agreement analysis.

    Attributes:
        protocol: "pooled" or "dreambench-plus".
        score: "cp" or "pf".
        with_styles: whether style collections count.
        keys_of: names of the scorers whose keys are used; empty for those of all scorers and groups.
        groups: names of the groups of raters.
        ceiling: alpha of the groups with each other on the same keys.
        scorers: results of the scorers, in the order given.
        differences: the tests asked for.
        keys: number of (method, key) pairs; with ``keys_of`` also those without ratings.
        concepts: number of concepts among them; these are resampled.
        methods: methods among them.
        key_set_sha256: SHA-256 of the sorted pairs as JSON, ``[["method", "key"], ...]`` in UTF-8. Equal digests mean
            equal key sets.
        dropped: cells and keys that were left out.
        sources: for each scorer and group its name, the path of its file or folder, and how several numbers of one key
            were combined (seeds).
        replicates: number of resamples.
        seed: random seed of the resamples.
        confidence: level of the intervals.
        versions: versions of the packages that compute the numbers.
    """

    protocol: str
    score: str
    with_styles: bool
    keys_of: tuple[str, ...]
    groups: tuple[str, ...]
    ceiling: Estimate
    scorers: tuple[ScorerAgreement, ...]
    differences: tuple[Difference, ...]
    keys: int
    concepts: int
    methods: tuple[str, ...]
    key_set_sha256: str
    dropped: tuple[Dropped, ...]
    sources: tuple[Mapping[str, str | int], ...]
    replicates: int
    seed: int
    confidence: float
    versions: Mapping[str, str]

    def to_json(self) -> str:
        """The analysis as JSON; undefined values are null."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
