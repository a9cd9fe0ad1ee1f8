"""An SAE on its model: the one place that knows how rows reach it and go back."""

from __future__ import annotations

from vit_sae_plugin.attached_sae.attached_sae import AttachedSAE, Edit
from vit_sae_plugin.attached_sae.hooked_sae_vit import HookedSAEViT
from vit_sae_plugin.attached_sae.row_coder import RowCoder, keep_top_k

__all__ = ["AttachedSAE", "Edit", "HookedSAEViT", "RowCoder", "keep_top_k"]
