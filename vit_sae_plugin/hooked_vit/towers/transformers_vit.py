"""transformers' ``ViTModel`` and ``ViTForImageClassification``."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import ViTForImageClassification, ViTModel

from vit_sae_plugin.hooked_vit.tower_description import (
    AttentionDescription,
    BlockDescription,
    EmbeddingDescription,
    TowerDescription,
    as_pair,
)

ATTENTION = AttentionDescription(
    q="attention.q_proj",
    k="attention.k_proj",
    v="attention.v_proj",
    out_proj="attention.o_proj",
)
"""ViT's attention; DINOv2's is the same."""

BLOCK = BlockDescription(
    ln1="layernorm_before",
    attn="attention",
    attention=ATTENTION,
    attn_out="attention",
    ln2="layernorm_after",
    mlp_in="mlp.fc1",
    mlp_proj="mlp.fc2",
    mlp_out="mlp",
)
"""ViT's block; DeiT's and MAE's are the same."""


def describe(model: nn.Module) -> TowerDescription | None:
    """The tower of a transformers ViT; without a pooler the image embedding is the class token."""
    if not isinstance(model, ViTModel | ViTForImageClassification):
        return None
    config: Any = model.config
    classifies = isinstance(model, ViTForImageClassification)
    at = "vit." if classifies else ""
    pooled = not classifies and model.pooler is not None
    return TowerDescription(
        family="transformers ViT",
        blocks=f"{at}layers",
        block=BLOCK,
        embedding=EmbeddingDescription(
            patch_embed=f"{at}embeddings.patch_embeddings",
            prefix=(f"{at}embeddings.cls_token",),
            pos_embed=f"{at}embeddings.position_embeddings",
            embedded=f"{at}embeddings.dropout",
        ),
        ln_final=f"{at}layernorm",
        classifier="classifier" if classifies else None,
        n_heads=config.num_attention_heads,
        image_size=as_pair(config.image_size),
        patch_size=as_pair(config.patch_size),
        n_prefix_tokens=1,
        pooling="class",
        d_embed=config.pooler_output_size if pooled else config.hidden_size,
        image_output=("logits",) if classifies else ("pooler_output", "last_hidden_state[cls]"),
    )
