"""How far wrong masks move the scores, the ranking of methods and the agreement with people: figures and sentences.

Letters in names: ``N`` samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from masc_metrics.bench.agreement.protocols import TooFewKeysError, alpha_pair
from masc_metrics.bench.agreement.ratings import Scores, scores_of_samples
from masc_metrics.bench.agreement.report import AlphaPair
from masc_metrics.bench.sample import Sample
from masc_metrics.bench.summary import mean_figure
from masc_metrics.intervals import Numbers
from masc_metrics.masks import PIXEL_KINDS, Perturbation


@dataclass(frozen=True, slots=True)
class SampleScores:
    """Scores of N samples with the given masks and with wrong ones; NaN where undefined.

    Attributes:
        samples: the samples.
        given: (N,) values by score, "cp" and "pf".
        perturbed: (N,) values by score and perturbation.
    """

    samples: Sequence[Sample]
    given: Mapping[str, Numbers]
    perturbed: Mapping[str, Mapping[Perturbation, Numbers]]


@dataclass(frozen=True, slots=True)
class Move:
    """How far a perturbation moves a score.

    Attributes:
        perturbation: what is wrong with the masks.
        score: "cp", whose reference masks are wrong, or "pf", whose generated masks are.
        n: samples whose score is defined with both masks; the next four are over them, and None without any.
        mean_absolute: mean of the absolute differences.
        percentile_95: their 95th percentile.
        largest: the largest of them.
        mean_signed: mean of the score with wrong masks minus the score with the given ones.
        became_undefined: samples that lose their score.
        became_defined: samples that gain one.
        methods: mean of each method with wrong masks, in which every concept counts equally; None without a score.
        tau: Kendall's tau-b of these means and those with the given masks; None for fewer than two methods, or if all
            means are equal.
        pairs: pairs of methods that have both means.
        swapped: those whose order is reversed.
        alpha: Krippendorff's alpha with people, with the given masks and with wrong ones; None without ratings, or if
            fewer than two rated keys have both scores.
    """

    perturbation: Perturbation
    score: str
    n: int
    mean_absolute: float | None
    percentile_95: float | None
    largest: float | None
    mean_signed: float | None
    became_undefined: int
    became_defined: int
    methods: Mapping[str, float | None]
    tau: float | None
    pairs: int
    swapped: tuple[tuple[str, str], ...]
    alpha: AlphaPair | None = None


def method_means(values_N: Numbers, samples: Sequence[Sample]) -> dict[str, float | None]:
    """Mean of each method, in which every concept counts equally; samples without a method are left out."""
    concepts_N = np.array([sample.concept or sample.reference_image for sample in samples], dtype=object)
    methods_N = np.array([sample.method for sample in samples], dtype=object)
    return {
        method: mean_figure(values_N[methods_N == method], concepts_N[methods_N == method])["mean"]
        for method in sorted({sample.method for sample in samples} - {""})
    }


def moves(scores: SampleScores, ratings: Mapping[str, Sequence[Scores]] | None = None, seed: int = 0) -> list[Move]:
    """How far each perturbation moves each score, in the order of the perturbations.

    Args:
        scores: the scores.
        ratings: ratings of groups of people, by score.
        seed: random seed of the intervals of alpha.
    """
    found = []
    for score, perturbed in scores.perturbed.items():
        given_N = scores.given[score]
        before = method_means(given_N, scores.samples)
        for perturbation, wrong_N in perturbed.items():
            moved_N = (wrong_N - given_N)[~np.isnan(wrong_N - given_N)]
            size_N = np.abs(moved_N)
            after = method_means(wrong_N, scores.samples)
            tau, pairs, swapped = _ranking(before, after)
            found.append(
                Move(
                    perturbation=perturbation,
                    score=score,
                    n=len(moved_N),
                    mean_absolute=float(size_N.mean()) if len(size_N) else None,
                    percentile_95=float(np.percentile(size_N, 95)) if len(size_N) else None,
                    largest=float(size_N.max()) if len(size_N) else None,
                    mean_signed=float(moved_N.mean()) if len(size_N) else None,
                    became_undefined=int((np.isnan(wrong_N) & ~np.isnan(given_N)).sum()),
                    became_defined=int((~np.isnan(wrong_N) & np.isnan(given_N)).sum()),
                    methods=after,
                    tau=tau,
                    pairs=pairs,
                    swapped=swapped,
                    alpha=alpha_move(score, scores.samples, given_N, wrong_N, (ratings or {}).get(score, ()), seed),
                )
            )
    order = list(scores.perturbed["pf"])
    return sorted(found, key=lambda move: order.index(move.perturbation))


def alpha_scores(score: str, samples: Sequence[Sample], values_N: Numbers) -> Scores:
    """Scores of samples, as agreement takes them.

    Raises:
        ValueError: if no sample has a method, a key and a score; or methods have one name without their run settings.
    """
    rows = zip(samples, values_N.tolist(), strict=True)
    return scores_of_samples(score, ((each.method, each.key, value) for each, value in rows), Path("the sample list"))


def alpha_move(
    score: str, samples: Sequence[Sample], given_N: Numbers, wrong_N: Numbers, groups: Sequence[Scores], seed: int
) -> AlphaPair | None:
    """Alpha with the given and with wrong masks, over the samples that have both scores."""
    keyed_N = np.array([bool(sample.method and sample.key) for sample in samples], dtype=np.bool_)
    both_N = ~np.isnan(given_N) & ~np.isnan(wrong_N) & keyed_N
    if not groups or not both_N.any():
        return None
    found = [sample for sample, both in zip(samples, both_N, strict=True) if both]
    given, wrong = (alpha_scores(score, found, values_N[both_N]) for values_N in (given_N, wrong_N))
    try:
        return alpha_pair(given, wrong, groups, score=score, seed=seed)
    except TooFewKeysError:
        return None


def _ranking(
    before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> tuple[float | None, int, tuple[tuple[str, str], ...]]:
    """Kendall's tau-b of two rankings, the number of pairs, and the pairs whose order is reversed."""
    means = {
        name: (mean, wrong) for name, mean in before.items() if mean is not None and (wrong := after[name]) is not None
    }
    if len(means) < 2:
        return None, 0, ()
    from scipy import stats

    tau = float(stats.kendalltau(*zip(*means.values(), strict=True)).statistic)
    pairs = list(combinations(means, 2))
    swapped = [(a, b) for a, b in pairs if (means[a][0] - means[b][0]) * (means[a][1] - means[b][1]) < 0]
    return None if math.isnan(tau) else tau, len(pairs), tuple(swapped)


def table_rows(moved: Sequence[Move]) -> Iterator[list[str]]:
    """Rows of the table that the command prints."""
    rated = any(move.alpha is not None for move in moved)
    header = ["masks", "score", "mean", "95 %", "largest", "signed", "n", "undefined", "tau", "swapped"]
    yield [*header, "alpha", "alpha moves by"] if rated else header
    for move in moved:
        sizes = (move.mean_absolute, move.percentile_95, move.largest)
        row = [
            move.perturbation.name,
            move.score.upper(),
            *("-" if size is None else f"{size:.4f}" for size in sizes),
            "-" if move.mean_signed is None else f"{move.mean_signed:+.4f}",
            str(move.n),
            str(move.became_undefined),
            "-" if move.tau is None else f"{move.tau:.2f}",
            f"{len(move.swapped)} of {move.pairs}" if move.pairs else "-",
        ]
        yield [*row, *_alpha_cells(move.alpha)] if rated else row


def _alpha_cells(alpha: AlphaPair | None) -> tuple[str, str]:
    if alpha is None or alpha.difference.value is None:
        return "-", "-"
    low, high = alpha.difference.low, alpha.difference.high
    interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
    return f"{alpha.alphas[1]:.3f}", f"{alpha.difference.value:+.3f}{interval}"


def sentences(moved: Sequence[Move]) -> Iterator[str]:
    """A sentence for each perturbation, such as "5 px of dilation moves CP by 0.0120 in the mean ..."."""
    for perturbation in dict.fromkeys(move.perturbation for move in moved):
        parts = [_clause(move) for move in moved if move.perturbation == perturbation]
        yield f"{_in_words(perturbation)} moves {'; '.join(parts)}."


def _in_words(perturbation: Perturbation) -> str:
    if perturbation.kind in PIXEL_KINDS:
        return f"{perturbation.amount} px of {perturbation.kind}"
    if perturbation.kind == "dropout":
        return f"Dropout of {100 * perturbation.amount:g} % of the subject"
    return {"bounding-box": "A bounding box", "transferred": "A transferred mask"}[perturbation.kind]


def _clause(move: Move) -> str:
    if move.mean_absolute is None:
        return f"no {move.score.upper()}, because no sample has one with both masks"
    text = f"{move.score.upper()} by {move.mean_absolute:.4f} in the mean"
    if move.pairs and not move.swapped:
        text += " and changes no rank"
    elif move.swapped:
        first = "{!r} and {!r}".format(*move.swapped[0])
        such_as = "such as " if len(move.swapped) > 1 else ""
        text += f" and swaps {len(move.swapped)} of {move.pairs} pairs of methods, {such_as}{first}"
    text += _alpha_clause(move)
    if move.became_undefined:
        samples = "sample becomes" if move.became_undefined == 1 else "samples become"
        text += f", and {move.became_undefined} {samples} undefined"
    return text


def _alpha_clause(move: Move) -> str:
    """Whether alpha moves: it does if the interval of the difference does not contain 0."""
    if move.alpha is None or move.alpha.difference.value is None:
        return ""
    (given, wrong), difference = move.alpha.alphas, move.alpha.difference
    name = f"alpha of {move.score.upper()} with people"
    if difference.low is None or difference.high is None:
        return f", and {name} is {given:.3f} before and {wrong:.3f} after"
    interval = f"95 % interval of the difference {difference.low:+.3f} to {difference.high:+.3f}"
    if difference.low <= 0 <= difference.high:
        return f", and does not clearly move {name} ({given:.3f} before, {wrong:.3f} after; {interval})"
    return f", and {'lowers' if difference.high < 0 else 'raises'} {name} from {given:.3f} to {wrong:.3f} ({interval})"
