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
    "explained_variance_uncentred",
    "cosine_similarity",
    "dead_share",
    "dense_share",
)


class ReconstructionTotals:
    """Sums from which every reconstruction and sparsity metric follows; memory O(d_in + d_sae).

    Sums are float64 on the CPU, so a data set of any length can be added, and the result does not
    depend on how it was cut into batches, nor on their order.

    Args:
        d_in: width of the SAE's input.
        d_sae: number of latents.
        dense_frequency: a latent is *dense* if it is active on more than this share of tokens.
    """

    def __init__(self, d_in: int, d_sae: int, dense_frequency: float = 0.1):
        if not 0 < dense_frequency < 1:
            raise ValueError(
                f"dense_frequency is {dense_frequency}; want a share of tokens between 0 and 1"
            )
        self.d_in = d_in
        self.dense_frequency = dense_frequency
        self.n_tokens = 0
        self.mean = torch.zeros(d_in, dtype=torch.float64)
        self.squared_deviation = 0.0
        self.squared_norm = 0.0
        self.squared_residual = 0.0
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
        """Add tokens: the SAE's input, its reconstruction and its latents.

        Raises:
            ValueError: any of them holds NaN or infinity.
        """
        n_new = x.numel() // self.d_in
        if n_new == 0:
            return
        x, x_hat = at_least_float32(x), at_least_float32(x_hat)
        squared_residual = _total((x - x_hat).square().sum(-1))
        l1 = _total(at_least_float32(latents).abs().sum(-1))
        if not math.isfinite(squared_residual + l1):
            check_finite(acts=x, latents=latents, x_hat=x_hat)
        self._update_spread(x, n_new)
        self.squared_norm += _total(x.square().sum(-1))
        self.squared_residual += squared_residual
        self.cosine += _total(torch.cosine_similarity(x, x_hat, dim=-1))

        active = latents != 0
        self.l0 += _total(active.sum(-1))
        self.l1 += l1
        self.n_active_tokens += active.sum(tuple(range(active.ndim - 1))).cpu()

    def _update_spread(self, x: Tensor, n_new: int) -> None:
        """Merge mean and squared deviation (Chan et al. 1979, stable where the mean is large)."""
        rows = x.flatten(0, -2)
        near_mean = rows.mean(0)
        centred = rows - near_mean
        # A mean in float32 is off by its last bits, which count if it is far from zero.
        correction = centred.mean(0).cpu().double()
        squared_deviation = _total(centred.square().sum(-1)) - n_new * _squared(correction)
        shift = near_mean.cpu().double() + correction - self.mean
        n_total = self.n_tokens + n_new
        self.squared_deviation += squared_deviation
        self.squared_deviation += _squared(shift) * self.n_tokens * n_new / n_total
        self.mean += shift * (n_new / n_total)
        self.n_tokens = n_total

    def compute(self) -> dict[str, float]:
        """The metrics, by name; NaN (never 0) where no token was added.

        - ``l0``, ``l1``: mean over tokens of the number of active latents, and of ``Σ|h|``.
        - ``mse``: mean over tokens *and* features. (SAELens's ``mse`` sums over features.)
        - ``explained_variance``: ``1 − Σ‖z − ẑ‖² / Σ‖z − mean z‖²`` over the data set.
        - ``explained_variance_uncentred``: PatchSAE's, ``1 − Σ‖z − ẑ‖² / Σ‖z‖²``.
        - ``dead_share``, ``dense_share``: share of latents active on no token, and on more than
          ``dense_frequency`` of the tokens.
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
            1 - _ratio(self.squared_residual, self.squared_norm),
            self.cosine / n,
            (self.n_active_tokens == 0).double().mean().item(),
            (frequency > self.dense_frequency).double().mean().item(),
        )
        return dict(zip(RECONSTRUCTION_COLUMNS, values, strict=True))


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is too coarse for sums of squares."""
    return x if x.dtype == torch.float64 else x.float()


def check_finite(
    *,
    acts: Tensor | None = None,
    latents: Tensor | None = None,
    x_hat: Tensor | None = None,
    embeds: Tensor | None = None,
) -> None:
    """Say which of an SAE's input, latents, reconstructions and embeddings hold NaN or infinity.

    Raises:
        ValueError: any of them does.
    """
    found = {
        "the activations that the SAE reads": (acts, "check the model's weights and precision"),
        "the SAE's latents": (latents, "check its weights and input scaling"),
        "the SAE's reconstructions": (x_hat, "check its weights and input scaling"),
        "the image embeddings": (embeds, "check the model's weights and precision"),
    }
    for what, (values, advice) in found.items():
        if values is not None and not values.isfinite().all():
            raise ValueError(f"{what} hold NaN or infinity; want finite numbers: {advice}")


def _squared(vector: Tensor) -> float:
    return vector.square().sum().item()


def _total(per_token: Tensor) -> float:
    return per_token.cpu().double().sum().item()


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
