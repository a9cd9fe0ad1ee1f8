"""MSAE's metrics of a reconstruction, one value a row; and totals of them over a data set.

Source: Zaigrajew et al. 2025 (arXiv 2502.20578), section 5 and appendix; with the definitions of
their released code where the two differ.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.evaluation.reconstruction import ReconstructionTotals, at_least_float32


def fvu_per_sample(
    x: Float[Tensor, "rows d_in"], x_hat: Float[Tensor, "rows d_in"]
) -> Float[Tensor, " rows"]:
    """Fraction of variance unexplained as MSAE's code has it.

    Variance of the residual over the *features* of a row ÷ variance of x over them. (The usual
    one is over the data set: ``fvu`` of ``EmbeddingTotals.compute``.)
    """
    return (x - x_hat).var(-1, correction=0) / x.var(-1, correction=0)


def nmse_per_sample(
    x: Float[Tensor, "rows d_in"], x_hat: Float[Tensor, "rows d_in"]
) -> Float[Tensor, " rows"]:
    """Squared error of a row ÷ its squared norm."""
    return (x - x_hat).square().sum(-1) / x.square().sum(-1)


def nmae_per_sample(
    x: Float[Tensor, "rows d_in"], x_hat: Float[Tensor, "rows d_in"]
) -> Float[Tensor, " rows"]:
    """Absolute error of a row ÷ its sum of absolute values."""
    return (x - x_hat).abs().sum(-1) / x.abs().sum(-1)


def decoder_orthogonality(W_dec: Float[Tensor, "d_sae d_in"]) -> float:
    """Mean squared dot product of two decoder rows (of unit norm): 0 if all are orthogonal.

    The diagonal is set to zero and counted in the mean, as MSAE's code does. No
    ``[d_sae, d_sae]`` matrix is made: ``Σ_ij (w_i · w_j)² = ‖W_decᵀ W_dec‖²``, which is
    ``[d_in, d_in]`` and exact.
    """
    rows = W_dec.detach().cpu().double()
    squared_norms = rows.square().sum(-1)
    off_diagonal = (rows.T @ rows).square().sum() - squared_norms.square().sum()
    return max(off_diagonal.item(), 0.0) / len(rows) ** 2


class EmbeddingTotals:
    """MSAE's metrics over a data set, added batch by batch; memory O(d_in + d_sae).

    Args:
        d_in: width of a row.
        d_sae: number of latents.
    """

    def __init__(self, d_in: int, d_sae: int):
        self.basic = ReconstructionTotals(d_in, d_sae)
        self.d_sae = d_sae
        self._sums = dict.fromkeys(("fvu_per_sample", "nmse", "nmae", "euclidean"), 0.0)

    def update(
        self,
        x: Float[Tensor, "rows d_in"],
        x_hat: Float[Tensor, "rows d_in"],
        latents: Float[Tensor, "rows d_sae"],
    ) -> None:
        """Add rows, in the model's own space."""
        self.basic.update(x, x_hat, latents)
        x, x_hat = at_least_float32(x), at_least_float32(x_hat)
        per_row = {
            "fvu_per_sample": fvu_per_sample(x, x_hat),
            "nmse": nmse_per_sample(x, x_hat),
            "nmae": nmae_per_sample(x, x_hat),
            "euclidean": (x - x_hat).norm(dim=-1),
        }
        for name, values in per_row.items():
            self._sums[name] += values.cpu().double().sum().item()

    def compute(self) -> dict[str, float]:
        """The metrics, by name; means over rows, except where said.

        ``fvu`` is over the data set: ``Σ‖x − x̂‖² / Σ‖x − mean x‖²``. ``l0`` counts active latents,
        ``zero_fraction`` is the share of latents that are zero. ``n_dead`` latents were active on
        no row.
        """
        n = self.basic.n_tokens
        basic = self.basic.compute()
        means = {name: total / n if n else math.nan for name, total in self._sums.items()}
        return {
            "n_rows": n,
            "l0": basic["l0"],
            "zero_fraction": 1 - basic["l0"] / self.d_sae,
            "fvu_per_sample": means["fvu_per_sample"],
            "fvu": 1 - basic["explained_variance"],
            "cosine_similarity": basic["cosine_similarity"],
            "nmae": means["nmae"],
            "nmse": means["nmse"],
            "euclidean": means["euclidean"],
            "n_dead": int((self.basic.n_active_tokens == 0).sum()) if n else math.nan,
        }
