"""transformers' DeiT, distilled and not, with and without classifiers."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
)

from vit_sae_plugin.hooked_vit.tower_description import (
    EmbeddingDescription,
    TowerDescription,
    as_pair,
)
from vit_sae_plugin.hooked_vit.towers.transformers_vit import BLOCK


def describe(model: nn.Module) -> TowerDescription | None:
    """The tower of a transformers DeiT. With a teacher, its logits are the mean of two classifiers,
    and ``hook_image_embed`` is in front of the class token's."""
    if not isinstance(
        model, DeiTModel | DeiTForImageClassification | DeiTForImageClassificationWithTeacher
    ):
        return None
    config: Any = model.config
    at = "" if isinstance(model, DeiTModel) else "deit."
    taught = isinstance(model, DeiTForImageClassificationWithTeacher)
    classifier = "cls_classifier" if taught else "classifier"
    pooled = isinstance(model, DeiTModel) and model.pooler is not None
    return TowerDescription(
        family="transformers DeiT",
        blocks=f"{at}layers",
        block=BLOCK,
        embedding=EmbeddingDescription(
            patch_embed=f"{at}embeddings.patch_embeddings",
            prefix=(f"{at}embeddings.cls_token", f"{at}embeddings.distillation_token"),
            pos_embed=f"{at}embeddings.position_embeddings",
            embedded=f"{at}embeddings.dropout",
        ),
        ln_final=f"{at}layernorm",
        classifier=classifier if at and config.num_labels > 0 else None,
        n_heads=config.num_attention_heads,
        image_size=as_pair(config.image_size),
        patch_size=as_pair(config.patch_size),
        n_prefix_tokens=2,
        pooling=None if taught else "class",
        pooling_missing="its logits come from the class and the distillation token together",
        d_embed=config.pooler_output_size if pooled else config.hidden_size,
        image_output=("logits",) if at else ("pooler_output", "last_hidden_state[cls]"),
    )
