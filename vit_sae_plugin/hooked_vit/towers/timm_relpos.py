"""timm's ``VisionTransformerRelPos``: biases of relative position in place of added positions."""

from __future__ import annotations

from timm.models.vision_transformer_relpos import RelPosBlock, VisionTransformerRelPos
from torch import nn

from vit_sae_plugin.hooked_vit.errors import UnsupportedTowerError
from vit_sae_plugin.hooked_vit.tower_description import AttentionDescription, TowerDescription
from vit_sae_plugin.hooked_vit.towers.timm_vit import describe_around


def describe(model: nn.Module) -> TowerDescription | None:
    """The tower of a timm ``VisionTransformerRelPos``.

    Raises:
        UnsupportedTowerError: its norms come behind what is added to the stream.
    """
    if not isinstance(model, VisionTransformerRelPos):
        return None
    block = model.blocks[0]
    if type(block).forward is not RelPosBlock.forward:
        raise UnsupportedTowerError(
            f"this timm model is built of {type(block).__name__}, whose norms come behind what is "
            "added to the stream; want the pre-norm RelPosBlock"
        )
    attention = AttentionDescription(
        intercepted=True,
        qkv="attn.qkv",
        q_norm="attn.q_norm",
        k_norm="attn.k_norm",
        out_proj="attn.proj",
    )
    # Nothing lies between the patches, the class token in front of them, and the first block.
    return describe_around(model, "", attention, embedded="blocks.0")
