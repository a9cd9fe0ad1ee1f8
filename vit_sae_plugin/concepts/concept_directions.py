"""What latents mean in a model's joint embedding space, however that was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Route = Literal["image-conditioned", "measured-shift", "direct"]
ROUTES: tuple[Route, ...] = ("image-conditioned", "measured-shift", "direct")


@dataclass(frozen=True)
class ConceptDirections:
    """For each latent a direction in the space that images and texts share."""

    route: Route
    """How they were found."""
    directions: Float[Tensor, "d_sae d_embed"]
    """Zero for a latent of which nothing is known, such as a dead one."""
    model_sha256: str
    """Hash of the model whose space it is."""
    sae_sha256: str
    """Hash of the SAE."""
    n_effective: Float[Tensor, " d_sae"] | None = None
    """How many images each latent's direction rests on, by their weights (Kish): (Σw)² ÷ Σw²."""
    covariance: Float[Tensor, "d_embed d_embed"] | None = None
    """Of the embeddings of all images, where the directions are differences of means of them; None:
    the directions have no scale, and only their angles count."""
    is_point: bool = False
    """They are places in the space, not changes: compared with words as these are, not centred."""
