"""``masc-metrics sensitivity``: how far wrong masks move the scores, the ranking of methods and alpha."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from masc_metrics.bench.agreement.protocols import alpha_pair
from masc_metrics.bench.agreement.ratings import Scores, read_ratings
from masc_metrics.bench.commands import SensitivityOptions
from masc_metrics.bench.distributed import Ranks, fastest_device
from masc_metrics.bench.loading import Loaded, LoadedSample, loaded_batches
from masc_metrics.bench.run import MASC_SCORES
from masc_metrics.bench.run_folder import check_json_file, check_png_file, write_json
from masc_metrics.bench.runner import errors_of_the_machine, settings_of
from masc_metrics.bench.sample import FILES, Sample, SampleResult
from masc_metrics.bench.sample_list import SampleList, read_samples
from masc_metrics.bench.scoring import Scorer, load_scorer, noticed_files
from masc_metrics.bench.sensitivity.moves import (
    SampleScores,
    alpha_move,
    alpha_scores,
    method_means,
    moves,
    sentences,
    table_rows,
)
from masc_metrics.bench.summary import row_warnings
from masc_metrics.bench.tables import printable, replacing, text_table
from masc_metrics.bench.terminal import NO_CHECKPOINT, ROWS_FAILED, UNUSABLE, fail
from masc_metrics.functional import mask_sensitivity
from masc_metrics.images import ImageBatch
from masc_metrics.masks import MaskBatch, Perturbation
from masc_metrics.plots import plot_sensitivity
from masc_metrics.plots.figures import matplotlib_for
from masc_metrics.precision import check_device


def _check_one_reference(samples: SampleList) -> None:
    """Raise ValueError if a sample has several references."""
    for sample in samples.samples:
        if sample.more_references:
            raise ValueError(
                f"{samples.source}, line {sample.line}: reference_image holds {len(sample.references)} files; give one "
                "reference for each sample"
            )


def sensitivity(options: SensitivityOptions) -> int:
    """Run ``masc-metrics sensitivity``; returns the exit code."""
    try:
        samples = _drawn(read_samples(options.samples, transferable=False), options)
        _check_one_reference(samples)
        check_json_file(options.out, [options.samples, *(path for _, path in options.ratings)])
        if options.plot is not None:
            check_png_file("--plot", options.plot)
            _check_not_a_sample(options.plot, samples)
            matplotlib_for("--plot")
        ratings = _ratings(samples, options)
        device = check_device(options.device or fastest_device())
    except (OSError, ValueError, ImportError) as error:
        return fail(UNUSABLE, error)
    try:
        scorer = load_scorer(options.run, device, {})
    except (OSError, ValueError, ImportError) as error:
        return fail(NO_CHECKPOINT, error)
    try:
        results, scores = _scored(samples, scorer, options)
        for line in (*samples.notes, *row_warnings(samples, results)):
            print(printable(line), file=sys.stderr)
        failed = [(sample, result) for sample, result in zip(samples.samples, results, strict=True) if result.error]
        moved = moves(scores, ratings, options.seed)
        alphas = {
            score: alpha_move(score, scores.samples, values_N, values_N, ratings.get(score, ()), options.seed)
            for score, values_N in scores.given.items()
        }
        settings = settings_of(samples, scorer, Ranks(0, 1, device)) | asdict(options)
        found = {
            "settings": settings,
            "samples": len(results),
            "failed": [
                {"sample_id": sample.sample_id, "line": sample.line, "error": result.error} for sample, result in failed
            ],
            "given": {
                score: {
                    "undefined": int(np.isnan(values_N).sum()),
                    "methods": method_means(values_N, scores.samples),
                }
                | ({} if (alpha := alphas[score]) is None else {"alpha": alpha.alphas[0], "rated_keys": alpha.keys})
                for score, values_N in scores.given.items()
            },
            "moves": [{"name": move.perturbation.name, **asdict(move)} for move in moved],
            "scores": [_score_row(sample, number, scores) for number, sample in enumerate(scores.samples)],
        }
        write_json(options.out, found)  # first, because printing can fail
        if options.plot is not None:
            with replacing(options.plot) as stream:
                plot_sensitivity(found).savefig(stream, format="png", dpi=300)
    except OSError as error:
        return fail(UNUSABLE, error)
    for line in text_table(list(table_rows(moved))):
        print(line)
    print()
    for line in sentences(moved):
        print(printable(line))
    for score, alpha in alphas.items():
        if alpha is not None:
            value = "undefined" if alpha.alphas[0] is None else f"{alpha.alphas[0]:.3f}"
            print(f"alpha of {score.upper()} with people, with the given masks: {value}, {alpha.keys} rated keys")
    print(f"\nall results: {options.out}")
    if options.plot is not None:
        print(f"plot: {options.plot}")
    if failed:
        print(f"{len(failed)} of {len(results)} rows failed", file=sys.stderr)
    return ROWS_FAILED if failed else 0


def _ratings(samples: SampleList, options: SensitivityOptions) -> dict[str, list[Scores]]:
    """Groups of raters by score; checked before an image is read, because scoring takes long."""
    if options.group and not options.ratings:
        raise ValueError(f"--group is {options.group[0]}, but there are no ratings; give --ratings, or leave it out")
    ratings: dict[str, list[Scores]] = {}
    for name, source in options.ratings:
        if not source.exists():
            raise FileNotFoundError(f"--ratings {source}: no such file or folder")
        if name is None and not source.is_dir():
            raise ValueError(f"--ratings is {source}, which holds one score; give cp={source} or pf={source}")
        for score in MASC_SCORES if name is None else (name,):
            if score in ratings:
                raise ValueError(f"--ratings gives ratings of {score} twice; give each score once")
            ratings[score] = read_ratings(source, score, groups=options.group)
    if ratings and not any(sample.method and sample.key for sample in samples.samples):
        raise ValueError(f"{samples.source} has no method and key, by which --ratings are found; add these columns")
    for score, groups in ratings.items():
        known = alpha_scores(score, samples.samples, np.arange(len(samples.samples), dtype=np.float64))
        alpha_pair(known, known, groups, score=score, replicates=0)  # raises ValueError if they share too few keys
    return ratings


def _drawn(samples: SampleList, options: SensitivityOptions) -> SampleList:
    """The list, or ``--limit`` samples of it in their order."""
    count = len(samples.samples)
    if options.limit is None or options.limit >= count:
        return samples
    # At random, because a regular step could meet one method only.
    chosen = np.random.default_rng(options.seed).choice(count, options.limit, replace=False)
    return replace(samples, samples=tuple(samples.samples[number] for number in sorted(chosen.tolist())))


def _check_not_a_sample(plot: Path, samples: SampleList) -> None:
    files = {os.path.realpath(file) for sample in samples.samples for name in FILES if (file := getattr(sample, name))}
    if os.path.realpath(plot) in files:
        raise ValueError(f"--plot is {plot}, which is a file of a sample; give another file")


def _scored(
    samples: SampleList, scorer: Scorer, options: SensitivityOptions
) -> tuple[list[SampleResult], SampleScores]:
    """Results of all samples with the given masks, and all scores of those that could be loaded."""
    from tqdm import tqdm

    results: list[SampleResult] = []
    scored: list[Sample] = []
    given: dict[str, list[float]] = {score: [] for score in MASC_SCORES}
    perturbed: dict[str, dict[Perturbation, list[float]]] = {
        score: {each: [] for each in options.perturbations if score == "pf" or each.kind != "transferred"}
        for score in MASC_SCORES
    }
    numbers = range(len(samples.samples))
    processing = scorer.backbone.checkpoint.processing
    with errors_of_the_machine(), tqdm(total=len(numbers), unit="sample", disable=options.quiet) as bar:
        for batch in loaded_batches(samples.samples, numbers, processing, scorer.run):
            # Each sample needs all of its inputs: moves of CP and of PF are means over the same samples.
            batch = [_complete(loaded) for loaded in batch]
            pairs = [loaded for loaded in batch if isinstance(loaded, LoadedSample)]
            found: dict[int, SampleResult] = {}
            if pairs:
                moved = mask_sensitivity(
                    **_arguments(pairs), **scorer.settings, perturbations=options.perturbations, seed=options.seed
                )
                scored += [pair.sample for pair in pairs]
                for score, values_B, changed in (("cp", moved.cp_B, moved.cp), ("pf", moved.pf_B, moved.pf)):
                    given[score] += values_B.tolist()
                    for each, wrong_B in changed.items():
                        perturbed[score][each] += wrong_B.tolist()
                for pair, cp, pf in zip(pairs, moved.cp_B.tolist(), moved.pf_B.tolist(), strict=True):
                    found[pair.number] = SampleResult(
                        pair.number, {"cp": cp, "pf": pf}, {}, noticed=noticed_files(pair)
                    )
            results += [loaded if isinstance(loaded, SampleResult) else found[loaded.number] for loaded in batch]
            bar.update(len(batch))
    return results, SampleScores(
        scored,
        {score: np.array(values) for score, values in given.items()},
        {score: {each: np.array(values) for each, values in parts.items()} for score, parts in perturbed.items()},
    )


def _complete(loaded: Loaded) -> Loaded:
    """A sample that has all inputs, or the result of one that fails."""
    if isinstance(loaded, LoadedSample) and loaded.lacks:
        reasons = "; ".join(dict.fromkeys(loaded.lacks.values()))
        return SampleResult(loaded.number, dict.fromkeys(MASC_SCORES), {}, error=reasons)
    return loaded


def _arguments(pairs: Sequence[LoadedSample]) -> dict[str, Any]:
    references = [pair.reference for pair in pairs if pair.reference is not None]
    return {
        "generated_images": ImageBatch(tuple(pair.generated.pixels for pair in pairs)),
        "generated_masks": MaskBatch(tuple(pair.generated.mask for pair in pairs if pair.generated.mask is not None)),
        "reference_images": ImageBatch(tuple(reference.pixels for reference in references)),
        "reference_masks": MaskBatch(tuple(reference.mask for reference in references if reference.mask is not None)),
        "prompts": [pair.sample.prompt or "" for pair in pairs],
        "subjects": [pair.sample.subject for pair in pairs],
    }


def _score_row(sample: Sample, number: int, scores: SampleScores) -> dict[str, Any]:
    """All scores of one sample; None where undefined."""

    def value(values_N: Any) -> float | None:
        return None if math.isnan(values_N[number]) else float(values_N[number])

    return {
        "sample_id": sample.sample_id,
        "method": sample.method,
        "concept": sample.concept,
        "key": sample.key,
        **{
            score: {"given": value(scores.given[score])}
            | {each.name: value(values_N) for each, values_N in scores.perturbed[score].items()}
            for score in MASC_SCORES
        },
    }
