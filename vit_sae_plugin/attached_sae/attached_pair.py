"""One SAE on two models: the one it was trained on, and an adapted one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vit_sae_plugin.activations.matched_source import MatchedSource
from vit_sae_plugin.attached_sae.attached_sae import AttachedSAE

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.activations.activation_source import ActivationSource
    from vit_sae_plugin.hooked_vit import HookedViT


class AttachedPair:
    """An SAE on a plain model and on an adapted one; both show it the same tokens in one order.

    Args:
        plain: the model that the SAE was trained on.
        adapted: one of the same family and sizes; it may have prompts besides.
        sae: any SAELens SAE.
        source: hook and tokens, for an SAE whose metadata don't name them.

    Attributes:
        plain: the SAE on the plain model.
        adapted: the SAE on the adapted model.

    Raises:
        ValueError: the models are of different families, widths, depths or grids; the SAE doesn't
            fit the plain model.
    """

    def __init__(
        self,
        plain: HookedViT,
        adapted: HookedViT,
        sae: SAE[Any],
        source: ActivationSource | None = None,
    ):
        check_same_shape(plain, adapted)
        own = AttachedSAE(plain, sae, source)
        matched = MatchedSource.of(own.source, own.layout)
        self.plain = AttachedSAE(plain, sae, matched)
        self.adapted = AttachedSAE(adapted, sae, matched)


def check_same_shape(plain: HookedViT, adapted: HookedViT) -> None:
    """Refuse two models that can't be one before and after adaptation.

    Raises:
        ValueError: says in what they differ, with both values.
    """
    facts: dict[str, list[object]] = {
        "the family": [model.tower.family for model in (plain, adapted)],
        "the number of blocks": [model.cfg.n_layers for model in (plain, adapted)],
        "the width of the residual stream": [model.cfg.d_model for model in (plain, adapted)],
        "the grid of patches": [model.cfg.grid for model in (plain, adapted)],
        "the image size": [model.cfg.image_size for model in (plain, adapted)],
    }
    for what, (of_plain, of_adapted) in facts.items():
        if of_plain != of_adapted:
            raise ValueError(
                f"{what} is {of_plain} of {plain.model_name}, but {of_adapted} of "
                f"{adapted.model_name}; want one model before and after adaptation"
            )
