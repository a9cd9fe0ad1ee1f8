"""transformers' ``SiglipModel`` and ``SiglipVisionModel``: no class token, attention pooling."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import SiglipModel, SiglipVisionModel

from vit_sae_plugin.hooked_vit.tower_description import (
    EmbeddingDescription,
    TowerDescription,
    as_pair,
)
from vit_sae_plugin.hooked_vit.towers.transformers_clip import BLOCK


def describe(model: nn.Module) -> TowerDescription | None:
    """The vision tower of a transformers SigLIP."""
    if not isinstance(model, SiglipModel | SiglipVisionModel):
        return None
    config: Any = model.config
    both = isinstance(model, SiglipModel)
    vision = config.vision_config if both else config
    at = "vision_model." if both else ""
    return TowerDescription(
        family="transformers SigLIP",
        blocks=f"{at}encoder.layers",
        block=BLOCK,
        embedding=EmbeddingDescription(
            patch_embed=f"{at}embeddings.patch_embedding",
            pos_embed=f"{at}embeddings.position_embedding.weight",
            embedded=f"{at}embeddings",
            embedded_side="output",
        ),
        ln_final=f"{at}post_layernorm",
        n_heads=vision.num_attention_heads,
        image_size=as_pair(vision.image_size),
        patch_size=as_pair(vision.patch_size),
        n_prefix_tokens=0,
        pooling_missing="its attention pooling weighs the tokens against each other",
        image_method="get_image_features" if both else None,
        image_output=("pooler_output",),
        text_method="get_text_features" if both else None,
        text_output="pooler_output",
    )
