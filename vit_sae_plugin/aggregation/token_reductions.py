"""The patch-to-image aggregations that come with the package."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vit_sae_plugin.aggregation.image_aggregation import ImageAggregation
from vit_sae_plugin.aggregation.registry import register_aggregation

Dense = Float[Tensor, "batch token d_sae"]
Image = Float[Tensor, "batch d_sae"]
Mask = Bool[Tensor, "batch token"] | None


@register_aggregation("sum")
class SumOverTokens(ImageAggregation):
    """Sum of the activations of the image's tokens."""

    def reduce(self, latents_btd: Dense, token_mask: Mask) -> Image:
        if token_mask is not None:
            latents_btd = latents_btd.masked_fill(~token_mask[..., None], 0)
        return latents_btd.sum(dim=1)


@register_aggregation("mean")
class MeanOverTokens(SumOverTokens):
    """Mean over the image's tokens: what PatchSAE's released code ranks images by."""

    def reduce(self, latents_btd: Dense, token_mask: Mask) -> Image:
        total = super().reduce(latents_btd, token_mask)
        return total / _n_valid(latents_btd, token_mask)


@register_aggregation("max")
class MaxOverTokens(ImageAggregation):
    """Largest activation among the image's tokens."""

    def reduce(self, latents_btd: Dense, token_mask: Mask) -> Image:
        if token_mask is None:
            return latents_btd.amax(dim=1)
        largest = latents_btd.masked_fill(~token_mask[..., None], -torch.inf).amax(dim=1)
        return _missing_where_infinite(largest)


class _AboveThreshold(ImageAggregation):
    """Shared by the aggregations that ask which tokens are active.

    Args:
        threshold: a token is active where its activation is strictly above this. In the units of
            the latents; 0.2 is PatchSAE's.
    """

    def __init__(self, *, threshold: float = 0.2, **tokens: Any) -> None:
        super().__init__(**tokens)
        if not threshold >= 0:
            raise ValueError(f"threshold is {threshold}; want 0 or more")
        self.threshold = float(threshold)

    def _count(self, latents_btd: Dense, token_mask: Mask) -> Image:
        active = latents_btd > self.threshold
        if token_mask is not None:
            active &= token_mask[..., None]
        return active.sum(dim=1, dtype=torch.float32)


@register_aggregation("count")
class CountAboveThreshold(_AboveThreshold):
    """How many of the image's tokens are above the threshold (PatchSAE, Eq. 3)."""

    def reduce(self, latents_btd: Dense, token_mask: Mask) -> Image:
        return self._count(latents_btd, token_mask)


@register_aggregation("share")
class ShareAboveThreshold(_AboveThreshold):
    """Which share of the image's tokens is above the threshold, between 0 and 1."""

    def reduce(self, latents_btd: Dense, token_mask: Mask) -> Image:
        return self._count(latents_btd, token_mask) / _n_valid(latents_btd, token_mask)


@register_aggregation("kth_largest")
class KthLargest(ImageAggregation):
    """The k-th largest activation among the image's tokens: a maximum that outliers don't move.

    Args:
        k: 1 is the maximum. Where the mask leaves an image fewer than k tokens, it has none: NaN.

    Raises:
        ValueError: k is below 1, or (when called) images have fewer than k tokens, valid or not.
    """

    def __init__(self, *, k: int = 3, **tokens: Any) -> None:
        super().__init__(**tokens)
        if k < 1:
            raise ValueError(f"k is {k}; want 1 or more")
        self.k = int(k)

    def reduce(self, latents_btd: Dense, token_mask: Mask) -> Image:
        if self.k > latents_btd.shape[1]:
            raise ValueError(
                f"k is {self.k}; want 1 to {latents_btd.shape[1]}, the tokens of an image"
            )
        if token_mask is not None:
            latents_btd = latents_btd.masked_fill(~token_mask[..., None], -torch.inf)
        largest = latents_btd.topk(self.k, dim=1).values[:, -1]
        return largest if token_mask is None else _missing_where_infinite(largest)


@register_aggregation("cls")
class ClassToken(SumOverTokens):
    """The activation at the class token, the first of each image's tokens."""

    def __init__(self, *, n_prefix_tokens: int | None = None) -> None:
        super().__init__(tokens="cls", n_prefix_tokens=n_prefix_tokens)

    def _settings(self) -> dict[str, Any]:
        rule = super()._settings()
        del rule["tokens"]
        return rule


def _n_valid(latents_btd: Tensor, token_mask: Tensor | None) -> Any:
    if token_mask is None:
        return latents_btd.shape[1]
    return token_mask.sum(dim=1, keepdim=True)


def _missing_where_infinite(values: Tensor) -> Tensor:
    return values.masked_fill(values == -torch.inf, torch.nan)
