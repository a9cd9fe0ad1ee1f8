"""What the latents of an SAE respond to: statistics over a data set, masks, explanations."""

from vit_sae_plugin.analysis.latent_atlas import AtlasInfo, LatentAtlas
from vit_sae_plugin.analysis.one_pass import analyze

__all__ = ["AtlasInfo", "LatentAtlas", "analyze"]
