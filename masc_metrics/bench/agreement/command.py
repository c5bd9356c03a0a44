"""The sub-command ``agreement``: arguments, a table, a JSON file and the exit codes 0 (done) and 2 (unusable input)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from masc_metrics.bench.agreement.protocols import PROTOCOLS, agreement
from masc_metrics.bench.agreement.ratings import SCORES, SEEDS, Scores, read_ratings, read_scores
from masc_metrics.bench.agreement.report import Agreement, Estimate
from masc_metrics.bench.run_options import count
from masc_metrics.bench.score_command import UNUSABLE, fail


def add_agreement(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``masc-metrics agreement SCORES [SCORES ...] RATINGS --score {cp,pf}`` to the commands."""
    parser = commands.add_parser(
        "agreement",
        help="how well scores agree with human ratings",
        description="Krippendorff's alpha (interval level), Spearman's rho, Kendall's tau-b and the AUC of high "
        "against low ratings, with bootstrap intervals over concepts, and paired tests of two scorers. Options come "
        "before SCORES or after RATINGS, not between.",
    )
    parser.add_argument(
        "scores",
        nargs="+",
        metavar="SCORES",
        help="[NAME=]file or folder: CSV or Parquet with the columns method, key and the scores, or a folder of "
        "<method>.json as DreamBench++ ships them; with --protocol dreambench-plus one NAME may come several times, "
        "once a run",
    )
    parser.add_argument(
        "ratings",
        type=Path,
        metavar="RATINGS",
        help="data_human_rating of DreamBench++, or a table (CSV, Parquet, JSON Lines) with the columns method, key "
        "and one for each group of raters",
    )
    parser.add_argument("--score", choices=SCORES, required=True, help="what the people rated")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME",
        help="another column of the score files, as a scorer of its own beside the one named as --score; repeatable",
    )
    parser.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="NAME",
        help="a column or folder of the ratings that is a group of raters; repeatable [all but method and key]",
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0], help="[%(default)s]")
    parser.add_argument(
        "--seeds", choices=SEEDS, default=SEEDS[0], help="what becomes of several seeds of one key [%(default)s]"
    )
    parser.add_argument("--replicates", type=count, default=1000, help="bootstrap resamples [%(default)s]")
    parser.add_argument("--seed", type=count, default=0, help="of the resamples [%(default)s]")
    parser.add_argument(
        "--compare",
        action="append",
        nargs=2,
        metavar=("A", "B"),
        help="test two scorers against each other; repeatable [the two, if there are two]",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write everything as JSON")
    styles = parser.add_mutually_exclusive_group()
    styles.add_argument(
        "--without-styles",
        dest="with_styles",
        action="store_const",
        const=False,
        help="leave the collections style_* out [so for pf]",
    )
    styles.add_argument(
        "--with-styles", dest="with_styles", action="store_const", const=True, help="keep them [so for cp]"
    )
    parser.set_defaults(run=_run_agreement)


def _run_agreement(options: argparse.Namespace) -> int:
    try:
        _check_out(options)
        scorers = _read_scorers(options)
        names = list(dict.fromkeys(scorer.name for scorer in scorers))
        pairs = options.compare or ([names] if len(names) == 2 else [])
        report = agreement(
            scorers,
            read_ratings(options.ratings, options.score, groups=options.group, seeds=options.seeds),
            score=options.score,
            protocol=options.protocol,
            with_styles=options.with_styles,
            compare=[(a, b) for a, b in pairs],
            replicates=options.replicates,
            seed=options.seed,
        )
        for line in _lines(report):
            print(line)
        if options.out:
            options.out.write_text(report.to_json(), encoding="utf-8")
    except (OSError, ValueError, ImportError) as error:
        return fail(UNUSABLE, error)
    return 0


def _check_out(options: argparse.Namespace) -> None:
    """Before minutes of reading: the report must have a place, and must not be one of the inputs."""
    out: Path | None = options.out
    if out is None:
        return
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out is {out}; give a file in a folder that exists")
    inputs = [_source(text)[1] for text in options.scores] + [options.ratings]
    if out.exists() and any(file.exists() and out.samefile(file) for file in inputs):
        raise ValueError(f"--out is {out}, which is read from; give another file")


def _read_scorers(options: argparse.Namespace) -> list[Scores]:
    columns = list(dict.fromkeys([options.score, *options.column]))
    scorers = []
    for text in options.scores:
        name, source = _source(text)
        if not source.exists():
            raise ValueError(f"there is no {source}; SCORES are files or folders, or NAME=file")
        scorers += read_scores(source, options.score, columns=columns, name=name, seeds=options.seeds)
    unknown = set(options.column) - {scorer.column for scorer in scorers}
    if unknown:
        raise ValueError(f"--column is {min(unknown)!r}, which no score file has; check its spelling")
    return scorers


def _source(text: str) -> tuple[str | None, Path]:
    """Name and path of ``[NAME=]path``; what exists as it is written is a path."""
    name, equals, path = text.partition("=")
    return (None, Path(text)) if not equals or not name or Path(text).exists() else (name, Path(path))


def _lines(report: Agreement) -> Iterator[str]:
    yield (
        f"{report.score.upper()}, {report.protocol}, style collections {'in' if report.with_styles else 'out'}: "
        f"{report.keys} keys, {report.concepts} concepts, {len(report.methods)} methods, key set "
        f"{report.key_set_sha256[:12]}"
    )
    yield ""
    header = ["scorer", *(f"alpha {group}" for group in report.groups), "alpha", "rho", "tau", "AUC", "n", "range"]
    rows = [
        [
            scorer.name,
            *(_plain(estimate.value) for estimate in scorer.alpha_to.values()),
            *(_with_interval(estimate) for estimate in (scorer.alpha, scorer.rho, scorer.tau, scorer.auc)),
            str(scorer.keys),
            "{:.4g}..{:.4g}".format(*scorer.scaling_range),
        ]
        for scorer in report.scorers
    ]
    yield from _table([header, *rows])
    yield f"ceiling: alpha {_with_interval(report.ceiling)} between {' and '.join(report.groups)}"
    for scorer in report.scorers:
        for what in ("alpha", "rho", "tau", "auc"):
            estimate: Estimate = getattr(scorer, what)
            if estimate.reason:
                yield f"{scorer.name}, {what}: {estimate.reason}"
    if any(scorer.methods for scorer in report.scorers):
        yield ""
        yield from _table(_method_rows(report))
    if report.differences:
        yield ""
        tests = [["difference", "of", "value", "p"]]
        for test in report.differences:
            p_value = "-" if test.p_value is None else f"{test.p_value:.3g}"
            tests.append([f"{test.a} - {test.b}", test.statistic, _with_interval(test.difference), p_value])
        yield from _table(tests)
    yield ""
    for scorer in report.scorers:
        first = {extreme.end: extreme for extreme in reversed(scorer.extremes)}
        told = (f"{end} {at.value:.4g} ({at.method}, {at.key})" for end, at in sorted(first.items(), reverse=True))
        yield f"{scorer.name}: {', '.join(told)}"
    for left in report.dropped:
        yield f"left out of {left.source}: {left.count} x {left.reason}"


def _method_rows(report: Agreement) -> Iterator[list[str]]:
    yield ["method", "people", *(scorer.name for scorer in report.scorers)]
    for rows in zip(*(scorer.methods for scorer in report.scorers), strict=True):
        cells = [_plain(row.mean) + ("" if row.deviation is None else f" +- {row.deviation:.3f}") for row in rows]
        yield [rows[0].method, _plain(rows[0].ceiling), *cells]


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _with_interval(estimate: Estimate) -> str:
    interval = "" if estimate.low is None else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return _plain(estimate.value) + interval


def _table(rows: Iterator[list[str]] | Sequence[list[str]]) -> Iterator[str]:
    """Columns of equal width."""
    listed = list(rows)
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    for row in listed:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
