"""Figures of a study of adaptation: accuracies by method, and masking before and after."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from vit_sae_plugin.report.page_pieces import INK
from vit_sae_plugin.report.recovery_plots import COLORS, MARKERS


def plot_accuracies(means: pd.DataFrame) -> Figure:
    """Accuracy of each method with its interval over seeds, a panel for each measure.

    Args:
        means: index ``method``, the plain model first; columns measure, and ``mean``, ``low``,
            ``high``.
    """
    measures = list(dict.fromkeys(means.columns.get_level_values(0)))
    figure = Figure(figsize=(8.6, 0.34 * len(means) + 0.9), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    place = -np.arange(len(means))
    for axes, measure in zip(panels, measures, strict=True):
        values = means[measure]
        axes.axvline(values["mean"].iloc[0], color=INK, ls=":", lw=0.9, zorder=0)
        for at, (mean, low, high) in zip(place, values.to_numpy(float), strict=True):
            if np.isnan(mean):
                continue
            color = INK if at == 0 else COLORS[0]
            if not np.isnan(low):
                bounds = [max(low, 0), min(high, 1)]
                axes.plot(bounds, [at, at], color=color, lw=2, alpha=0.55, solid_capstyle="round")
            axes.plot(mean, at, "o", color=color, markersize=6)
        axes.set(ylim=(place[-1] - 0.6, 0.6))
        axes.set_title(measure.replace("_", " "), fontsize=9.5, loc="left", color=INK)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.tick_params(labelsize=8.5, colors=INK, length=2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.grid(True, axis="x", color=INK, alpha=0.18, linewidth=0.6)
    panels[0].set_yticks(place, [str(name).replace("_", " ") for name in means.index])
    return figure


def plot_masking_of_both(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Accuracy against the latents kept, and removed, in two models; the SAE's error is added.

    Args:
        tables: ``"plain"`` and ``"adapted"`` to ``MaskingResult.overall()``.
    """
    figure = Figure(figsize=(8.6, 3.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"on": "only k latents kept", "off": "k latents removed"}
    names = {"class": "the class's first", "random": "random"}
    for axes, (mask, title) in zip(panels, titles.items(), strict=True):
        for number, (model, table) in enumerate(tables.items()):
            original = float(table.xs("original", level="mask")["accuracy"].iloc[0])
            axes.axhline(original, color=COLORS[number], lw=0.9, alpha=0.6)
            for ranking, style in (("class", "-"), ("random", ":")):
                line = table.xs((ranking, mask, True), level=("ranking", "mask", "error_term"))
                line = line.sort_index()
                k, color = line.index.to_numpy(), COLORS[number]
                axes.fill_between(k, line["low"], line["high"], color=color, alpha=0.12, lw=0)
                axes.plot(
                    k,
                    line["accuracy"],
                    style,
                    color=color,
                    marker=MARKERS[number],
                    markersize=4,
                    lw=1.5,
                    label=f"{model} model, {names[ranking]}",
                )
        axes.set(xscale="log", ylim=(-0.03, 1.03))
        axes.set_title(title, fontsize=9.5, loc="left", color=INK)
        axes.set_xlabel("latents (k)", fontsize=8.5, color=INK)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.tick_params(labelsize=8, colors=INK, length=2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.grid(True, color=INK, alpha=0.18, linewidth=0.6)
    handles, labels = panels[0].get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5
    )
    for text in legend.get_texts():
        text.set_color(INK)
    return figure
