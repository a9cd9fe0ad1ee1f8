"""Latents whose decoder directions are alike."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vit_sae_plugin.analysis.atlas.latent_tables import Partners

_ENTRIES_AT_ONCE = 2**25


@torch.no_grad()
def decoder_neighbors(W_dec: Float[Tensor, "d_sae d_in"], n_neighbors: int) -> Partners:
    """Each latent's neighbours by cosine between decoder rows, in blocks of rows.

    Rows of length zero have no direction: they have no neighbours and are nobody's.
    """
    n_neighbors = min(n_neighbors, len(W_dec) - 1)
    norm = W_dec.norm(dim=1, keepdim=True)
    has_direction = (norm > 0).flatten()
    direction = (W_dec / norm.clamp(min=torch.finfo(W_dec.dtype).tiny)).float()
    latents, scores = [], []
    rows_at_once = max(1, _ENTRIES_AT_ONCE // len(W_dec))
    for start in range(0, len(W_dec), rows_at_once):
        cosine = direction[start : start + rows_at_once] @ direction.T
        cosine.masked_fill_(~has_direction, -torch.inf)
        cosine.diagonal(offset=start).fill_(-torch.inf)
        cosine[~has_direction[start : start + rows_at_once]] = -torch.inf
        score, latent = cosine.topk(n_neighbors, dim=1)
        none = score == -torch.inf
        latents.append(latent.masked_fill(none, -1))
        scores.append(score.clamp(max=1).masked_fill(none, torch.nan))
    return Partners(torch.cat(latents).cpu().numpy(), torch.cat(scores).cpu().numpy())
