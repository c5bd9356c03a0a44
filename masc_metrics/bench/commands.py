"""The commands that read and write files: their options, and where each is run.

Options are apart from what they start, so that ``--help`` imports no torch.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from masc_metrics.bench.options import (
    Command,
    non_negative_integer,
    option,
    option_of,
    options_of,
    positive_integer,
)
from masc_metrics.bench.run import MASC_SCORES, Run, SegmenterOptions
from masc_metrics.bench.sample import COLUMNS, GROUPS
from masc_metrics.settings import (
    DEFAULT_SEGMENTER,
    DEFAULT_SEGMENTER_BATCH_SIZE,
    SEGMENTERS,
)

if TYPE_CHECKING:
    from masc_metrics.masks import Perturbation


@dataclass(frozen=True, slots=True)
class MasksOptions:
    """Options of ``masc-metrics masks``.

    The options without an entry here are those of :class:`masc_metrics.bench.run.Run`.

    Attributes:
        samples: CSV, JSON Lines or Parquet file that lists the samples.
        out: folder for masks and the completed list; created if it does not exist.
        segmenter: sam3, clipseg, grounded_sam2 or owlv2_sam2.
        networks: options of the segmenter.
        batch_size: images segmented at a time.
        escape_formulas: write the completed list as score --escape-formulas writes its table; not for Parquet.
    """

    samples: Path = option(type=Path, positional=True)
    out: Path = option(type=Path, metavar="FOLDER")
    segmenter: str = option(DEFAULT_SEGMENTER, choices=SEGMENTERS)
    networks: SegmenterOptions = options_of(SegmenterOptions)
    dtype: str = option_of(Run, "dtype")
    device: str | None = option_of(Run, "device")
    batch_size: int = option(DEFAULT_SEGMENTER_BATCH_SIZE, type=positive_integer, metavar="N")
    cache_dir: str | None = option_of(Run, "cache_dir")
    local_files_only: bool = option_of(Run, "local_files_only")
    quiet: bool = option_of(Run, "quiet")
    escape_formulas: bool = option(False)


MASKS = Command(
    name="masks",
    summary="make the masks that a sample list lacks",
    description="Segment the reference and generated images of a list whose cells reference_mask or generated_mask are "
    "empty or missing. What is marked is the cell of the column noun, or, without one, of subject. Writes the masks as "
    "PNG files, a JSON file of settings, score and coverage beside each, the completed list, and contact sheets that "
    "show the most doubtful masks first. Masks that an earlier run made with equal settings are kept. Exit codes: 0 "
    "success, 1 checkpoint not available, 2 arguments or list unusable, 3 some masks failed, 130 interrupted.",
    options=(MasksOptions,),
    run="masc_metrics.bench.masks_command:make_masks",
)


@dataclass(frozen=True, slots=True)
class ScoreInput:
    """Input of ``masc-metrics score``.

    Attributes:
        samples: CSV, TSV, JSON Lines, JSON or Parquet file that lists the samples, or a folder of them.
    """

    samples: Path = option(type=Path, positional=True)


SCORE = Command(
    name="score",
    summary="score the samples of a list",
    description=f"Score the samples of a CSV, JSON Lines or Parquet file with the columns {', '.join(COLUMNS)} and, "
    f"optionally, sample_id, {', '.join(GROUPS)}. Paths are relative to the file. Or score a folder laid out as "
    "CONCEPT/reference.png and CONCEPT/METHOD/NAME.png. Writes one row per sample, and a summary next to it. An "
    "interrupted run continues when it is started again. Exit codes: 0 success, 1 checkpoint not available, 2 "
    "arguments or list unusable, 3 some rows failed, 130 interrupted.",
    options=(ScoreInput, Run),
    run="masc_metrics.bench.score_command:score",
)


_DROPOUT = (0.1, 0.2)


def _pixels(text: str) -> tuple[int, ...]:
    found = tuple(dict.fromkeys(positive_integer(part.strip()) for part in text.split(",")))
    return tuple(sorted(found))


def _score_and_ratings(text: str) -> tuple[str | None, Path]:
    """Score and path of ``[score=]path``; a path that exists may hold an equals sign."""
    score, equals, path = text.partition("=")
    if not equals or Path(text).exists():
        return None, Path(text)
    if score not in MASC_SCORES or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not [SCORE=]RATINGS with SCORE one of {', '.join(MASC_SCORES)}")
    return score, Path(path)


@dataclass(frozen=True, slots=True)
class SensitivityOptions:
    """Options of ``masc-metrics sensitivity``.

    The options without an entry here are those of :class:`masc_metrics.bench.run.Run`.

    Attributes:
        samples: CSV, TSV, JSON Lines, JSON or Parquet file that lists the samples with both masks, or a folder of them.
        out: JSON file to write all results to.
        plot: PNG file to draw the moves into; needs matplotlib.
        ratings: human ratings, to report Krippendorff's alpha with and without wrong masks, as agreement computes it by
            the protocol pooled: data_human_rating of DreamBench++, or cp=TABLE or pf=TABLE, a table with the columns
            method, key and one per group of raters; repeatable.
        group: column or folder of the ratings that is a group of raters; repeatable (default: all but method and key).
        pixels: comma-separated amounts of dilation, erosion, jitter and shift, in pixels of the masks.
        limit: score only N samples of the list, drawn with --seed (default: all).
        seed: random seed of the perturbations, of --limit and of the intervals of alpha.
        workers: image-loading worker processes.
        cache_mib: memory for features of images that recur, in MiB (default: 512).
    """

    samples: Path = option(type=Path, positional=True)
    out: Path = option(type=Path, metavar="FILE.json")
    plot: Path | None = option(None, type=Path, metavar="FILE.png")
    ratings: tuple[tuple[str | None, Path], ...] = option(
        (), type=_score_and_ratings, action="append", metavar="[SCORE=]RATINGS"
    )
    group: tuple[str, ...] = option((), action="append", metavar="NAME")
    pixels: tuple[int, ...] = option((2, 5, 10, 20), type=_pixels, metavar="N[,N]")
    limit: int | None = option(None, type=positive_integer, metavar="N")
    seed: int = option(0, type=non_negative_integer, metavar="N")
    model: str = option_of(Run, "model")
    revision: str | None = option_of(Run, "revision")
    dtype: str = option_of(Run, "dtype")
    max_num_patches: int = option_of(Run, "max_num_patches")
    device: str | None = option_of(Run, "device")
    workers: int = option_of(Run, "workers")
    batch_size: int = option_of(Run, "batch_size")
    cache_mib: int | None = option_of(Run, "cache_mib")
    cache_dir: str | None = option_of(Run, "cache_dir")
    local_files_only: bool = option_of(Run, "local_files_only")
    quiet: bool = option_of(Run, "quiet")

    @property
    def run(self) -> Run:
        """The same settings, as everything that scores takes them."""
        shared = {item.name for item in fields(self)} & {item.name for item in fields(Run)}
        return Run(**{name: getattr(self, name) for name in shared})

    @property
    def perturbations(self) -> tuple[Perturbation, ...]:
        """What is made wrong with the masks."""
        from masc_metrics.masks import PIXEL_KINDS, Perturbation

        return (
            *(Perturbation(kind, amount) for kind in PIXEL_KINDS for amount in self.pixels),
            *(Perturbation("dropout", share) for share in _DROPOUT),
            Perturbation("bounding-box"),
            Perturbation("transferred"),
        )


SENSITIVITY = Command(
    name="sensitivity",
    summary="tell how much wrong masks matter",
    description="Score the samples of a list with its masks and with wrong ones: dilated, eroded, jittered, shifted, "
    "with holes, bounding boxes, and masks transferred from the references. Prints for each kind how far CP (wrong "
    "reference masks) and PF (wrong generated masks) move, and whether the ranking of the methods changes; every image "
    "is encoded once. Exit codes: 0 success, 1 checkpoint not available, 2 arguments or list unusable, 3 some rows "
    "failed, 130 interrupted.",
    options=(SensitivityOptions,),
    run="masc_metrics.bench.sensitivity.sensitivity_command:sensitivity",
)


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """Options of ``masc-metrics compare``.

    Attributes:
        scores: tables of scores, as the scoring commands write them. Rows without a method are named after their file.
        a: a method to compare; without --b, with every other method (default: every pair of methods).
        b: the method to compare it with.
        score: comma-separated columns to compare (default: all scores that every table has).
        out: JSON file to write.
    """

    scores: tuple[Path, ...] = option(type=Path, positional=True, nargs="+", metavar="SCORES")
    a: str | None = option(None, metavar="METHOD")
    b: str | None = option(None, metavar="METHOD")
    score: str | None = option(None)
    out: Path | None = option(None, type=Path, metavar="FILE.json")


COMPARE = Command(
    name="compare",
    summary="tell which of several methods is better",
    description="Compare methods by the differences of paired samples: the same concept, key (else prompt) and seed. "
    "Prints each method's means, and for each pair of methods and score the difference, its 95 % interval over "
    "concepts, p values (also corrected by Holm's method for all comparisons shown), and the share of pairs won.",
    options=(CompareOptions,),
    run="masc_metrics.bench.compare:compare_tables",
)


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Options of ``masc-metrics report``.

    The options without an entry here are those of :class:`masc_metrics.bench.run.Run`.

    Attributes:
        scores: table of scores, as the scoring commands write it, with its summary next to it.
        out: HTML file to write.
        samples: number of samples in each list of the worst, the best, and those on which methods differ most.
        maps: draw match maps and background maps of at most N samples, with the run's checkpoint and settings; 0
            needs no checkpoint.
        a: compare every other method with this one (default: every pair of methods).
        cache_dir: folder for downloaded checkpoints (default: that of the run).
    """

    scores: Path = option(type=Path, positional=True)
    out: Path = option(type=Path, metavar="FILE.html")
    samples: int = option(8, type=positive_integer, metavar="N")
    maps: int = option(60, type=non_negative_integer, metavar="N")
    a: str | None = option(None, metavar="METHOD")
    device: str | None = option_of(Run, "device")
    cache_dir: str | None = option_of(Run, "cache_dir")
    local_files_only: bool = option_of(Run, "local_files_only")
    quiet: bool = option_of(Run, "quiet")


REPORT = Command(
    name="report",
    summary="show where methods differ, in one HTML file",
    description="Write a table of scores as one HTML file that opens in any browser and loads nothing: means and "
    "paired comparisons of the methods; the worst and the best samples, and those on which methods differ most, with "
    "their images, masks, match maps and background maps; all samples, to sort and filter; the run's settings. Exit "
    "codes: 0 success, 1 checkpoint not available or another than the run's, 2 arguments or table unusable.",
    options=(ReportOptions,),
    run="masc_metrics.bench.report.report_command:report",
)


PfWithout = Literal["style-collections", "style-prompts", "both", "nothing"]
PF_WITHOUT: tuple[PfWithout, ...] = get_args(PfWithout)

DREAMBENCH_PLUS_MIN_COVERAGE = 0.05
"""The paper's filter: a pair is skipped if either mask has at most 5 % non-zero pixels at native size."""


@dataclass(frozen=True, slots=True)
class DreamBenchPlusInput:
    """Input of ``masc-metrics dreambench-plus``.

    Attributes:
        root: folder with images, captions, samples and masks.
        method: short name or folder name of a method; repeatable (default: all in samples).
        masks: folder with refs and samples (default: ROOT/masks).
        pf_without: samples that prompt following leaves out; the paper leaves out style-collections.
        allow_missing: score an incomplete folder.
    """

    root: Path = option(type=Path, positional=True)
    method: tuple[str, ...] = option((), action="append")
    masks: Path | None = option(None, type=Path, metavar="FOLDER")
    pf_without: PfWithout = option(PF_WITHOUT[0], choices=PF_WITHOUT)
    allow_missing: bool = option(False)


DREAMBENCH_PLUS = Command(
    name="dreambench-plus",
    summary="score methods on DreamBench++",
    description="Score generated images in the folder layout of DreamBench++, see docs/benchmarks.md. A pair is "
    "skipped if either mask marks at most --min-coverage of its pixels. Exit codes: as of score.",
    options=(DreamBenchPlusInput, Run),
    run="masc_metrics.bench.datasets.benchmark_commands:dreambench_plus_scores",
    defaults={"min_coverage": DREAMBENCH_PLUS_MIN_COVERAGE},
)


@dataclass(frozen=True, slots=True)
class OridaInput:
    """Input of ``masc-metrics orida``.

    Attributes:
        root: folder that holds train, or train itself.
        subjects: largest number of subjects.
        backgrounds: images per subject.
        cross_pairs: pairs of two subjects (default: as many as of one, which is 2250 in full).
    """

    root: Path = option(type=Path, positional=True)
    subjects: int = option(50, type=positive_integer, metavar="N")
    backgrounds: int = option(10, type=positive_integer, metavar="N")
    cross_pairs: int | None = option(None, type=positive_integer, metavar="N")


ORIDA = Command(
    name="orida",
    summary="separate same from different subjects on ORIDa",
    description="Score pairs of photographs, of one subject and of two, by concept preservation, and compute the AUC "
    "of the first against the second, see docs/benchmarks.md. Exit codes: as of score.",
    options=(OridaInput, Run),
    run="masc_metrics.bench.datasets.benchmark_commands:orida_scores",
    defaults={"scores": ("cp",)},
)


RATED_SCORES = ("cp", "pf")
"""Scores that people rated, in the order of a ``[cp, pf]`` pair."""

SEEDS = ("mean", "last")
"""How several numbers of one (method, key) are combined."""

PROTOCOLS = ("pooled", "dreambench-plus")
REPLICATES = 1000
"""Number of resamples unless another is asked for."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))


@dataclass(frozen=True, slots=True)
class AgreementOptions:
    """Options of ``masc-metrics agreement``.

    Attributes:
        scores: files or folders of scores, each as [NAME=]PATH: CSV or Parquet with the columns method, key and the
            scores, or a folder of <method>.json as of DreamBench++. NAME:judge=PATH is a judge that rates 0..4, whose
            ratings are divided by 4; so are folders in data_gpt_rating and data_human_rating. All other scores are
            scaled by their range. With --protocol dreambench-plus one NAME may be repeated, once per run.
        ratings: data_human_rating of DreamBench++, or a table (CSV, Parquet, JSON Lines) with the columns method, key
            and one per group of raters.
        score: score that people rated.
        column: further column of the score files to use as a scorer; repeatable.
        group: column or folder of the ratings that is a group of raters; repeatable (default: all but method and key).
        protocol: protocol of the analysis.
        seeds: how several seeds of one key are combined; the last is that of the last file name, as text.
        keys_of: comma-separated scorers whose common keys are used, for the other scorers as far as they have them, and
            whose range is over these keys, rated or not; only for --protocol pooled (default: the keys that all scorers
            and groups have).
        replicates: number of bootstrap resamples.
        seed: random seed of the resamples.
        compare: two scorers to test against each other; repeatable (default: both, if there are two).
        out: JSON file to write all results to.
        without_styles: leave out the collections style_* (default for pf by the protocol pooled).
        with_styles: keep the collections style_* (default otherwise).
    """

    scores: tuple[str, ...] = option(positional=True, nargs="+", metavar="SCORES")
    ratings: Path = option(positional=True, type=Path, metavar="RATINGS")
    score: str = option(choices=RATED_SCORES)
    column: tuple[str, ...] = option((), action="append", metavar="NAME")
    group: tuple[str, ...] = option((), action="append", metavar="NAME")
    protocol: str = option(PROTOCOLS[0], choices=PROTOCOLS)
    seeds: str = option(SEEDS[0], choices=SEEDS)
    keys_of: tuple[str, ...] = option((), type=_names, metavar="NAME[,NAME]")
    replicates: int = option(REPLICATES, type=non_negative_integer, metavar="N")
    seed: int = option(0, type=non_negative_integer, metavar="N")
    compare: tuple[tuple[str, str], ...] = option((), action="append", nargs=2, metavar=("A", "B"))
    out: Path | None = option(None, type=Path, metavar="FILE.json")
    without_styles: bool = option(False)
    with_styles: bool = option(False)


AGREEMENT = Command(
    name="agreement",
    summary="agreement of scores with human ratings",
    description="Compute Krippendorff's alpha (interval level), Pearson's r, Spearman's rho, Kendall's tau-b and the "
    "AUC of high against low ratings, with bootstrap intervals over concepts, and paired tests of two scorers. "
    "Give options before SCORES or after RATINGS, not between. Exit codes: 0 success, 2 arguments or files unusable.",
    options=(AgreementOptions,),
    run="masc_metrics.bench.agreement.agreement_command:agree",
)
