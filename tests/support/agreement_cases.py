"""Two groups of raters, and scorers of different agreement with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import krippendorff
import numpy as np

from masc_metrics.bench.agreement.protocols import agreement
from masc_metrics.bench.agreement.ratings import Scores
from masc_metrics.bench.agreement.report import Agreement

Values = Mapping[tuple[str, str], float]

METHODS = ("dreambooth_sd", "emu2")
KEYS = [
    (method, f"{collection}-{prompt}")
    for method in METHODS
    for collection in ("object_00_cup", "object_01_car", "live_subject_human_02_boy", "style_03_wave", "object_04_hat")
    for prompt in range(3)
]


def scores(name: str, values: Values, *, rates: bool = False, dropped: Mapping[str, int] | None = None) -> Scores:
    return Scores(name, values, rates, dropped or {}, f"{name}.csv", "mean")


def drawn(seed: int) -> tuple[list[Scores], dict[str, Values]]:
    """Two groups of raters, and scorers of decreasing agreement with them."""
    rng = np.random.default_rng(seed)
    quality = rng.uniform(0, 4, len(KEYS))
    people = [np.clip((quality + rng.normal(0, 0.7, len(KEYS))).round(), 0, 4) for _ in range(2)]
    groups = [
        scores(f"group{index}", dict(zip(KEYS, map(float, ratings), strict=True)))
        for index, ratings in enumerate(people, 1)
    ]
    noises = {"good": 0.4, "fair": 1.2, "poor": 5.0}
    return groups, {
        name: {pair: float(q / 10 + rng.normal(0, noise / 10)) for pair, q in zip(KEYS, quality, strict=True)}
        for name, noise in noises.items()
    }


GROUPS, SCORERS = drawn(0)


def report(
    *scorers: Scores,
    groups: Sequence[Scores] = GROUPS,
    score: str = "cp",
    protocol: str = "pooled",
    with_styles: bool | None = None,
    keys_of: Sequence[str] = (),
    compare: Sequence[tuple[str, str]] = (),
    replicates: int = 50,
    seed: int = 0,
) -> Agreement:
    return agreement(
        scorers,
        groups,
        score=score,
        protocol=protocol,
        with_styles=with_styles,
        keys_of=keys_of,
        compare=compare,
        replicates=replicates,
        seed=seed,
    )


def alpha(one: list[float], other: list[float]) -> float:
    return float(krippendorff.alpha([one, other], level_of_measurement="interval"))


def listed(values: Values, keys: list[tuple[str, str]] = KEYS) -> list[float]:
    return [values[pair] for pair in keys]
