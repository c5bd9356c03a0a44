"""A batch of opened samples to its outcomes: MaSC, and whatever baselines were asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.bench.baselines.registry import Baseline
from masc_metrics.bench.outcome import MEASURES, Outcome
from masc_metrics.bench.pictures import Opened, Picture, in_columns
from masc_metrics.bench.sample import Sample
from masc_metrics.functional import concept_preservation, prompt_following
from masc_metrics.prompts import strip_subject

MASC = ("cp", "pf")


@dataclass(frozen=True, slots=True)
class _Ready:
    sample: Sample
    number: int
    generated: Picture
    reference: Picture


@dataclass(frozen=True, slots=True)
class Scoring:
    """How samples are scored.

    Attributes:
        scores: names, of ``MASC`` and of the baselines, in the order of the columns.
        backbone: for MaSC.
        baselines: by name.
        max_num_patches: patch budget of one image.
        batch_size: images in one pass, at most.
        min_coverage: a sample whose reference or generated mask has at most this share of non-zero pixels is left
            out; None leaves none out.
    """

    scores: tuple[str, ...]
    backbone: SigLIP2Backbone
    baselines: dict[str, Baseline]
    max_num_patches: int
    batch_size: int
    min_coverage: float | None = None

    def score(self, samples: Sequence[Sample], batch: Sequence[Opened]) -> list[Outcome]:
        """Outcomes of a batch, in order.

        Input that cannot be scored becomes the outcome's error; anything else, such as too little memory, is raised.

        Args:
            samples: the whole list.
            batch: some of it, opened.
        """
        outcomes: dict[int, Outcome] = {}
        ready = []
        for opened in batch:
            if opened.generated is None or opened.reference is None:
                outcomes[opened.number] = self._without_scores(opened.number, {}, error=opened.error)
                continue
            one = _Ready(samples[opened.number], opened.number, opened.generated, opened.reference)
            if left_out := self._left_out(one):
                outcomes[one.number] = self._without_scores(one.number, _measures(one), left_out=left_out)
            else:
                ready.append(one)
        outcomes |= {outcome.number: outcome for outcome in self._scored(ready)}
        return [outcomes[opened.number] for opened in batch]

    def _without_scores(
        self, number: int, measures: dict[str, float | None], left_out: str = "", error: str = ""
    ) -> Outcome:
        return Outcome(number, dict.fromkeys(self.scores), measures, left_out=left_out, error=error)

    def _left_out(self, one: _Ready) -> str:
        if self.min_coverage is None:
            return ""
        for name, picture in (("reference_mask", one.reference), ("generated_mask", one.generated)):
            if picture.coverage is not None and picture.coverage <= self.min_coverage:
                return (
                    f"{name} marks {100 * picture.coverage:.2f} % of its pixels, at most {100 * self.min_coverage:g} %"
                )
        return ""

    def _scored(self, ready: list[_Ready]) -> list[Outcome]:
        if not ready:
            return []
        try:
            found = {name: self._score(name, ready) for name in self.scores}
        except (TypeError, ValueError) as error:
            if len(ready) > 1:  # one of them is bad: alone, each speaks for itself
                return [outcome for one in ready for outcome in self._scored([one])]
            (one,) = ready
            return [self._without_scores(one.number, _measures(one), error=in_columns(str(error), one.sample))]
        return [
            Outcome(
                number=one.number,
                scores={name: found[name][place] for name in self.scores},
                measures=_measures(one),
                stripped_prompt=_stripped(one) if "pf" in self.scores else "",
            )
            for place, one in enumerate(ready)
        ]

    def _score(self, name: str, ready: list[_Ready]) -> list[float | None]:
        if name == "cp":
            return _where(ready, lambda one: one.reference.mask is not None, self._cp)
        if name == "pf":
            return _where(ready, lambda one: one.generated.mask is not None and one.sample.prompt is not None, self._pf)
        baseline = self.baselines[name]
        if baseline.kind == "text":
            return _where(
                ready,
                lambda one: one.sample.prompt is not None,
                lambda asked: baseline.score_texts(
                    [_last(one.generated) for one in asked], [one.sample.prompt or "" for one in asked]
                ),
            )
        return list(baseline.score([_last(one.generated) for one in ready], [_last(one.reference) for one in ready]))

    def _cp(self, ready: list[_Ready]) -> list[float]:
        scores: list[float] = concept_preservation(
            [torch.from_numpy(one.generated.pixels) for one in ready],
            [torch.from_numpy(one.reference.pixels) for one in ready],
            [torch.from_numpy(one.reference.mask) for one in ready if one.reference.mask is not None],
            backbone=self.backbone,
            max_num_patches=self.max_num_patches,
            encode_batch_size=self.batch_size,
        ).tolist()
        return scores

    def _pf(self, ready: list[_Ready]) -> list[float]:
        scores: list[float] = prompt_following(
            [torch.from_numpy(one.generated.pixels) for one in ready],
            [torch.from_numpy(one.generated.mask) for one in ready if one.generated.mask is not None],
            [one.sample.prompt or "" for one in ready],
            [one.sample.subject for one in ready],
            backbone=self.backbone,
            max_num_patches=self.max_num_patches,
            encode_batch_size=self.batch_size,
        ).tolist()
        return scores


def _where(
    ready: list[_Ready], asked: Callable[[_Ready], bool], score: Callable[[list[_Ready]], list[float]]
) -> list[float | None]:
    """Scores of those that it is asked of, None for the others."""
    found: list[float | None] = [None] * len(ready)
    places = [place for place, one in enumerate(ready) if asked(one)]
    if places:
        for place, value in zip(places, score([ready[place] for place in places]), strict=True):
            found[place] = value
    return found


def _last(picture: Picture) -> np.ndarray:
    """(H, W, 3), channels last."""
    return np.ascontiguousarray(picture.pixels.transpose(1, 2, 0))


def _stripped(one: _Ready) -> str:
    return "" if one.sample.prompt is None else strip_subject(one.sample.prompt, one.sample.subject)


def _measures(one: _Ready) -> dict[str, float | None]:
    values = (
        one.reference.coverage,
        one.generated.coverage,
        one.reference.patches,
        one.reference.subject_patches,
        one.generated.patches,
        one.generated.subject_patches,
    )
    return dict(zip(MEASURES, values, strict=True))
