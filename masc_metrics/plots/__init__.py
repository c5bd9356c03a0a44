"""Pictures of scores: panels and sheets, which need only Pillow, and figures, which need matplotlib."""

from masc_metrics.plots.drawing import thumbnail
from masc_metrics.plots.figures import (
    plot_background,
    plot_differences,
    plot_distributions,
    plot_matches,
    plot_methods,
    plot_sensitivity,
)
from masc_metrics.plots.panels import PanelRow, Shot, Tile, mask_sheet, panel

__all__ = [
    "PanelRow",
    "Shot",
    "Tile",
    "mask_sheet",
    "panel",
    "plot_background",
    "plot_differences",
    "plot_distributions",
    "plot_matches",
    "plot_methods",
    "plot_sensitivity",
    "thumbnail",
]
