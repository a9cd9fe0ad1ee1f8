"""How latents of two SAEs correlate over the same images, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.activations.image_walk import ImageWalk
from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import open_images

MOST_PAIRS = 2**28


class CorrelationTotals:
    """Pearson correlations of two sets of variables, in one pass and constant memory.

    Args:
        n, m: how many variables there are on either side.
    """

    def __init__(self, n: int, m: int):
        self._n_rows = 0
        self._sums = (torch.zeros(n, dtype=torch.float64), torch.zeros(m, dtype=torch.float64))
        self._squares = (torch.zeros(n, dtype=torch.float64), torch.zeros(m, dtype=torch.float64))
        self._products = torch.zeros(n, m, dtype=torch.float64)

    def update(self, one: Float[Tensor, "rows n"], other: Float[Tensor, "rows m"]) -> None:
        """Add rows that belong together."""
        one, other = one.double().cpu(), other.double().cpu()
        self._n_rows += len(one)
        for at, values in enumerate((one, other)):
            self._sums[at].add_(values.sum(0))
            self._squares[at].add_(values.square().sum(0))
        self._products.addmm_(one.T, other)

    def compute(self) -> Float[Tensor, "n m"]:
        """The correlations; 0 of a variable that is constant."""
        n = max(1, self._n_rows)
        covariance = self._products - torch.outer(*self._sums) / n
        spread = []
        for total, squares in zip(self._sums, self._squares, strict=True):
            variance = squares - total.square() / n
            constant = variance <= 1e-12 * squares
            spread.append(variance.clamp(min=0).sqrt().masked_fill(constant, torch.inf))
        return (covariance / torch.outer(*spread)).clamp(-1, 1)


@torch.no_grad()
def activation_correlations(
    one: AttachedSAE,
    other: AttachedSAE,
    images: Any,
    *,
    n_images: int | None = None,
    batch_size_images: int = 32,
    n_workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n m"], str]:
    """Correlations of two SAEs' latents over the same images, and what chance gives.

    Patch by patch where both read a grid of patches of the same size, and otherwise of each
    image's largest activations. The models may differ: each gets the images as it wants them.

    Returns:
        The correlations; those of each image of the first with the next image of the second; and
        ``"patch"`` or ``"image"``.

    Raises:
        ValueError: the matrix would be too large; fewer than 3 images; or the models skip different
            images.
    """
    n, m = one.d_sae, other.d_sae
    if n * m > MOST_PAIRS:
        raise ValueError(
            f"{n} and {m} latents have {n * m:,} pairs to correlate; want at most "
            f"{MOST_PAIRS:,}: match such SAEs by decoder"
        )
    images = open_images(images)
    by_patch = (
        one.layout.has("patch")
        and other.layout.has("patch")
        and one.layout.grid == other.layout.grid
        and len(one.layout.positions("patches")) == len(other.layout.positions("patches"))
    )
    totals, shifted = CorrelationTotals(n, m), CorrelationTotals(n, m)
    settings: dict[str, Any] = {
        "batch_size_images": batch_size_images,
        "n_images": n_images,
        "shuffle": True,
        "seed": seed,
        "n_workers": n_workers,
    }
    n_seen = 0
    same_model = one.model is other.model
    walk = one.walk(images, progress=progress, description="match", **settings)
    others = walk if same_model else ImageWalk(other.model, images, **settings)
    batches = ((batch, batch) for batch in walk) if same_model else zip(walk, others, strict=True)
    for batch, of_other in batches:
        if batch.index.tolist() != of_other.index.tolist():
            raise ValueError(
                f"the models read different images of {images.name}: one of them can't read all; "
                "leave the unreadable ones out"
            )
        n_seen += len(batch.index)
        pair = [
            _features(sae, pixels, by_patch)
            for sae, pixels in ((one, batch.pixels), (other, of_other.pixels))
        ]
        first, second = (features.flatten(0, 1) for features in pair)
        totals.update(first, second)
        shifted.update(first, pair[1].roll(1, 0).flatten(0, 1))
    if n_seen < 3:
        raise ValueError(f"there are {n_seen} images to match on; want 3 or more")
    return totals.compute(), shifted.compute(), "patch" if by_patch else "image"


def _features(
    attached: AttachedSAE, pixels: Tensor, by_patch: bool
) -> Float[Tensor, "images rows d_sae"]:
    acts_btd = attached.activations(pixels)
    if attached.layout.has("patch"):
        acts_btd = acts_btd[:, attached.layout.positions("patches")]
    found = []
    for _, latents in attached.encode_parts(acts_btd):
        found.append((latents if by_patch else latents.amax(1, keepdim=True)).cpu())
    return torch.cat(found)
