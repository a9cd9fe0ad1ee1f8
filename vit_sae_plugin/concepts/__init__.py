"""What latents mean, in words, and what one does with that."""

from vit_sae_plugin.concepts.concept_bottleneck import ConceptBottleneck, concept_bottleneck
from vit_sae_plugin.concepts.concept_levels import concept_levels
from vit_sae_plugin.concepts.latent_tree import LatentTree, latent_tree
from vit_sae_plugin.concepts.stability import Stability, match_saes
from vit_sae_plugin.concepts.tree_truth import score_tree

__all__ = [
    "ConceptBottleneck",
    "LatentTree",
    "Stability",
    "concept_bottleneck",
    "concept_levels",
    "latent_tree",
    "match_saes",
    "score_tree",
]
