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
    from vit_sae_plugin.attached_sae.interventions import LatentEdit
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

    def apply(self, attached: AttachedSAE, run: UpperRun) -> Float[Tensor, "batch token d_out"]:
        """What stands where the SAE writes."""
        if not self.features:
            return run.target_btd
        if self.kind == "neurons":
            acts_btd = run.target_btd.clone()
            acts_btd[..., list(self.features)] = torch.tensor(self.means).to(acts_btd)
            return acts_btd
        return attached.reconstruct(
            run.acts_btd, self._edit(), use_error_term=True, target_btd=run.target_btd
        )

    def _edit(self) -> LatentEdit:
        return scale(self.features, self.factor) if self.factor else remove(self.features)


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
    outputs, positions = [], []
    for batch in attached.walk(images, **walk):
        run = UpperRun(attached, batch.pixels)
        outputs.append(
            torch.stack(
                [run.output(way.apply(attached, run)).float().cpu() for way in suppressions]
            )
        )
        positions.append(batch.index)
    if not outputs:
        raise ValueError(f"no image of {images.name} could be read; want some")
    return torch.cat(outputs, dim=1), torch.cat(positions).numpy()


def like_latents(
    mean: Float[np.ndarray, " d_sae"],
    chosen: Sequence[int],
    ranked: Sequence[int],
    generator: np.random.Generator,
    n_nearest: int = 20,
) -> tuple[int, ...]:
    """As many other latents, each about as active on average as one of the chosen.

    Args:
        mean: mean activation of each latent.
        chosen: the latents to find a like for.
        ranked: latents that are not to be drawn.
        generator: of the draws.
        n_nearest: a like is one of that many latents, the nearest in mean activation.
    """
    free = np.setdiff1d(np.flatnonzero(mean > 0), [*chosen, *ranked])
    drawn: list[int] = []
    for latent in chosen:
        if len(free) == 0:
            break
        nearest = np.argsort(np.abs(np.log(mean[free]) - np.log(max(mean[latent], 1e-30))))
        at = generator.choice(nearest[:n_nearest])
        drawn.append(int(free[at]))
        free = np.delete(free, at)
    return tuple(drawn)
