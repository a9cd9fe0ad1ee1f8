"""How a prediction moves as one concept grows weaker or stronger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vit_sae_plugin.concepts.bias.suppression import Suppression, embeddings_under
from vit_sae_plugin.evaluation.bootstrap import bootstrap_mean

if TYPE_CHECKING:
    from vit_sae_plugin.attached_sae import AttachedSAE
    from vit_sae_plugin.datasets import ImageSource

FACTORS = (0.0, 0.5, 1.0, 1.5, 2.0, 4.0)
"""What a latent is multiplied by."""


def strength_curves(
    attached: AttachedSAE,
    images: ImageSource,
    head: Callable[[Tensor], Tensor],
    latents: Sequence[int],
    *,
    controls: Sequence[int] = (),
    factors: Sequence[float] = FACTORS,
    class_names: Sequence[str] | None = None,
    n_classes_shown: int = 3,
    **walk: Any,
) -> pd.DataFrame:
    """Share of images given each class as latents are multiplied, with intervals over images.

    Args:
        attached: the SAE on its model.
        images: labelled images.
        head: from the model's output to logits.
        latents: one curve each.
        controls: as many other latents, whose mean curve is shown as ``"random latents"``.
        factors: what a latent is multiplied by, in every token; 1 changes nothing.
        class_names: of the head; default: those of the images.
        n_classes_shown: classes whose share moves most, for each latent.
        walk: settings of ``ImageWalk``.

    Returns:
        A row for each latent, factor and class, with the share of images that the head gives this
        class (``share``, ``low``, ``high``), and ``accuracy`` with its interval in the rows of the
        class ``"(any)"``, whose share is that of images whose answer differs from factor 1's.

    Raises:
        ValueError: a factor below 0, or none.
    """
    if not factors or min(factors) < 0:
        raise ValueError(f"factors is {tuple(factors)}; want numbers from 0 on")
    names = list(class_names if class_names is not None else images.class_names or ())
    kinds = ["concepts"] * len(latents) + ["random latents"] * len(controls)
    ways = [Suppression("none")] + [
        Suppression(kind, (latent,), factor=factor)
        for kind, latent in zip(kinds, [*latents, *controls], strict=True)
        for factor in factors
    ]
    embeds, positions = embeddings_under(attached, images, ways, **walk)
    answers = torch.stack([head(part).argmax(-1) for part in embeds]).numpy()
    label = images.labels()[positions]
    before, after = answers[0], answers[1:].reshape(-1, len(factors), len(label))
    parts = [
        _curve(before, curve, label, names, factors, n_classes_shown)
        for curve in after[: len(latents)]
    ]
    index: list[Any] = list(latents)
    if controls:
        moved = (after[len(latents) :] != before).mean(0).T
        right = (after[len(latents) :] == label).mean(0).T
        parts.append(_rows("(any)", factors, moved, right))
        index.append("random latents")
    return (
        pd.concat(dict(zip(index, parts, strict=True)), names=["latent"])
        .set_index(["factor", "class"], append=True)
        .droplevel(1)
    )


def _curve(
    before: np.ndarray,
    after: np.ndarray,
    label: np.ndarray,
    names: Sequence[str],
    factors: Sequence[float],
    n_classes_shown: int,
) -> pd.DataFrame:
    shares = np.stack([(after == at).mean(1) for at in range(len(names))])
    moved_most = np.argsort(-np.ptp(shares, axis=1), kind="stable")[:n_classes_shown]
    parts = [_rows("(any)", factors, (after != before).T, (after == label).T)]
    parts += [_rows(names[at], factors, (after == at).T) for at in moved_most]
    return pd.concat(parts, ignore_index=True)


def _rows(
    name: str, factors: Sequence[float], share: np.ndarray, right: np.ndarray | None = None
) -> pd.DataFrame:
    """One row a factor; the arrays have a row an image."""
    table = pd.DataFrame({"factor": list(factors), "class": name})
    table["share"], table["low"], table["high"] = bootstrap_mean(share)
    if right is not None:
        table["accuracy"], table["accuracy_low"], table["accuracy_high"] = bootstrap_mean(right)
    return table
