"""How well and how sparsely an SAE reconstructs its input: totals that grow batch by batch."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

RECONSTRUCTION_COLUMNS = (
    "n_tokens",
    "l0",
    "l1",
    "mse",
    "explained_variance",
    "explained_variance_per_token",
    "explained_variance_uncentred",
    "cosine_similarity",
    "dead_share",
    "dense_share",
)


class ReconstructionTotals:
    """Sums from which every reconstruction and sparsity metric follows; memory O(d_in + d_sae).

    Sums are float64 on the CPU, so a data set of any length can be added, and the result does not
    depend on how it was cut into batches. ``explained_variance_per_token`` alone does, slightly:
    see [`compute`][].

    Args:
        d_in: width of the SAE's input.
        d_sae: number of latents.
        dense_threshold: a latent is *dense* if it is active on more than this share of tokens.
    """

    def __init__(self, d_in: int, d_sae: int, dense_threshold: float = 0.1):
        if not 0 < dense_threshold < 1:
            raise ValueError(
                f"dense_threshold is a share of tokens between 0 and 1, got {dense_threshold}"
            )
        self.d_in = d_in
        self.dense_threshold = dense_threshold
        self.n_tokens = 0
        self.mean = torch.zeros(d_in, dtype=torch.float64)
        self.squared_deviation = 0.0
        self.squared_norm = 0.0
        self.squared_residual = 0.0
        self.residual_ratio = 0.0
        self.n_ratios = 0
        self.cosine = 0.0
        self.l0 = 0.0
        self.l1 = 0.0
        self.n_active_tokens = torch.zeros(d_sae, dtype=torch.int64)

    def update(
        self,
        x: Float[Tensor, "... d_in"],
        x_hat: Float[Tensor, "... d_in"],
        latents: Float[Tensor, "... d_sae"],
    ) -> None:
        """Add tokens: the SAE's input, its reconstruction and its latents."""
        n_new = x.numel() // self.d_in
        if n_new == 0:
            return
        x, x_hat = at_least_float32(x), at_least_float32(x_hat)
        squared_residual = (x - x_hat).square().sum(-1)
        self._update_spread(x, squared_residual, n_new)
        self.squared_norm += _total(x.square().sum(-1))
        self.squared_residual += _total(squared_residual)
        self.cosine += _total(torch.cosine_similarity(x, x_hat, dim=-1))

        active = latents != 0
        self.l0 += _total(active.sum(-1))
        self.l1 += _total(at_least_float32(latents).abs().sum(-1))
        self.n_active_tokens += active.sum(tuple(range(active.ndim - 1))).cpu()

    def _update_spread(self, x: Tensor, squared_residual: Tensor, n_new: int) -> None:
        """Merge mean and squared deviation (Chan et al. 1979, stable where the mean is large)."""
        rows = x.flatten(0, -2)
        batch_mean = rows.mean(0)
        self.squared_deviation += _total((rows - batch_mean).square().sum(-1))
        shift = batch_mean.cpu().double() - self.mean
        n_total = self.n_tokens + n_new
        self.squared_deviation += shift.square().sum().item() * self.n_tokens * n_new / n_total
        self.mean += shift * (n_new / n_total)
        self.n_tokens = n_total

        distance = (rows - self.mean.to(rows)).square().sum(-1)
        ratio = squared_residual.flatten() / distance
        ratio = ratio[distance > 0]
        self.residual_ratio += _total(ratio)
        self.n_ratios += ratio.numel()

    def compute(self) -> dict[str, float]:
        """The metrics, by name; NaN (never 0) where no token was added.

        - ``l0``, ``l1``: mean over tokens of the number of active latents, and of ``Σ|h|``.
        - ``mse``: mean over tokens *and* features. (SAELens's ``mse`` sums over features.)
        - ``explained_variance``: ``1 − Σ‖z − ẑ‖² / Σ‖z − mean z‖²`` over the data set.
        - ``explained_variance_per_token``: SAELens's legacy definition, the mean over tokens of
          ``1 − ‖z − ẑ‖² / ‖z − mean z‖²``. SAELens takes the mean of the batch; this takes that of
          all tokens seen so far, which is the same for one batch and approaches the data set's.
        - ``explained_variance_uncentred``: PatchSAE's, ``1 − Σ‖z − ẑ‖² / Σ‖z‖²``.
        - ``dead_share``, ``dense_share``: share of latents active on no token, and on more than
          ``dense_threshold`` of the tokens.
        """
        n = self.n_tokens
        if n == 0:
            return {"n_tokens": 0} | dict.fromkeys(RECONSTRUCTION_COLUMNS[1:], math.nan)
        frequency = self.n_active_tokens.double() / n
        values = (
            n,
            self.l0 / n,
            self.l1 / n,
            self.squared_residual / (n * self.d_in),
            1 - _ratio(self.squared_residual, self.squared_deviation),
            1 - _ratio(self.residual_ratio, self.n_ratios),
            1 - _ratio(self.squared_residual, self.squared_norm),
            self.cosine / n,
            (self.n_active_tokens == 0).double().mean().item(),
            (frequency > self.dense_threshold).double().mean().item(),
        )
        return dict(zip(RECONSTRUCTION_COLUMNS, values, strict=True))


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is too coarse for sums of squares."""
    return x if x.dtype == torch.float64 else x.float()


def _total(per_token: Tensor) -> float:
    return per_token.cpu().double().sum().item()


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
