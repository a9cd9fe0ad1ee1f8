"""The scale of rows, estimated by processes of which each sees a part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch
from jaxtyping import Float
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from torch import Tensor
from typing_extensions import override

from vit_sae_plugin.training.ranks.process_group import Ranks


class SharedActivationScaler(ActivationScaler):
    """SAELens's ``ActivationScaler``, whose estimates are of all processes' rows.

    Args:
        ranks: the processes.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    @override
    @torch.no_grad()
    def estimate_scaling_factor(
        self, d_in: int, data_provider: Iterator[Tensor], n_batches_for_norm_estimate: int = 1000
    ) -> None:
        """√d ÷ mean norm of the rows."""
        sums = torch.zeros(2, dtype=torch.float64)
        for rows in islice(data_provider, n_batches_for_norm_estimate):
            norms = rows.norm(dim=-1)
            sums += torch.stack([norms.float().sum().cpu(), torch.tensor(float(norms.numel()))])
        total, n_rows = self.ranks.sum_(sums).tolist()
        self.scaling_factor = math.sqrt(d_in) / (total / n_rows)

    @override
    @torch.no_grad()
    def estimate_whitening(
        self,
        d_in: int,
        data_provider: Iterator[Tensor],
        n_batches_for_norm_estimate: int = 1000,
        eps: float = 1e-3,
    ) -> None:
        """Mean and covariance of the rows, in float64, and from them what makes rows white."""
        n_rows, total = torch.zeros(1, dtype=torch.float64), torch.zeros(d_in, dtype=torch.float64)
        products = torch.zeros(d_in, d_in, dtype=torch.float64)
        for batch in islice(data_provider, n_batches_for_norm_estimate):
            rows = batch.double().reshape(-1, d_in)
            n_rows += len(rows)
            total += rows.sum(dim=0).cpu()
            products += (rows.T @ rows).cpu()
        sums = torch.cat([n_rows, total, products.flatten()])
        self.whitening = _whitening(self.ranks.sum_(sums), d_in, eps)


def _whitening(sums: Float[Tensor, " 1+d+d*d"], d_in: int, eps: float) -> ActivationWhitening:
    """As SAELens's ``estimate_whitening`` (arXiv 2511.13981), from sums that it would have made."""
    n_rows, total, products = sums.split([1, d_in, d_in * d_in])
    mean = total / n_rows
    covariance = (products.view(d_in, d_in) - n_rows * torch.outer(mean, mean)) / (n_rows - 1)
    variances, directions = torch.linalg.eigh(covariance)
    variances = variances.clamp(min=0) + eps  # a singular covariance may give tiny negative ones
    return ActivationWhitening(
        mean=mean,
        matrix=(directions * variances.rsqrt()).contiguous(),
        inverse_matrix=(variances.sqrt().unsqueeze(1) * directions.T).contiguous(),
    )
