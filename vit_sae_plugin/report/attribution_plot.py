"""Which latents, in which patches, made a logit: one picture."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from PIL import Image

from vit_sae_plugin.analysis.pictures.explanation import Explanation
from vit_sae_plugin.report.plots import new_figure

_MAP = "RdBu_r"


def plot_attribution(explanation: Explanation, *, n_latents: int = 4, label: str = "") -> Figure:
    """The picture, the parts of all latents together, and those of the strongest one by one.

    Red patches raise the number, blue ones lower it, on one scale for all latents shown singly and
    one for their sum; colours are as strong as the largest part of either sign.

    Args:
        explanation: of ``explain(..., logit=…)``.
        n_latents: how many to show one by one.
        label: what the number is, for the title.

    Raises:
        ValueError: the explanation is not of a logit.
    """
    found = explanation.attribution
    if found is None:
        raise ValueError("this explanation is of no logit; want explain(..., logit=…)")
    latents = found.by_latent.iloc[:n_latents]
    figure = new_figure(1.75 * (2 + len(latents)) + 0.6, 2.5)
    panels = figure.subplots(1, 2 + len(latents))
    _picture(panels[0], explanation, "the picture")
    together = _parts(panels[1], explanation, found.on_grid(), "all latents", None)
    grids = [found.on_grid(int(latent)) for latent in latents.index]
    largest = max((np.nanmax(np.abs(grid)) for grid in grids), default=1.0)
    singly = None
    for axes, latent, grid in zip(panels[2:], latents.index, grids, strict=True):
        title = f"{latent}: {latents.loc[latent, 'attribution']:+.3g}"
        singly = _parts(axes, explanation, grid, title, largest)
    for scale, of in ((together, [panels[1]]), (singly, list(panels[2:]))):
        if scale is not None and of:
            bar = figure.colorbar(scale, ax=of, orientation="horizontal", shrink=0.8, aspect=24)
            bar.ax.tick_params(labelsize=6.5)
            bar.outline.set_visible(False)  # type: ignore[operator]
    prefix = f"{label}: " if label else ""
    figure.suptitle(f"{prefix}{found.score:.4g}, by {found.method.replace('_', ' ')}", fontsize=9)
    return figure


def _seen(explanation: Explanation) -> Image.Image:
    """The part of the picture that the model sees."""
    region = explanation.region
    size = (max(1, round(region.width)), max(1, round(region.height)))
    return region.crop(explanation.image, size)


def _picture(axes: Axes, explanation: Explanation, title: str) -> None:
    axes.imshow(_seen(explanation))
    axes.set_title(title, fontsize=8)
    axes.axis("off")


def _parts(
    axes: Axes, explanation: Explanation, grid: np.ndarray, title: str, largest: float | None
) -> ScalarMappable:
    bound = max(float(np.nanmax(np.abs(grid))) if largest is None else largest, 1e-12)
    norm = TwoSlopeNorm(0, -bound, bound)
    seen = _seen(explanation)
    extent = (0, seen.width, seen.height, 0)
    axes.imshow(seen.convert("L"), cmap="gray", alpha=0.55, extent=extent)
    strength = np.nan_to_num(np.abs(grid) / bound) ** 0.6 * 0.9
    image = axes.imshow(np.nan_to_num(grid), cmap=_MAP, norm=norm, alpha=strength, extent=extent)
    axes.set_title(title, fontsize=8)
    axes.axis("off")
    return ScalarMappable(norm=norm, cmap=image.get_cmap())
