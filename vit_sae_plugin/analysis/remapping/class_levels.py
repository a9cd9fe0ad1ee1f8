"""Class-level latents in a plain and in an adapted model, counted in one pass over images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.analysis.latent_feeds import ImageFeed
from vit_sae_plugin.analysis.typical_activation import threshold_of, typical_activation
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.attached_sae.attached_pair import AttachedPair
from vit_sae_plugin.datasets import ImageSource
from vit_sae_plugin.evaluation.evaluate import token_groups
from vit_sae_plugin.evaluation.reconstruction import ReconstructionTotals

MODELS = ("plain", "adapted")


@dataclass(frozen=True)
class ClassLevels:
    """What each latent does in each class, in both models. Axis 0: plain, adapted.

    Axis 1 is one half of each class's images and the other: how far two halves of one model differ
    is what a difference between the models must be held against.
    """

    tokens: Float[np.ndarray, "2 2 n_classes d_sae"]
    """Class-level latents (PatchSAE, Eq. 4): tokens above the threshold, over the images."""
    images: Float[np.ndarray, "2 2 n_classes d_sae"]
    """Images in which any token is above the threshold."""
    n_images: Int[np.ndarray, "2 n_classes"]
    """Images of each half and class."""
    threshold: float
    """Above which a token counts."""
    quality: pd.DataFrame
    """How well the SAE reconstructs each model: index ``model`` and ``tokens``, columns as of
    ``ReconstructionTotals.compute``."""

    def tokens_per_image(self, half: int | None = None) -> Float[np.ndarray, "2 n_classes d_sae"]:
        """Tokens above the threshold in a mean image of each class; NaN without images."""
        return self._per_image(self.tokens, half)

    def frequency(self, half: int | None = None) -> Float[np.ndarray, "2 n_classes d_sae"]:
        """Share of each class's images with any token above the threshold; NaN without images."""
        return self._per_image(self.images, half)

    def _per_image(self, counts: np.ndarray, half: int | None) -> np.ndarray:
        chosen = slice(None) if half is None else slice(half, half + 1)
        n_images = self.n_images[chosen].sum(0)[:, None].astype(float)
        n_images[n_images == 0] = np.nan
        return counts[:, chosen].sum(1) / n_images


@torch.no_grad()
def count_class_levels(
    pair: AttachedPair,
    images: ImageSource,
    n_classes: int,
    *,
    threshold: float | None = None,
    batch_size_images: int = 32,
    n_workers: int = 0,
    progress: bool = False,
) -> ClassLevels:
    """One pass over labelled images, through both models.

    Args:
        pair: the SAE on both models.
        images: labelled images.
        n_classes: labels are below this.
        threshold: a token counts where a latent is above this, in units of activation, in both
            models alike. None: 1.05 times the SAE's typical activation in the plain model, which is
            PatchSAE's 0.2 for the SAE it was published for.
        batch_size_images, n_workers, progress: of the walk.
    """
    if threshold is None:
        feed = ImageFeed(
            pair.plain, images, batch_size_images=batch_size_images, n_workers=n_workers
        )
        threshold = threshold_of(typical_activation(feed.sample()))
    d_sae = pair.plain.d_sae
    tokens = torch.zeros(2, 2, n_classes, d_sae)
    active_images = torch.zeros_like(tokens)
    n_images = torch.zeros(2, n_classes, dtype=torch.int64)
    qualities = [_Quality(attached) for attached in (pair.plain, pair.adapted)]
    walk = pair.plain.walk(
        images,
        batch_size_images=batch_size_images,
        n_workers=n_workers,
        progress=progress,
        description="comparing",
    )
    for batch in walk:
        labelled = batch.label >= 0
        label = batch.label[labelled]
        half = _alternating(label, n_images.sum(0))
        n_images.index_put_((half, label), torch.ones_like(label), accumulate=True)
        for number, quality in enumerate(qualities):
            counts = quality.counts_above(batch.pixels, threshold)[labelled]
            tokens[number].index_put_((half, label), counts, accumulate=True)
            active = (counts > 0).to(counts)
            active_images[number].index_put_((half, label), active, accumulate=True)
    rows = {
        (model, group): totals.compute()
        for model, quality in zip(MODELS, qualities, strict=True)
        for group, totals in quality.totals.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(table.index, names=["model", "tokens"])
    return ClassLevels(
        tokens.numpy(),
        active_images.numpy(),
        n_images.numpy(),
        threshold,
        table.astype({"n_tokens": int}),
    )


class _Quality:
    """The SAE on one of the models: its latents above a threshold, and how well it reconstructs."""

    def __init__(self, attached: AttachedSAE):
        self.attached = attached
        self.groups = token_groups(attached.layout)
        self.totals = {
            name: ReconstructionTotals(attached.rows.d_out, attached.d_sae) for name in self.groups
        }

    def counts_above(self, pixels: Tensor, threshold: float) -> Float[Tensor, "batch d_sae"]:
        """Tokens of each image in which each latent is above the threshold."""
        acts_btd, target_btd = self._read(pixels)
        counts = []
        for part, latents in self.attached.encode_parts(acts_btd):
            x_hat = self.attached.decode(latents) + self.attached.rows.skip(acts_btd[part])
            for name, chosen in self.groups.items():
                values = (target_btd[part].to(x_hat), x_hat, latents)
                self.totals[name].update(*(value[:, chosen] for value in values))
            counts.append((latents > threshold).sum(1).float().cpu())
        return torch.cat(counts)

    def _read(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        cfg = self.attached.model.cfg
        pixels = pixels.to(cfg.device, cfg.dtype)
        acts_btd = self.attached.activations(pixels)
        if not self.attached.is_transcoder:
            return acts_btd, acts_btd
        from vit_sae_plugin.attached_sae import UpperRun

        return acts_btd, UpperRun(self.attached, pixels).target_btd


def _alternating(
    label: Int[Tensor, " batch"], n_before: Int[Tensor, " n_classes"]
) -> Int[Tensor, " batch"]:
    """0, 1, 0, 1, … within each class, going on from the images of before."""
    seen = n_before.clone()
    half = torch.zeros_like(label)
    for place, one in enumerate(label.tolist()):
        half[place] = seen[one] % 2
        seen[one] += 1
    return half
