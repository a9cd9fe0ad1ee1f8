"""torchvision's ``VisionTransformer`` (``vit_b_16`` and its sisters)."""

from __future__ import annotations

from torch import nn
from torchvision.models import VisionTransformer

from vit_sae_plugin.hooked_vit.tower_description import (
    AttentionDescription,
    BlockDescription,
    EmbeddingDescription,
    TowerDescription,
    as_pair,
)


def describe(model: nn.Module) -> TowerDescription | None:
    """The tower of a torchvision vision transformer; ``model.heads`` may be an ``nn.Identity``."""
    if not isinstance(model, VisionTransformer):
        return None
    attention = AttentionDescription(packed="self_attention", out_proj="self_attention.out_proj")
    return TowerDescription(
        family="torchvision",
        blocks="encoder.layers",
        block=BlockDescription(
            ln1="ln_1",
            attn="self_attention",
            attention=attention,
            attn_out="dropout",
            ln2="ln_2",
            mlp_in="mlp.0",
            mlp_proj="mlp.3",
            mlp_out="mlp",
        ),
        embedding=EmbeddingDescription(
            patch_embed="conv_proj",
            prefix=("class_token",),
            pos_embed="encoder.pos_embedding",
            embedded="encoder.dropout",
        ),
        ln_final="encoder.ln",
        classifier=None if isinstance(model.heads, nn.Identity) else "heads",
        n_heads=model.encoder.layers[0].num_heads,  # type: ignore[union-attr, arg-type]
        image_size=as_pair(model.image_size),
        patch_size=as_pair(model.patch_size),
        n_prefix_tokens=1,
        pooling="class",
        d_embed=model.hidden_dim,
    )
