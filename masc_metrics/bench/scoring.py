"""From a batch of loaded samples to its results: MaSC and the baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from masc_metrics.backbone import SigLIP2Backbone, load_backbone
from masc_metrics.bench.baselines.registry import Baseline, load_baseline
from masc_metrics.bench.loading import LoadedImage, LoadedSample
from masc_metrics.bench.run import BASELINES, Run
from masc_metrics.bench.sample import MEASURES, Sample, SampleResult
from masc_metrics.functional import concept_preservation, prompt_following
from masc_metrics.images import ImageBatch
from masc_metrics.masks import MaskBatch
from masc_metrics.prompts import strip_subject


@dataclass(frozen=True, slots=True)
class _Pair:
    sample: Sample
    number: int
    generated: LoadedImage
    reference: LoadedImage


@dataclass(frozen=True, slots=True)
class Scorer:
    """The networks of a run, and how they score samples; made by :func:`load_scorer`.

    Attributes:
        run: the settings.
        backbone: MaSC's network.
        baselines: baselines by name.
    """

    run: Run
    backbone: SigLIP2Backbone
    baselines: dict[str, Baseline]

    def score(self, samples: Sequence[Sample], batch: Sequence[LoadedSample]) -> list[SampleResult]:
        """Score a batch of a sample list.

        Args:
            samples: the list.
            batch: some of it, loaded.

        Returns:
            Results in the order of the batch. A sample that could not be loaded has an error, one that a filter leaves
            out a reason.

        Raises:
            RuntimeError: if a network's features are not finite.
        """
        results: dict[int, SampleResult] = {}
        pairs = []
        for loaded in batch:
            if loaded.generated is None or loaded.reference is None:
                results[loaded.number] = self._without_scores(loaded.number, {}, error=loaded.error)
                continue
            pair = _Pair(samples[loaded.number], loaded.number, loaded.generated, loaded.reference)
            if left_out := self._left_out(pair):
                results[pair.number] = self._without_scores(pair.number, _measures(pair), left_out=left_out)
            else:
                pairs.append(pair)
        if pairs:
            scores = {name: self._scores(name, pairs) for name in self.run.scores}
            for index, pair in enumerate(pairs):
                results[pair.number] = SampleResult(
                    number=pair.number,
                    scores={name: values[index] for name, values in scores.items()},
                    measures=_measures(pair),
                    stripped_prompt=_stripped_prompt(pair.sample) if "pf" in self.run.scores else "",
                )
        return [results[loaded.number] for loaded in batch]

    def _without_scores(
        self, number: int, measures: dict[str, float | None], left_out: str = "", error: str = ""
    ) -> SampleResult:
        return SampleResult(number, dict.fromkeys(self.run.scores), measures, left_out=left_out, error=error)

    def _left_out(self, pair: _Pair) -> str:
        minimum = self.run.min_coverage
        for name, image in (("reference_mask", pair.reference), ("generated_mask", pair.generated)):
            if minimum is not None and image.coverage is not None and image.coverage <= minimum:
                return f"{name} marks {100 * image.coverage:.2f} % of its pixels, at most {100 * minimum:g} %"
        return ""

    def _scores(self, name: str, pairs: list[_Pair]) -> list[float | None]:
        """Scores of the pairs that have the input of a score, None for the others."""
        if name == "cp":
            return _where(pairs, lambda pair: pair.reference.mask is not None, self._cp)
        if name == "pf":
            return _where(pairs, _has_pf_input, self._pf)
        baseline = self.baselines[name]
        if baseline.kind == "image":
            return list(baseline.score(_generated(pairs), _references(pairs)))
        return _where(
            pairs,
            lambda pair: pair.sample.prompt is not None,
            lambda kept: baseline.score_texts(_generated(kept), [pair.sample.prompt or "" for pair in kept]),
        )

    def _cp(self, pairs: list[_Pair]) -> list[float]:
        scores: list[float] = concept_preservation(
            _generated(pairs),
            _references(pairs),
            MaskBatch(tuple(pair.reference.mask for pair in pairs if pair.reference.mask is not None)),
            backbone=self.backbone,
            max_num_patches=self.run.max_num_patches,
            encode_batch_size=self.run.batch_size,
        ).tolist()
        return scores

    def _pf(self, pairs: list[_Pair]) -> list[float]:
        scores: list[float] = prompt_following(
            _generated(pairs),
            MaskBatch(tuple(pair.generated.mask for pair in pairs if pair.generated.mask is not None)),
            [pair.sample.prompt or "" for pair in pairs],
            [pair.sample.subject for pair in pairs],
            backbone=self.backbone,
            max_num_patches=self.run.max_num_patches,
            encode_batch_size=self.run.batch_size,
        ).tolist()
        return scores


def load_scorer(run: Run, device: torch.device) -> Scorer:
    """Load all networks of a run.

    Raises:
        OSError: if a checkpoint is not available; the text says how to get it.
        ValueError: if a checkpoint is of the wrong kind or damaged.
        ImportError: if a baseline needs a newer transformers.
    """
    backbone = load_backbone(
        run.model,
        device=device,
        dtype=run.torch_dtype,
        revision=run.revision,
        cache_dir=run.cache_dir,
        local_files_only=run.local_files_only,
    )
    backbone.load(text_tower="pf" in run.scores)
    if run.cache_mib is not None:
        backbone.cache.max_bytes = run.cache_mib * 2**20
    baselines = {
        name: load_baseline(name, run, device=device, backbone=backbone) for name in run.scores if name in BASELINES
    }
    return Scorer(run, backbone, baselines)


def _where(
    pairs: list[_Pair], has_input: Callable[[_Pair], bool], score: Callable[[list[_Pair]], list[float]]
) -> list[float | None]:
    kept = [pair for pair in pairs if has_input(pair)]
    scores = iter(score(kept) if kept else [])
    return [next(scores) if has_input(pair) else None for pair in pairs]


def _has_pf_input(pair: _Pair) -> bool:
    return pair.generated.mask is not None and pair.sample.prompt is not None


def _generated(pairs: list[_Pair]) -> ImageBatch:
    return ImageBatch(tuple(pair.generated.pixels for pair in pairs))


def _references(pairs: list[_Pair]) -> ImageBatch:
    return ImageBatch(tuple(pair.reference.pixels for pair in pairs))


def _stripped_prompt(sample: Sample) -> str:
    return "" if sample.prompt is None else strip_subject(sample.prompt, sample.subject)


def _measures(pair: _Pair) -> dict[str, float | None]:
    values = (
        pair.reference.coverage,
        pair.generated.coverage,
        pair.reference.patches,
        pair.reference.subject_patches,
        pair.generated.patches,
        pair.generated.subject_patches,
    )
    return dict(zip(MEASURES, values, strict=True))
