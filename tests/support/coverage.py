"""How often intervals contain the truth, by simulation; run as a program, writes the table into docs/benchmarks.md.

Scores of a concept's samples are normal around the concept's own mean; the concepts' means are normal around the truth.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for when it is run as a program

import numpy as np

from masc_metrics.intervals import mean, unit_means
from support.blocks import with_block

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
CONCEPTS = (2, 3, 5, 10, 30)
SAMPLES = 10
EFFECTS = {"none": 0.0, "as large as the spread of the samples": 1.0}
"""Standard deviation of the concepts' means, over that of a concept's samples."""


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        effect: key of ``EFFECTS``.
        equal: whether all concepts have ``SAMPLES`` samples; else the first has ten times as many.
    """

    effect: str
    equal: bool

    def sizes(self, concepts: int) -> list[int]:
        first = SAMPLES if self.equal else 10 * SAMPLES
        return [first, *[SAMPLES] * (concepts - 1)]


CASES = tuple(Case(effect, equal) for effect in EFFECTS for equal in (True, False))


def coverage(case: Case, concepts: int, simulations: int, seed: int = 0) -> float:
    """Share of simulated 95 % intervals that contain the truth."""
    generator = np.random.default_rng(seed)
    concepts_N = np.repeat(np.arange(concepts), case.sizes(concepts))
    hits = 0
    for _ in range(simulations):
        effects_U = EFFECTS[case.effect] * generator.standard_normal(concepts)
        values_N = effects_U[concepts_N] + generator.standard_normal(len(concepts_N))
        units_US, _ = unit_means(values_N[:, None], concepts_N)
        interval = mean(units_US[:, 0]).interval
        assert interval is not None
        hits += interval[0] <= 0 <= interval[1]
    return hits / simulations


def one_concept_coverage(samples: int, simulations: int, seed: int = 0) -> float:
    """Share of intervals over one concept's samples that contain that concept's own mean."""
    generator = np.random.default_rng(seed)
    hits = 0
    for _ in range(simulations):
        interval = mean(generator.standard_normal(samples)).interval
        assert interval is not None
        hits += interval[0] <= 0 <= interval[1]
    return hits / simulations


def table(simulations: int) -> str:
    lines = [
        f"| concept effect | samples a concept | {' | '.join(f'{count} concepts' for count in CONCEPTS)} |",
        "|---|---|" + "---|" * len(CONCEPTS),
    ]
    for case in CASES:
        sizes = f"{SAMPLES}" if case.equal else f"{SAMPLES}, the first {10 * SAMPLES}"
        cells = [f"{100 * coverage(case, count, simulations):.1f} %" for count in CONCEPTS]
        lines.append(f"| {case.effect} | {sizes} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    found = table(4000)
    print(found)
    PAGE.write_text(with_block(PAGE.read_text(encoding="utf-8"), "coverage", found), encoding="utf-8")


if __name__ == "__main__":
    main()
