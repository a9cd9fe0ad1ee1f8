"""Figures of an atlas, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from vit_sae_plugin.analysis import LatentAtlas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR, _MISSING, _LINE = "#9db8dd", "#b9bec4", "#c9ced4"
COLOR_MAP = "viridis"


def plot_latents(atlas: LatentAtlas, *, latents: Sequence[int] | None = None) -> Figure:
    """Frequency against mean activation, both on log scales, coloured by label entropy.

    Histograms of each stand at the edges. Latents without a label entropy are grey and drawn
    first; dead ones have no mean activation and are left out.

    Args:
        latents: only these. None: all.

    Raises:
        ValueError: every one of them is dead.
    """
    table = atlas.latents if latents is None else atlas.latents.loc[list(latents)]
    table = table[(table["frequency"] > 0) & (table["mean_activation"] > 0)]
    if table.empty:
        raise ValueError("none of these latents is ever active; want some that are")
    figure = new_figure(6.4, 5.6)
    grid = figure.add_gridspec(2, 2, width_ratios=(5, 1), height_ratios=(1, 5))
    axes = figure.add_subplot(grid[1, 0])
    above = figure.add_subplot(grid[0, 0], sharex=axes)
    beside = figure.add_subplot(grid[1, 1], sharey=axes)

    x, y = table["frequency"].to_numpy(), table["mean_activation"].to_numpy()
    entropy = table["label_entropy"].to_numpy(dtype=float)
    known = np.isfinite(entropy)
    size = float(np.clip(20_000 / len(table), 2, 14))
    axes.scatter(x[~known], y[~known], s=size, color=_MISSING, linewidths=0, alpha=0.6)
    dots = axes.scatter(
        x[known],
        y[known],
        s=size,
        c=entropy[known],
        cmap=COLOR_MAP,
        norm=Normalize(0, max(float(entropy[known].max(initial=0)), 0.1)),
        linewidths=0,
        alpha=0.85,
    )
    axes.set(xscale="log", yscale="log", xlabel="activated frequency", ylabel="mean activation")
    above.hist(x, bins=_log_bins(x), color=_BAR)
    beside.hist(y, bins=_log_bins(y), color=_BAR, orientation="horizontal")
    for edge in (above, beside):
        edge.axis("off")
    bar = figure.colorbar(dots, ax=beside, label="label entropy", fraction=0.5, aspect=30)
    bar.outline.set_visible(False)  # type: ignore[operator]
    _tidy(axes)
    return figure


def plot_activation_curves(atlas: LatentAtlas, latents: Sequence[int]) -> Figure:
    """For each latent, the share of all tokens that activate it at least so much.

    Read from the atlas's histograms, so in steps of an eighth of a decade. A selective latent's
    curve begins low and reaches far to the right.

    Raises:
        ValueError: ``latents`` is empty.
    """
    if not len(latents):
        raise ValueError("latents is empty; want at least one")
    figure = new_figure(5.6, 3.8)
    axes = figure.add_subplot()
    n_tokens = atlas.info.n_images * atlas.info.n_tokens
    for latent in latents:
        at_least = atlas.histogram[latent][::-1].cumsum()[::-1] / n_tokens
        shown = at_least > 0
        axes.plot(
            atlas.histogram_edges[:-1][shown],
            at_least[shown],
            drawstyle="steps-post",
            linewidth=1.4,
            label=f"latent {latent}",
        )
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="activation", ylabel="share of tokens at least as active")
    axes.legend(frameon=False, fontsize=8, ncols=1 + len(latents) // 12)
    _tidy(axes)
    return figure


def plot_class_latents(
    atlas: LatentAtlas,
    *,
    classes: Sequence[int] | None = None,
    latents: Sequence[int] | None = None,
    n_latents: int = 3,
) -> Figure:
    """Class x latent: how many tokens of an image of the class a latent is active at, on average.

    Args:
        classes: class indices, in this order. None: all that have images.
        latents: in this order. None: the ``n_latents`` of each class of which the largest share
            falls on it, among those active at a token of each of its images on average; in the
            order of the classes.

    Raises:
        ValueError: the atlas has no classes, or there are no latents to show.
    """
    if classes is None:
        classes = [int(c) for c in np.flatnonzero(atlas.class_n_images)]
    if not len(classes):
        raise ValueError("this atlas has no image with a class label; want one of labelled images")
    if latents is None:
        chosen: dict[int, None] = {}
        for one in classes:
            table = atlas.top_latents(one, atlas.d_sae, by="share")
            often = table.index[table["count_per_image"] >= 1][:n_latents]
            chosen |= dict.fromkeys(int(latent) for latent in often)
        latents = list(chosen)
    if not len(latents):
        raise ValueError(
            f"no latent is active above {atlas.info.threshold:g} at a token of each image of one "
            "of these classes, on average; pass latents="
        )
    counts = atlas.class_counts[np.ix_(list(classes), list(latents))]
    per_image = counts / np.maximum(atlas.class_n_images[list(classes)], 1)[:, None]
    figure = new_figure(2 + 0.16 * len(latents), 1.4 + 0.17 * len(classes))
    axes = figure.add_subplot()
    smallest = float(per_image[per_image > 0].min(initial=1.0))
    largest = max(float(per_image.max()), smallest * 1.01)
    image = axes.imshow(
        np.where(per_image > 0, per_image, np.nan),
        aspect="auto",
        cmap=COLOR_MAP,
        norm=LogNorm(max(smallest, largest / 1000), largest),
        interpolation="nearest",
    )
    axes.set_yticks(range(len(classes)), [atlas.class_name(c) for c in classes], fontsize=7)
    axes.set_xticks(range(len(latents)), [str(i) for i in latents], fontsize=6, rotation=90)
    axes.set_xlabel("latent")
    figure.colorbar(image, ax=axes, label="active tokens per image", fraction=0.04)
    _tidy(axes, grid=False)
    axes.tick_params(length=0)
    return figure


class NotebookFigure(Figure):
    """A figure that belongs to no window, so that any number can be made; notebooks show it."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def new_figure(width: float, height: float) -> NotebookFigure:
    """An empty figure of this size in inches."""
    figure = NotebookFigure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure


def _log_bins(values: np.ndarray) -> Any:
    low, high = values.min(), values.max()
    # geomspace ends exactly there: rounding must not lose the smallest or the largest value
    return np.geomspace(low, high if high > low else 10 * low, 50)


def _tidy(axes: Axes, grid: bool = True) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_LINE)
    axes.tick_params(which="both", color=_LINE, labelsize=8)
    if grid:
        axes.grid(True, which="major", color=_LINE, alpha=0.4, linewidth=0.6)
        axes.set_axisbelow(True)
