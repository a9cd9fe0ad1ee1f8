"""open_clip's ``CLIP``, and ``CustomTextCLIP`` with open_clip's own vision transformer."""

from __future__ import annotations

from typing import Any

from torch import nn

from vit_sae_plugin.hooked_vit.errors import UnsupportedTowerError
from vit_sae_plugin.hooked_vit.tower_description import (
    AttentionDescription,
    BlockDescription,
    EmbeddingDescription,
    TowerDescription,
)


def describe(model: nn.Module) -> TowerDescription | None:
    """The tower of an open_clip model whose ``visual`` is open_clip's ``VisionTransformer``."""
    import open_clip
    from open_clip.transformer import VisionTransformer

    if not isinstance(model, open_clip.CLIP | open_clip.CustomTextCLIP):
        return None
    visual: Any = model.visual
    if not isinstance(visual, VisionTransformer):
        return None
    attn = visual.transformer.resblocks[0].attn
    if not isinstance(attn, nn.MultiheadAttention) or not attn.batch_first:
        raise UnsupportedTowerError("no")
    return TowerDescription(
        family="open_clip",
        blocks="visual.transformer.resblocks",
        block=BlockDescription(
            ln1="ln_1",
            attn="attn",
            attention=AttentionDescription(packed="attn", out_proj="attn.out_proj"),
            attn_out="ls_1",
            ln2="ln_2",
            mlp_in="mlp.c_fc",
            mlp_proj="mlp.c_proj",
            mlp_out="ls_2",
        ),
        embedding=EmbeddingDescription(
            patch_embed="visual.conv1",
            prefix=("visual.class_embedding",),
            pos_embed="visual.positional_embedding",
            embedded="visual.patch_dropout",
        ),
        ln_final="visual.ln_post",
        n_heads=attn.num_heads,
        image_size=tuple(visual.image_size),
        patch_size=tuple(visual.patch_size),
        n_prefix_tokens=1,
        d_embed=visual.output_dim,
        image_method="encode_image",
        text_method="encode_text",
    )
