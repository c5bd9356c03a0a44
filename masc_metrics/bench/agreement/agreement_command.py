"""``masc-metrics agreement``: options, text output and exit codes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from masc_metrics.bench.agreement.protocols import STATISTICS, agreement
from masc_metrics.bench.agreement.ratings import Scores, read_ratings, read_scores
from masc_metrics.bench.agreement.report import Agreement, Estimate
from masc_metrics.bench.commands import AgreementOptions
from masc_metrics.bench.run_folder import check_json_file
from masc_metrics.bench.tables import printable, replacing, text_table
from masc_metrics.bench.terminal import UNUSABLE, fail

_JUDGE = ":judge"


def agree(options: AgreementOptions) -> int:
    """Run ``masc-metrics agreement``; returns the exit code."""
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
        if options.out:
            with replacing(options.out) as stream:
                stream.write(report.to_json().encode())
        for line in _report_lines(report):
            print(printable(line))
    except (OSError, ValueError, ImportError) as error:
        return fail(UNUSABLE, error)
    return 0


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
