"""What an atlas was made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from vit_sae_plugin.activations.activation_source import ActivationSource
from vit_sae_plugin.analysis.html_pieces import table

SCHEMA_VERSION = 2


@dataclass
class AtlasInfo:
    """What an atlas was made from, kept in its ``atlas.json``."""

    model_sha256: str | None
    """Hash of the model's weights; None: embeddings were analysed, without their model."""
    sae_sha256: str
    """Hash of the SAE's weights and settings."""
    data_sha256: str
    """Fingerprint of the image source."""
    data_name: str
    """Name of the image source."""
    sae_metadata: dict[str, Any]
    """The SAE's model, hook, tokens and preprocessing (see ``ActivationSource``)."""
    model_preprocessing: str | None
    """How the model that was used preprocesses images, in words."""
    architecture: str
    """The SAE's architecture."""
    d_in: int
    """Width of the SAE's input."""
    d_sae: int
    """Number of latents."""
    n_tokens: int
    """Tokens the SAE reads of each image."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    threshold: float
    """A token is active, for counts, where its activation is strictly above this."""
    aggregations: dict[str, dict[str, Any]]
    """Name → rule of each aggregation with reference images; the first is the default."""
    n_reference_images: int
    """Most reference images a latent can have."""
    n_partners: int
    """Most co-active and similar latents a latent can have."""
    n_coactivation_images: int
    """Sample size of the co-activation estimate."""
    dense_frequency: float
    """A latent active at more than this share of tokens is flagged dense."""
    class_names: list[str] | None
    """Class index → name; two classes may share one."""
    n_images: int = 0
    """Images that were analysed."""
    n_skipped_images: int = 0
    """Images that could not be read."""
    typical_activation: float | None = None
    """Mean of the SAE's activations above 0 on a sample of the images, where the threshold follows
    from it; None: the threshold was given."""
    embeddings_sha256: str | None = None
    """Hash of the embeddings, where those were analysed."""
    request: dict[str, Any] | None = None
    """What ``analyze`` was asked for: the same request opens this atlas again."""
    schema_version: int = SCHEMA_VERSION
    """Version of the folder's format."""

    @property
    def model_in_words(self) -> str:
        """The model and its weights, such as ``"ViT-B-16 (openai weights)"``."""
        try:
            return ActivationSource.from_metadata(self.sae_metadata).describe_model()
        except ValueError:  # embeddings from elsewhere
            return str(self.sae_metadata.get("model_name") or "an unknown model")

    def _repr_html_(self) -> str:
        """What the atlas was made from, as a table."""
        values = {
            name: value[:8] if value and name.endswith("_sha256") else value
            for name, value in asdict(self).items()
        }
        return table(pd.DataFrame({"value": map(str, values.values())}, index=list(values)))
