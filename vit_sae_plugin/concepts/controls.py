"""What an SAE's names are compared with: random directions and neurons, as SAEs in its place."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from sae_lens import StandardSAE, StandardSAEConfig
from torch import Tensor

from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.datasets import open_images
from vit_sae_plugin.evaluation.random_control import random_directions_sae

if TYPE_CHECKING:
    from sae_lens import SAE

_N_ROWS = 8192


@torch.no_grad()
def random_control(attached: AttachedSAE, images: Any, *, seed: int = 0) -> AttachedSAE:
    """As many random directions as there are latents, as many of them active in each token.

    Args:
        attached: the SAE on its model.
        images: a sample of them says how many latents are active.
        seed: of the directions.
    """
    rows, latents_per_row = _sample(attached, images, seed)
    k = min(max(1, round(latents_per_row)), attached.d_sae)
    return _in_place_of(attached, random_directions_sae(attached.sae, rows, k, seed=seed))


@torch.no_grad()
def neurons_control(attached: AttachedSAE, images: Any, *, seed: int = 0) -> AttachedSAE:
    """The coordinates of what the SAE reads, above and below their means: ``2 · d_in`` latents."""
    rows, _ = _sample(attached, images, seed)
    sae, d_in = attached.sae, attached.d_in
    metadata = deepcopy(sae.cfg.metadata)
    metadata.model_from_pretrained_kwargs = None  # else SAELens warns of them at each SAE made
    control = StandardSAE(
        StandardSAEConfig(d_in=d_in, d_sae=2 * d_in, apply_b_dec_to_input=True, metadata=metadata)
    )
    metadata.model_from_pretrained_kwargs = sae.cfg.metadata.model_from_pretrained_kwargs
    control = control.to(device=sae.W_dec.device, dtype=torch.float32)
    both = torch.cat([torch.eye(d_in), -torch.eye(d_in)]).to(control.W_dec)
    control.W_enc.copy_(both.T)
    control.W_dec.copy_(both)
    control.b_enc.zero_()
    control.b_dec.copy_(rows.to(control.W_dec).mean(0))
    return _in_place_of(attached, control)


def _in_place_of(attached: AttachedSAE, sae: SAE[Any]) -> AttachedSAE:
    return AttachedSAE(attached.model, sae, attached.source, attached.rows.statistics)


def _sample(attached: AttachedSAE, images: Any, seed: int) -> tuple[Float[Tensor, "n d_in"], float]:
    """Rows as the SAE reads them, and how many latents are active in one, on the mean."""
    rows: list[Tensor] = []
    n_rows = n_active = 0
    for batch in attached.walk(open_images(images), shuffle=True, seed=seed):
        acts_btd = attached.activations(batch.pixels)
        for _, latents in attached.encode_parts(acts_btd):
            n_active += int((latents != 0).sum())
        some = attached.rows.standardize(acts_btd.flatten(0, 1)).float()
        rows.append(some)
        n_rows += len(some)
        if n_rows >= _N_ROWS:
            break
    if not rows:
        raise ValueError("no image can be read; want one or more, to make a control of")
    return torch.cat(rows)[:_N_ROWS], n_active / n_rows
