"""From images to rows: which tokens, from which hook, in which order."""

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.activations.activations_store import ViTActivationsStore
from vit_sae_plugin.activations.embed import embed_images, embed_texts
from vit_sae_plugin.activations.embedding_rows import EmbeddingRows, load_embedding_rows
from vit_sae_plugin.activations.embedding_statistics import EmbeddingStatistics, fold_statistics
from vit_sae_plugin.activations.embedding_store import EmbeddingStore
from vit_sae_plugin.activations.image_walk import ImageWalk
from vit_sae_plugin.activations.row_store import RowStore

__all__ = [
    "ActivationSource",
    "EmbeddingRows",
    "EmbeddingStatistics",
    "EmbeddingStore",
    "ImageWalk",
    "RowStore",
    "ViTActivationsStore",
    "embed_images",
    "embed_texts",
    "fold_statistics",
    "load_embedding_rows",
]
