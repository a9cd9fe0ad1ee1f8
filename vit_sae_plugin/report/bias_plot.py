"""A bias study as a picture: accuracy of the worst group and of all as concepts are suppressed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from vit_sae_plugin.report.plots import new_figure
from vit_sae_plugin.report.recovery_plots import COLORS, MARKERS

_KINDS = {
    "concepts": "concepts that differ between groups",
    "random latents": "random latents about as active",
    "neurons": "neurons, by the same rule",
}


def plot_bias(mending: pd.DataFrame, prediction: pd.DataFrame, names: dict[int, str]) -> Figure:
    """Worst group and mean against the number suppressed, and how answers move with one concept.

    Args:
        mending: the table of that name of ``bias_study``.
        prediction: likewise.
        names: latent → name; others are shown by number.
    """
    figure = new_figure(11.5, 3.9)
    panels = figure.subplots(1, 3)
    for axes, column in zip(panels, ("worst", "mean"), strict=False):
        _draw_accuracy(axes, mending, column)
    panels[0].set_title("accuracy of the worst group", fontsize=9.5)
    panels[1].set_title("mean accuracy", fontsize=9.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower left", ncols=len(labels), frameon=False, fontsize=8
    )
    _draw_curves(panels[2], prediction, names)
    for axes in panels:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_accuracy(axes: Axes, mending: pd.DataFrame, column: str) -> None:
    plain = mending[~mending.index.get_level_values("refitted")].droplevel("refitted")
    for number, (kind, label) in enumerate(_KINDS.items()):
        if kind not in plain.index.get_level_values("suppressed"):
            continue
        of_kind = plain.xs(kind, level="suppressed").groupby(level="n")
        columns = [column, f"{column}_low", f"{column}_high"]
        line = of_kind[columns].mean()
        color = COLORS[number]
        axes.fill_between(
            line.index, line[columns[1]], line[columns[2]], color=color, alpha=0.18, linewidth=0
        )
        axes.plot(
            line.index,
            line[column],
            color=color,
            marker=MARKERS[number],
            markersize=4,
            linewidth=1.4,
            label=label,
        )
    for kind, style in (("none", "-"), ("unbiased probe", "--")):
        if kind in plain.index.get_level_values("suppressed"):
            height = float(plain.xs(kind, level="suppressed")[column].iloc[0])
            axes.axhline(height, color="#777777", linestyle=style, linewidth=0.9, zorder=0)
            axes.annotate(
                "as it is" if kind == "none" else kind,
                (0.99, height),
                xycoords=("axes fraction", "data"),
                xytext=(0, -3 if kind == "none" else 3),
                textcoords="offset points",
                ha="right",
                va="top" if kind == "none" else "bottom",
                fontsize=7.5,
                color="#555555",
            )
    axes.set(xscale="log", ylim=(-0.03, 1.03), xlabel="suppressed together")
    axes.set_xticks(sorted(set(mending.index.get_level_values("n")) - {0}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_curves(axes: Axes, prediction: pd.DataFrame, names: dict[int, str]) -> None:
    moved = prediction.xs("(any)", level="class")
    for number, latent in enumerate(dict.fromkeys(moved.index.get_level_values("latent"))):
        line = moved.xs(latent, level="latent")
        is_control = latent == "random latents"
        color = "#777777" if is_control else COLORS[(number + len(_KINDS)) % len(COLORS)]
        axes.fill_between(
            line.index, line["low"], line["high"], color=color, alpha=0.18, linewidth=0
        )
        label = "random latents" if is_control else names.get(latent) or f"latent {latent}"
        style = "--" if is_control else "-"
        axes.plot(line.index, line["share"], style, color=color, linewidth=1.4, label=label)
    axes.set_title("answers that change with one concept", fontsize=9.5)
    axes.set_xlabel("strength of the concept")
    axes.set_xticks(np.unique(moved.index.get_level_values("factor")))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{value:g}"))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=7.5)
