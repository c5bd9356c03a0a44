"""Figures of scores: what their axes hold, for inputs whose answer is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

from masc_metrics import SigLIP2Backbone, functional
from masc_metrics.plots import (
    plot_background,
    plot_differences,
    plot_distributions,
    plot_matches,
    plot_methods,
    plot_sensitivity,
)

PATCHES = 16


def image(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, 64, 64), generator=generator, dtype=torch.uint8)


def left_half() -> torch.Tensor:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:, :32] = True
    return mask


def lines_of(figure: Figure) -> list[ConnectionPatch]:
    return [artist for artist in figure.artists if isinstance(artist, ConnectionPatch)]


def test_a_patch_of_the_same_image_is_found_where_it_is(backbone: SigLIP2Backbone) -> None:
    """Reference and generated image are one, so that every line ends at the place where it begins."""
    figure = plot_matches(
        image(), image(), left_half(), backbone=backbone, max_num_patches=PATCHES, lines=8, worst=2, subject="a cat"
    )
    left, right = figure.axes[:2]
    found = lines_of(figure)
    assert len(found) in (8, 9, 10)
    for line in found:
        assert line.xy1 == pytest.approx(line.xy2)
        assert line.xy1[0] < 32
    assert sum(line.get_linestyle() == "--" for line in found) == 2
    assert sum(isinstance(patch, Rectangle) for patch in left.patches) == 2
    cosines = left.images[1].get_array()
    assert cosines[:, :32].min() == pytest.approx(1, abs=1e-5)
    assert np.isnan(np.ma.filled(cosines[:, 32:], np.nan)).all()
    assert [axes.get_title() for axes in (left, right)] == ["Reference", "Generated"]
    assert figure.get_suptitle() == "CP 1.000\na cat"


def test_the_framed_patches_have_the_lowest_cosines(backbone: SigLIP2Backbone) -> None:
    pair: dict[str, Any] = {"backbone": backbone, "max_num_patches": PATCHES}
    (found,) = functional.match_maps([image(1)], [image()], [left_half()], **pair)
    figure = plot_matches(image(1), image(), left_half(), **pair, lines=0, worst=1)
    (frame,) = figure.axes[0].patches
    row, column = divmod(int(found.nan_to_num(2).argmin()), 4)
    assert frame.get_xy() == pytest.approx((column * 16 - 0.5, row * 16 - 0.5))


def test_a_mask_of_no_patch_gives_a_figure_without_lines(backbone: SigLIP2Backbone) -> None:
    nothing = torch.zeros(64, 64, dtype=torch.bool)
    figure = plot_matches(image(1), image(), nothing, backbone=backbone, max_num_patches=PATCHES)
    assert lines_of(figure) == []
    assert figure.get_suptitle() == "CP undefined"


def test_background_figures_show_attention_outside_the_mask_and_pf(backbone: SigLIP2Backbone) -> None:
    settings: dict[str, Any] = {"backbone": backbone, "max_num_patches": PATCHES}
    figure = plot_background(image(), left_half(), **settings, subject="cat", prompt="a cat on $5$ mats")
    weights = functional.background_maps([image()], [left_half()], **settings)[0]
    shown = np.ma.filled(figure.axes[1].images[1].get_array(), np.nan)
    assert np.isnan(shown[:, :32]).all()
    times = weights[0, 2] / weights[:, 2:].mean()
    assert 4 ** shown[0, 40] == pytest.approx(float(times.clamp(1 / 4, 4)), rel=1e-4)
    pf = float(functional.prompt_following([image()], [left_half()], ["a cat on $5$ mats"], ["cat"], **settings))
    assert figure.get_suptitle() == f"PF {pf:.3f}\ncat\n“a cat on $5$ mats”"
    assert not figure._suptitle.get_parse_math()


def test_distributions_have_quartiles_points_and_counts() -> None:
    (axes,) = plot_distributions({"a": [0.0, 1.0, 2.0, 3.0, 4.0], "b $x$": [0.5, float("nan")]}, score="PF").axes
    box = axes.patches[0]
    assert (box.get_x(), box.get_x() + box.get_width()) == (1, 3)
    assert [len(points.get_offsets()) for points in axes.collections if len(points.get_offsets()) > 0][:1] == [5]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a\n(5)", "b $x$\n(1, 1 without)"]
    assert axes.get_xlabel() == "PF"
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first group is at the top


def figures(cp: float | None, pf: float | None) -> dict[str, dict[str, Any]]:
    return {
        "cp": {"mean": cp, "interval_95": None if cp is None else [cp - 0.1, cp + 0.2]},
        "pf": {"mean": pf, "interval_95": None},
    }


def test_methods_have_their_means_intervals_and_samples() -> None:
    figure = plot_methods(
        {"a": figures(0.5, 0.3), "b": figures(0.2, 0.1), "no score": figures(None, 0.1)},
        {"a": ([0.4, 0.6], [0.2, 0.4])},
    )
    (axes,) = figure.axes
    first, second, _ = axes.containers
    assert (first.lines[0].get_xydata()[0]).tolist() == [0.5, 0.3]
    assert first.lines[2][0].get_segments()[0][:, 0] == pytest.approx([0.4, 0.7])
    assert axes.collections[0].get_offsets().tolist() == [[0.4, 0.2], [0.6, 0.4]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "no score: undefined"]
    assert first.lines[0].get_marker() != second.lines[0].get_marker()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("concept preservation (CP)", "prompt following (PF)")


def test_names_of_methods_fit_the_legend_and_keep_their_ends() -> None:
    names = [f"sdxl dreambooth prior preservation rank {rank}" for rank in (4, 64)]
    figure = plot_methods({name: figures(0.5, 0.3) for name in names})
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert 0 <= legend.x0 < legend.x1 <= figure.bbox.width
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "sdxl dreamboot...vation rank 4",
        "sdxl dreamboot...ation rank 64",
    ]


def test_methods_of_one_score_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"means\['a'\] has no pf; give methods with both scores"):
        plot_methods({"a": {"cp": {"mean": 0.5, "interval_95": None}}})


def test_infinite_scores_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"groups\['a'\] holds inf"):
        plot_distributions({"a": [0.1, np.inf]})


def test_four_scores_stand_in_two_rows() -> None:
    scores = ("cp", "pf", "dino-i", "clip-t")
    figure = plot_differences(
        [{"a": "x", "b": "y", "score": s, "difference": 0.1, "interval_95": None, "p_holm": None} for s in scores]
    )
    assert [axes.get_subplotspec().rowspan.start for axes in figure.axes] == [0, 0, 1, 1]


def test_differences_are_filled_if_they_are_shown() -> None:
    def comparison(score: str, difference: float | None, p: float | None) -> dict[str, Any]:
        interval = None if difference is None else [difference - 0.1, difference + 0.1]
        return {"a": "x", "b": "y", "score": score, "difference": difference, "interval_95": interval, "p_holm": p}

    figure = plot_differences(
        [comparison("cp", 0.3, 0.01), comparison("pf", -0.2, 0.2), comparison("dino-i", None, None)]
    )
    assert [axes.get_title() for axes in figure.axes] == ["CP", "PF", "DINO-I", ""]
    for axes, difference, filled in zip(figure.axes[:2], (0.3, -0.2), (True, False), strict=True):
        zero, interval, mark = axes.lines
        assert zero.get_xdata() == [0, 0]
        assert interval.get_xdata() == pytest.approx([difference - 0.1, difference + 0.1])
        assert (mark.get_markerfacecolor() == mark.get_color()) is filled
    assert len(figure.axes[2].lines) == 1
    assert figure.axes[0].get_yticklabels()[0].get_text() == "x\n- y"


def moves(*, rated: bool) -> dict[str, Any]:
    def move(kind: str, amount: float, score: str, value: float | None, alpha: float) -> dict[str, Any]:
        return {
            "name": f"{kind} {amount}",
            "perturbation": {"kind": kind, "amount": amount},
            "score": score,
            "mean_absolute": value,
            "alpha": {"alphas": [0.5, alpha]} if rated and score == "cp" else None,
        }

    return {
        "samples": 7,
        "given": {"cp": {"alpha": 0.5} if rated else {}, "pf": {}},
        "moves": [
            move("dilation", 5, "cp", 0.2, 0.4),
            move("dilation", 2, "cp", 0.1, 0.45),
            move("shift", 2, "cp", None, 0.3),
            move("dropout", 0.1, "cp", 0.05, 0.48),
            move("dilation", 2, "pf", 0.3, 0.0),
        ],
    }


def test_sensitivity_has_curves_against_pixels_and_bars_for_other_kinds() -> None:
    curves, bars, *of_pf = plot_sensitivity(moves(rated=False)).axes
    (line,) = curves.lines
    assert line.get_xydata().tolist() == [[0, 0], [2, 0.1], [5, 0.2]]
    assert [patch.get_height() for patch in bars.patches] == [0.05]
    assert [label.get_text() for label in bars.get_xticklabels()] == ["dropout 0.1"]
    assert of_pf[0].lines[0].get_xydata().tolist() == [[0, 0], [2, 0.3]]
    assert curves.get_title() == "CP, reference masks wrong"
    assert curves.get_ylim()[1] > 0.2


def test_sensitivity_shows_alpha_where_people_rated_the_score() -> None:
    axes = plot_sensitivity(moves(rated=True)).axes
    assert len(axes) == 6, "CP, PF and alpha of CP"
    curves = axes[4]
    assert curves.get_title() == "alpha of CP, reference masks wrong"
    assert curves.lines[0].get_xydata().tolist() == [[0, 0.5], [2, 0.45], [5, 0.4]]
    assert curves.lines[1].get_xydata().tolist() == [[0, 0.5], [2, 0.3]]
    assert list(curves.lines[-1].get_ydata()) == [0.5, 0.5]
    assert axes[5].lines[0].get_xydata().tolist() == [[0, 0.48]]


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_figures_are_a_column_wide_in_every_format(ending: str, tmp_path: Path) -> None:
    figure = plot_distributions({"a": [0.1, 0.2]})
    assert figure.get_figwidth() == 3.4
    figure.savefig(tmp_path / f"figure.{ending}")
    assert (tmp_path / f"figure.{ending}").stat().st_size > 1000


@pytest.mark.parametrize("draw", [plot_distributions, plot_methods, plot_differences])
def test_nothing_to_draw_is_an_error(draw: Any) -> None:
    with pytest.raises(ValueError, match="is empty; give at least one"):
        draw({})


def test_panels_need_no_matplotlib_and_figures_name_their_extra() -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from masc_metrics.plots import panel, plot_methods\n"
        "try: plot_methods({'a': {}})\n"
        "except ImportError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "plot_methods needs matplotlib: pip install 'masc-metrics[plots]'"
