"""The (method, key) pairs that scorers and raters have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from masc_metrics.bench.agreement.ratings import Scores
from masc_metrics.bench.agreement.report import Dropped

SampleKey = tuple[str, str]
"""Method and key."""


def check_names(
    scorers: Sequence[Scores], groups: Sequence[Scores], compare: Sequence[tuple[str, str]], pooled: bool
) -> None:
    """Raise ValueError for too few scorers or groups, repeated names if pooled, or unknown names to compare."""
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


def kept_keys(
    scorers: Sequence[Scores], groups: Sequence[Scores], styles: bool, pooled: bool
) -> tuple[list[SampleKey], list[Dropped]]:
    """Select the keys of an analysis.

    Args:
        scorers: the scorers.
        groups: groups of raters.
        styles: whether collections named ``style_*`` count.
        pooled: whether all scorers and groups must have a key; else one group and any other must.

    Returns:
        The sorted pairs, of methods that all scorers and groups have, and what was left out, here and by the readers.

    Raises:
        ValueError: if scorers and groups share no method, or a scorer shares fewer than two keys with the groups.
    """
    parts = [*scorers, *groups]
    key_sets = [{pair for pair in part.values if styles or not pair[1].startswith("style_")} for part in parts]
    method_sets = [{method for method, _ in keys} for keys in key_sets]
    common_methods = set.intersection(*method_sets)
    if not common_methods:
        listing = "; ".join(
            f"{part.name}: {', '.join(sorted(methods))}" for part, methods in zip(parts, method_sets, strict=True)
        )
        raise ValueError(f"all scorers and groups must share a method; name methods alike. Methods of {listing}")
    rated = set.union(*key_sets[len(scorers) :])
    times = Counter(pair for keys in key_sets for pair in keys)
    kept = {
        pair
        for pair, count in times.items()
        if pair[0] in common_methods and (count == len(parts) if pooled else count > 1 and pair in rated)
    }
    if any(len(kept & keys & rated) < 2 for keys in key_sets[: len(scorers)]):
        listing = "; ".join(
            f"{part.name} has {len(keys)}, such as {min(keys)}" for part, keys in zip(parts, key_sets, strict=True)
        )
        raise ValueError(
            f"scorers and groups have fewer than 2 (method, key) pairs in common; write keys alike. {listing}"
        )

    def reason(pair: SampleKey) -> str:
        if not styles and pair[1].startswith("style_"):
            return "style collection"
        if pair[0] not in common_methods:
            lacking = next(
                part.name for part, methods in zip(parts, method_sets, strict=True) if pair[0] not in methods
            )
            return f"method {pair[0]}, which {lacking} lacks"
        return "key that another scorer or group lacks" if pooled else "key without a second number to compare with"

    dropped = [Dropped(part.name, why, count) for part in parts for why, count in part.dropped.items()]
    for part in parts:
        reasons = Counter(reason(pair) for pair in sorted(part.values) if pair not in kept)
        dropped += [Dropped(part.name, why, count) for why, count in reasons.items()]
    return sorted(kept), dropped
