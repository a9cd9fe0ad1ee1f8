"""An SAE on its model: the one place that knows how rows reach it and go back."""

from __future__ import annotations

from vit_sae_plugin.attached_sae.attached_sae import AttachedSAE, splice_all
from vit_sae_plugin.attached_sae.attribution import Attribution, attribute, zero_shot_score
from vit_sae_plugin.attached_sae.cached_sae import CachedRun, CachedSAE
from vit_sae_plugin.attached_sae.hooked_sae_vit import HookedSAEViT
from vit_sae_plugin.attached_sae.interventions import (
    LatentEdit,
    add,
    in_order,
    keep_only,
    remove,
    scale,
    set_to,
)
from vit_sae_plugin.attached_sae.row_coder import RowCoder, keep_top_k
from vit_sae_plugin.attached_sae.upper_run import UpperRun

__all__ = [
    "AttachedSAE",
    "Attribution",
    "CachedRun",
    "CachedSAE",
    "HookedSAEViT",
    "LatentEdit",
    "RowCoder",
    "UpperRun",
    "add",
    "attribute",
    "in_order",
    "keep_only",
    "keep_top_k",
    "remove",
    "scale",
    "set_to",
    "splice_all",
    "zero_shot_score",
]
