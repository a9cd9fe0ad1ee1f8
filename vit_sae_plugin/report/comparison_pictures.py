"""Images side by side: the latents that both models activate, and those of one alone."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from vit_sae_plugin.analysis.html_pieces import data_uri
from vit_sae_plugin.analysis.pictures.heatmap import Heatmap
from vit_sae_plugin.analysis.pictures.heatmaps import encode_images
from vit_sae_plugin.analysis.pictures.overlays import tint
from vit_sae_plugin.analysis.pictures.seen_region import Region, SeenRegions
from vit_sae_plugin.analysis.remapping.comparison import ModelComparison
from vit_sae_plugin.datasets.image_lookup import images_by_index

GROUPS = ("in both models", "only in the plain model", "only in the adapted model")
_SIZE = 72


@dataclass
class ComparedImage:
    """One image, and its latents in both models."""

    image: Image.Image
    """What the models see of it."""
    label: int
    """Its class."""
    correct: tuple[bool, bool]
    """Whether the plain and the adapted model name it."""
    latents: dict[str, list[tuple[int, list[Image.Image]]]]
    """Group to its most telling latents: the index, and the image coloured where it is active, in
    the plain model, the adapted one, or both."""
    n_latents: dict[str, int]
    """How many latents a group has in all."""


def choose_images(comparison: ModelComparison, n: int = 6) -> list[int]:
    """Images to show, as positions among those scored: of different classes, and first of all those
    that only the adapted model names, then those that only the plain one does, then the others."""
    effects = comparison.effects
    plain, adapted = effects.own("plain"), effects.own("adapted")
    kind = np.select([adapted & ~plain, plain & ~adapted], [0, 1], 2)
    chosen: list[int] = []
    seen: set[int] = set()
    for at in np.lexsort([effects.index, kind]):
        label = int(effects.label[at])
        if label not in seen:
            seen.add(label)
            chosen.append(int(at))
    n_lost = min(1, int((kind == 1).sum()))
    gained = [at for at in chosen if kind[at] == 0][: n - n_lost]
    return [*gained, *[at for at in chosen if kind[at] != 0][: n - len(gained)]]


@torch.no_grad()
def compare_images(
    comparison: ModelComparison,
    positions: Sequence[int],
    *,
    n_latents: int = 4,
) -> list[ComparedImage]:
    """The latents of some scored images in both models.

    A latent is in a model if any token is above the comparison's threshold. Those come first that
    tell most of this image: their activation × the logarithm of 1 ÷ the share of all images in
    which they are active.

    Args:
        comparison: of the two models.
        positions: which of them, as places in ``comparison.effects``.
        n_latents: shown of each group.
    """
    pair = comparison.pair
    layout = pair.plain.require_patches()
    at_index = {int(comparison.effects.index[at]): at for at in positions}
    found = dict(images_by_index(comparison.images, at_index))
    frequency = comparison.levels.frequency().mean((0, 1))
    rarity = -np.log(frequency.clip(1e-3, 1))
    regions = SeenRegions(pair.plain.model.require_preprocess())
    results = {}
    for index, picture in found.items():
        both = [next(encode_images(one, [picture])) for one in (pair.plain, pair.adapted)]
        totals = torch.stack([tokens.sum(0) for tokens in both]).cpu().numpy()
        above = [(tokens > comparison.levels.threshold).any(0) for tokens in both]
        on = torch.stack(above).cpu().numpy()
        grids = [layout.on_grid(tokens.T).cpu().numpy() for tokens in both]
        region = regions.of(picture)
        latents, counts = {}, {}
        members = (on[0] & on[1], on[0] & ~on[1], ~on[0] & on[1])
        for group, member, shown in zip(GROUPS, members, ((0, 1), (0,), (1,)), strict=True):
            strength = np.where(member, totals.max(0) * rarity, -1)
            order = np.argsort(-strength, kind="stable")[: min(n_latents, int(member.sum()))]
            latents[group] = [
                (
                    int(latent),
                    [_masked(picture, int(latent), grids[one][latent], region) for one in shown],
                )
                for latent in order
            ]
            counts[group] = int(member.sum())
        at = at_index[index]
        effects = comparison.effects
        results[at] = ComparedImage(
            region.crop(picture, (2 * _SIZE, 2 * _SIZE)),
            int(effects.label[at]),
            (bool(effects.own("plain")[at]), bool(effects.own("adapted")[at])),
            latents,
            counts,
        )
    return [results[at] for at in positions]


def compared_image_html(one: ComparedImage, comparison: ModelComparison) -> str:
    """An image and its latents in three groups, as a piece of a page."""
    top_class = comparison.over_classes()["top_class"]
    answers = "".join(
        f'<span class="{"right" if right else "wrong"}">{name}: {"right" if right else "wrong"}'
        "</span>"
        for name, right in zip(("plain", "adapted"), one.correct, strict=True)
    )
    columns = []
    for group in GROUPS:
        rows = "".join(
            f'<div class="latent-row"><span class="thumbs">{"".join(map(_image, pictures))}</span>'
            f"<span><b>{latent}</b><br>{html.escape(str(top_class[latent]))}</span></div>"
            for latent, pictures in one.latents[group]
        )
        columns.append(f"<div><h4>{group} <i>{one.n_latents[group]}</i></h4>{rows}</div>")
    name = html.escape(comparison.class_names[one.label])
    return (
        f'<article class="compared"><div class="whole">{_image(one.image)}<b>{name}</b>{answers}'
        f"</div>{''.join(columns)}</article>"
    )


def _masked(
    picture: Image.Image, latent: int, grid: Float[np.ndarray, "row column"], region: Region
) -> Image.Image:
    shown = Heatmap(picture, latent, grid, region)
    return tint(shown, size=shown.size_of_region(_SIZE), smooth=False, opacity=0.85)


def _image(image: Image.Image) -> str:
    return f'<img src="{data_uri(image)}" alt="">'
