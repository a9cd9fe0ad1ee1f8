"""timm's ``Beit``: BEiT and BEiT v2, with biases of relative position."""

from __future__ import annotations

from typing import Any

from timm.models.beit import Beit
from torch import nn

from vit_sae_plugin.hooked_vit.tower_description import AttentionDescription, TowerDescription
from vit_sae_plugin.hooked_vit.towers.timm_vit import describe_around


def describe(model: nn.Module) -> TowerDescription | None:
    """The tower of a timm ``Beit``."""
    return describe_trunk(model, "") if isinstance(model, Beit) else None


def describe_trunk(trunk: Any, path: str) -> TowerDescription:
    """The tower of a timm ``Beit`` found at ``path`` in the wrapped model."""
    attn = trunk.blocks[0].attn
    attention: AttentionDescription | None = AttentionDescription(
        intercepted=True,
        qkv="attn.qkv",
        added_biases=None if attn.q_bias is None else ("attn.q_bias", "attn.v_bias"),
        out_proj="attn.proj",
    )
    if attn.qkv_bias_separate and attn.q_bias is not None:
        attention = None
    missing = "its attention adds biases to queries and values in place"
    return describe_around(trunk, path, attention, missing)
