"""Grids of reference images, a row for each latent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from matplotlib.figure import Figure

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.analysis import (
    Heatmap,
    LatentAtlas,
    highlight,
    outline,
    reference_heatmaps,
    tint,
    zoom,
)
from vit_sae_plugin.report.plots import new_figure

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT

Style = Literal["highlight", "tint", "outline", "zoom"]
_SIDE = 160


def plot_reference_images(
    model: HookedViT,
    sae: SAE[Any],
    atlas: LatentAtlas,
    images: Any,
    latents: Sequence[int],
    *,
    n_images: int = 8,
    style: Style = "highlight",
    smooth: bool = False,
    names: Mapping[int, str] | None = None,
    aggregation: str | None = None,
    source: ActivationSource | None = None,
) -> Figure:
    """Each latent's reference images in a row, with the place where it is active.

    Args:
        images: the source that was analysed, or what ``open_images`` takes.
        latents: one row each.
        n_images: columns.
        style: ``"highlight"`` dims what is not active, ``"tint"`` colours and ``"outline"`` rings
            what is, ``"zoom"`` shows the surroundings of the most active patch.
        smooth: interpolate between patches.
        names: a name to print in front of a row.
        aggregation: whose reference images; None: the atlas's default.

    Raises:
        ValueError: ``latents`` is empty, or ``style`` is unknown.
    """
    if not len(latents):
        raise ValueError("latents is empty; want at least one")
    draw: dict[str, Callable[..., Any]] = {"highlight": highlight, "tint": tint, "outline": outline}
    if style != "zoom" and style not in draw:
        raise ValueError(f"style is {style!r}; want 'highlight', 'tint', 'outline' or 'zoom'")

    def picture(one: Heatmap) -> Any:
        if style == "zoom":
            return zoom(one, size=_SIDE)
        return draw[style](one, size=one.size_of_region(_SIDE), smooth=smooth)

    maps = reference_heatmaps(
        model,
        sae,
        atlas,
        images,
        latents,
        n_images=n_images,
        aggregation=aggregation,
        source=source,
    )
    figure = new_figure(1.1 + 1.05 * n_images, 1.12 * len(latents))
    cells = figure.subplots(len(latents), n_images, squeeze=False)
    for row, latent in zip(cells, latents, strict=True):
        for axes in row:
            axes.axis("off")
        for axes, one in zip(row, maps[latent], strict=False):
            axes.imshow(picture(one))
        name = (names or {}).get(latent) or f"latent {latent}"
        entropy = float(atlas.latents.loc[latent, "label_entropy"])
        frequency = atlas.latents.loc[latent, "frequency"]
        known = f"\nentropy {entropy:.2f}" if math.isfinite(entropy) else ""
        row[0].text(
            -0.08,
            0.5,
            f"{name}\n{frequency:.1%} of images{known}",
            transform=row[0].transAxes,
            ha="right",
            va="center",
            fontsize=7,
        )
    return figure
