"""One picture at the SAE's place in a model: its latents, and the output when they are changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vit_sae_plugin.analysis.pictures.heatmap import Heatmap
from vit_sae_plugin.analysis.pictures.seen_region import Region, seen_region
from vit_sae_plugin.attached_sae import AttachedSAE, UpperRun, add, attribute, in_order, scale
from vit_sae_plugin.attached_sae.attribution import Score

_LONGER_SIDE = 512


class OpenedImage:
    """A picture that is run once up to the SAE, when this is made.

    Args:
        attached: the SAE on its model.
        picture: an RGB picture; only what the model sees of it is kept.

    Attributes:
        seen: what the model sees of the picture, as large as a page shows it.
    """

    def __init__(self, attached: AttachedSAE, picture: Image.Image):
        self.attached = attached
        self._layout = attached.layout
        preprocess = attached.model.require_preprocess()
        pixels = preprocess(picture)[None].to(attached.model.cfg.device)
        self.run = UpperRun(attached, pixels)
        with torch.no_grad():
            latents = attached.encode(self.run.acts_btd)[0].float().cpu()
        token, latent = (latents > 0).nonzero(as_tuple=True)
        self._token, self._latent = token.numpy(), latent.numpy()
        self._activation = latents[token, latent].numpy()
        self.seen = _as_seen(
            picture, seen_region(preprocess, picture.size), attached.model.cfg.image_size
        )

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches; None where the SAE reads none."""
        return self._layout.grid if self._layout.has("patch") else None

    @cached_property
    def strengths(self) -> dict[int, float]:
        """Each active latent's largest activation, the strongest first."""
        largest: dict[int, float] = {}
        for latent, value in zip(self._latent.tolist(), self._activation.tolist(), strict=True):
            largest[latent] = max(value, largest.get(latent, 0.0))
        return dict(sorted(largest.items(), key=lambda pair: -pair[1]))

    def at_patch(self, row: int, column: int) -> dict[int, float]:
        """The activations at one patch, the strongest first; empty for one the SAE doesn't read."""
        number = row * self._layout.grid[1] + column
        here = self._layout.patch_of_token.numpy()[self._token] == number
        pairs = zip(self._latent[here].tolist(), self._activation[here].tolist(), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))

    def parts_in(self, score: Score) -> dict[int, float]:
        """Each active latent's part in a number (activation × gradient), the largest first."""
        parts = attribute(self.attached, self.run, score).by_latent["attribution"]
        return {int(latent): float(part) for latent, part in parts.items()}  # type: ignore[call-overload]

    def heatmap(self, latent: int) -> Heatmap:
        """Where in the picture a latent is active."""
        here = self._latent == latent
        tokens = torch.zeros(len(self._layout))
        tokens[torch.from_numpy(self._token[here])] = torch.from_numpy(self._activation[here])
        grid: Float[np.ndarray, "row column"] = self._layout.on_grid(tokens).numpy()
        whole = Region(0, 0, *map(float, self.seen.size))
        return Heatmap(self.seen, latent, grid, whole)

    @torch.no_grad()
    def output(
        self, factors: Mapping[int, float], added: Mapping[int, float] | None = None
    ) -> Float[Tensor, "1 d_embed"]:
        """The model's output with latents changed; what the SAE misses stays as it is.

        Args:
            factors: latent → what it is multiplied by.
            added: latent → what is then added to it in every token.
        """
        together: dict[float, list[int]] = defaultdict(list)
        for latent, factor in factors.items():
            if factor != 1:
                together[factor].append(latent)
        edits = [scale(latents, factor) for factor, latents in together.items()]
        edits += [add([latent], amount) for latent, amount in (added or {}).items()]
        acts_btd = self.attached.reconstruct(
            self.run.acts_btd,
            in_order(*edits) if edits else None,
            use_error_term=True,
            target_btd=self.run.target_btd,
        )
        return self.run.output(acts_btd)

    @cached_property
    def plain_output(self) -> Float[Tensor, "1 d_embed"]:
        """The model's output with nothing changed."""
        return self.output({})


def _as_seen(picture: Image.Image, region: Region, size: tuple[int, int]) -> Image.Image:
    """What the model sees, in the model's proportions; a small picture keeps its hard pixels."""
    height, width = size
    factor = _LONGER_SIDE / max(height, width)
    shown = max(1, round(width * factor)), max(1, round(height * factor))
    if max(region.width, region.height) * 2 > _LONGER_SIDE:
        return region.crop(picture, shown)
    own = max(1, round(region.width)), max(1, round(region.height))
    return region.crop(picture, own).resize(shown, Image.Resampling.NEAREST)
