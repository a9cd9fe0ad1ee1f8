"""The masking study as a picture: accuracy against the number of latents kept or removed."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from vit_sae_plugin.report.plots import new_figure
from vit_sae_plugin.report.recovery_plots import COLORS, MARKERS

_NAMES = {
    "class": "the class's top latents",
    "selective": "the class's most selective",
    "dataset": "the data set's top latents",
    "random": "random latents",
}
_TITLES = {"on": "only k latents kept", "off": "k latents removed"}


def plot_masking(table: pd.DataFrame, *, error_term: bool = False) -> Figure:
    """Accuracy against k, latents kept on the left and removed on the right, with interval bands.

    Args:
        table: ``MaskingResult.overall()``, or one class of ``by_class()``.
        error_term: which half of the study: without or with what the SAE doesn't describe.

    Raises:
        ValueError: the study has no such half.
    """
    masked = table.query("ranking != '' and error_term == @error_term")
    if masked.empty:
        raise ValueError(
            f"the table has no conditions with error_term={error_term}; want the other, or a study "
            "with error_terms=(False, True)"
        )
    figure = new_figure(8.6, 3.9)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, mask in zip(panels, ("on", "off"), strict=True):
        _draw_panel(axes, table, masked.xs(mask, level="mask"), mask, error_term)
    panels[0].set_ylabel("zero-shot accuracy" if "head" not in table.attrs else "accuracy")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8.5
    )
    with_or_without = "with" if error_term else "without"
    figure.suptitle(f"Reconstruction {with_or_without} the SAE's error", fontsize=10)
    return figure


def _draw_panel(
    axes: Axes, table: pd.DataFrame, masked: pd.DataFrame, mask: str, error_term: bool
) -> None:
    for number, ranking in enumerate(dict.fromkeys(masked.index.get_level_values("ranking"))):
        line = masked.xs(ranking, level="ranking").droplevel("error_term").sort_index()
        k, color = line.index.to_numpy(), COLORS[number % len(COLORS)]
        axes.fill_between(k, line["low"], line["high"], color=color, alpha=0.18, linewidth=0)
        axes.plot(
            k,
            line["accuracy"],
            color=color,
            marker=MARKERS[number],
            markersize=4,
            linewidth=1.4,
            label=_NAMES.get(ranking, ranking),
        )
    heights: list[float] = []
    for name, style in (("original", "-"), ("all on", "--"), ("all off", ":")):
        level = table.query("mask == @name and (error_term == @error_term or mask == 'original')")
        if not level.empty:
            height = float(level["accuracy"].iloc[0])
            axes.axhline(height, color="#777777", linestyle=style, linewidth=0.9, zorder=0)
            # beside the panel; names of lines that lie close together are set apart
            apart = -6 if any(abs(height - other) < 0.05 for other in heights) else 0
            heights.append(height)
            axes.annotate(
                name,
                (1.0, height),
                xycoords=("axes fraction", "data"),
                xytext=(3, apart),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color="#555555",
                annotation_clip=False,
            )
    axes.set(xscale="log", ylim=(-0.03, 1.03), title=_TITLES[mask])
    axes.set_xticks(_apart(sorted(set(masked.index.get_level_values("k")))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelsize=7.5, rotation=45)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_xlabel("latents (k)")
    axes.title.set_fontsize(9.5)
    axes.spines[["top", "right"]].set_visible(False)


def _apart(ks: list[int]) -> list[int]:
    """The numbers that can be written side by side on a log axis, the last one among them."""
    kept = [ks[-1]]
    for k in reversed(ks[:-1]):
        if kept[-1] > 1.4 * k:
            kept.append(k)
    return kept[::-1]
