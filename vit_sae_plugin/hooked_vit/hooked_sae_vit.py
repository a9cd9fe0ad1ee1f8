"""``HookedSAEViT``: SAEs spliced into a vision transformer, as SAELens does in a language model."""

from __future__ import annotations

from vit_sae_plugin.hooked_vit.hooked_vit import HookedViT


class HookedSAEViT(HookedViT):
    """A ``HookedViT`` whose hook points can be replaced by SAEs."""
