"""Whether an atlas belongs to an SAE, and to a model."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from vit_sae_plugin.fingerprints import known_model_fingerprint, known_sae_fingerprint, short

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.analysis.atlas.latent_atlas import LatentAtlas
    from vit_sae_plugin.hooked_vit import HookedViT


def check_same_sae(atlas: LatentAtlas, sae: SAE[Any]) -> None:
    """Raise unless an atlas was made from this SAE.

    Raises:
        ValueError: it was made from an SAE with other weights or settings.
    """
    if atlas.d_sae != sae.cfg.d_sae:
        raise ValueError(
            f"the atlas describes {atlas.d_sae} latents, but this SAE has {sae.cfg.d_sae}; "
            "use the atlas that was made from it"
        )
    found = known_sae_fingerprint(sae)
    if found != atlas.info.sae_sha256:
        raise ValueError(
            f"the atlas was made from the SAE {short(atlas.info.sae_sha256)}, but this one is "
            f"{short(found)}: its weights or settings are others. Use the atlas that was made "
            "from it, or make one with analyze()"
        )


def check_same_model(atlas: LatentAtlas, model: HookedViT) -> None:
    """Raise unless an atlas was made from this model, or from rows without one.

    Raises:
        ValueError: it was made from a model with other weights, or in another precision.
    """
    made_from = atlas.info.model_sha256
    found = known_model_fingerprint(model)
    if made_from not in (None, found):
        raise ValueError(
            f"the atlas was made from {atlas.info.model_in_words} [{short(made_from)}], but this "
            f"model is {model.model_name} [{short(found)}]; use the model that it was made from"
        )


def warn_of_another_model(atlas: LatentAtlas, model: HookedViT) -> None:
    """Warn if an atlas was made from a model with other weights."""
    made_from = atlas.info.model_sha256
    found = known_model_fingerprint(model)
    if made_from not in (None, found):
        warnings.warn(
            f"the atlas was made from {atlas.info.model_in_words} [{short(made_from)}], but this "
            f"model is {model.model_name} [{short(found)}], with other weights or another "
            "precision: its latents need not mean the same",
            stacklevel=3,
        )
