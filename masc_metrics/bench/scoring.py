"""From a batch of loaded samples to its results: MaSC and the baselines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from masc_metrics.backbone import SigLIP2Backbone, load_backbone
from masc_metrics.bench.baselines.functions import FunctionResultError, FunctionScore
from masc_metrics.bench.baselines.registry import Baseline, load_baseline
from masc_metrics.bench.gallery import COLUMNS as GALLERY_COLUMNS
from masc_metrics.bench.gallery import Gallery
from masc_metrics.bench.loading import Loaded, LoadedImage, LoadedSample, lacks_mask, mask_measures, named, noticed_in
from masc_metrics.bench.run import BASELINES, CP_COLUMNS, MASC_SCORES, MASKS, PF_COLUMNS, Run, inputs_of
from masc_metrics.bench.sample import MEASURES, WHICH, SampleResult, columns
from masc_metrics.bench.segmenting import segmented
from masc_metrics.bench.tables import ESCAPED
from masc_metrics.functional import (
    check_transfer,
    concept_preservation_variants,
    prompt_following_variants,
    transfer_masks,
)
from masc_metrics.images import ImageBatch
from masc_metrics.masks import MaskBatch
from masc_metrics.precision import out_of_memory
from masc_metrics.prompts import strip_subject
from masc_metrics.references import ReferenceImages, ReferenceMasks
from masc_metrics.segmenters import Segmenter


@dataclass(frozen=True, slots=True)
class _Masked:
    """A sample with the masks that the run has made for it.

    Attributes:
        sample: the sample.
        made: source and confidence of each mask that was made, by "reference" or "generated".
        check: how well masks can be transferred with its reference; None without a transferred mask.
    """

    sample: LoadedSample
    made: Mapping[str, tuple[str, float | None]] = field(default_factory=dict)
    check: float | None = None

    def result(self, scores: Mapping[str, float | None], **fields: Any) -> SampleResult:
        """Its result; further fields are those of :class:`masc_metrics.bench.sample.SampleResult`."""
        (reference_source, reference_confidence), (source, confidence) = (
            self.made.get(which, ("" if self.sample.mask_of(which) is None else "given", None)) for which in WHICH
        )
        return SampleResult(
            self.sample.number,
            scores,
            _measures(self.sample),
            mask_source=source,
            mask_confidence=confidence,
            mask_check=self.check,
            reference_mask_source=reference_source,
            reference_mask_confidence=reference_confidence,
            **fields,
        )


@dataclass(frozen=True, slots=True)
class Scorer:
    """What a run scores with; made by :func:`load_scorer`.

    Attributes:
        run: the settings.
        backbone: MaSC's backbone.
        baselines: baselines by name.
        functions: functions of the user's by name.
        segmenter: makes the masks that samples lack; None if there are none, or they are transferred.
        gallery: the concepts of the list; None if the run has no gallery.
        checks: how well masks can be transferred, by reference image and mask; found as needed.
    """

    run: Run
    backbone: SigLIP2Backbone
    baselines: dict[str, Baseline]
    functions: dict[str, FunctionScore]
    segmenter: Segmenter | None = None
    gallery: Gallery | None = None
    checks: dict[tuple[tuple[str, str | None], ...], float] = field(default_factory=dict)

    def score(self, batch: Sequence[Loaded]) -> list[SampleResult]:
        """Score a batch.

        Returns:
            Results in the order of the batch. A sample that could not be loaded keeps its error, one that a filter
            leaves out has a reason. One that lacks an input, or that a function of the user's fails for, has the
            reason as its error, and the scores that do not need it.

        Raises:
            RuntimeError: if a network's features are not finite.
            FunctionResultError: if a function of the user's returns something other than one number a sample.
        """
        results = {loaded.number: loaded for loaded in batch if isinstance(loaded, SampleResult)}
        none = dict.fromkeys(self.run.columns)
        masked: dict[int, _Masked] = {}
        for number, made in self._masked([loaded for loaded in batch if isinstance(loaded, LoadedSample)]).items():
            masks_lack = [made.sample.lacks[name] for name in MASKS if name in made.sample.lacks]
            if self.run.min_coverage is not None and masks_lack:
                results[number] = made.result(none, error="; ".join(masks_lack))
            elif left_out := self._left_out(made.sample):
                results[number] = made.result(none, left_out=left_out, noticed=noticed_files(made.sample))
            else:
                masked[number] = made
        pairs = [made.sample for made in masked.values()]
        scores: dict[str, dict[int, float]] = {}
        errors: dict[str, dict[int, str]] = {}
        for name, function in self.functions.items():
            given = [pair for pair in pairs if _has_inputs(pair, name)]
            scores[name], errors[name] = _function_scores(function, given)
        for name in self.run.scores:
            if name in self.baselines:
                scores[name] = self._baseline_scores(self.baselines[name], pairs)
            elif name in MASC_SCORES:
                family = CP_COLUMNS if name == "cp" else PF_COLUMNS
                scores |= self._masc_scores([column for column in self.run.columns if column in family], pairs)
        rows = [[] for _ in pairs] if self.gallery is None else self.gallery.rows(pairs, self.backbone, self.run)
        for pair, row in zip(pairs, rows, strict=True):
            texts = self._texts(pair)
            results[pair.number] = masked[pair.number].result(
                {name: scores[name].get(pair.number) for name in self.run.columns},
                stripped_prompt=texts.get("stripped", ""),
                prompt_tokens_cut=self._cut_tokens(pair, list(texts.values())),
                error="; ".join(
                    dict.fromkeys(
                        reason
                        for name in self.run.columns
                        if pair.number not in scores[name]
                        for reason in self._reasons(pair, name, errors.get(name, {}))
                    )
                ),
                noticed=noticed_files(pair),
                concept_scores=row,
            )
        return [results[loaded.number] for loaded in batch]

    def _reasons(self, pair: LoadedSample, column: str, errors: Mapping[int, str]) -> Iterator[str]:
        """Why a pair lacks a score; nothing if it is not meant to have it, as styles of DreamBench++ have no PF."""
        if pair.number in errors:
            yield errors[pair.number]
        for name in (*inputs_of(column), *inputs_of(column, self.run.mask_source)):
            if name in pair.lacks:
                yield pair.lacks[name]

    def _texts(self, pair: LoadedSample) -> dict[str, str]:
        """The texts that prompt following embeds of a pair, by the setting ``prompts``."""
        prompt = pair.sample.prompt
        if prompt is None or "prompt" in pair.lacks or "pf" not in self.run.scores:
            return {}
        texts = {"stripped": strip_subject(prompt, pair.sample.subject), "full": prompt}
        return {name: texts[name] for name in self.run.prompts}

    def _cut_tokens(self, pair: LoadedSample, texts: Sequence[str]) -> int | None:
        """Number of tokens that the text networks of the run have ignored, see SampleResult."""
        counts = self.backbone.cut_tokens(texts)
        if pair.sample.prompt is not None and "prompt" not in pair.lacks:
            baselines = [baseline for baseline in self.baselines.values() if baseline.kind == "text"]
            counts += [count for baseline in baselines for count in baseline.cut_tokens([pair.sample.prompt])]
        return max(counts, default=None)

    def _masked(self, pairs: Sequence[LoadedSample]) -> dict[int, _Masked]:
        """All pairs, with the masks that they lack and the run makes; a pair still lacks one that cannot be made."""
        masked = {pair.number: _Masked(pair) for pair in pairs}
        if self.segmenter is not None:
            return masked | self._segmented(pairs, self.segmenter)
        return masked | self._transferred(pairs) if "generated_mask" in self.run.made_masks else masked

    def _segmented(self, pairs: Sequence[LoadedSample], segmenter: Segmenter) -> dict[int, _Masked]:
        """The pairs without a mask that the run makes, with those from their nouns, by the sample's number."""
        tasks = [
            (pair, which)
            for pair in pairs
            for which in WHICH
            if lacks_mask(pair.sample, which, self.run)
            and f"{which}_mask" not in pair.lacks
            and getattr(pair, which) is not None
        ]
        images = [getattr(pair, which).pixels for pair, which in tasks]
        found = segmented(segmenter, images, [getattr(pair.sample, f"{which}_noun") for pair, which in tasks])
        made: dict[int, _Masked] = {}
        for (pair, which), result in zip(tasks, found, strict=True):
            known = made.get(pair.number, _Masked(pair))
            if isinstance(result, ValueError):
                reason = f"{which}_image {named(getattr(pair.sample, f'{which}_image'))}: {result}"
                lacking = replace(known.sample, lacks={**known.sample.lacks, f"{which}_mask": reason})
                made[pair.number] = replace(known, sample=lacking)
                continue
            confidence = result.score if result.coverage > 0 else None
            made[pair.number] = _Masked(
                self._with_mask(known.sample, which, result.mask),
                {**known.made, which: (segmenter.settings.name, confidence)},
            )
        return made

    def _transferred(self, pairs: Sequence[LoadedSample]) -> dict[int, _Masked]:
        """The pairs without a mask of the generated image, with one from their reference, by the sample's number."""
        chosen = [
            pair
            for pair in pairs
            if pair.generated.mask is None
            and "generated_mask" not in pair.lacks
            and pair.mask_of("reference") is not None
        ]
        if not chosen:
            return {}
        generated = ImageBatch(tuple(pair.generated.pixels for pair in chosen))
        found = transfer_masks(generated, reference_images(chosen), reference_masks(chosen), **self.settings)
        return {
            pair.number: _Masked(
                self._with_mask(pair, "generated", mask),
                {"generated": ("transferred", None if math.isnan(confidence) else confidence)},
                self._check(pair),
            )
            for pair, mask, confidence in zip(chosen, found.masks, found.confidence_B.tolist(), strict=True)
        }

    def _with_mask(self, pair: LoadedSample, which: str, mask: Tensor) -> LoadedSample:
        """The pair with a mask, (H, W) bool, of one of its images."""
        image: LoadedImage = getattr(pair, which)
        grid = self.backbone.checkpoint.processing.grid(mask.shape[0], mask.shape[1], self.run.max_num_patches)
        marked = mask.cpu()  # once: each copy waits for the device
        measures = mask_measures(marked, grid, which)
        completed = LoadedImage(image.pixels, marked, *measures, (*image.noticed, *noticed_in(marked)))
        return replace(pair, reference=completed) if which == "reference" else replace(pair, generated=completed)

    def _check(self, pair: LoadedSample) -> float:
        key = pair.sample.references
        if key not in self.checks:
            found = check_transfer(reference_images([pair]), reference_masks([pair]), **self.settings)
            self.checks[key] = float(found)
        return self.checks[key]

    @property
    def settings(self) -> dict[str, Any]:
        """What functions that encode images take."""
        return {
            "backbone": self.backbone,
            "max_num_patches": self.run.max_num_patches,
            "encode_batch_size": self.run.batch_size,
        }

    def _left_out(self, pair: LoadedSample) -> str:
        minimum = self.run.min_coverage
        references = [("reference_mask", image) for image in pair.references]
        for name, image in (*references, ("generated_mask", pair.generated)):
            if minimum is not None and image.coverage is not None and image.coverage <= minimum:
                return f"{name} marks {100 * image.coverage:.2f} % of its pixels, at most {100 * minimum:g} %"
        return ""

    def _baseline_scores(self, baseline: Baseline, pairs: Sequence[LoadedSample]) -> dict[int, float]:
        """Scores by the sample's number, of the pairs that have the input of a baseline."""
        pairs = [pair for pair in pairs if _has_inputs(pair, baseline.name)]
        if not pairs:
            return {}
        generated = ImageBatch(tuple(pair.generated.pixels for pair in pairs))
        if baseline.kind == "text":
            scores = baseline.score_texts(generated, [pair.sample.prompt or "" for pair in pairs])
        else:
            alone = _with_each_reference(pairs)
            generated, references = (ImageBatch(tuple(image.pixels for image in images)) for images in alone)
            scores = _means(baseline.score(generated, references), pairs)
        return dict(zip((pair.number for pair in pairs), scores, strict=True))

    def _masc_scores(self, columns: Sequence[str], pairs: Sequence[LoadedSample]) -> dict[str, dict[int, float]]:
        """Scores by column and by the sample's number, of the pairs that have a column's input.

        Columns with input from the same pairs are computed together, so that their images are encoded once.
        """
        scores: dict[str, dict[int, float]] = {}
        together: dict[tuple[int, ...], list[str]] = {}
        for column in columns:
            positions = tuple(position for position, pair in enumerate(pairs) if _has_inputs(pair, column))
            together.setdefault(positions, []).append(column)
        for positions, group in together.items():
            found = [pairs[position] for position in positions]
            values = self._variants(group, found) if found else {column: [] for column in group}
            numbers = [pair.number for pair in found]
            scores |= {column: dict(zip(numbers, values[column], strict=True)) for column in group}
        return scores

    def _variants(self, columns: Sequence[str], pairs: Sequence[LoadedSample]) -> dict[str, list[float]]:
        generated = ImageBatch(tuple(pair.generated.pixels for pair in pairs))
        needed = {name for column in columns for name in inputs_of(column)}
        generated_masks = _masks([pair.generated for pair in pairs]) if "generated_mask" in needed else None
        settings = self.settings
        if columns[0] in CP_COLUMNS:
            preserved = concept_preservation_variants(
                generated,
                reference_images(pairs),
                reference_masks(pairs) if "reference_mask" in needed else None,
                generated_masks,
                aggregations=[CP_COLUMNS[column] for column in columns],
                reference_reduction=self.run.reference_reduction,
                **settings,
            )
            return {column: preserved[CP_COLUMNS[column]].tolist() for column in columns}
        prompts = [pair.sample.prompt or "" for pair in pairs]
        subjects = [pair.sample.subject for pair in pairs]
        poolings, texts = (
            list(dict.fromkeys(part)) for part in zip(*(PF_COLUMNS[name] for name in columns), strict=True)
        )
        strip_subject = [text == "stripped" for text in texts]
        followed = prompt_following_variants(
            generated, generated_masks, prompts, subjects, poolings=poolings, strip_subject=strip_subject, **settings
        )
        settings_of = {column: (pooling, text == "stripped") for column, (pooling, text) in PF_COLUMNS.items()}
        return {column: followed.scores[settings_of[column]].tolist() for column in columns}


def reference_images(pairs: Sequence[LoadedSample]) -> ReferenceImages:
    """The references of loaded samples as the functions take them: nested if a sample has several."""
    images = [ImageBatch(tuple(image.pixels for image in pair.references)) for pair in pairs]
    return images if _nested(pairs) else ImageBatch(tuple(each.images[0] for each in images))


def reference_masks(pairs: Sequence[LoadedSample]) -> ReferenceMasks:
    """Their masks, which all of them have, in the same arrangement."""
    masks = [MaskBatch(tuple(image.mask for image in pair.references)) for pair in pairs]  # type: ignore[misc]
    return masks if _nested(pairs) else MaskBatch(tuple(each.masks[0] for each in masks))


def _nested(pairs: Sequence[LoadedSample]) -> bool:
    return any(pair.more_references for pair in pairs)


def _with_each_reference(pairs: Sequence[LoadedSample]) -> tuple[list[LoadedImage], list[LoadedImage]]:
    """Generated image and reference of every pair of them, sample by sample."""
    return (
        [pair.generated for pair in pairs for _ in pair.references],
        [reference for pair in pairs for reference in pair.references],
    )


def _means(scores: Sequence[float], pairs: Sequence[LoadedSample]) -> list[float]:
    """For each sample, the mean over its references of the scores that are defined, NaN without one."""
    each = iter(scores)
    of_samples = [[next(each) for _ in pair.references] for pair in pairs]
    defined = [[score for score in found if not math.isnan(score)] for found in of_samples]
    return [math.fsum(found) / len(found) if found else math.nan for found in defined]


def _function_scores(function: FunctionScore, pairs: Sequence[LoadedSample]) -> tuple[dict[int, float], dict[int, str]]:
    """Scores of a function by the sample's number, and errors of the samples that it fails for."""
    if not pairs:
        return {}, {}
    generated, references = ([image.pixels for image in images] for images in _with_each_reference(pairs))
    try:
        scores = _means(function.score(generated, references), pairs)
        return dict(zip((pair.number for pair in pairs), scores, strict=True)), {}
    except FunctionResultError:
        raise
    except (Exception, SystemExit) as error:  # the function is the user's and can raise anything
        if out_of_memory(error):
            raise
        if len(pairs) == 1:
            text = " ".join(str(error).split())
            return {}, {pairs[0].number: f"{function.name}: {function.target} failed: {type(error).__name__}: {text}"}
    parts = [_function_scores(function, [pair]) for pair in pairs]
    return (
        {number: score for scores, _ in parts for number, score in scores.items()},
        {number: error for _, errors in parts for number, error in errors.items()},
    )


def load_functions(run: Run, device: torch.device) -> dict[str, FunctionScore]:
    """Import the functions of a run.

    Raises:
        ImportError, ValueError, TypeError: as :class:`masc_metrics.bench.baselines.functions.FunctionScore`; ValueError
            also if one has the name of another column.
    """
    reserved = {*columns(()), *GALLERY_COLUMNS, "cp_times_pf", "seed", ESCAPED}
    for name in run.functions:
        if name in reserved:
            raise ValueError(f"--scores names a function {name!r}, which is a column of another meaning; rename it")
    return {name: FunctionScore(name, target, device) for name, target in run.functions.items()}


def load_scorer(
    run: Run, device: torch.device, functions: dict[str, FunctionScore], segmenter: Segmenter | None = None
) -> Scorer:
    """Load all networks of a run.

    Args:
        run: the settings.
        device: device of the networks.
        functions: from :func:`load_functions`.
        segmenter: from :meth:`masc_metrics.bench.run.Run.load_segmenter`; None if no sample lacks a mask.

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
    if segmenter is not None:
        segmenter.load()
    return Scorer(run, backbone, baselines, functions, segmenter)


def _has_inputs(pair: LoadedSample, column: str) -> bool:
    """Whether a pair has what a column needs; a sample without a subject keeps its prompt."""
    given = {
        "reference_image": pair.reference is not None,
        "reference_mask": pair.mask_of("reference") is not None,
        "generated_mask": pair.generated.mask is not None,
        "prompt": pair.sample.prompt is not None,
    }
    return all(given.get(name, True) and name not in pair.lacks for name in inputs_of(column))


def _masks(images: Sequence[LoadedImage]) -> MaskBatch:
    return MaskBatch(tuple(image.mask for image in images if image.mask is not None))


def noticed_files(pair: LoadedSample) -> dict[str, list[str]]:
    """The pair's images that are probably wrong, by what is wrong, see LoadedImage."""
    files = [image for image, _ in pair.sample.references]
    images = [(pair.generated, pair.sample.generated_image), *zip(pair.references, files, strict=False)]
    kinds = dict.fromkeys(kind for image, _ in images for kind in image.noticed)
    return {kind: [file for image, file in images if kind in image.noticed] for kind in kinds}


def _measures(pair: LoadedSample) -> dict[str, float | None]:
    measures: dict[str, float | None] = {}
    for name in MEASURES:
        which, measure = name.split("_", 1)
        values = [getattr(image, measure) for image in (pair.references if which == "reference" else (pair.generated,))]
        known = bool(values) and None not in values
        mean = measure == "coverage"
        measures[name] = None if not known else sum(values) / len(values) if mean else sum(values)
    return measures
