"""How well the batches of a store mix the images that their rows come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor


class StoreWithCoordinates(Protocol):
    """A store made with `with_coordinates=True`."""

    coordinates: Int[Tensor, "rows 3"] | None

    def __next__(self) -> Float[Tensor, "rows d_in"]: ...


@dataclass(frozen=True)
class Mixing:
    """What `measure_mixing` found."""

    n_batches: int
    """Batches that were looked at."""
    batch_rows: int
    """Rows of a batch."""
    images_per_batch: float
    """Images that a batch draws on, mean over batches."""
    images_if_uniform: float
    """What `batch_rows` rows drawn uniformly from all images seen would draw on, as expected."""
    neighbor_correlation: float
    """Correlation of a row with the next one of its batch, pooled over features: 0 if rows come in
    random order, towards 1 if images or their neighbours come together."""
    batch_variance_ratio: float
    """Variance of batches' means over that of means of as many independent rows: 1 for perfect
    mixing; more says by what factor gradients are noisier than the batch's size promises."""


@torch.no_grad()
def measure_mixing(store: StoreWithCoordinates, n_batches: int) -> Mixing:
    """Measure the next batches of a store.

    Rows are compared around the mean of each feature over all batches looked at, so these should
    be an epoch, or a fair part of one.

    Args:
        store: made with `with_coordinates=True`.
        n_batches: how many batches to look at, two or more.

    Raises:
        ValueError: fewer than two batches, or a store without coordinates.
    """
    if n_batches < 2:
        raise ValueError(f"n_batches is {n_batches}; want 2 or more")
    n_rows = 0
    square_sum = product_sum = 0.0
    means, first, last, images, counts = [], [], [], [], []
    origin: Tensor | None = None
    for _ in range(n_batches):
        rows = next(store).cpu().double()
        if store.coordinates is None:
            raise ValueError("the store has no coordinates; want with_coordinates=True")
        seen = torch.unique(store.coordinates[:, 0])
        images.append(seen)
        counts.append(len(seen))
        if origin is None:  # sums of squares cancel if the mean is far from zero
            origin = rows.mean(0)
        rows = rows - origin
        n_rows = len(rows)
        square_sum += float(rows.square().sum())
        product_sum += float((rows[1:] * rows[:-1]).sum())
        means.append(rows.mean(0))
        first.append(rows[0])
        last.append(rows[-1])
    batch_means = torch.stack(means)
    mean = batch_means.mean(0)
    variance = square_sum / (n_batches * n_rows) - float(mean.square().sum())
    # Σ (x − m)(y − m) over neighbours, from sums around the origin
    inner = n_rows * batch_means
    with_next, before_next = inner - torch.stack(last), inner - torch.stack(first)
    n_pairs = n_batches * (n_rows - 1)
    crossed = float(((with_next + before_next).sum(0) * mean).sum())
    product = product_sum - crossed + n_pairs * float(mean.square().sum())
    spread = float((batch_means - mean).square().sum()) / (n_batches - 1)
    n_images = len(torch.unique(torch.cat(images)))
    return Mixing(
        n_batches=n_batches,
        batch_rows=n_rows,
        images_per_batch=sum(counts) / n_batches,
        images_if_uniform=n_images * (1 - (1 - 1 / n_images) ** n_rows),
        neighbor_correlation=product / max(n_pairs, 1) / variance,
        batch_variance_ratio=spread * n_rows / variance,
    )
