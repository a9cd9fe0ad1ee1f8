"""open_clip models (``CustomTextCLIP``) whose vision tower is a timm ``VisionTransformer``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from open_clip import CLIP, CustomTextCLIP
from open_clip.timm_model import TimmModel
from torch import nn

from vit_sae_plugin.hooked_vit.errors import UnsupportedTowerError
from vit_sae_plugin.hooked_vit.tower_description import TowerDescription


def describe(model: nn.Module) -> TowerDescription | None:
    """The tower of an open_clip model whose ``visual`` wraps a timm model.

    Raises:
        UnsupportedTowerError: that timm model is not a plain vision transformer.
    """
    visual: Any = getattr(model, "visual", None)
    visual = getattr(visual, "_orig_mod", visual)
    if not isinstance(model, CLIP | CustomTextCLIP) or not isinstance(visual, TimmModel):
        return None
    from timm.models.vision_transformer import VisionTransformer

    from vit_sae_plugin.hooked_vit.towers.timm_vit import describe_trunk

    if not isinstance(visual.trunk, VisionTransformer):
        raise UnsupportedTowerError(
            f"This open_clip model's vision tower is timm's {type(visual.trunk).__name__}; hooks "
            "need a timm VisionTransformer."
        )
    return replace(
        describe_trunk(visual.trunk, "visual.trunk"),
        family="open_clip with a timm tower",
        classifier=None,
        d_embed=_embedding_width(visual),
        image_method="encode_image",
        text_method="encode_text",
    )


def _embedding_width(visual: Any) -> int:
    """The projection is in the head, in the timm model's classifier, or there is none."""
    linear = [module for module in visual.head.modules() if isinstance(module, nn.Linear)]
    if linear:
        return linear[-1].out_features
    return visual.trunk.num_classes or visual.trunk.num_features
