"""What an agreement analysis found, as values that go into JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic with its bootstrap interval.

    Attributes:
        value: of the whole sample; None if it is undefined.
        low: lower end of the interval; None without one.
        high: upper end.
        left_out: resamples in which the statistic is undefined.
        reason: why there is no value, or no interval; empty if there are both.
    """

    value: float | None
    low: float | None
    high: float | None
    left_out: int
    reason: str


@dataclass(frozen=True, slots=True)
class Extreme:
    """One of a scorer's outermost scores. The first of either end sets the range that all its scores are scaled by.

    Attributes:
        end: "lowest" or "highest".
        rank: 1 is the outermost.
        method: whose picture it is.
        key: which picture.
        value: the score, before scaling.
    """

    end: str
    rank: int
    method: str
    key: str
    value: float


@dataclass(frozen=True, slots=True)
class MethodAlpha:
    """A scorer's alpha on one method's pictures, a row of DreamBench++'s table.

    Attributes:
        method: the method.
        keys: how many keys at least one run and one group have.
        ceiling: alpha of the groups with each other; None if undefined.
        runs: of each run the mean of its alphas to the groups; None if undefined.
        mean: over runs; None if undefined.
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
    """How one scorer agrees with people.

    Attributes:
        name: of the scorer.
        keys: how many keys it and at least one group have.
        scaling_range: the scores that became 0 and 1.
        scaled_like_people: whether that range is people's, since it rates 0..4 itself.
        alpha_to: Krippendorff's alpha to each group.
        alpha: their mean.
        rho: Spearman's, against the mean of the groups.
        tau: Kendall's tau-b, likewise.
        auc: of mean ratings from 3.5 on against those up to 0.5.
        extremes: its lowest and highest scores.
        methods: alpha a method; empty in the pooled protocol.
    """

    name: str
    keys: int
    scaling_range: tuple[float, float]
    scaled_like_people: bool
    alpha_to: Mapping[str, Estimate]
    alpha: Estimate
    rho: Estimate
    tau: Estimate
    auc: Estimate
    extremes: tuple[Extreme, ...]
    methods: tuple[MethodAlpha, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired test of two scorers on the same resamples.

    Attributes:
        a: name of one scorer.
        b: name of the other.
        statistic: "alpha" (the mean over groups), "rho", "tau" or "auc".
        difference: of a minus b, with its interval.
        p_value: two-sided, of no difference; above 0 and at most 1; None without resamples.
    """

    a: str
    b: str
    statistic: str
    difference: Estimate
    p_value: float | None


@dataclass(frozen=True, slots=True)
class Dropped:
    """What was left out.

    Attributes:
        source: name of the scorer or group.
        reason: why.
        count: how many of its cells or keys.
    """

    source: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Source:
    """Where numbers came from.

    Attributes:
        name: of the scorer or group.
        path: file or folder.
        seeds: what became of several numbers of one key.
    """

    name: str
    path: str
    seeds: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """All of an analysis.

    Attributes:
        protocol: "pooled" or "dreambench-plus".
        score: "cp" or "pf".
        with_styles: whether style collections count.
        groups: names of the groups of raters.
        ceiling: alpha of the groups with each other on the same keys.
        scorers: in the order given.
        differences: the tests asked for.
        keys: kept (method, key) pairs.
        concepts: how many concepts they show; these are resampled.
        methods: kept methods.
        key_set_sha256: SHA-256 of the sorted kept pairs as JSON, ``[["method", "key"], ...]`` in UTF-8. Equal digests
            mean equal key sets.
        dropped: what was left out, and why.
        sources: where numbers came from.
        replicates: number of resamples.
        seed: of the resamples.
        confidence: of the intervals.
        versions: of the packages that the numbers depend on.
    """

    protocol: str
    score: str
    with_styles: bool
    groups: tuple[str, ...]
    ceiling: Estimate
    scorers: tuple[ScorerAgreement, ...]
    differences: tuple[Difference, ...]
    keys: int
    concepts: int
    methods: tuple[str, ...]
    key_set_sha256: str
    dropped: tuple[Dropped, ...]
    sources: tuple[Source, ...]
    replicates: int
    seed: int
    confidence: float
    versions: Mapping[str, str]

    def to_json(self) -> str:
        """All of it as JSON; what is undefined is null."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
