"""Route (a): the mean embedding of the images that activate a latent, less that of all images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from vit_sae_plugin.concepts.concept_directions import ConceptDirections
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation.reconstruction import check_finite
from vit_sae_plugin.fingerprints import known_model_fingerprint, known_sae_fingerprint

if TYPE_CHECKING:
    from vit_sae_plugin.attached_sae import AttachedSAE

Level = Literal["mean", "max"]


class WeightedEmbeddings:
    """Sums over images of their embeddings, weighted by each latent's activation.

    Memory doesn't grow with the images: ``d_sae · d_embed`` numbers of 8 bytes (201 MB for 49,152
    latents of a 512-wide space), and a few for each latent.
    """

    def __init__(self, d_sae: int, d_embed: int) -> None:
        self._weighted = torch.zeros(d_sae, d_embed, dtype=torch.float64)
        self._weight = torch.zeros(d_sae, dtype=torch.float64)
        self._squared = torch.zeros(d_sae, dtype=torch.float64)
        self._total = torch.zeros(d_embed, dtype=torch.float64)
        self._outer = torch.zeros(d_embed, d_embed, dtype=torch.float64)
        self.n_images = 0

    def add(
        self, levels: Float[Tensor, "images d_sae"], embeds: Float[Tensor, "images d_embed"]
    ) -> None:
        """Take in images: how active each latent is on each, 0 or more, and their embeddings."""
        levels, embeds = levels.float(), embeds.float()
        self._weighted += (levels.T @ embeds).cpu()
        self._weight += levels.sum(0).cpu()
        self._squared += levels.square().sum(0).cpu()
        exact = embeds.double()
        self._total += exact.sum(0).cpu()
        self._outer += (exact.T @ exact).cpu()
        self.n_images += len(embeds)

    @property
    def mean(self) -> Float[Tensor, " d_embed"]:
        """Mean embedding of all images."""
        return self._total / max(self.n_images, 1)

    @property
    def covariance(self) -> Float[Tensor, "d_embed d_embed"]:
        """Covariance of the embeddings of all images (divided by their number)."""
        return self._outer / max(self.n_images, 1) - torch.outer(self.mean, self.mean)

    def differences(self) -> Float[Tensor, "d_sae d_embed"]:
        """``Σ a e / Σ a − mean e`` for each latent; zero for one that no image activates."""
        alive = self._weight > 0
        weight = torch.where(alive, self._weight, 1.0)
        means = self._weighted / weight[:, None]
        means -= self.mean
        return means.mul_(alive[:, None])

    def n_effective(self) -> Float[Tensor, " d_sae"]:
        """Images that each latent's mean rests on: ``(Σ a)² ÷ Σ a²``."""
        return self._weight.square() / self._squared.clamp(min=torch.finfo(torch.float64).tiny)


@torch.no_grad()
def image_conditioned(
    attached: AttachedSAE,
    images: Any,
    *,
    level: Level = "mean",
    n_images: int | None = None,
    batch_size_images: int = 64,
    n_workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> ConceptDirections:
    """What sets the images that activate a latent apart, for all latents in one pass.

    The joint embeddings (of length 1) of all images are averaged with the latent's activation as
    weights, and the plain mean over all images is taken away. That is the covariance of activation
    and embedding, divided by the mean activation.

    Args:
        attached: the SAE on its model.
        images: a source, or what ``open_images`` takes. Images of one thing each are the best:
            where many things stand together, the embedding is about all of them.
        level: a latent's activation on an image: the mean over its tokens, or the maximum.
        n_images: how many to use, drawn at random from sources that allow it; None: all.
        batch_size_images: images that go through the model together.
        n_workers: processes that decode images.
        seed: of the draw.
        progress: show a progress bar.

    Raises:
        ValueError: an unknown level; activations or embeddings that aren't finite; no image.
    """
    if level not in ("mean", "max"):
        raise ValueError(f"level is {level!r}; want 'mean' or 'max'")
    walk = attached.walk(
        open_images(images),
        batch_size_images=batch_size_images,
        n_images=n_images,
        shuffle=n_images is not None,
        seed=seed,
        n_workers=n_workers,
        progress=progress,
        description="images that activate latents",
    )
    sums = WeightedEmbeddings(attached.d_sae, attached.model.cfg.d_embed)
    for batch in walk:
        acts_btd, embeds = activations_and_embeddings(attached, batch.pixels)
        for part, latents in attached.encode_parts(acts_btd):
            sums.add(image_levels(latents, level), embeds[part])
    if sums.n_images == 0:
        raise ValueError(f"{walk.images.name} gave no readable image; want some to name latents by")
    return ConceptDirections(
        "image-conditioned",
        sums.differences().float(),
        model_sha256=known_model_fingerprint(attached.model),
        sae_sha256=known_sae_fingerprint(attached.sae),
        n_effective=sums.n_effective().float(),
        covariance=sums.covariance.float(),
    )


def image_levels(
    latents: Float[Tensor, "images token d_sae"], level: Level
) -> Float[Tensor, "images d_sae"]:
    """How active each latent is on each image, 0 or more: the mean over tokens, or the maximum."""
    check_finite(latents=latents)
    latents = latents.clamp(min=0)
    return latents.mean(1) if level == "mean" else latents.amax(1)


def activations_and_embeddings(
    attached: AttachedSAE, pixels: Float[Tensor, "batch 3 height width"]
) -> tuple[Float[Tensor, "batch token d_in"], Float[Tensor, "batch d_embed"]]:
    """What the SAE reads, and the image embeddings of length 1, from one pass."""
    model, source = attached.model, attached.source
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(value: Tensor, hook: Any = None) -> None:
            kept[name] = value

        return hook

    names = {source.hook_name, "hook_image_embed"}
    model.run_with_hooks(pixels, fwd_hooks=[(name, keep(name)) for name in names])
    embeds = kept["hook_image_embed"].float()
    check_finite(embeds=embeds)
    return source.select(model.cfg, kept[source.hook_name]), functional.normalize(embeds, dim=-1)
