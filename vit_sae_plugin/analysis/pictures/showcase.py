"""Latents worth a look, and pictures of what they respond to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from PIL import Image

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.analysis.atlas.latent_atlas import LatentAtlas
from vit_sae_plugin.analysis.pictures.heatmap import Heatmap, highlight
from vit_sae_plugin.analysis.pictures.heatmaps import encode_images
from vit_sae_plugin.analysis.pictures.seen_region import SeenRegions
from vit_sae_plugin.analysis.pictures.shown_list import ShownList
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.datasets.image_lookup import images_by_index

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT

_IMAGES_AT_ONCE = 32


def select_showcase_latents(
    atlas: LatentAtlas, n: int = 24, *, min_frequency: float = 0.005, max_frequency: float = 0.2
) -> list[int]:
    """The latents with the lowest label entropy among those active on 0.5–20 % of images.

    Latents without a label entropy don't take part; among equal ones the more frequent comes
    first, then the smaller index.
    """
    table = atlas.latents
    table = table[table["frequency"].between(min_frequency, max_frequency)]
    table = table[table["label_entropy"].notna()].assign(
        # entropies that differ only by rounding are equal
        label_entropy=lambda t: t["label_entropy"].round(9),
        rarity=lambda t: -t["frequency"],
    )
    return [int(i) for i in table.sort_values(["label_entropy", "rarity"], kind="stable").index[:n]]


def reference_heatmaps(
    model: HookedViT,
    sae: SAE[Any],
    atlas: LatentAtlas,
    images: Any,
    latents: Sequence[int],
    *,
    n_images: int = 10,
    aggregation: str | None = None,
    source: ActivationSource | None = None,
) -> dict[int, ShownList[Heatmap]]:
    """The heat maps of latents on their reference images, the strongest image first.

    Each image goes through the model once, whatever the number of latents it belongs to.

    Args:
        images: the source that was analysed, or what ``open_images`` takes.
        latents: indices.
        n_images: at most that many for each latent.
        aggregation: whose reference images; None: the atlas's default.
    """
    attached = AttachedSAE(model, sae, source)
    layout = attached.require_patches()
    image_source = open_images(images)
    wanted: dict[int, list[int]] = {}
    for latent in latents:
        for index in atlas.reference_images(latent, aggregation)["image"][:n_images]:
            wanted.setdefault(int(index), []).append(latent)
    found: dict[tuple[int, int], Heatmap] = {}
    loaded = images_by_index(image_source, wanted)
    regions = SeenRegions(model.require_preprocess())
    while some := list(islice(loaded, _IMAGES_AT_ONCE)):
        encoded = encode_images(attached, [image for _, image in some])
        for (index, image), tokens in zip(some, encoded, strict=True):
            region = regions.of(image)
            grids = layout.on_grid(tokens[:, wanted[index]].T).cpu().numpy()
            for latent, grid in zip(wanted[index], grids, strict=True):
                found[latent, index] = Heatmap(image, latent, grid, region)
    return {
        latent: ShownList(
            found[latent, int(index)]
            for index in atlas.reference_images(latent, aggregation)["image"][:n_images]
        )
        for latent in latents
    }


def reference_pictures(
    model: HookedViT,
    sae: SAE[Any],
    atlas: LatentAtlas,
    images: Any,
    latents: Sequence[int],
    *,
    n_images: int = 10,
    size: int = 192,
    aggregation: str | None = None,
    source: ActivationSource | None = None,
) -> dict[int, list[Image.Image]]:
    """Each latent's reference images as the model sees them, bright where the latent is active.

    Args as ``reference_heatmaps``; ``size``: longer side in pixels.
    """
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
    return {
        latent: [highlight(one, size=one.size_of_region(size)) for one in several]
        for latent, several in maps.items()
    }
