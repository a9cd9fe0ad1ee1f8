"""What the published L1 coefficient corresponds to on a model of another scale or width."""

from __future__ import annotations

from jaxtyping import Float
from sae_lens.saes.sae import TrainingSAEConfig
from torch import Tensor

from vit_sae_plugin.saes import PatchTrainingSAEConfig, equivalent_l1_coefficient

PUBLISHED = 8e-5
"""PatchSAE's λ, for 768-wide rows of CLIP ViT-B/16, whose errors are divided by the row's norm."""


def l1_guidance(cfg: TrainingSAEConfig, rows: Float[Tensor, "rows d_in"]) -> str | None:
    """One line for the start of a PatchSAE's training; None for any other SAE.

    Args:
        cfg: of the SAE.
        rows: its first training batch.
    """
    if not isinstance(cfg, PatchTrainingSAEConfig) or cfg.normalize_activations != "none":
        return None
    norm = rows.float().norm(dim=-1).median().item()
    equivalent = equivalent_l1_coefficient(PUBLISHED, d_in=cfg.d_in)
    if cfg.mse_normalization == "none":
        equivalent *= norm  # by which the published errors were divided
    asked = f"l1_coefficient is {cfg.l1_coefficient:.3g}"
    if cfg.relative_l1_coefficient is not None:
        asked = f"relative_l1_coefficient is {cfg.relative_l1_coefficient:.3g}"
    return (
        f"rows of width {cfg.d_in} and norm {norm:.3g} (the median), on which the published "
        f"l1_coefficient of {PUBLISHED:.0e} is {equivalent:.3g}; {asked}"
    )
