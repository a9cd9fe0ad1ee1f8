"""The picture on an SAE's card: a few latents, and the images they fire on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.analysis import LatentAtlas, select_showcase_latents
from vit_sae_plugin.atomic_files import write_file_atomically
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.datasets.image_lookup import images_by_index
from vit_sae_plugin.report.card import PICTURE_FILE
from vit_sae_plugin.report.plots import new_figure
from vit_sae_plugin.report.reference_grid import plot_reference_images

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT

_N_LATENTS, _N_IMAGES = 6, 8
_FREQUENCIES = (0.005, 0.2)


def draw_card_picture(
    model: HookedViT, sae: SAE[Any], atlas: LatentAtlas, images: Any, folder: Path
) -> str | None:
    """Write ``card.png``.

    Returns:
        What it shows and by which rule the latents were chosen; None if no latent fires.
    """
    latents, rule = _chosen(atlas)
    if not latents:
        return None
    if AttachedSAE(model, sae).layout.has("patch"):
        figure = plot_reference_images(model, sae, atlas, images, latents, n_images=_N_IMAGES)
        shown = "bright where the latent is active"
    else:
        figure = _plain_grid(atlas, images, latents)
        shown = "whole, for this SAE reads one vector of each image"
    write_file_atomically(
        folder / PICTURE_FILE, lambda path: figure.savefig(path, dpi=110, bbox_inches="tight")
    )
    return (
        f"A row is a latent; its images are the {_N_IMAGES} that rank highest by "
        f"`{atlas.default_aggregation}` of {atlas.info.n_images:,} of {atlas.info.data_name}, "
        f"{shown}. Chosen were {rule}: no latent was picked by hand."
    )


def _chosen(atlas: LatentAtlas) -> tuple[list[int], str]:
    latents = select_showcase_latents(atlas, _N_LATENTS)
    if latents:
        return latents, (
            f"the {len(latents)} latents with the lowest label entropy among those active on 0.5 "
            "to 20 % of the images"
        )
    table = atlas.latents[~atlas.latents["is_dead"].astype(bool)]
    often = table[table["frequency"].between(*_FREQUENCIES)]
    table = often if len(often) else table
    order = table["mean_activation"].astype(float).sort_values(ascending=False, kind="stable")
    latents = [int(i) for i in order.index[:_N_LATENTS]]
    where = "among those active on 0.5 to 20 % of the images" if len(often) else "of all"
    return latents, (
        f"the {len(latents)} latents with the largest mean activation {where}, for the images "
        "have no labels, or too few"
    )


def _plain_grid(atlas: LatentAtlas, images: Any, latents: Sequence[int]) -> Any:
    wanted = {
        latent: [int(i) for i in atlas.reference_images(latent)["image"][:_N_IMAGES]]
        for latent in latents
    }
    source = open_images(images)
    pictures = dict(images_by_index(source, {i for some in wanted.values() for i in some}))
    figure = new_figure(1.1 + 1.05 * _N_IMAGES, 1.12 * len(latents))
    cells = figure.subplots(len(latents), _N_IMAGES, squeeze=False)
    for row, latent in zip(cells, latents, strict=True):
        for axes in row:
            axes.axis("off")
        for axes, index in zip(row, wanted[latent], strict=False):
            axes.imshow(pictures[index].resize((160, 160)))
        row[0].text(
            -0.08,
            0.5,
            f"latent {latent}\n{atlas.latents.loc[latent, 'frequency']:.1%} of images",
            transform=row[0].transAxes,
            ha="right",
            va="center",
            fontsize=7,
        )
    return figure
