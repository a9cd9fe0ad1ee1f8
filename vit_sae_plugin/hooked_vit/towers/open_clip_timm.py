"""open_clip models (``CustomTextCLIP``) whose vision tower is a timm ``VisionTransformer``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from open_clip import CLIP, CoCa, CustomTextCLIP
from open_clip.timm_model import TimmModel
from torch import nn

from vit_sae_plugin.hooked_vit.errors import UnsupportedTowerError
from vit_sae_plugin.hooked_vit.tower_description import TowerDescription
from vit_sae_plugin.hooked_vit.towers import timm_beit, timm_eva, timm_vit
from vit_sae_plugin.hooked_vit.towers.refusals import what_it_is


def describe(model: nn.Module) -> TowerDescription | None:
    """The tower of an open_clip model whose ``visual`` wraps a timm model.

    Raises:
        UnsupportedTowerError: that timm model is not a plain vision transformer.
    """
    visual: Any = getattr(model, "visual", None)
    visual = getattr(visual, "_orig_mod", visual)
    if not isinstance(model, CLIP | CustomTextCLIP | CoCa) or not isinstance(visual, TimmModel):
        return None
    for family in (timm_vit, timm_eva, timm_beit):
        if family.describe(visual.trunk) is not None:
            tower = family.describe_trunk(visual.trunk, "visual.trunk")
            break
    else:
        what = what_it_is(model) or f"its vision tower is timm's {type(visual.trunk).__name__}"
        raise UnsupportedTowerError(
            f"this open_clip model has no tower to hook: {what}; want a plain vision transformer"
        )
    return replace(
        tower,
        family="open_clip with a timm tower",
        classifier=None,
        d_embed=_embedding_width(visual),
        image_method="encode_image",
        text_method="encode_text",
        method_arguments={"normalize": False} if isinstance(model, CoCa) else {},
    )


def _embedding_width(visual: Any) -> int:
    """The projection is in the head, in the timm model's classifier, or there is none."""
    linear = [module for module in visual.head.modules() if isinstance(module, nn.Linear)]
    if linear:
        return linear[-1].out_features
    return visual.trunk.num_classes or visual.trunk.num_features
