"""What the latents of an SAE respond to: statistics over a data set, masks, explanations."""

from vit_sae_plugin.analysis.explanation import Explanation, LatentInImage, explain
from vit_sae_plugin.analysis.heatmaps import Heatmap, heatmap, segmentation_mask
from vit_sae_plugin.analysis.latent_atlas import AtlasInfo, LatentAtlas
from vit_sae_plugin.analysis.latent_view import LatentView
from vit_sae_plugin.analysis.one_pass import analyze
from vit_sae_plugin.analysis.overlays import highlight, outline, tint, zoom
from vit_sae_plugin.analysis.showcase import (
    reference_heatmaps,
    reference_pictures,
    select_showcase_latents,
)

__all__ = [
    "AtlasInfo",
    "Explanation",
    "Heatmap",
    "LatentAtlas",
    "LatentInImage",
    "LatentView",
    "analyze",
    "explain",
    "heatmap",
    "highlight",
    "outline",
    "reference_heatmaps",
    "reference_pictures",
    "segmentation_mask",
    "select_showcase_latents",
    "tint",
    "zoom",
]
