"""What the model says of images once some latents, or neurons, are silenced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.attached_sae import AttachedSAE, UpperRun
from vit_sae_plugin.attached_sae.interventions import remove, scale

if TYPE_CHECKING:
    from vit_sae_plugin.datasets import ImageSource


@dataclass(frozen=True)
class Suppression:
    """One way to change what the SAE reads. The SAE's error is kept in each."""

    kind: str
    """``"none"``, ``"concepts"``, ``"random latents"`` or ``"neurons"``."""
    features: tuple[int, ...] = ()
    """Latents, or neurons."""
    draw: int = 0
    """Of random latents."""
    factor: float = 0.0
    """What latents are multiplied by."""
    means: tuple[float, ...] = ()
    """What neurons are set to: for a neuron, zero means nothing."""


class _ChangedRun:
    """A batch of images at the SAE's place, under one suppression after another.

    The decoder is affine: what some latents add to the reconstruction is a product with their rows
    of it. So latents are encoded once, and only those that are suppressed are kept.
    """

    def __init__(self, attached: AttachedSAE, pixels: Tensor, latents: Sequence[int]):
        self.attached = attached
        self.run = UpperRun(attached, pixels)
        self.matrix = attached.rows.decoder_matrix()
        self.place = {latent: at for at, latent in enumerate(latents)}
        if self.matrix is not None and latents:
            parts = attached.encode_parts(self.run.acts_btd)
            self.values = torch.cat([part[..., latents] for _, part in parts])
            self.rows = self.matrix[list(latents)]

    def output(self, way: Suppression) -> Float[Tensor, "batch d_embed"]:
        return self.run.output(self._acts(way)).float().cpu()

    def _acts(self, way: Suppression) -> Float[Tensor, "batch token d_out"]:
        target = self.run.target_btd
        if not way.features:
            return target
        if way.kind == "neurons":
            acts_btd = target.clone()
            acts_btd[..., list(way.features)] = torch.tensor(way.means).to(acts_btd)
            return acts_btd
        if self.matrix is None:
            return self.attached.reconstruct(
                self.run.acts_btd,
                scale(way.features, way.factor) if way.factor else remove(way.features),
                use_error_term=True,
                target_btd=target,
            )
        places = [self.place[latent] for latent in way.features]
        part = self.values[..., places] @ self.rows[places]
        return target - (1 - way.factor) * part.to(target)


@torch.no_grad()
def embeddings_under(
    attached: AttachedSAE,
    images: ImageSource,
    suppressions: Sequence[Suppression],
    **walk: Any,
) -> tuple[Float[Tensor, "suppressions images d_embed"], Int[np.ndarray, " images"]]:
    """The model's output for each image under each suppression.

    The blocks below the SAE run once an image.

    Args:
        attached: the SAE on its model.
        images: where they come from.
        suppressions: what to silence.
        walk: settings of ``ImageWalk``.

    Returns:
        Outputs on the CPU in float32, and each image's position in the source.
    """
    of_latents = (way.features for way in suppressions if way.kind != "neurons")
    latents = sorted({latent for features in of_latents for latent in features})
    outputs, positions = [], []
    for batch in attached.walk(images, **walk):
        run = _ChangedRun(attached, batch.pixels, latents)
        outputs.append(torch.stack([run.output(way) for way in suppressions]))
        positions.append(batch.index)
    if not outputs:
        raise ValueError(f"no image of {images.name} could be read; want some")
    return torch.cat(outputs, dim=1), torch.cat(positions).numpy()


def like_latents(
    mean: Float[np.ndarray, " d_sae"],
    chosen: Sequence[int],
    generator: np.random.Generator,
    n_nearest: int = 20,
) -> tuple[int, ...]:
    """As many other latents, each about as active on average as one of the chosen.

    Args:
        mean: mean activation of each latent.
        chosen: the latents to find a like for.
        generator: of the draws.
        n_nearest: a like is one of that many latents, the nearest in mean activation.
    """
    free = np.setdiff1d(np.flatnonzero(mean > 0), chosen)
    drawn: list[int] = []
    for latent in chosen:
        if len(free) == 0:
            break
        nearest = np.argsort(np.abs(np.log(mean[free]) - np.log(max(mean[latent], 1e-30))))
        at = generator.choice(nearest[:n_nearest])
        drawn.append(int(free[at]))
        free = np.delete(free, at)
    return tuple(drawn)
