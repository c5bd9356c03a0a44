"""Which (method, key) pairs scorers and people have in common."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from masc_metrics.bench.agreement.ratings import Scores
from masc_metrics.bench.agreement.report import Dropped
from masc_metrics.bench.agreement.statistics import Numbers

SampleKey = tuple[str, str]
"""Method and key."""


def check_names(
    scorers: Sequence[Scores], groups: Sequence[Scores], compare: Sequence[tuple[str, str]], pooled: bool
) -> None:
    """Raise ValueError for too few scorers or groups, runs where none can be, and unknown names to compare."""
    names = [scorer.name for scorer in scorers]
    if not names or len(groups) < 2:
        raise ValueError(f"there are {len(names)} scorers and {len(groups)} groups; give at least one and two")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice and pooled:
        raise ValueError(
            f"several scorers are named {twice[0]!r}; give each a name of its own (NAME=FILE), or, if they are runs of "
            "one scorer, take the protocol dreambench-plus"
        )
    unknown = [name for pair in compare for name in pair if name not in names]
    if unknown:
        raise ValueError(f"compare names {unknown[0]!r}; give two of {', '.join(dict.fromkeys(names))}")


def kept_keys(
    scorers: Sequence[Scores], groups: Sequence[Scores], styles: bool, pooled: bool
) -> tuple[list[SampleKey], list[Dropped]]:
    """The keys that count.

    Args:
        scorers: what is compared.
        groups: groups of raters.
        styles: whether collections named ``style_*`` count.
        pooled: whether all scorers and groups must have a key; else one group and one other of them must.

    Returns:
        The pairs, sorted, all of methods that everyone has; and what was left out, here and by the readers.

    Raises:
        ValueError: if a scorer and the groups share no method, or fewer than two keys.
    """
    parts = [*scorers, *groups]
    there = [{at for at in part.values if styles or not at[1].startswith("style_")} for part in parts]
    methods = [{method for method, _ in keys} for keys in there]
    everywhere = set.intersection(*methods)
    if not everywhere:
        told = "; ".join(f"{part.name}: {', '.join(sorted(named))}" for part, named in zip(parts, methods, strict=True))
        raise ValueError(f"no method is common to all scorers and groups; name them alike. Methods of {told}")
    scored, people = there[: len(scorers)], {at for keys in there[len(scorers) :] for at in keys}
    kept = set.intersection(*there) if pooled else people & _in_two(there)
    kept = {at for at in kept if at[0] in everywhere}
    if any(len(kept & keys & people) < 2 for keys in scored):
        told = "; ".join(
            f"{part.name} has {len(keys)}, such as {min(keys)}" for part, keys in zip(parts, there, strict=True)
        )
        raise ValueError(
            f"scorers and groups have fewer than 2 (method, key) pairs in common; write keys alike. {told}"
        )

    def reason(at: SampleKey) -> str:
        if not styles and at[1].startswith("style_"):
            return "style collection"
        if at[0] not in everywhere:
            lacking = next(part.name for part, named in zip(parts, methods, strict=True) if at[0] not in named)
            return f"method {at[0]}, which {lacking} lacks"
        return "key that another scorer or group lacks" if pooled else "key without a partner to agree with"

    dropped = [Dropped(part.name, why, count) for part in parts for why, count in part.dropped.items()]
    for part in parts:
        reasons = Counter(reason(at) for at in sorted(part.values) if at not in kept)
        dropped += [Dropped(part.name, why, count) for why, count in reasons.items()]
    return sorted(kept), dropped


def _in_two(sets: Iterable[Iterable[SampleKey]]) -> set[SampleKey]:
    times = Counter(at for keys in sets for at in keys)
    return {at for at, count in times.items() if count > 1}


def score_matrix(parts: Sequence[Scores], keys: Sequence[SampleKey]) -> Numbers:
    """(parts, keys): nan where one has no number."""
    return np.array([[part.values.get(at, math.nan) for at in keys] for part in parts], dtype=np.float64)


def key_set_digest(keys: Iterable[SampleKey]) -> str:
    """SHA-256 of the sorted pairs as JSON, ``[["method", "key"], ...]`` in UTF-8."""
    return hashlib.sha256(json.dumps(sorted(keys), ensure_ascii=False).encode()).hexdigest()
