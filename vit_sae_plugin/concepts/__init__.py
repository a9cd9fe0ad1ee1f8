"""What latents mean, in words, and what one does with that."""

from vit_sae_plugin.concepts.calibration import (
    NamingThreshold,
    threshold_against_null,
    threshold_for_precision,
)
from vit_sae_plugin.concepts.candidates import Candidates, rank_words
from vit_sae_plugin.concepts.concept_bottleneck import ConceptBottleneck, concept_bottleneck
from vit_sae_plugin.concepts.concept_directions import ConceptDirections
from vit_sae_plugin.concepts.concept_levels import concept_levels
from vit_sae_plugin.concepts.direct_route import direct
from vit_sae_plugin.concepts.image_conditioned import image_conditioned
from vit_sae_plugin.concepts.latent_tree import LatentTree, latent_tree
from vit_sae_plugin.concepts.measured_shift import measured_shift
from vit_sae_plugin.concepts.naming import Naming, keep_names, name_latents
from vit_sae_plugin.concepts.search import SearchResult, search_by_concepts, search_by_image
from vit_sae_plugin.concepts.search_index import SearchIndex, build_index
from vit_sae_plugin.concepts.stability import Stability, match_saes
from vit_sae_plugin.concepts.tree_truth import score_tree
from vit_sae_plugin.concepts.vocabulary import Vocabulary
from vit_sae_plugin.concepts.vocabulary_sources import read_vocabulary
from vit_sae_plugin.concepts.word_embeddings import WordEmbeddings, embed_words

__all__ = [
    "Candidates",
    "ConceptBottleneck",
    "ConceptDirections",
    "LatentTree",
    "Naming",
    "NamingThreshold",
    "SearchIndex",
    "SearchResult",
    "Stability",
    "Vocabulary",
    "WordEmbeddings",
    "build_index",
    "concept_bottleneck",
    "concept_levels",
    "direct",
    "embed_words",
    "image_conditioned",
    "keep_names",
    "latent_tree",
    "match_saes",
    "measured_shift",
    "name_latents",
    "rank_words",
    "read_vocabulary",
    "score_tree",
    "search_by_concepts",
    "search_by_image",
    "threshold_against_null",
    "threshold_for_precision",
]
