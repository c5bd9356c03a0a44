"""The ``masc-metrics`` command: its sub-commands and exit codes.

Exit codes: 0 success; 1 the checkpoint is not available; 2 the arguments or the sample list are unusable, or memory,
the disk or another rank failed; 3 some rows failed, the others have scores; 130 interrupted, results so far are kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import masc_metrics
from masc_metrics.bench.commands import AGREEMENT, COMPARE, DREAMBENCH_PLUS, MASKS, ORIDA, REPORT, SCORE, SENSITIVITY
from masc_metrics.bench.options import (
    Command,
    add_command,
    expand_config,
    function_of,
    non_negative_integer,
    option,
    parse_options,
)
from masc_metrics.bench.parent import end_other_ranks, end_with_starter
from masc_metrics.bench.terminal import (
    INTERRUPTED,
    INTERRUPTED_LINE,
    NO_CHECKPOINT,
    UNUSABLE,
    control_c,
    fail,
    lasting_output,
)
from masc_metrics.settings import BUNDLED_MODEL, DEFAULT_MODEL


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    end_with_starter()
    with lasting_output(), control_c.handled():
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        except Exception:  # what an import has made of Ctrl-C
            if not control_c.received:
                raise
        except KeyboardInterrupt:  # while scoring, the command itself says where its results are kept
            pass
        end_other_ranks()
        print(INTERRUPTED_LINE, file=sys.stderr)
        exec("")  # else Python ends by a signal, with another exit code, if the exception has passed another exec
        return INTERRUPTED


def _run(arguments: Sequence[str]) -> int:
    commands = {
        command.name: command
        for command in (MASKS, SCORE, SENSITIVITY, COMPARE, REPORT, DREAMBENCH_PLUS, ORIDA, AGREEMENT, _DEMO, _PREFETCH)
    }
    parser = argparse.ArgumentParser(
        prog="masc-metrics",
        description="MaSC: concept preservation (CP) and prompt following (PF) of generated images.",
    )
    parser.add_argument("--version", action="version", version=masc_metrics.__version__)
    subparsers = parser.add_subparsers(title="commands", dest="command", required=True)
    for command in commands.values():
        add_command(subparsers, command)
    try:
        expanded = expand_config(arguments, commands)
    except (OSError, ValueError) as error:
        return fail(UNUSABLE, error)
    namespace = parser.parse_args(expanded)
    command = commands[namespace.command]
    function = function_of(command)
    control_c.at_once = False  # the command has something to say, or ranks to end
    try:
        return function(*parse_options(command, namespace))
    except (MemoryError, RuntimeError, ValueError, OSError) as error:
        from masc_metrics.precision import out_of_memory
        from masc_metrics.reading import CheckpointError

        if isinstance(error, CheckpointError):
            return fail(NO_CHECKPOINT, error)
        if control_c.received or not out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return fail(UNUSABLE, MemoryError(f"out of memory; close other programs, or give less at a time ({reason})"))


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Options of ``masc-metrics demo``.

    Attributes:
        out: PNG file to write.
        seed: random seed, >= 0 (default: that of the documentation).
        model: hub id or folder of a SigLIP2 checkpoint, or "tiny" for the bundled one.
    """

    out: Path = option(Path("masc-demo.png"), type=Path, metavar="FILE")
    seed: int | None = option(None, type=non_negative_integer, metavar="N")
    model: str = option(BUNDLED_MODEL)


@dataclass(frozen=True, slots=True)
class PrefetchOptions:
    """Options of ``masc-metrics prefetch``.

    Attributes:
        model: hub id of a SigLIP2 checkpoint.
        revision: branch, tag or commit of the checkpoint on the hub (default: the main branch).
        cache_dir: folder for downloaded checkpoints (default: the hub's cache).
    """

    model: str = option(DEFAULT_MODEL, positional=True)
    revision: str | None = option(None)
    cache_dir: str | None = option(None, metavar="FOLDER")


def download(options: PrefetchOptions) -> int:
    """Run ``masc-metrics prefetch``; returns the exit code."""
    from masc_metrics.checkpoint import CheckpointSource, prefetch

    try:
        print(prefetch(CheckpointSource.of(options.model, options.revision, options.cache_dir)))
    except (OSError, ValueError) as error:
        return fail(NO_CHECKPOINT, error)
    return 0


def demo(options: DemoOptions) -> int:
    """Run ``masc-metrics demo``; returns the exit code."""
    from masc_metrics.backbone import load_backbone
    from masc_metrics.bench.run_folder import check_png_file

    try:
        check_png_file("--out", options.out)
    except (OSError, ValueError) as error:  # OSError for an impossible file name
        return fail(UNUSABLE, error)
    from masc_metrics.demo import DEFAULT_SEED, demonstrate

    try:
        backbone = load_backbone(options.model).load(text_tower=True)
    except (OSError, ValueError) as error:
        return fail(NO_CHECKPOINT, error)
    demonstration = demonstrate(backbone, seed=DEFAULT_SEED if options.seed is None else options.seed)
    print(demonstration.table())
    try:
        demonstration.image.save(options.out, format="PNG")
    except OSError as error:
        return fail(UNUSABLE, error)
    print(f"\nImages with their scores, and the reference patches that match them: {options.out}")
    return 0


_DEMO = Command(
    name="demo",
    summary="show both metrics at work, offline and in seconds",
    description="Render subjects, damage them and their scenes in known ways, score them with the bundled checkpoint, "
    "print the means, and write every image with its scores and match map into one PNG file.",
    options=(DemoOptions,),
    run="masc_metrics.cli:demo",
)

_PREFETCH = Command(
    name="prefetch",
    summary="download a checkpoint ahead of time",
    description="Download a checkpoint for machines without internet, and print the folder to give as --model.",
    options=(PrefetchOptions,),
    run="masc_metrics.cli:download",
)
