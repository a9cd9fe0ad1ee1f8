"""Stability and identity: which latents of one SAE another SAE has too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from vit_sae_plugin.attached_sae import AttachedSAE
from vit_sae_plugin.concepts.activation_correlation import activation_correlations
from vit_sae_plugin.concepts.row_matching import MOST_EXACT, RowMatching, match_by, match_rows
from vit_sae_plugin.evaluation.bootstrap import bootstrap_mean
from vit_sae_plugin.evaluation.evaluation_report import EvaluationReport
from vit_sae_plugin.evaluation.features import random_directions
from vit_sae_plugin.fingerprints import known_sae_fingerprint, short

if TYPE_CHECKING:
    from sae_lens import SAE

    from vit_sae_plugin.hooked_vit import HookedViT

MatchBy = Literal["decoder", "activations"]
THRESHOLDS = (0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Stability:
    """Two SAEs' latents matched one to one."""

    latents: pd.DataFrame
    """A row for each latent: its ``partner`` (missing without one) and ``stability``, their
    similarity. An atlas keeps these columns (``LatentAtlas.add_columns``)."""
    summary: pd.DataFrame
    """A row for each threshold: the share of latents matched above it, with interval and chance."""
    settings: dict[str, Any]
    """What was matched, and how."""

    def report(self) -> EvaluationReport:
        """As a report that can be printed and saved."""
        return EvaluationReport(
            {"stability": self.summary, "partners": self.latents}, self.settings
        )


@torch.no_grad()
def match_saes(
    sae: SAE[Any],
    other: SAE[Any],
    by: MatchBy = "decoder",
    *,
    model: HookedViT | None = None,
    other_model: HookedViT | None = None,
    images: Any = None,
    thresholds: Sequence[float] = THRESHOLDS,
    most_exact: int = MOST_EXACT,
    n_images: int | None = None,
    batch_size_images: int = 32,
    n_workers: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> Stability:
    """Match latents of two SAEs one to one, so that the sum of their similarities is largest.

    ``by="decoder"``: cosine of decoder rows, for SAEs of one model whose hooks share a space: two
    seeds, widths, or layers of the residual stream. Chance: as many random directions, matched in
    the same way. ``by="activations"``: correlation over the same images, for any two SAEs, of
    different models too. Chance: each image of the one beside another image of the other.

    Latents that never fire have a decoder row all the same; by activations they match nothing.

    Args:
        sae: the SAE whose latents get a partner.
        other: the SAE that they are looked for in.
        by: what likeness is.
        model: the model of ``sae``, wanted by activations.
        other_model: that of ``other``; default: the same.
        images: an image source, wanted by activations.
        thresholds: likeness from which two latents count as one.
        most_exact: larger SAEs are matched in blocks by decoder (see ``match_rows``).
        n_images: how many to use, by activations; None: all.
        batch_size_images, n_workers, progress: of the walk over images.
        seed: of random directions, the order of the images and the bootstrap.

    Raises:
        ValueError: the SAEs can't be matched this way.
    """
    if by == "decoder":
        found, chance, how = _by_decoder(sae, other, most_exact, seed)
    elif by == "activations":
        if model is None or images is None:
            lacking = "model" if model is None else "images"
            raise ValueError(f"{lacking} is None; matching by activations wants model and images")
        one = AttachedSAE(model, sae)
        two = AttachedSAE(other_model or model, other)
        real, shifted, level = activation_correlations(
            one,
            two,
            images,
            n_images=n_images,
            batch_size_images=batch_size_images,
            n_workers=n_workers,
            seed=seed,
            progress=progress,
        )
        if max(real.shape) > most_exact:
            raise ValueError(
                f"the SAEs have {real.shape[0]} and {real.shape[1]} latents; by activations at "
                f"most {most_exact} are matched: raise most_exact, or match by decoder"
            )
        found, chance = match_by(real.numpy()), match_by(shifted.numpy())
        how = f"correlation by {level}"
    else:
        raise ValueError(f"by is {by!r}; want 'decoder' or 'activations'")
    partner = pd.array(found.partner, dtype="Int64")
    partner[found.partner < 0] = pd.NA
    latents = pd.DataFrame(
        {"partner": partner, "stability": found.score},
        index=pd.RangeIndex(sae.cfg.d_sae, name="latent"),
    )
    settings = {
        "by": how,
        "sae": short(known_sae_fingerprint(sae)),
        "other": short(known_sae_fingerprint(other)),
        "d_sae": sae.cfg.d_sae,
        "d_sae_other": other.cfg.d_sae,
        "mean_stability": float(np.nanmean(found.score)),
        "mean_stability_chance": float(np.nanmean(chance.score)),
        "most_lost_by_blocks": found.most_lost,
    }
    return Stability(latents, _shares(found, chance, thresholds, seed), settings)


def _by_decoder(
    sae: SAE[Any], other: SAE[Any], most_exact: int, seed: int
) -> tuple[RowMatching, RowMatching, str]:
    widths = [one.W_dec.shape[1] for one in (sae, other)]
    advice = "match them by activations"
    if widths[0] != widths[1]:
        raise ValueError(
            f"the SAEs' decoder rows are {widths[0]} and {widths[1]} wide, so they have no cosine; "
            f"{advice}"
        )
    models = [one.cfg.metadata.model_name for one in (sae, other)]
    if None not in models and models[0] != models[1]:
        raise ValueError(
            f"the SAEs are of {models[0]} and {models[1]}, whose activations share no space; "
            f"{advice}"
        )
    rows = [one.W_dec.detach().float().cpu().numpy() for one in (sae, other)]
    random = [
        random_directions(len(matrix), widths[0], seed + at).numpy()
        for at, matrix in enumerate(rows)
    ]
    found, chance = (match_rows(one, two, most_exact) for one, two in (rows, random))
    return found, chance, "cosine of decoder rows"


def _shares(
    found: RowMatching, chance: RowMatching, thresholds: Sequence[float], seed: int
) -> pd.DataFrame:
    if not thresholds or not all(-1 <= threshold <= 1 for threshold in thresholds):
        raise ValueError(f"thresholds are {list(thresholds)}; want likenesses from −1 to 1")
    levels = np.array(sorted(thresholds))
    interval = bootstrap_mean((found.score[:, None] > levels).astype(float), seed=seed)
    return pd.DataFrame(
        {
            "share_matched": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "chance": (chance.score[:, None] > levels).mean(0),
        },
        index=pd.Index(levels, name="threshold"),
    )
