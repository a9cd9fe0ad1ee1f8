"""What any SAE must beat: as many random directions, as many of them active for each row."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from sae_lens import TopKSAE, TopKSAEConfig
from torch import Tensor

if TYPE_CHECKING:
    from sae_lens import SAE


@torch.no_grad()
def random_directions_sae(
    sae: SAE[Any], rows: Float[Tensor, "n d_in"], k: int, *, seed: int = 0
) -> TopKSAE:
    """A control for an SAE: its latents are random directions, k of them active for each row.

    ``f = ReLU(TopK_k((x − mean) R))``, ``x̂ = c f Rᵀ + mean``, with R unit columns drawn evenly from
    the sphere, the rows' mean, and the one number c that reconstructs the rows best. So it has the
    SAE's width and sparsity and knows of the data only where they lie and how far they spread;
    what an SAE does better, its directions do.

    Args:
        sae: the SAE to compare with.
        rows: rows that it reads, as it reads them (standardised, if it has statistics).
        k: latents active for each row: the SAE's mean number, rounded.
        seed: of the directions.

    Returns:
        A SAELens SAE with the metadata of ``sae``, on its device.

    Raises:
        ValueError: ``k`` doesn't lie between 1 and the number of latents, or there are no rows.
    """
    d_in, d_sae = sae.cfg.d_in, sae.cfg.d_sae
    if not 1 <= k <= d_sae:
        raise ValueError(f"k is {k}; want 1 to {d_sae}, the number of latents")
    if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] != d_in:
        raise ValueError(f"rows are of shape {tuple(rows.shape)}; want [n, {d_in}] with n above 0")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(d_sae, d_in, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    metadata = deepcopy(sae.cfg.metadata)
    metadata.model_from_pretrained_kwargs = None  # else SAELens warns of them at each SAE made
    control = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=k, metadata=metadata))
    metadata.model_from_pretrained_kwargs = sae.cfg.metadata.model_from_pretrained_kwargs
    control = control.to(device=sae.W_dec.device, dtype=torch.float32)
    rows = rows.to(control.W_dec)
    control.W_enc.copy_(directions.T)
    control.b_enc.zero_()
    control.W_dec.copy_(directions)
    control.b_dec.copy_(rows.mean(0))
    centred = rows - control.b_dec
    along = control.encode(rows) @ control.W_dec
    best = (centred * along).sum() / along.square().sum().clamp(min=torch.finfo(rows.dtype).tiny)
    control.W_dec.mul_(best)
    return control
