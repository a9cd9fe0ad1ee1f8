"""transformers' ``ViTMAEModel``: the encoder of a masked autoencoder."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import ViTMAEForPreTraining, ViTMAEModel

from vit_sae_plugin.hooked_vit.errors import UnsupportedTowerError
from vit_sae_plugin.hooked_vit.tower_description import (
    EmbeddingDescription,
    TowerDescription,
    as_pair,
)
from vit_sae_plugin.hooked_vit.towers.transformers_vit import BLOCK


def describe(model: nn.Module) -> TowerDescription | None:
    """The encoder of a masked autoencoder that masks nothing.

    By itself the model shuffles the patches of each image at every call. Here they are passed in
    row-major order: the model sorts them by its argument ``noise``, which is given rising numbers.

    Raises:
        UnsupportedTowerError: it masks patches, or comes with its decoder.
    """
    if isinstance(model, ViTMAEForPreTraining):
        raise UnsupportedTowerError(
            "ViTMAEForPreTraining returns a loss of its decoder; want its encoder, model.vit, with "
            "model.config.mask_ratio = 0"
        )
    if not isinstance(model, ViTMAEModel):
        return None
    config: Any = model.config
    if config.mask_ratio != 0:
        raise UnsupportedTowerError(
            f"this ViTMAEModel leaves out {config.mask_ratio:.0%} of the patches, at random; want "
            "model.config.mask_ratio = 0 (HookedViT.from_pretrained('hf:…') sets it)"
        )
    return TowerDescription(
        family="transformers MAE",
        blocks="layers",
        block=BLOCK,
        embedding=EmbeddingDescription(
            patch_embed="embeddings.patch_embeddings",
            prefix=("embeddings.cls_token",),
            pos_embed="embeddings.position_embeddings",
            embedded="embeddings",
            embedded_side="output",
        ),
        ln_final="layernorm",
        n_heads=config.num_attention_heads,
        image_size=as_pair(config.image_size),
        patch_size=as_pair(config.patch_size),
        n_prefix_tokens=1,
        pooling="class",
        patch_order_argument="noise",
        image_output=("last_hidden_state[cls]",),
    )
