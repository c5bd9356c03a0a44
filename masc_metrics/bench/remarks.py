"""What a run says of single rows at its end."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field

from masc_metrics.bench.outcome import Outcome
from masc_metrics.bench.sample import Sample
from masc_metrics.prompts import holds_subject

_LOOKED_AT = 20  # of rows named one by one; the others are in the file

_UNDEFINED = {
    "cp": "no reference patch is more than half covered by reference_mask",
    "pf": "generated_mask leaves no background patch",
}


@dataclass
class Remarks:
    """Rows to look at; a few are named, the others counted.

    Attributes:
        name: the list's.
        scores: that were asked for.
    """

    name: str
    scores: tuple[str, ...]
    _rows: list[str] = field(default_factory=list)
    _unnamed: int = 0
    _unstripped: int = 0
    _scored: int = 0
    _first: Sample | None = None

    def add(self, sample: Sample, outcome: Outcome) -> None:
        """Look at one row."""
        where = f"{self.name}, line {sample.line} (sample {sample.sample_id})"
        if outcome.error:
            self._say(f"{where}: {outcome.error}")
            return
        for name, reason in _UNDEFINED.items():
            value = outcome.scores.get(name)
            if value is not None and math.isnan(value):
                self._say(f"{where}: {name.upper()} is undefined, because {reason}")
        if outcome.scores.get("pf") is not None and sample.prompt is not None:
            self._scored += 1
            if not holds_subject(sample.prompt, sample.subject):
                self._unstripped += 1
                self._first = self._first or sample

    def _say(self, text: str) -> None:
        if len(self._rows) < _LOOKED_AT:
            self._rows.append(text)
        else:
            self._unnamed += 1

    def say(self) -> None:
        """Print what there is to say."""
        for text in self._rows:
            print(text, file=sys.stderr)
        if self._unnamed:
            print(f"{self.name}: {self._unnamed} more rows failed or are undefined; see the scores", file=sys.stderr)
        if self._first is not None:
            print(
                f"{self.name}: nothing was stripped from {self._unstripped} of {self._scored} prompts, which do not "
                f"hold their subject as whole words; the first is line {self._first.line}, {self._first.subject!r} in "
                f"{self._first.prompt!r}",
                file=sys.stderr,
            )
