"""How much of what adaptation changes in a model's activations an SAE describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vit_sae_plugin.evaluation.bootstrap import bootstrap_ratio

N_SPAN_TOKENS = 4
"""Tokens of each image whose change is held against the span of the active latents."""


class SquaredChanges(NamedTuple):
    """Squared lengths for each image; z is what the SAE reconstructs, Δ adapted minus plain."""

    whole: Float[np.ndarray, " images"]
    """``‖Δz‖²``, summed over tokens."""
    described: Float[np.ndarray, " images"]
    """``‖Δẑ‖²``: the reconstruction's change."""
    error: Float[np.ndarray, " images"]
    """``‖Δe‖²``, with ``e = z − ẑ``. Δẑ and Δe need not be orthogonal: with the whole as 1 the two
    need not add up to 1."""
    sampled: Float[np.ndarray, " images"]
    """``‖Δz‖²`` of a sample of tokens."""
    span: Float[np.ndarray, " images"]
    """Of these, the part in the span of the decoder's rows of the token's active latents: all that
    some change of just these could describe."""
    random_span: Float[np.ndarray, " images"]
    """The same with as many rows drawn at random."""


@torch.no_grad()
def squared_changes(
    z_btd: tuple[Float[Tensor, "batch token d"], Float[Tensor, "batch token d"]],
    x_hat_btd: tuple[Float[Tensor, "batch token d"], Float[Tensor, "batch token d"]],
    active: Bool[Tensor, "batch token d_sae"],
    decoder: Float[Tensor, "d_sae d"],
    *,
    seed: int = 0,
) -> SquaredChanges:
    """The change of a batch of images between two models, and its parts.

    Args:
        z_btd: what the SAE reconstructs, in the plain and in the adapted model.
        x_hat_btd: its reconstructions.
        active: latents active in either.
        decoder: the SAE's decoder.
        seed: of the sample of tokens and of the random rows.
    """
    change = (z_btd[1] - z_btd[0]).double()
    described = (x_hat_btd[1] - x_hat_btd[0]).double()
    n_images, n_tokens = change.shape[:2]
    generator = np.random.default_rng(seed)
    n_sampled = min(N_SPAN_TOKENS, n_tokens)
    tokens = np.stack([generator.permutation(n_tokens)[:n_sampled] for _ in range(n_images)])
    at = torch.from_numpy(tokens).to(change.device)
    images = torch.arange(n_images, device=change.device)[:, None]
    rows = change[images, at].flatten(0, 1)
    active_rows = active[images, at].flatten(0, 1)
    sets = [torch.nonzero(one).flatten() for one in active_rows]
    drawn = [torch.from_numpy(generator.choice(len(decoder), len(one), False)) for one in sets]
    spans = (
        torch.stack(
            [
                squared_length_in_span(row, decoder[one.to(decoder.device)])
                for row, one in zip(rows, some, strict=True)
            ]
        ).view(n_images, -1)
        for some in (sets, drawn)
    )
    lengths = (
        change.square().sum(-1),
        described.square().sum(-1),
        (change - described).square().sum(-1),
        rows.square().sum(-1).view(n_images, -1),
        *spans,
    )
    return SquaredChanges(*(length.sum(1).cpu().numpy() for length in lengths))


def squared_length_in_span(
    vector: Float[Tensor, " d"], directions: Float[Tensor, "n d"]
) -> Float[Tensor, ""]:
    """The squared length of a vector's part in the span of some directions, in double precision."""
    vector, directions = vector.double(), directions.to(vector.device).double()
    if len(directions) == 0:
        return vector.new_zeros(())
    _, scale, basis = torch.linalg.svd(directions, full_matrices=False)
    # directions may depend on one another: then there are fewer of a basis
    kept = scale > 1e-9 * scale.max()
    return (basis[kept] @ vector).square().sum()


def shares_of_change(
    changes: Sequence[SquaredChanges], confidence: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Each part ÷ the whole over all images, with a bootstrap interval over images.

    Index ``part``: ``described``, ``error``, ``span`` and ``random_span``. NaN where nothing
    changes at all.
    """
    joined = SquaredChanges(*(np.concatenate(arrays) for arrays in zip(*changes, strict=True)))
    parts = {
        "described": (joined.described, joined.whole),
        "error": (joined.error, joined.whole),
        "span": (joined.span, joined.sampled),
        "random_span": (joined.random_span, joined.sampled),
    }
    rows = {
        part: bootstrap_ratio(some, whole, confidence=confidence, seed=seed)
        for part, (some, whole) in parts.items()
    }
    return pd.DataFrame(
        {
            "share": [float(row.mean) for row in rows.values()],
            "low": [float(row.low) for row in rows.values()],
            "high": [float(row.high) for row in rows.values()],
            "n_images": len(joined.whole),
        },
        index=pd.Index(rows, name="part"),
    )
