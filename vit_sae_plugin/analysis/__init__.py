"""What the latents of an SAE respond to: statistics over a data set, masks, explanations."""

from vit_sae_plugin.analysis.atlas.atlas_info import AtlasInfo
from vit_sae_plugin.analysis.atlas.latent_atlas import LatentAtlas, LatentView
from vit_sae_plugin.analysis.atlas.latent_names import LatentName
from vit_sae_plugin.analysis.one_pass import (
    AnalysisInterruptedError,
    analyze,
    analyze_embeddings,
)
from vit_sae_plugin.analysis.pictures.explanation import Explanation, LatentInImage, explain
from vit_sae_plugin.analysis.pictures.heatmap import Heatmap, highlight
from vit_sae_plugin.analysis.pictures.heatmaps import heatmap, segmentation_mask
from vit_sae_plugin.analysis.pictures.overlays import outline, tint, zoom
from vit_sae_plugin.analysis.pictures.showcase import (
    reference_heatmaps,
    reference_pictures,
    select_showcase_latents,
)
from vit_sae_plugin.analysis.remapping.compare import compare_models
from vit_sae_plugin.analysis.remapping.comparison import ModelComparison

__all__ = [
    "AnalysisInterruptedError",
    "AtlasInfo",
    "Explanation",
    "Heatmap",
    "LatentAtlas",
    "LatentInImage",
    "LatentName",
    "LatentView",
    "ModelComparison",
    "analyze",
    "analyze_embeddings",
    "compare_models",
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
