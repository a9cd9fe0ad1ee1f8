"""What latents mean, in words, and what one does with that."""

from vit_sae_plugin.concepts.stability import Stability, match_saes

__all__ = ["Stability", "match_saes"]
