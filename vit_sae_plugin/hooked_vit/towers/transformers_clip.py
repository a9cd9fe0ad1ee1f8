"""transformers' ``CLIPModel``, ``CLIPVisionModel`` and ``CLIPVisionModelWithProjection``."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection

from vit_sae_plugin.hooked_vit.tower_description import (
    AttentionDescription,
    BlockDescription,
    EmbeddingDescription,
    TowerDescription,
    as_pair,
)

BLOCK = BlockDescription(
    ln1="layer_norm1",
    attn="self_attn",
    attention=AttentionDescription(
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        out_proj="self_attn.out_proj",
    ),
    attn_out="self_attn",
    ln2="layer_norm2",
    mlp_in="mlp.fc1",
    mlp_proj="mlp.fc2",
    mlp_out="mlp",
)
"""CLIP's block; SigLIP's is the same."""


def describe(model: nn.Module) -> TowerDescription | None:
    """The vision tower of a transformers CLIP."""
    if not isinstance(model, CLIPModel | CLIPVisionModel | CLIPVisionModelWithProjection):
        return None
    config: Any = model.config
    vision = config.vision_config if isinstance(model, CLIPModel) else config
    at = "" if isinstance(model, CLIPVisionModel) else "vision_model."
    projected = not isinstance(model, CLIPVisionModel)
    return TowerDescription(
        family="transformers CLIP",
        blocks=f"{at}encoder.layers",
        block=BLOCK,
        embedding=EmbeddingDescription(
            patch_embed=f"{at}embeddings.patch_embedding",
            prefix=(f"{at}embeddings.class_embedding",),
            pos_embed=f"{at}embeddings.position_embedding.weight",
            embedded=f"{at}embeddings",
            embedded_side="output",
        ),
        ln_final=f"{at}post_layernorm",
        n_heads=vision.num_attention_heads,
        image_size=as_pair(vision.image_size),
        patch_size=as_pair(vision.patch_size),
        n_prefix_tokens=1,
        pooling="class",
        d_embed=config.projection_dim if projected else vision.hidden_size,
        image_method="get_image_features" if isinstance(model, CLIPModel) else None,
        image_output=("image_embeds", "pooler_output"),
        text_method="get_text_features" if isinstance(model, CLIPModel) else None,
        text_output="pooler_output",
    )
