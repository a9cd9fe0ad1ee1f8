"""Whether an atlas belongs to an SAE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vit_sae_plugin.fingerprints import known_sae_fingerprint, short

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.analysis.atlas.latent_atlas import LatentAtlas


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
