"""The plot of ``masc-metrics sensitivity``; needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from masc_metrics.bench.sensitivity.moves import Move
from masc_metrics.bench.tables import replacing
from masc_metrics.masks import PIXEL_KINDS

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


def draw(file: Path, moved: Sequence[Move], samples: int) -> None:
    """Write a PNG: mean absolute moves against pixels as curves, those of the other kinds as bars; a row a score.

    Args:
        file: the PNG file.
        moved: from :func:`masc_metrics.bench.sensitivity.moves.moves`.
        samples: number of samples, for the title.

    Raises:
        ImportError: if matplotlib is not installed.
        OSError: if the file cannot be written.
    """
    figure = matplotlib_figure().Figure(figsize=(9.5, 6.5), layout="constrained")
    figure.suptitle(f"Mean absolute move of the scores by wrong masks, {samples} samples")
    axes = figure.subplots(2, 2, sharey="row", width_ratios=(3, 2))
    for (curves, bars), score, which in zip(axes, ("cp", "pf"), ("reference", "generated"), strict=True):
        of_score = [move for move in moved if move.score == score and move.mean_absolute is not None]
        for kind in PIXEL_KINDS:
            points = sorted(
                (move.perturbation.amount, move.mean_absolute) for move in of_score if move.perturbation.kind == kind
            )
            colour, marker, line = _STYLES[kind]
            pixels, sizes = ([0.0, *values] for values in zip(*points, strict=True)) if points else ([0.0], [0.0])
            curves.plot(pixels, sizes, color=colour, marker=marker, linestyle=line, label=kind)
        others = [move for move in of_score if move.perturbation.kind not in PIXEL_KINDS]
        names = [move.perturbation.name.replace(" ", "\n", 1) for move in others]
        drawn = bars.bar(names, [move.mean_absolute for move in others], color=_BAR, edgecolor="black", width=0.6)
        bars.bar_label(drawn, fmt="%.3f", padding=2)
        curves.set(ylabel=f"{score.upper()}, {which} masks wrong", xlabel="pixels of the mask")
        curves.grid(alpha=0.3)
        bars.grid(axis="y", alpha=0.3)
        bars.set_axisbelow(True)
        largest = max((move.mean_absolute or 0 for move in of_score), default=0)
        curves.set_ylim(0, 1.12 * largest or 1)  # room for the bars' labels
    axes[0][0].legend()
    with replacing(file) as stream:
        figure.savefig(stream, format="png", dpi=150)
