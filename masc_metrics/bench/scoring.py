"""From a batch of loaded samples to its results: MaSC and the baselines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.bench.baselines.functions import FunctionResultError, FunctionScore
from masc_metrics.bench.baselines.registry import Baseline, load_baseline
from masc_metrics.bench.gallery import COLUMNS as GALLERY_COLUMNS
from masc_metrics.bench.gallery import Gallery
from masc_metrics.bench.loading import Loaded, LoadedImage, LoadedSample
from masc_metrics.bench.made_masks import (
    MaskedSample,
    MaskMaker,
    encoder_settings,
    reference_images,
    reference_masks,
)
from masc_metrics.bench.run import BASELINES, CP_COLUMNS, MASC_SCORES, MASKS, PF_COLUMNS, Run, inputs_of
from masc_metrics.bench.sample import SampleResult, columns
from masc_metrics.bench.tables import ESCAPED
from masc_metrics.functional import (
    concept_preservation_variants,
    prompt_following_variants,
)
from masc_metrics.images import ImageBatch
from masc_metrics.masks import MaskBatch
from masc_metrics.precision import out_of_memory
from masc_metrics.prompts import strip_subject
from masc_metrics.segmenters import Segmenter


@dataclass(frozen=True, slots=True)
class Scorer:
    """What a run scores with; made by :func:`load_scorer`.

    Attributes:
        run: the settings.
        backbone: MaSC's backbone.
        baselines: baselines by name.
        functions: functions of the user's by name.
        maker: makes the masks that samples lack.
        gallery: the concepts of the list; None if the run has no gallery.
    """

    run: Run
    backbone: SigLIP2Backbone
    baselines: dict[str, Baseline]
    functions: dict[str, FunctionScore]
    maker: MaskMaker
    gallery: Gallery | None = None

    @property
    def segmenter(self) -> Segmenter | None:
        """The segmenter of the run."""
        return self.maker.segmenter

    @property
    def settings(self) -> dict[str, Any]:
        """What functions that encode images take."""
        return encoder_settings(self.backbone, self.run)

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
        masked: dict[int, MaskedSample] = {}
        for number, made in self.maker.masked([loaded for loaded in batch if isinstance(loaded, LoadedSample)]).items():
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
    backbone = run.load_backbone(device)
    backbone.load(text_tower="pf" in run.scores)
    if run.cache_mib is not None:
        backbone.cache.max_bytes = run.cache_mib * 2**20
    baselines = {
        name: load_baseline(name, run, device=device, backbone=backbone) for name in run.scores if name in BASELINES
    }
    if segmenter is not None:
        segmenter.load()
    return Scorer(run, backbone, baselines, functions, MaskMaker(run, backbone, segmenter))


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
