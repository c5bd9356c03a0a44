"""From a batch of loaded samples to its results: MaSC and the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from masc_metrics.backbone import SigLIP2Backbone, load_backbone
from masc_metrics.bench.baselines.registry import Baseline, load_baseline
from masc_metrics.bench.loading import Loaded, LoadedSample
from masc_metrics.bench.run import BASELINES, Run
from masc_metrics.bench.sample import MEASURES, SampleResult
from masc_metrics.functional import concept_preservation, prompt_following
from masc_metrics.images import ImageBatch
from masc_metrics.masks import MaskBatch
from masc_metrics.prompts import strip_subject


@dataclass(frozen=True, slots=True)
class Scorer:
    """The settings of a run, MaSC's backbone and the baselines by name; made by :func:`load_scorer`."""

    run: Run
    backbone: SigLIP2Backbone
    baselines: dict[str, Baseline]

    def score(self, batch: Sequence[Loaded]) -> list[SampleResult]:
        """Score a batch.

        Returns:
            Results in the order of the batch. A sample that could not be loaded keeps its error, one that a filter
            leaves out has a reason.

        Raises:
            RuntimeError: if a network's features are not finite.
        """
        results: dict[int, SampleResult] = {}
        pairs = []
        for loaded in batch:
            if isinstance(loaded, SampleResult):
                results[loaded.number] = loaded
            elif left_out := self._left_out(loaded):
                results[loaded.number] = SampleResult(
                    loaded.number,
                    dict.fromkeys(self.run.scores),
                    _measures(loaded),
                    left_out=left_out,
                    orientation_undecided=_orientation_undecided(loaded),
                )
            else:
                pairs.append(loaded)
        scores = {name: self._scores(name, pairs) for name in self.run.scores}
        for pair in pairs:
            prompt = pair.sample.prompt if "pf" in self.run.scores else None
            results[pair.number] = SampleResult(
                number=pair.number,
                scores={name: values.get(pair.number) for name, values in scores.items()},
                measures=_measures(pair),
                stripped_prompt="" if prompt is None else strip_subject(prompt, pair.sample.subject),
                orientation_undecided=_orientation_undecided(pair),
            )
        return [results[loaded.number] for loaded in batch]

    def _left_out(self, pair: LoadedSample) -> str:
        minimum = self.run.min_coverage
        for name, image in (("reference_mask", pair.reference), ("generated_mask", pair.generated)):
            if minimum is not None and image.coverage is not None and image.coverage <= minimum:
                return f"{name} marks {100 * image.coverage:.2f} % of its pixels, at most {100 * minimum:g} %"
        return ""

    def _scores(self, name: str, pairs: list[LoadedSample]) -> dict[int, float]:
        """Scores by the sample's number, of the pairs that have the input of a score."""
        baseline = self.baselines.get(name)
        if name == "cp":
            pairs = [pair for pair in pairs if pair.reference.mask is not None]
        elif name == "pf":
            pairs = [pair for pair in pairs if pair.generated.mask is not None and pair.sample.prompt is not None]
        elif baseline and baseline.kind == "text":
            pairs = [pair for pair in pairs if pair.sample.prompt is not None]
        if not pairs:
            return {}
        generated = ImageBatch(tuple(pair.generated.pixels for pair in pairs))
        references = ImageBatch(tuple(pair.reference.pixels for pair in pairs))
        prompts = [pair.sample.prompt or "" for pair in pairs]
        settings: dict[str, Any] = {
            "backbone": self.backbone,
            "max_num_patches": self.run.max_num_patches,
            "encode_batch_size": self.run.batch_size,
        }
        scores: list[float]
        if baseline and baseline.kind == "text":
            scores = baseline.score_texts(generated, prompts)
        elif baseline:
            scores = baseline.score(generated, references)
        elif name == "cp":
            masks = MaskBatch(tuple(pair.reference.mask for pair in pairs if pair.reference.mask is not None))
            scores = concept_preservation(generated, references, masks, **settings).tolist()
        else:
            masks = MaskBatch(tuple(pair.generated.mask for pair in pairs if pair.generated.mask is not None))
            subjects = [pair.sample.subject for pair in pairs]
            scores = prompt_following(generated, masks, prompts, subjects, **settings).tolist()
        return dict(zip((pair.number for pair in pairs), scores, strict=True))


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


def _orientation_undecided(pair: LoadedSample) -> list[str]:
    images = ((pair.generated, pair.sample.generated_image), (pair.reference, pair.sample.reference_image))
    return [file for image, file in images if image.orientation_undecided]


def _measures(pair: LoadedSample) -> dict[str, float | None]:
    split = (name.split("_", 1) for name in MEASURES)
    return {f"{which}_{measure}": getattr(getattr(pair, which), measure) for which, measure in split}
