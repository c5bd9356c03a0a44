"""Figures of scores for papers and notebooks; need matplotlib, which is imported when one is drawn.

Every function returns a :class:`matplotlib.figure.Figure`, as wide as a column of a paper; ``figure.savefig`` writes
PNG, SVG or PDF. Colours are distinguishable with colour blindness; groups differ by markers too.

Example::

    figure = plot_matches(generated, reference, mask, backbone=load_backbone("tiny"), subject="a red star")
    figure.savefig("matches.pdf")

Shape suffixes: R reference patches of the subject, G patches of the generated image.
"""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from torch import Tensor

from masc_metrics.arguments import check_integer
from masc_metrics.backbone import SigLIP2Backbone
from masc_metrics.functional import background_maps, match_maps, prompt_following
from masc_metrics.grid import DEFAULT_MAX_NUM_PATCHES
from masc_metrics.masks import PIXEL_KINDS
from masc_metrics.plots.drawing import ATTENTION_RANGE, HEAT, dim, in_pixels, picture_and_mask, relative_attention
from masc_metrics.scores import patch_similarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN = 3.4
"""Width of a figure in inches: a column of a paper with two columns."""

_STYLE: dict[Any, Any] = {
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
}

# Okabe and Ito's colours without yellow, which is hard to see on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vP"  # fewer than colours, so that the pairs of both repeat late
_LINES = ("-", "--", "-.", ":")
_OUTLINE, _WORST, _QUIET = "#ff00c8", "#00a6d6", "#767676"

_NARROW, _WIDE = 14, 30  # characters of a name: in a legend of two columns, and of one

_P = ParamSpec("_P")
_R = TypeVar("_R")


def matplotlib_for(what: str) -> ModuleType:
    """Import matplotlib.

    Args:
        what: name of what needs it.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(f"{what} needs matplotlib: pip install 'masc-metrics[plots]'") from error
    module: ModuleType = matplotlib
    return module


def _styled(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Draw in the style of these figures, whatever matplotlib's settings are, and leave them as they are."""

    @functools.wraps(draw)
    def drawn(*arguments: _P.args, **options: _P.kwargs) -> _R:
        matplotlib = matplotlib_for(draw.__name__)
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE, "backend": matplotlib.rcParams["backend"]}):
            return draw(*arguments, **options)

    return drawn


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(COLUMN, height), dpi=200, layout="constrained")


def _heat() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("masc", HEAT / 255)


def _title(figure: Figure, subject: str, prompt: str, scores: Mapping[str, float]) -> None:
    """Scores in bold, the subject, and the prompt on at most two lines; nothing of it is read as mathematics."""
    values = "   ".join(f"{name} {_shown(value)}" for name, value in scores.items())
    lines = [values] if values else []
    lines += _cut_lines(subject, 1)
    lines += _cut_lines(f"“{prompt}”" if prompt else "", 2)
    if lines:
        figure.suptitle("\n".join(lines), fontsize=8, parse_math=False)


def _cut_lines(text: str, most: int) -> list[str]:
    lines = textwrap.wrap(text, 62)
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1][:58]} ..."]


def _shown(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3f}"


@_styled
def plot_matches(
    generated_image: Tensor,
    reference_image: Tensor,
    reference_mask: Tensor,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    subject: str = "",
    prompt: str = "",
    lines: int = 6,
    worst: int = 3,
) -> Figure:
    """Draw where the reference's patches were found: what concept preservation is the mean of.

    Left, the reference with the outline of its mask; each patch of the subject has the colour of its best cosine.
    Right, the generated image. Lines lead from some patches to the patch that each is most similar to, dashed ones
    from the patches with the lowest cosines, which are framed.

    Args:
        generated_image: (3, H, W), uint8 or float in [0, 1].
        reference_image: likewise.
        reference_mask: (H, W), mask of the subject in the reference image, in any form that the metrics accept.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        subject: name of the subject, for the title.
        prompt: prompt of the generated image, for the title.
        lines: number of patches with a line, spread over the subject.
        worst: number of patches with the lowest cosines that are framed.

    Returns:
        A figure; its title has CP.

    Raises:
        TypeError, ValueError, OSError, RuntimeError: as for :func:`masc_metrics.functional.concept_preservation`.
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.patches import ConnectionPatch, Rectangle
    from matplotlib.patheffects import withStroke

    check_integer("lines", lines, least=0)
    check_integer("worst", worst, least=0)
    settings: dict[str, Any] = {"backbone": backbone, "max_num_patches": max_num_patches}
    (found,) = match_maps([generated_image], [reference_image], [reference_mask], **settings)
    reference, inside = picture_and_mask(reference_image, reference_mask, "reference_image", "reference_mask")
    generated, _ = picture_and_mask(generated_image, None, "generated_image", "generated_mask")
    # Both are in the cache of the backbone now.
    features = [
        backbone.encode_images([image], max_num_patches=max_num_patches) for image in (reference_image, generated_image)
    ]
    patches_R = (~found.flatten().isnan()).nonzero()[:, 0]
    cosines_R = found.flatten()[patches_R].cpu().numpy()
    cosines_RG = patch_similarity(features[0].tokens_BND, features[1].tokens_BND)[0, patches_R]
    places_R = cosines_RG.argmax(dim=1).tolist() if len(patches_R) else []

    figure = _figure(2.45)
    left, right = figure.subplots(
        1, 2, width_ratios=[pixels.shape[1] / pixels.shape[0] for pixels in (reference, generated)]
    )
    cosines = np.clip(in_pixels(found, (reference.shape[0], reference.shape[1])), 0, 1)
    left.imshow(dim(reference, ~inside))
    heat = left.imshow(cosines, cmap=_heat(), vmin=0, vmax=1, alpha=0.9, interpolation="nearest")
    if inside.any() and not inside.all():
        left.contour(inside, levels=[0.5], colors=_OUTLINE, linewidths=1)
    right.imshow(generated)
    for axes, name in ((left, "Reference"), (right, "Generated")):
        axes.set_title(name)
        axes.set_axis_off()

    (rows, columns), (found_rows, found_columns) = features[0].grids[0], features[1].grids[0]
    cell = reference.shape[1] / columns, reference.shape[0] / rows
    found_cell = generated.shape[1] / found_columns, generated.shape[0] / found_rows
    least = np.argsort(cosines_R, kind="stable")[:worst].tolist()
    spread = np.linspace(0, len(patches_R) - 1, min(lines, len(patches_R))).round().astype(int).tolist()
    for index in (*(each for each in spread if each not in least), *least):
        row, column = divmod(int(patches_R[index]), columns)
        found_row, found_column = divmod(places_R[index], found_columns)
        is_worst = index in least
        line = ConnectionPatch(
            ((column + 0.5) * cell[0] - 0.5, (row + 0.5) * cell[1] - 0.5),
            ((found_column + 0.5) * found_cell[0] - 0.5, (found_row + 0.5) * found_cell[1] - 0.5),
            "data",
            "data",
            axesA=left,
            axesB=right,
            color=_WORST if is_worst else _heat()(float(np.clip(cosines_R[index], 0, 1))),
            linestyle="--" if is_worst else "-",
            linewidth=1,
            arrowstyle="-|>",
            mutation_scale=6,
        )
        line.set_path_effects([withStroke(linewidth=2, foreground="white", alpha=0.6)])
        line.set_in_layout(False)
        figure.add_artist(line)
        if is_worst:
            corner = column * cell[0] - 0.5, row * cell[1] - 0.5
            left.add_patch(Rectangle(corner, *cell, fill=False, edgecolor=_WORST, linewidth=1.2))
    bar = figure.colorbar(heat, ax=[left, right], location="bottom", fraction=0.05, aspect=40, pad=0.02)
    bar.set_label(f"best cosine of a reference patch; dashed: the {len(least)} lowest" if least else "best cosine")
    _title(figure, subject, prompt, {"CP": float(np.mean(cosines_R)) if len(cosines_R) else math.nan})
    return figure


@_styled
def plot_background(
    generated_image: Tensor,
    generated_mask: Tensor,
    *,
    backbone: SigLIP2Backbone,
    max_num_patches: int = DEFAULT_MAX_NUM_PATCHES,
    subject: str = "",
    prompt: str = "",
) -> Figure:
    """Draw what prompt following looks at: the attention of the pooling head to the patches of the background.

    Left, the generated image with the outline of its mask. Right, each patch has the colour of its attention against
    the mean of the visible patches, on a logarithmic scale; hidden patches are hatched.

    Args:
        generated_image: (3, H, W), uint8 or float in [0, 1].
        generated_mask: (H, W), mask of the subject in it, in any form that the metrics accept.
        backbone: from :func:`masc_metrics.load_backbone`.
        max_num_patches: patch budget of one image.
        subject: name of the subject in the prompt.
        prompt: prompt of the generated image; with one, the title has PF.

    Raises:
        TypeError, ValueError, OSError, RuntimeError: as for :func:`masc_metrics.functional.prompt_following`.
        ImportError: if matplotlib is not installed.
    """
    settings: dict[str, Any] = {"backbone": backbone, "max_num_patches": max_num_patches}
    (weights,) = background_maps([generated_image], [generated_mask], **settings)
    scores = {}
    if prompt:
        scores["PF"] = float(
            prompt_following([generated_image], [generated_mask], [prompt], [subject or None], **settings)
        )
    picture, inside = picture_and_mask(generated_image, generated_mask, "generated_image", "generated_mask")
    relative = in_pixels(relative_attention(weights), (picture.shape[0], picture.shape[1]))
    hidden = np.isnan(relative)

    figure = _figure(2.45)
    left, right = figure.subplots(1, 2)
    left.imshow(picture)
    if inside.any() and not inside.all():
        left.contour(inside, levels=[0.5], colors=_OUTLINE, linewidths=1)
    right.imshow(dim(picture, np.ones_like(inside)))
    heat = right.imshow(relative, cmap=_heat(), vmin=-1, vmax=1, alpha=0.9, interpolation="nearest")
    if hidden.any():
        right.contourf(hidden, levels=[0.5, 1.5], colors="none", hatches=["////"])
    for axes, name in ((left, "Generated"), (right, "Attention")):
        axes.set_title(name)
        axes.set_axis_off()
    bar = figure.colorbar(heat, ax=[left, right], location="bottom", fraction=0.05, aspect=40, pad=0.02)
    bar.set_ticks([-1, 0, 1], labels=[f"1/{ATTENTION_RANGE:g}", "1", f"{ATTENTION_RANGE:g}"])
    bar.set_label("attention, times its mean; hatched: hidden patches")
    _title(figure, subject, prompt, scores)
    return figure


@_styled
def plot_distributions(groups: Mapping[str, Sequence[float]], *, score: str = "CP") -> Figure:
    """Draw the scores of each group: a box of the quartiles with the median, and every sample as a point.

    Args:
        groups: scores by the name of a group, such as a method or a concept. Samples without one, which are NaN, are
            counted in the label.
        score: name of the score.

    Raises:
        ValueError: if there is no group, or a score is infinite.
        ImportError: if matplotlib is not installed.
    """
    _check_some("groups", groups)
    figure = _figure(0.55 + 0.36 * len(groups))
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    labels = []
    for place, (name, given) in enumerate(groups.items()):
        values = np.asarray(given, dtype=float)
        if np.isinf(values).any():
            raise ValueError(f"groups[{name!r}] holds {values[np.isinf(values)][0]}; give finite scores, or nan")
        defined = values[~np.isnan(values)]
        colour = _COLOURS[place % len(_COLOURS)]
        spread = rng.uniform(-0.2, 0.2, len(defined))
        axes.scatter(defined, place + spread, s=5, color=colour, alpha=0.45, linewidths=0, label=name)
        if len(defined):
            first, median, third = np.quantile(defined, (0.25, 0.5, 0.75))
            axes.barh(place, third - first, left=first, height=0.56, fill=False, edgecolor=colour, linewidth=1)
            axes.vlines(median, place - 0.28, place + 0.28, color=colour, linewidth=2)
        undefined = f", {len(values) - len(defined)} without" if len(defined) < len(values) else ""
        labels.append(f"{_short(name)}\n({len(defined)}{undefined})")
    _name_rows(axes, labels)
    axes.set_xlabel(score)
    return figure


@_styled
def plot_methods(
    means: Mapping[str, Mapping[str, Mapping[str, Any]]],
    samples: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Figure:
    """Draw prompt following against concept preservation: the mean of each method with its intervals.

    Args:
        means: for each method its figures of "cp" and "pf", each with "mean" and "interval_95": ``by.method`` in the
            summary of a run.
        samples: scores of the samples of each method, (CP, PF), drawn as points; None draws none.

    Raises:
        ValueError: if there is no method, or one has no figures of a score.
        ImportError: if matplotlib is not installed.
    """
    _check_some("means", means)
    for name, figures in means.items():
        if missing := {"cp", "pf"} - figures.keys():
            raise ValueError(f"means[{name!r}] has no {min(missing)}; give methods with both scores")
    columns = 2 if max(map(len, means)) <= _NARROW else 1
    figure = _figure(2.6 + 0.14 * math.ceil(len(means) / columns))
    axes = figure.subplots()
    for place, (name, figures) in enumerate(means.items()):
        colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
        if samples and name in samples:
            axes.scatter(*samples[name], s=5, color=colour, alpha=0.3, linewidths=0)
        centre = [figures[score]["mean"] for score in ("cp", "pf")]
        if None in centre:
            axes.errorbar(
                math.nan, math.nan, color=colour, marker=marker, linestyle="none", label=f"{_short(name)}: undefined"
            )
            continue
        ends = [figures[score]["interval_95"] or (figures[score]["mean"],) * 2 for score in ("cp", "pf")]
        below_and_above = [[[mean - low], [high - mean]] for mean, (low, high) in zip(centre, ends, strict=True)]
        axes.errorbar(
            centre[0],
            centre[1],
            xerr=below_and_above[0],
            yerr=below_and_above[1],
            color=colour,
            marker=marker,
            markersize=6,
            markeredgecolor="white",
            elinewidth=1,
            capsize=2,
            linestyle="none",
            label=_short(name),
        )
    axes.set(xlabel="concept preservation (CP)", ylabel="prompt following (PF)")
    axes.set_title("Means over concepts with 95 % intervals")
    axes.grid(alpha=0.25, linewidth=0.5)
    for text in figure.legend(loc="outside lower center", ncols=columns).get_texts():
        text.set_parse_math(False)
    return figure


@_styled
def plot_differences(comparisons: Sequence[Mapping[str, Any]], *, level: float = 0.05) -> Figure:
    """Draw paired differences of methods as a forest plot: each mean with its interval, around a line at zero.

    A difference whose corrected p value is below the level is filled; an empty mark is a difference not shown.

    Args:
        comparisons: each with "a", "b", "score", "difference", "interval_95" and "p_holm": ``comparisons`` in the file
            of ``masc-metrics compare --out``.
        level: level of significance.

    Raises:
        ValueError: if there is no comparison.
        ImportError: if matplotlib is not installed.
    """
    _check_some("comparisons", comparisons)
    scores = list(dict.fromkeys(each["score"] for each in comparisons))
    pairs = list(dict.fromkeys((each["a"], each["b"]) for each in comparisons))
    columns = min(2, len(scores))
    rows = math.ceil(len(scores) / columns)
    figure = _figure(0.4 + rows * (0.35 + 0.34 * len(pairs)))
    all_axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes in all_axes[len(scores) :]:
        axes.set_axis_off()
    for axes, score, colour in zip(all_axes, scores, _COLOURS * len(scores), strict=False):
        axes.axvline(0, color=_QUIET, linewidth=0.8, linestyle="--")
        for each in comparisons:
            if each["score"] != score or each["difference"] is None:
                continue
            place = pairs.index((each["a"], each["b"]))
            low, high = each["interval_95"] or (each["difference"],) * 2
            shown = each["p_holm"] is not None and each["p_holm"] < level
            axes.plot([low, high], [place, place], color=colour, linewidth=1.5, solid_capstyle="butt")
            axes.plot(
                each["difference"], place, "o", color=colour, markerfacecolor=colour if shown else "white", markersize=5
            )
        axes.set_title(score.upper(), parse_math=False)
        axes.grid(axis="x", alpha=0.25, linewidth=0.5)
    _name_rows(all_axes[0], [f"{_short(a)}\n- {_short(b)}" for a, b in pairs])
    figure.supxlabel(f"paired difference, 95 % interval; filled: corrected p < {level:g}", fontsize=7.5)
    return figure


@_styled
def plot_sensitivity(result: Mapping[str, Any]) -> Figure:
    """Draw how far wrong masks move the scores: curves against pixels, and bars for the kinds without pixels.

    Each score has a row of its mean absolute move, and if people rated it, one of Krippendorff's alpha with them, with
    a line at its value for the given masks.

    Args:
        result: content of the file of ``masc-metrics sensitivity --out``; "samples", "given" and "moves" are used.

    Raises:
        ValueError: if there is no move.
        ImportError: if matplotlib is not installed.
    """
    _check_some("moves", result["moves"])
    scores = list(dict.fromkeys(move["score"] for move in result["moves"]))
    rated = [score for score in scores if result["given"][score].get("alpha") is not None]
    rows = [(score, False) for score in scores] + [(score, True) for score in rated]
    figure = _figure(0.5 + 1.5 * len(rows))
    figure.suptitle(f"Scores with wrong masks, {result['samples']} samples", fontsize=8)
    for (score, with_people), (curves, bars) in zip(
        rows, figure.subplots(len(rows), 2, width_ratios=(3, 2), squeeze=False), strict=True
    ):
        moves = [(move, _move_value(move, with_people)) for move in result["moves"] if move["score"] == score]
        defined = [(move, value) for move, value in moves if value is not None]
        given = result["given"][score]["alpha"] if with_people else 0.0
        kinds = [kind for kind in PIXEL_KINDS if any(move["perturbation"]["kind"] == kind for move, _ in defined)]
        for kind, colour, marker, line in zip(kinds, _COLOURS, _MARKERS, _LINES, strict=False):
            amounts = {
                move["perturbation"]["amount"]: value for move, value in defined if move["perturbation"]["kind"] == kind
            }
            pixels, heights = zip(*sorted({0: given, **amounts}.items()), strict=True)
            curves.plot(pixels, heights, color=colour, marker=marker, linestyle=line, label=kind, markersize=3.5)
        others = [(move["name"], value) for move, value in defined if move["perturbation"]["kind"] not in PIXEL_KINDS]
        names, values = [name for name, _ in others], [value for _, value in others]
        if with_people:  # bars from 0 would hide the differences
            bars.plot(range(len(names)), values, "o", color=_COLOURS[4], markeredgecolor="black", markersize=4.5)
            bars.set_xlim(-0.6, len(names) - 0.4)
        else:
            drawn = bars.bar(range(len(names)), values, 0.65, color=_COLOURS[4], edgecolor="black", linewidth=0.5)
            bars.bar_label(drawn, fmt="%.2f", fontsize=6, padding=1)
        bars.set_xticks(range(len(names)), labels=names, fontsize=6, rotation=35, ha="right", rotation_mode="anchor")
        bars.sharey(curves)
        bars.tick_params(labelleft=False)
        of_masks = "reference masks wrong" if score == "cp" else "generated masks wrong"
        curves.set_title(f"{f'alpha of {score.upper()}' if with_people else score.upper()}, {of_masks}", fontsize=7.5)
        curves.set_ylabel("alpha with people" if with_people else "mean absolute move")
        if with_people:
            for axes in (curves, bars):
                axes.axhline(given, color="black", linewidth=0.8)
        else:
            curves.set_ylim(0, 1.15 * max((value for _, value in defined), default=0) or 1)  # room for the labels
        for axes in (curves, bars):
            axes.grid(axis="y", alpha=0.25, linewidth=0.5)
            axes.set_axisbelow(True)
        curves.set_xlabel("pixels of the mask")
    figure.legend(*curves.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _move_value(move: Mapping[str, Any], with_people: bool) -> float | None:
    if not with_people:
        value: float | None = move["mean_absolute"]
        return value
    return None if move["alpha"] is None else move["alpha"]["alphas"][1]


def _check_some(name: str, values: Mapping[str, Any] | Sequence[Any]) -> None:
    if not values:
        raise ValueError(f"{name} is empty; give at least one")


def _short(name: str) -> str:
    """At most ``_WIDE`` characters; names of runs often differ at their ends, so the middle is left out."""
    name = " ".join(name.split())
    return name if len(name) <= _WIDE else f"{name[: _WIDE // 2 - 1]}...{name[-(_WIDE // 2 - 2) :]}"


def _name_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Name the rows of a plot, the first one at the top."""
    axes.set_yticks(range(len(labels)), labels=labels, parse_math=False)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
