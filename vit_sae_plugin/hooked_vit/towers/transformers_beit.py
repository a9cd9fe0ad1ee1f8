"""transformers' BEiT, with and without a classifier: biases of relative position."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from transformers import BeitForImageClassification, BeitModel

from vit_sae_plugin.hooked_vit.tower_description import (
    EmbeddingDescription,
    TowerDescription,
    as_pair,
)
from vit_sae_plugin.hooked_vit.towers.transformers_vit import ATTENTION, BLOCK

_BLOCK = replace(
    BLOCK,
    attention=replace(ATTENTION, intercepted=True),
    # One module, through which both halves of the block pass, one after the other.
    attn_out="drop_path",
    mlp_out="drop_path",
)


def describe(model: nn.Module) -> TowerDescription | None:
    """The tower of a transformers BEiT. Where it pools a mean of the patches, the final norm comes
    behind that and sees the pooled vector alone."""
    if not isinstance(model, BeitModel | BeitForImageClassification):
        return None
    config: Any = model.config
    classifies = isinstance(model, BeitForImageClassification)
    at = "beit." if classifies else ""
    pooled = (model.beit if isinstance(model, BeitForImageClassification) else model).pooler
    by_mean = config.use_mean_pooling
    ln_final = (f"{at}pooler.layernorm" if pooled is not None else None) if by_mean else "layernorm"
    return TowerDescription(
        family="transformers BEiT",
        blocks=f"{at}layers",
        block=_BLOCK,
        embedding=EmbeddingDescription(
            patch_embed=f"{at}embeddings.patch_embeddings",
            prefix=(f"{at}embeddings.cls_token",),
            pos_embed=f"{at}embeddings.position_embeddings"
            if config.use_absolute_position_embeddings
            else None,
            embedded=f"{at}embeddings.dropout",
        ),
        ln_final=f"{at}layernorm" if ln_final == "layernorm" else ln_final,
        classifier="classifier" if classifies and config.num_labels > 0 else None,
        n_heads=config.num_attention_heads,
        image_size=as_pair(config.image_size),
        patch_size=as_pair(config.patch_size),
        n_prefix_tokens=1,
        pooling="patches" if by_mean and pooled is not None else "class",
        image_output=("logits",) if classifies else ("pooler_output", "last_hidden_state[cls]"),
    )
