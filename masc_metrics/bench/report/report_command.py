"""``masc-metrics report``: a table of scores as one HTML file, with the samples that show where a model is worse."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.bench.commands import ReportOptions
from masc_metrics.bench.compare import Comparison, MethodScores, compare_all, methods_of
from masc_metrics.bench.distributed import fastest_device
from masc_metrics.bench.made_masks import MaskMaker
from masc_metrics.bench.report.page import MOST_COMPARED, jinja, write_page
from masc_metrics.bench.report.pictures import Illustrator, Pictures
from masc_metrics.bench.report.rows import Group, ScoredTable, chosen_groups, read_table
from masc_metrics.bench.run import Run, SegmenterOptions
from masc_metrics.bench.run_folder import check_html_file
from masc_metrics.bench.runner import summary_of
from masc_metrics.bench.segmenting import checkpoints_of
from masc_metrics.bench.tables import replacing
from masc_metrics.bench.terminal import NO_CHECKPOINT, UNUSABLE, fail
from masc_metrics.precision import check_device
from masc_metrics.reading import checkpoint_version
from masc_metrics.segmenters import Segmenter
from masc_metrics.settings import SEGMENTERS

PICTURED_ROWS = 400
"""In a table of at most as many samples every one has pictures, in a longer one only the chosen samples."""


def report(options: ReportOptions) -> int:
    """Run ``masc-metrics report``; returns the exit code."""
    try:
        check_html_file(options.out, [options.scores])
        jinja()
        summary = _summary(options.scores)
        table = read_table(options.scores, list(summary.get("undefined", {})))
        methods, comparisons = _compared(table, options.a)
        groups = chosen_groups(table, options.samples)
        settings = summary.get("settings", {})
        if options.maps and not settings:
            raise ValueError(
                f"{summary_of(options.scores)} is missing, which holds the settings that maps are made with; give "
                "--maps 0 for a report without maps"
            )
        device = check_device(options.device or fastest_device()) if options.maps else None
    except (OSError, ValueError, ImportError) as error:
        return fail(UNUSABLE, error)
    try:
        run = _run(settings, options)
        maker = None if device is None else MaskMaker(run, _backbone(settings, run, device))
        if maker is not None and maker.run.mask_source in SEGMENTERS:
            maker = replace(maker, segmenter=_segmenter(settings, maker))
    except (OSError, ValueError, ImportError) as error:
        return fail(NO_CHECKPOINT, ValueError(f"{error}; or give --maps 0 for a report without maps"))
    illustrator = Illustrator(table, run, maker)
    try:
        with replacing(options.out) as stream:
            pictures = _pictures(illustrator, groups, options)
            write_page(stream, table, methods, comparisons, groups, pictures, summary)
    except OSError as error:
        return fail(UNUSABLE, error)
    print(f"report: {options.out} ({options.out.stat().st_size / 1e6:.1f} MB)")
    return 0


def _summary(scores: Path) -> dict[str, Any]:
    """The summary next to a table; empty if there is none."""
    file = summary_of(scores)
    if not file.exists():
        return {}
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}; score again, or remove it and give --maps 0") from error
    if not isinstance(summary, dict) or not {"settings", "undefined"} <= summary.keys():
        raise ValueError(f"{file} is not the summary of a run; score again, or remove it and give --maps 0")
    return summary


def _compared(table: ScoredTable, a: str | None) -> tuple[list[MethodScores], Sequence[Comparison]]:
    methods, scores = methods_of({table.file: table.rows}, table.scores)
    if a is None and not 2 <= len(methods) <= MOST_COMPARED:
        return methods, ()
    try:
        return methods, compare_all(methods, scores, a)
    except ValueError:
        if a is not None:
            raise
        return methods, ()  # no samples can be paired


def _run(settings: Mapping[str, Any], options: ReportOptions) -> Run:
    """What the pictures of the run's samples depend on."""
    known = {
        name: settings[name]
        for name in ("model", "revision", "dtype", "max_num_patches", "reference_reduction", "mask_source")
        if name in settings
    }
    return Run(
        options.scores,
        cache_dir=options.cache_dir or settings.get("cache_dir"),
        local_files_only=options.local_files_only,
        **known,
    )


def _segmenter(settings: Mapping[str, Any], maker: MaskMaker) -> Segmenter:
    """The segmenter of the run.

    Raises:
        OSError: if a checkpoint is not available.
        ValueError: if it is not one that the run used.
        ImportError: if the installed transformers is too old.
    """
    stored = settings["segmenter"]
    names = [*stored["checkpoints"], None]  # that of the text first
    chosen = SegmenterOptions(checkpoint=names[0], mask_checkpoint=names[1], threshold=stored["threshold"])
    segmenter = replace(maker.run, segmenter=chosen).load_segmenter(maker.backbone.device)
    assert segmenter is not None
    found = checkpoints_of(segmenter)
    for name, used in stored["checkpoints"].items():
        _check_version(name, found[name], used)
    return segmenter


def _backbone(settings: Mapping[str, Any], run: Run, device: torch.device) -> SigLIP2Backbone:
    """The backbone of the run.

    Raises:
        OSError: if the checkpoint is not available.
        ValueError: if it is not the one that the run used.
    """
    backbone = run.load_backbone(device)
    checkpoint = backbone.checkpoint
    _check_version(run.model, checkpoint_version(checkpoint.folder, checkpoint.commit), settings["checkpoint"])
    return backbone


def _check_version(name: str, found: str, used: str) -> None:
    if found != used:
        raise ValueError(f"the checkpoint {name} is {found}, but the run used {used}; score again")


def _pictures(illustrator: Illustrator, groups: Sequence[Group], options: ReportOptions) -> Iterator[Pictures]:
    """Pictures of the chosen samples, and in a short table of all samples; each is drawn when it is written."""
    from tqdm import tqdm

    chosen = list(dict.fromkeys(_in_turn([[number for each in group.samples for number in each] for group in groups])))
    full, with_maps = {*chosen}, {*chosen[: options.maps]}
    rows = len(illustrator.table.rows)
    rest = sorted({*range(rows)} - full) if rows <= PICTURED_ROWS else []
    # Samples of one reference follow each other, so that it is read once.
    chosen.sort(key=lambda number: illustrator.table.text(number, "reference_image"))
    changed = missing = 0
    for number in tqdm([*chosen, *rest], unit="sample", disable=options.quiet):
        found = illustrator.full(number, maps=number in with_maps) if number in full else illustrator.small(number)
        changed += any("have changed since" in note for note in found.notes)
        missing += "generated" not in found.images
        yield found
    if missing:
        print(
            f"masc-metrics: {missing} of {len(chosen) + len(rest)} samples have no picture, because their files cannot "
            f"be read; files are relative to {options.scores}",
            file=sys.stderr,
        )
    if changed:
        print(
            f"masc-metrics: {changed} of {len(with_maps)} samples have another CP now than in {options.scores}: their "
            "files or the network have changed since; the report marks them",
            file=sys.stderr,
        )


def _in_turn(lists: Sequence[Sequence[int]]) -> Iterator[int]:
    """The first of each list, then the second of each, and so on, so that a limit leaves something of each."""
    for position in range(max(map(len, lists), default=0)):
        yield from (each[position] for each in lists if position < len(each))
