"""timm's ``Eva``: EVA, EVA02 and DINOv3, with rotary positions; also inside another model."""

from __future__ import annotations

from typing import Any

from timm.layers import AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import nn

from vit_sae_plugin.hooked_vit.errors import UnsupportedTowerError
from vit_sae_plugin.hooked_vit.tower_description import AttentionDescription, TowerDescription
from vit_sae_plugin.hooked_vit.towers.timm_vit import describe_around


def describe(model: nn.Module) -> TowerDescription | None:
    """The tower of a timm ``Eva``."""
    return describe_trunk(model, "") if isinstance(model, Eva) else None


def describe_trunk(trunk: Any, path: str) -> TowerDescription:
    """The tower of a timm ``Eva`` found at ``path`` in the wrapped model.

    Raises:
        UnsupportedTowerError: its blocks are not pre-norm.
    """
    block = trunk.blocks[0]
    if not isinstance(block, EvaBlock):
        raise UnsupportedTowerError(
            f"this timm model is built of {type(block).__name__}, whose norms come behind what is "
            "added to the stream; want the pre-norm EvaBlock"
        )
    attention, missing = _describe_attention([each.attn for each in trunk.blocks])
    return describe_around(trunk, path, attention, missing)


def _describe_attention(modules: list[Any]) -> tuple[AttentionDescription | None, str]:
    attn = modules[0]
    if not isinstance(attn, EvaAttention | AttentionRope):
        return None, f"its attention is a {type(attn).__name__}"
    if any(getattr(each, "num_kv_groups", 1) > 1 for each in modules):
        return None, "its query heads share keys and values"
    if getattr(attn, "qkv_bias_separate", False) and attn.q_bias is not None:
        return None, "its attention adds biases to queries and values in place"
    separate = attn.q_proj is not None
    added = getattr(attn, "q_bias", None) is not None
    return (
        AttentionDescription(
            intercepted=True,
            qkv=None if separate else "attn.qkv",
            q="attn.q_proj" if separate else None,
            k="attn.k_proj" if separate else None,
            v="attn.v_proj" if separate else None,
            added_biases=("attn.q_bias", "attn.v_bias") if added else None,
            z="attn.norm",
            out_proj="attn.proj",
        ),
        "",
    )
