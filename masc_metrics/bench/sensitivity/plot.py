"""The plot of ``masc-metrics sensitivity``; needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from masc_metrics.bench.sensitivity.moves import Move
from masc_metrics.bench.tables import replacing
from masc_metrics.masks import PIXEL_KINDS, Perturbation

# Okabe and Ito's colours, which are distinguishable with colour blindness; markers and line styles differ too.
_STYLES = {
    "dilation": ("#0072B2", "o", "-"),
    "erosion": ("#D55E00", "s", "--"),
    "jitter": ("#009E73", "^", "-."),
    "shift": ("#CC79A7", "D", ":"),
}
_BAR = "#56B4E9"


def matplotlib_figure() -> ModuleType:
    """Import the module that draws.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'masc-metrics[plots]'") from error
    module: ModuleType = matplotlib.figure
    return module


def draw(file: Path, moved: Sequence[Move], samples: int, alphas: Mapping[str, float | None]) -> None:
    """Write a PNG: mean absolute moves against pixels as curves, those of the other kinds as bars; a row a score.

    Where there are ratings, curves of alpha against pixels come after them.

    Args:
        file: the PNG file.
        moved: from :func:`masc_metrics.bench.sensitivity.moves.moves`.
        samples: number of samples, for the title.
        alphas: alpha with the given masks of each score that people rated.

    Raises:
        ImportError: if matplotlib is not installed.
        OSError: if the file cannot be written.
    """
    figure = matplotlib_figure().Figure(figsize=(14 if alphas else 9.5, 6.5), layout="constrained")
    people = ", and alpha with people" if alphas else ""
    figure.suptitle(f"Mean absolute move of the scores by wrong masks{people}, {samples} samples")
    axes = figure.subplots(2, 3 if alphas else 2, width_ratios=(3, 2, 3) if alphas else (3, 2))
    for (curves, bars, *rated), score, which in zip(axes, ("cp", "pf"), ("reference", "generated"), strict=True):
        bars.sharey(curves)
        bars.tick_params(labelleft=False)
        of_score = [move for move in moved if move.score == score and move.mean_absolute is not None]
        _draw_curves(curves, [(move.perturbation, move.mean_absolute) for move in of_score], 0.0)
        others = [move for move in of_score if move.perturbation.kind not in PIXEL_KINDS]
        names = [move.perturbation.name.replace(" ", "\n", 1) for move in others]
        drawn = bars.bar(names, [move.mean_absolute for move in others], color=_BAR, edgecolor="black", width=0.6)
        bars.bar_label(drawn, fmt="%.3f", padding=2)
        curves.set(ylabel=f"{score.upper()}, {which} masks wrong", xlabel="pixels of the mask")
        bars.grid(axis="y", alpha=0.3)
        bars.set_axisbelow(True)
        largest = max((move.mean_absolute or 0 for move in of_score), default=0)
        curves.set_ylim(0, 1.12 * largest or 1)  # room for the bars' labels
        for plot in rated:
            alpha = alphas.get(score)
            points = [(move.perturbation, move.alpha.alphas[1]) for move in of_score if move.alpha is not None]
            _draw_curves(plot, points, alpha)
            if alpha is not None:
                plot.axhline(alpha, color="black", linewidth=0.8)
            plot.set(ylabel=f"alpha of {score.upper()} with people", xlabel="pixels of the mask")
    axes[0][0].legend()
    with replacing(file) as stream:
        figure.savefig(stream, format="png", dpi=150)


def _draw_curves(axes: Any, points: Sequence[tuple[Perturbation, float | None]], start: float | None) -> None:
    """Draw a value against pixels, a curve a kind, that begins with its value for the given masks, at 0 pixels."""
    for kind in PIXEL_KINDS:
        of_kind = [(each.amount, value) for each, value in points if each.kind == kind and value is not None]
        curve = [*([] if start is None else [(0.0, start)]), *sorted(of_kind)]
        colour, marker, line = _STYLES[kind]
        pixels, values = zip(*curve, strict=True) if curve else ((), ())
        axes.plot(pixels, values, color=colour, marker=marker, linestyle=line, label=kind)
    axes.grid(alpha=0.3)
