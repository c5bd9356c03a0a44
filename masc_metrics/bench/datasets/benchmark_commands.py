"""``masc-metrics dreambench-plus`` and ``orida``: the paper's two benchmarks, from their folders to their figures."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import asdict, replace

from masc_metrics.bench.agreement.statistics import none_if_nan
from masc_metrics.bench.commands import DreamBenchPlusInput, OridaInput
from masc_metrics.bench.datasets import dreambench_plus, orida
from masc_metrics.bench.run import MASK_SOURCES, Run, inputs_of
from masc_metrics.bench.run_folder import write_json
from masc_metrics.bench.sample_list import SampleList
from masc_metrics.bench.score_command import check_out, score_list
from masc_metrics.bench.tables import printable
from masc_metrics.bench.terminal import UNUSABLE, fail

_SHOWN = 20  # missing files printed one by one

_LARGEST_WIDTH = 1152  # of a patch's features, in the largest SigLIP2 checkpoint in use


def dreambench_plus_scores(source: DreamBenchPlusInput, run: Run) -> int:
    """Run ``masc-metrics dreambench-plus``; returns the exit code."""
    try:
        check_out(run, source.root)
        tree = dreambench_plus.read_dreambench_plus(
            source.root,
            source.method,
            source.masks,
            source.pf_without,
            mask_source=run.mask_source,
            prompt_following="pf" in run.scores,
        )
        for path, purpose in tree.missing[:_SHOWN]:
            print(printable(f"missing: {path}: {purpose}"), file=sys.stderr)
        if len(tree.missing) > _SHOWN:
            counts = Counter(purpose for _, purpose in tree.missing)
            listing = ", ".join(f"{count} x {purpose}" for purpose, count in counts.items())
            print(f"missing in all: {listing}", file=sys.stderr)
        if tree.missing and not source.allow_missing:
            raise ValueError(f"{source.root} is incomplete; complete it, or give --allow-missing")
        for note in tree.notes:
            print(printable(f"{source.root}: {note}"), file=sys.stderr)
    except (OSError, ValueError, ImportError) as error:
        return fail(UNUSABLE, error)
    return score_list(SampleList(tree.samples, source.root), run).exit_code


def orida_scores(source: OridaInput, run: Run) -> int:
    """Run ``masc-metrics orida``; returns the exit code."""
    try:
        check_out(run, source.root)
        for score in run.scores:
            if "prompt" in inputs_of({"pf": "pf"}.get(score, score)):
                raise ValueError(f"--scores names {score}, but ORIDa has no prompts; leave it out")
        if run.mask_source != MASK_SOURCES[0]:
            raise ValueError(f"--mask-source is {run.mask_source}, but ORIDa's pairs have their masks; leave it out")
        if run.gallery:
            raise ValueError("--gallery is given, but ORIDa's pairs compare subjects themselves; leave it out")
        if "mutual-recall" in run.aggregation:
            raise ValueError(
                "--aggregation names mutual-recall, which needs two masks; ORIDa's pairs have one, leave it out"
            )
        pairs = orida.read_orida(
            source.root, subjects=source.subjects, backgrounds=source.backgrounds, cross_pairs=source.cross_pairs
        )
    except (OSError, ValueError, ImportError) as error:
        return fail(UNUSABLE, error)
    for line in (*pairs.skipped, *pairs.notes):
        print(printable(f"{source.root}: {line}"), file=sys.stderr)
    if run.cache_mib is None:
        run = replace(run, cache_mib=_mib_of_all_features(pairs, run))
    finished = score_list(SampleList(pairs.samples, source.root), run)
    if not finished.table_written:
        return finished.exit_code
    results = {name: orida.same_against_cross(run.out, name) for name in run.columns}
    for name, result in results.items():
        reason = "; an AUC needs at least two of each" if math.isnan(result.auc) else ""
        pairs_of = f"{result.same} pairs of one subject against {result.cross} of two"
        print(f"{name.upper()}  AUC {result.auc:.4f}  {pairs_of}{reason}")
        print(
            f"{name.upper()}  {result.same_mean:.4f} (deviation {result.same_deviation:.4f}) against "
            f"{result.cross_mean:.4f} ({result.cross_deviation:.4f}), difference {result.difference:.4f}, of scores "
            f"scaled to [0, 1] {result.scaled_difference:.4f}"
        )
    write_json(
        run.out.with_name(f"{run.out.stem}.auc.json"),
        {
            name: {figure: none_if_nan(value) for figure, value in asdict(result).items()}
            for name, result in results.items()
        },
    )
    return finished.exit_code


def _mib_of_all_features(pairs: orida.Orida, run: Run) -> int:
    """Every image is in many pairs, in no order that puts them together: keep the features of all."""
    images = {file for sample in pairs.samples for file in (sample.generated_image, sample.reference_image)}
    features = len(images) * run.max_num_patches * _LARGEST_WIDTH * run.torch_dtype.itemsize
    return -(-features // 2**20)
