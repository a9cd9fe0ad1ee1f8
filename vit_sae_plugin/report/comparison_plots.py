"""Figures of a comparison of two models: what their latents do, and what exchanging them does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from vit_sae_plugin.analysis.remapping.comparison import ModelComparison
from vit_sae_plugin.report.page_pieces import INK

CHANGE_COLORS = {"": "#b9bec4", "stays high": "#56B4E9", "falls": "#CC79A7", "rises": "#D55E00"}
"""Okabe and Ito's, which people with colour blindness tell apart."""
_CONTROL, _BLUE = "#9aa2ab", "#0072B2"
_EFFECTS = [
    ("plain", "none", "", True, "the plain model"),
    ("adapted", "none", "", True, "the adapted model"),
    ("plain", "other head", "", True, "plain blocks, adapted classes"),
    ("adapted", "other head", "", True, "adapted blocks, plain classes"),
    ("adapted", "held", "risen", True, "risen latents held"),
    ("adapted", "held", "random", True, "random ones held"),
    ("adapted", "held", "all", True, "all latents held"),
    ("adapted", "held", "stream", True, "the whole stream held"),
    ("adapted", "only", "used", True, "only latents used before"),
    ("adapted", "only", "random", True, "as many random ones silenced"),
    ("adapted", "only", "used", False, "the same, without the SAE's error"),
    ("adapted", "only", "random", False, "random, without the SAE's error"),
    ("adapted", "only", "all", False, "all latents, without the SAE's error"),
    ("plain", "put in", "risen", True, "risen latents put in"),
    ("plain", "put in", "random", True, "random ones put in"),
    ("plain", "put in", "all", True, "all latents put in"),
    ("plain", "put in", "stream", True, "the whole stream put in"),
]
_HEADINGS = {
    0: "As they are",
    4: "Adapted model, latents held at the plain model's values",
    8: "Adapted model with latents silenced",
    13: "Plain model, latents set to the adapted model's values",
}


def plot_effects(table: pd.DataFrame) -> Figure:
    """Accuracy under each exchange of latents, with its interval; lines are the two models.

    Args:
        table: ``RemappingResult.table()``.
    """
    rows = [(at, row) for at, row in enumerate(_EFFECTS) if row[:4] in table.index]
    figure = Figure(figsize=(8.6, 0.27 * (len(rows) + 1.6 * len(_HEADINGS)) + 0.5), dpi=150)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    for model, style in (("plain", ":"), ("adapted", "-")):
        level = table.loc[(model, "none", "", True), "accuracy"]
        axes.axvline(level, color=INK, linestyle=style, linewidth=0.9, zorder=0)
    y, ticks, names = 0.0, [], []
    for at, (*key, name) in rows:
        if at in _HEADINGS:
            y -= 1.6
            axes.annotate(
                _HEADINGS[at],
                (0, y),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=8.5,
                color=INK,
                va="center",
                fontweight="bold",
            )
        y -= 1
        row = table.loc[tuple(key)]
        color = _CONTROL if key[2] == "random" else _BLUE
        axes.plot([row["low"], row["high"]], [y, y], color=color, linewidth=2, alpha=0.6)
        axes.plot(row["accuracy"], y, "o", color=color, markersize=5.5)
        axes.annotate(
            f"{row['accuracy']:.1%}",
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=8.5,
            color=color,
            va="center",
        )
        ticks.append(y)
        names.append(name)
    axes.set_yticks(ticks, names)
    axes.set_ylim(y - 0.8, -0.8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_xlabel("accuracy", fontsize=8.5, color=INK)
    _tidy(axes, "x")
    return figure


def plot_overlap(table: pd.DataFrame) -> Figure:
    """Jaccard index and rank correlation of the top k, with bands over classes.

    Args:
        table: ``ModelComparison.overlap()``.
    """
    figure = Figure(figsize=(8.6, 2.9), dpi=150, layout="constrained")
    styles = {
        "models": ("plain and adapted, same images", _BLUE, "-", "o"),
        "models, other images": ("plain and adapted, other images", "#E69F00", "--", "s"),
        "plain, other images": ("plain and plain, other images", _CONTROL, ":", "^"),
    }
    panels = {"jaccard": "shared latents (Jaccard)", "rank_correlation": "rank correlation"}
    for axes, (column, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for compared, (name, color, style, marker) in styles.items():
            line = table.xs(compared, level="compared").dropna(subset=[column]).sort_index()
            k = line.index.to_numpy()
            axes.fill_between(
                k, line[f"{column}_low"], line[f"{column}_high"], color=color, alpha=0.15, lw=0
            )
            axes.plot(
                k, line[column], style, marker=marker, color=color, markersize=4, lw=1.5, label=name
            )
        axes.set(xscale="log", ylim=(min(0, axes.get_ylim()[0]), 1.03))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(title, fontsize=9.5, loc="left", color=INK)
        axes.set_xlabel("a class's first latents (k)", fontsize=8.5, color=INK)
        _tidy(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5
    )
    for text in legend.get_texts():
        text.set_color(INK)
    return figure


def plot_changes(comparison: ModelComparison) -> Figure:
    """All classes: each latent's frequency before and after, and how many change in each class."""
    figure = Figure(figsize=(8.6, 3.9), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    frequency = comparison.levels.frequency()
    changes = comparison.changes
    _scatter(left, frequency[0].ravel(), frequency[1].ravel(), changes.ravel(), 7, 0.35)
    left.set_title("every latent in every class", fontsize=9.5, loc="left", color=INK)
    counts = comparison.changes_by_class()
    order = np.argsort(-counts["rises"].to_numpy() - counts["falls"].to_numpy(), kind="stable")
    place = np.arange(len(counts))
    for name, sign in (("rises", 1), ("falls", -1)):
        values = sign * counts[name].to_numpy()[order]
        right.bar(place, values, width=0.9, color=CHANGE_COLORS[name], label=name)
    by_chance = counts["rises_by_chance"].mean()
    right.axhline(by_chance, color=INK, lw=0.9, ls=":")
    right.axhline(-counts["falls_by_chance"].mean(), color=INK, lw=0.9, ls=":")
    right.set_title(
        "latents that rise and fall, class by class", fontsize=9.5, loc="left", color=INK
    )
    right.set_xlabel("classes; dotted: between halves of the plain model's images", fontsize=8.5)
    right.xaxis.label.set_color(INK)
    right.set_xticks([])
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):.0f}"))
    _tidy(right, "y")
    _legend_of_changes(figure)
    return figure


def plot_classes(comparison: ModelComparison, labels: Sequence[int], n_columns: int = 6) -> Figure:
    """Each latent's frequency before and after in some classes, a panel for each.

    Args:
        comparison: of the two models.
        labels: which classes.
        n_columns: panels in a row.
    """
    n_rows = -(-len(labels) // n_columns)
    figure = Figure(figsize=(8.6, 1.62 * n_rows + 0.5), dpi=150, layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    frequency = comparison.levels.frequency()
    for axes in grid.ravel()[len(labels) :]:
        axes.set_visible(False)
    for axes, label in zip(grid.ravel(), labels, strict=False):
        plain, adapted = frequency[:, label]
        _scatter(axes, plain, adapted, comparison.changes[label], 9, 0.8)
        axes.set(xlabel="", ylabel="")
        axes.set_title(comparison.class_names[label], fontsize=8.5, color=INK)
    figure.supxlabel("share of the class's images, plain model", fontsize=8.5, color=INK)
    figure.supylabel("adapted model", fontsize=8.5, color=INK)
    _legend_of_changes(figure)
    return figure


def _scatter(
    axes: Axes, before: np.ndarray, after: np.ndarray, change: np.ndarray, size: float, alpha: float
) -> None:
    axes.plot([0, 1], [0, 1], color=INK, lw=0.7, alpha=0.6)
    seen = (before > 0) | (after > 0)
    for name, color in CHANGE_COLORS.items():
        chosen = seen & (change == name)
        # many dots as one picture, so that the page stays small
        axes.scatter(
            before[chosen], after[chosen], s=size, color=color, alpha=alpha, lw=0, rasterized=True
        )
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    axes.set_xlabel("share of a class's images, plain model", fontsize=8.5, color=INK)
    axes.set_ylabel("adapted model", fontsize=8.5, color=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.5, 1])
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    _tidy(axes)


def _legend_of_changes(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    shown = {"stays high": "stays high", "rises": "rises", "falls": "falls", "": "none of these"}
    handles = [
        Line2D([], [], marker="o", ls="", color=CHANGE_COLORS[name], label=label, markersize=5)
        for name, label in shown.items()
    ]
    legend = figure.legend(
        handles=handles, loc="outside upper right", ncols=4, frameon=False, fontsize=8.5
    )
    for text in legend.get_texts():
        text.set_color(INK)


def _tidy(axes: Axes, grid: str = "both") -> None:
    axes.tick_params(labelsize=8, colors=INK, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(True, axis=grid, color=INK, alpha=0.18, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
