"""``masc-metrics agreement``: options, text output and exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from masc_metrics.bench.agreement.protocols import PROTOCOLS, STATISTICS, agreement
from masc_metrics.bench.agreement.ratings import RATED_SCORES, SEEDS, Scores, read_ratings, read_scores
from masc_metrics.bench.agreement.report import Agreement, Estimate
from masc_metrics.bench.intervals import REPLICATES
from masc_metrics.bench.options import Command, non_negative_integer, option
from masc_metrics.bench.run_folder import check_json_file
from masc_metrics.bench.score_command import UNUSABLE, fail
from masc_metrics.bench.tables import printable, replacing, text_table

_JUDGE = ":judge"


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


def _agreement(options: AgreementOptions) -> int:
    try:
        _check_options(options)
        scorers = _read_scorers(options)
        names = list(dict.fromkeys(scorer.name for scorer in scorers))
        both = ((names[0], names[1]),) if len(names) == 2 else ()
        report = agreement(
            scorers,
            read_ratings(options.ratings, options.score, groups=options.group, seeds=options.seeds),
            score=options.score,
            protocol=options.protocol,
            with_styles=options.with_styles if options.with_styles or options.without_styles else None,
            keys_of=options.keys_of,
            compare=options.compare or both,
            replicates=options.replicates,
            seed=options.seed,
        )
        for line in _report_lines(report):
            print(printable(line))
        if options.out:
            with replacing(options.out) as stream:
                stream.write(report.to_json().encode())
    except (OSError, ValueError, ImportError) as error:
        return fail(UNUSABLE, error)
    return 0


AGREEMENT = Command(
    name="agreement",
    summary="agreement of scores with human ratings",
    description="Compute Krippendorff's alpha (interval level), Pearson's r, Spearman's rho, Kendall's tau-b and the "
    "AUC of high against low ratings, with bootstrap intervals over concepts, and paired tests of two scorers. "
    "Give options before SCORES or after RATINGS, not between. Exit codes: 0 success, 2 arguments or files unusable.",
    options=(AgreementOptions,),
    run=_agreement,
)


def _check_options(options: AgreementOptions) -> None:
    """Before minutes of reading: the report must be writable, and must not replace an input."""
    if options.with_styles and options.without_styles:
        raise ValueError("--with-styles and --without-styles exclude each other; give one of them")
    if options.out is not None:
        inputs = [_scorer(text)[2] for text in options.scores] + [options.ratings]
        check_json_file(options.out, inputs)


def _read_scorers(options: AgreementOptions) -> list[Scores]:
    columns = list(dict.fromkeys([options.score, *options.column]))
    scorers = []
    for text in options.scores:
        name, judge, source = _scorer(text)
        if not source.exists():
            raise ValueError(f"{source} does not exist; give SCORES as files or folders, NAME=PATH or NAME:judge=PATH")
        scorers += read_scores(source, options.score, columns=columns, name=name, seeds=options.seeds, judge=judge)
    unknown = set(options.column) - {scorer.column for scorer in scorers}
    if unknown:
        raise ValueError(f"--column is {min(unknown)!r}, which no score file has; check its spelling")
    return scorers


def _scorer(text: str) -> tuple[str | None, bool, Path]:
    """Name, whether it is a judge, and path of ``[NAME[:judge]=]path``; a path that exists may hold an equals sign."""
    label, equals, path = text.partition("=")
    if not equals or not label or Path(text).exists():
        return None, False, Path(text)
    return label.removesuffix(_JUDGE) or None, label.endswith(_JUDGE), Path(path)


def _report_lines(report: Agreement) -> Iterator[str]:
    keys_of = f" of {', '.join(report.keys_of)}" if report.keys_of else ""
    yield (
        f"{report.score.upper()}, {report.protocol}, {'with' if report.with_styles else 'without'} style collections: "
        f"{report.keys} keys{keys_of}, {report.concepts} concepts, {len(report.methods)} methods, key set "
        f"{report.key_set_sha256[:12]}"
    )
    yield ""
    header = ["scorer", *(f"alpha {group}" for group in report.groups), "alpha", "r", "rho", "tau", "AUC", "n", "range"]
    rows = [
        [
            scorer.name,
            *(_number(estimate.value) for estimate in scorer.alpha_to.values()),
            *(_with_interval(getattr(scorer, statistic)) for statistic in STATISTICS),
            str(scorer.keys),
            "{:.4g}..{:.4g}".format(*scorer.scaling_range) + (" (judge)" if scorer.scaled_like_people else ""),
        ]
        for scorer in report.scorers
    ]
    yield from text_table([header, *rows])
    yield f"ceiling: alpha {_with_interval(report.ceiling)} between {' and '.join(report.groups)}"
    for scorer in report.scorers:
        for statistic in STATISTICS:
            estimate: Estimate = getattr(scorer, statistic)
            if estimate.reason:
                yield f"{scorer.name}, {statistic}: {estimate.reason}"
    yield ""
    yield from text_table(list(_method_rows(report)))
    if report.differences:
        yield ""
        tests = [["difference", "of", "value", "p"]]
        for test in report.differences:
            p_value = "-" if test.p_value is None else f"{test.p_value:.3g}"
            tests.append([f"{test.a} - {test.b}", test.statistic, _with_interval(test.difference), p_value])
        yield from text_table(tests)
    yield ""
    for scorer in report.scorers:
        ends = (f"{end.end} {end.value:.4g} ({end.method}, {end.key})" for end in scorer.extremes if end.rank == 1)
        yield f"{scorer.name}: {', '.join(ends)}"
    for source in report.sources:
        if source["averaged_keys"]:
            yield (
                f"averaged in {source['path']}: {source['averaged_keys']} keys of {source['name']} have several "
                "numbers; their mean counts (--seeds last takes the last)"
            )
    for dropped in report.dropped:
        yield f"left out of {dropped.source}: {dropped.count} x {dropped.reason}"


def _method_rows(report: Agreement) -> Iterator[list[str]]:
    yield ["alpha by method", "people", *(scorer.name for scorer in report.scorers)]
    for rows in zip(*(scorer.methods for scorer in report.scorers), strict=True):
        cells = [_number(row.mean) + ("" if row.deviation is None else f" +- {row.deviation:.3f}") for row in rows]
        yield [rows[0].method, _number(rows[0].ceiling), *cells]
    count = len(report.methods)
    yield ["above 0", "", *(f"{scorer.positive_methods} of {count}" for scorer in report.scorers)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _with_interval(estimate: Estimate) -> str:
    interval = "" if estimate.low is None else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return _number(estimate.value) + interval
