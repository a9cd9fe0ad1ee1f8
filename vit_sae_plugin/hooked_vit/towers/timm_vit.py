"""timm's ``VisionTransformer``, also as the tower inside another model."""

from __future__ import annotations

from typing import Any, Literal

from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from vit_sae_plugin.hooked_vit.errors import UnsupportedTowerError
from vit_sae_plugin.hooked_vit.token_layout import TokenRole
from vit_sae_plugin.hooked_vit.tower_description import (
    AttentionDescription,
    BlockDescription,
    EmbeddingDescription,
    TowerDescription,
    as_pair,
)

POOLING: dict[str, Literal["class", "patches"]] = {
    "token": "class",
    "avg": "patches",
    "avgmax": "patches",
    "max": "patches",
}


def describe(model: nn.Module) -> TowerDescription | None:
    """The tower of a timm ``VisionTransformer``."""
    return describe_trunk(model, "") if isinstance(model, VisionTransformer) else None


def describe_trunk(trunk: Any, path: str) -> TowerDescription:
    """The tower of a timm ``VisionTransformer`` found at ``path`` in the wrapped model.

    Raises:
        UnsupportedTowerError: its blocks are not timm's pre-norm ``Block``.
    """
    block = trunk.blocks[0]
    if type(block).forward is not Block.forward:
        raise UnsupportedTowerError(
            f"this timm model is built of {type(block).__name__}; want timm's sequential pre-norm "
            "Block (parallel and post-norm blocks keep no stream between attention and MLP that "
            "could be hooked)"
        )
    attention, missing = _describe_attention(block.attn)
    # With no positions to add, VisionTransformer never calls pos_drop.
    embedded = "pos_drop" if trunk.pos_embed is not None else "patch_drop"
    return describe_around(trunk, path, attention, missing, embedded=embedded)


def describe_around(
    trunk: Any,
    path: str,
    attention: AttentionDescription | None,
    attention_missing: str = "",
    *,
    embedded: str = "pos_drop",
) -> TowerDescription:
    """What timm's pre-norm vision transformers have in common: all but attention's inside.

    Args:
        trunk: the model.
        path: where it is in the wrapped model.
        attention: the inside of its blocks' attention; None: without such hooks.
        attention_missing: why without.
        embedded: the module whose input is the sum of patches, other tokens and positions.
    """
    block = trunk.blocks[0]
    mlp_in, mlp_proj = _describe_mlp(block.mlp)
    at = f"{path}." if path else ""
    norms = [name for name in ("norm", "fc_norm") if not _is_identity(getattr(trunk, name))]
    image_size = as_pair(trunk.patch_embed.img_size)
    grid = trunk.patch_embed.grid_size
    roles: dict[str, TokenRole] = {
        "cls_token": "class",
        "dist_token": "register",
        "reg_token": "register",
    }
    tokens = {
        name: [role] * getattr(trunk, name).shape[-2]
        for name, role in roles.items()
        if getattr(trunk, name, None) is not None
    }
    distilled = "dist_token" in tokens
    missing = f"its pooling {trunk.global_pool!r} is no class token and no mean"
    if distilled:
        missing = "its output comes from the class and the distillation token together"
    return TowerDescription(
        family="timm",
        blocks=f"{at}blocks",
        block=BlockDescription(
            ln1="norm1",
            attn="attn",
            attention=attention,
            attention_missing=attention_missing,
            # What is added to the stream passes these, behind LayerScale, module or parameter.
            attn_out="drop_path1",
            ln2="norm2",
            mlp_in=mlp_in,
            mlp_proj=mlp_proj,
            mlp_out="drop_path2",
        ),
        embedding=EmbeddingDescription(
            patch_embed=f"{at}patch_embed",
            prefix=tuple(f"{at}{name}" for name in tokens),
            pos_embed=None if getattr(trunk, "pos_embed", None) is None else f"{at}pos_embed",
            embedded=f"{at}{embedded}",
        ),
        ln_final=f"{at}{norms[0]}" if norms else None,
        classifier=f"{at}head" if trunk.num_classes > 0 else None,
        n_heads=block.attn.num_heads,
        image_size=image_size,
        patch_size=(image_size[0] // grid[0], image_size[1] // grid[1]),
        n_prefix_tokens=trunk.num_prefix_tokens,
        prefix_roles=tuple(role for each in tokens.values() for role in each),
        pooling=None if distilled else POOLING.get(trunk.global_pool),
        pooling_missing=missing,
        d_embed=trunk.num_features,
    )


def _describe_attention(attn: Any) -> tuple[AttentionDescription | None, str]:
    if type(attn).forward is not Attention.forward:
        return None, f"its attention is a {type(attn).__name__}, not timm's plain Attention"
    if getattr(attn, "gate", None) is not None:  # older timm has none
        return None, "its attention has a gate on the heads' outputs"
    return (
        AttentionDescription(
            qkv="attn.qkv",
            q_norm="attn.q_norm",
            k_norm="attn.k_norm",
            z="attn.norm",
            out_proj="attn.proj",
        ),
        "",
    )


def _describe_mlp(mlp: Any) -> tuple[str | None, str | None]:
    """The layer in front of the activation, if it is one of its own, and the last layer."""
    last = getattr(mlp, "fc2", None)
    for name in ("fc1_g", "fc1"):
        first = getattr(mlp, name, None)
        if first is not None and last is not None and first.out_features == last.in_features:
            return f"mlp.{name}", "mlp.fc2"
    return None, None if last is None else "mlp.fc2"


def _is_identity(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity)
