"""``masc-metrics dreambench-plus`` and ``orida``: the paper's two benchmarks, from their folders to their figures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from masc_metrics.bench.datasets import dreambench_plus, orida
from masc_metrics.bench.outcome import Outcome
from masc_metrics.bench.run_folder import write_whole
from masc_metrics.bench.run_options import add_run_options, positive, request_of
from masc_metrics.bench.sample import Sample
from masc_metrics.bench.samples import SampleList
from masc_metrics.bench.score_command import ROWS_FAILED, UNUSABLE, check_out, fail, run
from masc_metrics.bench.score_file import is_device

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_TOLD = 40  # lines of what is missing; the others are counted

_LARGEST_WIDTH = 1152  # features of a patch, in the largest SigLIP2 checkpoint that is in use


def add_dreambench_plus(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "dreambench-plus",
        help="score methods on DreamBench++",
        description="Scores generated pictures in the layout of DreamBench++, see docs/benchmarks.md. A pair is left "
        "out when either mask marks at most 5 % of its pixels; prompt following leaves out the style collections.",
    )
    parser.add_argument("root", type=Path, help="folder with images, captions, samples and masks")
    parser.add_argument("--method", action="append", default=[], help="short or folder name; repeatable [all there]")
    parser.add_argument("--masks", type=Path, help="folder with refs and samples [ROOT/masks]")
    parser.add_argument(
        "--pf-without",
        choices=dreambench_plus.PF_WITHOUT,
        default=dreambench_plus.PF_WITHOUT[0],
        help="what prompt following leaves out [%(default)s, as in the paper]",
    )
    parser.add_argument("--allow-missing", action="store_true", help="score what is there of an incomplete folder")
    add_run_options(parser)
    parser.set_defaults(run=_run_dreambench_plus)


def add_orida(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "orida",
        help="tell same from other subjects on ORIDa",
        description="Concept preservation of pairs of real pictures, of one subject and of two, and the AUC with which "
        "it tells them apart, see docs/benchmarks.md.",
    )
    parser.add_argument("root", type=Path, help="folder that holds train, or train itself")
    parser.add_argument("--subjects", type=positive, default=50, help="stop at so many [%(default)s]")
    parser.add_argument("--backgrounds", type=positive, default=10, help="pictures of a subject [%(default)s]")
    parser.add_argument("--cross-pairs", type=positive, default=2250, help="pairs of two subjects [%(default)s]")
    add_run_options(parser, scores=("cp",))
    parser.set_defaults(run=_run_orida)


def _run_dreambench_plus(options: argparse.Namespace) -> int:
    try:
        check_out(options.out, options.root)
        found = dreambench_plus.read_dreambench_plus(options.root, options.method, options.masks, options.pf_without)
        _tell_missing(found.missing)
        if found.missing and not options.allow_missing:
            raise ValueError(f"{options.root} is incomplete; complete it, or give --allow-missing")
    except (OSError, ValueError, ImportError) as error:
        return fail(UNUSABLE, error)
    request = request_of(options, min_coverage=dreambench_plus.MIN_COVERAGE)
    return run(SampleList(found.samples, options.root), request, options, str(options.root))


def _run_orida(options: argparse.Namespace) -> int:
    try:
        check_out(options.out, options.root)
        if "pf" in options.scores:
            raise ValueError("--scores names pf, but ORIDa has no prompts; leave it out")
        found = orida.read_orida(
            options.root,
            subjects=options.subjects,
            backgrounds=options.backgrounds,
            cross_pairs=options.cross_pairs,
        )
    except (OSError, ValueError, ImportError) as error:
        return fail(UNUSABLE, error)
    for line in (*found.skipped, *found.notes):
        print(f"{options.root}: {line}", file=sys.stderr)
    # Every picture is in many pairs, which no order brings together: with all features kept each is encoded once.
    pictures = {file for sample in found.samples for file in (sample.generated_image, sample.reference_image)}
    features = len(pictures) * options.max_num_patches * _LARGEST_WIDTH * (4 if options.dtype == "float32" else 2)
    scores: dict[str, list[tuple[str, float | None]]] = {name: [] for name in options.scores}

    def look_at(sample: Sample, outcome: Outcome) -> None:
        for name in options.scores:
            scores[name].append((sample.category, outcome.scores.get(name)))

    request = request_of(options, cache_bytes=features)
    code = run(SampleList(found.samples, options.root), request, options, str(options.root), look_at)
    if code not in (0, ROWS_FAILED) or not any(scores.values()):
        return code
    figures = {name: orida.same_against_cross(found) for name, found in scores.items()}
    for name, figure in figures.items():
        print(f"{name.upper()}  AUC {figure.auc:.4f}  {figure.same} pairs of one subject against {figure.cross} of two")
    if not is_device(options.out):
        said = {name: asdict(figure) for name, figure in figures.items()}
        write_whole(options.out.with_name(f"{options.out.stem}.auc.json"), (json.dumps(said, indent=2) + "\n").encode())
    return code


def _tell_missing(missing: Sequence[str]) -> None:
    for line in missing[:_TOLD]:
        print(f"missing: {line}", file=sys.stderr)
    if len(missing) > _TOLD:
        print(f"missing: {len(missing) - _TOLD} more", file=sys.stderr)
