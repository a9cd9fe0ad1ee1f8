"""transformers' DINOv2, with and without registers, with and without a classifier."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import (
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
)

from vit_sae_plugin.hooked_vit.tower_description import (
    BlockDescription,
    EmbeddingDescription,
    TowerDescription,
    as_pair,
)
from vit_sae_plugin.hooked_vit.towers.transformers_vit import ATTENTION

TRUNKS = {
    Dinov2Model: "",
    Dinov2WithRegistersModel: "",
    Dinov2ForImageClassification: "dinov2.",
    Dinov2WithRegistersForImageClassification: "dinov2_with_registers.",
}
"""Class to the place of its tower."""


def describe(model: nn.Module) -> TowerDescription | None:
    """The tower of a transformers DINOv2. A classifier sees class token and mean patch together,
    so ``hook_image_embed`` is twice as wide in front of one."""
    at = next((path for cls, path in TRUNKS.items() if isinstance(model, cls)), None)
    if at is None:
        return None
    config: Any = model.config
    n_registers = getattr(config, "num_register_tokens", 0)
    gated = config.use_swiglu_ffn
    prefix = [f"{at}embeddings.cls_token"]
    if n_registers:
        prefix.append(f"{at}embeddings.register_tokens")
    return TowerDescription(
        family="transformers DINOv2",
        blocks=f"{at}encoder.layer",
        block=BlockDescription(
            ln1="norm1",
            attn="attention",
            attention=ATTENTION,
            attn_out="layer_scale1",
            ln2="norm2",
            mlp_in="mlp.gate_proj" if gated else "mlp.fc1",
            mlp_proj="mlp.down_proj" if gated else "mlp.fc2",
            mlp_out="layer_scale2",
        ),
        embedding=EmbeddingDescription(
            patch_embed=f"{at}embeddings.patch_embeddings",
            prefix=tuple(prefix),
            pos_embed=f"{at}embeddings.position_embeddings",
            embedded=f"{at}embeddings.dropout",
        ),
        ln_final=f"{at}layernorm",
        classifier="classifier" if at and config.num_labels > 0 else None,
        n_heads=config.num_attention_heads,
        image_size=as_pair(config.image_size),
        patch_size=as_pair(config.patch_size),
        n_prefix_tokens=1 + n_registers,
        pooling=None if at else "class",
        pooling_missing="its classifier sees the class token beside the mean of the patches",
        d_embed=config.hidden_size * (2 if at else 1),
        image_output=("logits", "pooler_output"),
    )
