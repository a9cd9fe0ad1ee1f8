"""open_clip's own vision transformer: in ``CLIP``, ``CustomTextCLIP`` and ``CoCa``, and alone."""

from __future__ import annotations

from typing import Any, Literal

from open_clip import CLIP, CoCa, CustomTextCLIP
from open_clip.transformer import Attention, VisionTransformer
from torch import nn

from vit_sae_plugin.hooked_vit.tower_description import (
    AttentionDescription,
    BlockDescription,
    EmbeddingDescription,
    TowerDescription,
)
from vit_sae_plugin.hooked_vit.weight_views import inside_of_wrappers

POOLING: dict[str, Literal["class", "patches"]] = {"tok": "class", "avg": "patches"}


def describe(model: nn.Module) -> TowerDescription | None:
    """The tower of an open_clip model whose ``visual`` is open_clip's ``VisionTransformer``, or of
    such a ``visual`` by itself."""
    alone = isinstance(model, VisionTransformer)
    visual: Any = model if alone else getattr(model, "visual", None)
    visual = getattr(visual, "_orig_mod", visual)
    whole = isinstance(model, CLIP | CustomTextCLIP | CoCa)
    if not (alone or whole) or not isinstance(visual, VisionTransformer):
        return None
    at = "" if alone else "visual."
    attn = visual.transformer.resblocks[0].attn
    attention, missing = _describe_attention(attn)
    return TowerDescription(
        family="open_clip",
        blocks=f"{at}transformer.resblocks",
        block=BlockDescription(
            ln1="ln_1",
            attn="attn",
            attention=attention,
            attention_missing=missing,
            attn_out="ls_1",
            ln2="ln_2",
            mlp_in="mlp.c_fc",
            mlp_proj="mlp.c_proj",
            mlp_out="ls_2",
        ),
        embedding=EmbeddingDescription(
            patch_embed=f"{at}conv1",
            prefix=(f"{at}class_embedding",),
            pos_embed=f"{at}positional_embedding",
            embedded=f"{at}patch_dropout",
        ),
        # Behind an attention pooling it sees no tokens of the stream.
        ln_final=None if visual.attn_pool is not None else f"{at}ln_post",
        n_heads=attn.num_heads,
        image_size=tuple(visual.image_size),
        patch_size=tuple(visual.patch_size),
        n_prefix_tokens=1,
        pooling=None if visual.attn_pool is not None else POOLING.get(visual.pool_type),
        pooling_missing="its attention pooling weighs the tokens against each other",
        d_embed=visual.output_dim,
        notes=dict.fromkeys(
            ("ln_final.hook_scale", "ln_final.hook_normalized"),
            "its final norm comes behind an attention pooling",
        )
        if visual.attn_pool is not None
        else {},
        image_method=None if alone else "encode_image",
        text_method=None if alone else "encode_text",
        # CoCa's methods divide by the length unless told otherwise.
        method_arguments={"normalize": False} if isinstance(model, CoCa) else {},
    )


def _describe_attention(attn: Any) -> tuple[AttentionDescription | None, str]:
    attn = inside_of_wrappers(attn)
    if isinstance(attn, nn.MultiheadAttention):
        return AttentionDescription(packed="attn", out_proj="attn.out_proj"), ""
    if type(attn).forward is not Attention.forward:
        return None, f"its attention is a {type(attn).__name__}, which this package does not know"
    if attn.logit_scale is not None or attn.head_scale is not None:
        return None, "its attention has scaled cosines or scaled heads"
    return (
        AttentionDescription(
            packed="attn",
            out_proj="attn.out_proj",
            q_norm="attn.ln_q",
            k_norm="attn.ln_k",
            z="attn.ln_inner",
        ),
        "",
    )
