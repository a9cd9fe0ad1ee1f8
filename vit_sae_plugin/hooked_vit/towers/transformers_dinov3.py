"""transformers' DINOv3 vision transformers: rotary positions, registers."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import DINOv3ViTModel

from vit_sae_plugin.hooked_vit.tower_description import (
    AttentionDescription,
    BlockDescription,
    EmbeddingDescription,
    TowerDescription,
    as_pair,
)


def describe(model: nn.Module) -> TowerDescription | None:
    """The tower of a transformers DINOv3."""
    if not isinstance(model, DINOv3ViTModel):
        return None
    config: Any = model.config
    n_registers = config.num_register_tokens
    registers = ("embeddings.register_tokens",) if n_registers else ()
    return TowerDescription(
        family="transformers DINOv3",
        blocks="model.layer",
        block=BlockDescription(
            ln1="norm1",
            attn="attention",
            attention=AttentionDescription(
                intercepted=True,
                q="attention.q_proj",
                k="attention.k_proj",
                v="attention.v_proj",
                out_proj="attention.o_proj",
            ),
            attn_out="layer_scale1",
            ln2="norm2",
            mlp_in="mlp.gate_proj" if config.use_gated_mlp else "mlp.up_proj",
            mlp_proj="mlp.down_proj",
            mlp_out="layer_scale2",
        ),
        embedding=EmbeddingDescription(
            patch_embed="embeddings.patch_embeddings",
            prefix=("embeddings.cls_token", *registers),
            embedded="embeddings",
            embedded_side="output",
        ),
        ln_final="norm",
        n_heads=config.num_attention_heads,
        image_size=as_pair(config.image_size),
        patch_size=as_pair(config.patch_size),
        n_prefix_tokens=1 + n_registers,
        pooling="class",
        image_output=("pooler_output",),
    )
