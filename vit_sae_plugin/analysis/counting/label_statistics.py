"""Do the reference images of a latent belong to one class, or to neighbouring ones?"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def label_entropy(
    value: Float[np.ndarray, "d_sae k"], label: Int[np.ndarray, "d_sae k"]
) -> Float[np.ndarray, " d_sae"]:
    """Entropy in nats of the labels of each latent's reference images (PatchSAE, section 3).

    A label's probability is the share of the reference images' summed activation that falls on
    images with this label. Missing (NaN) unless there are k reference images, all labelled.

    Args:
        value: activation of each reference image, NaN where there is none.
        label: class index of each, −1 where there is none.
    """
    complete = _complete(value, label)
    entropy = np.full(len(value), np.nan)
    whole = value[complete].astype(np.float64)
    shares = whole / whole.sum(axis=1, keepdims=True)
    same = label[complete, :, None] == label[complete, None, :]
    probability = (same * shares[:, None, :]).sum(axis=2)  # of the label of each image
    # each image contributes its own share of −p ln p, so that a label counts once in all
    entropy[complete] = np.abs(-(shares * np.log(probability)).sum(axis=1))
    return entropy


def label_std(
    value: Float[np.ndarray, "d_sae k"], label: Int[np.ndarray, "d_sae k"]
) -> Float[np.ndarray, " d_sae"]:
    """Standard deviation of the reference images' label indices (of the k images: ddof 0).

    Says how far apart the classes lie where their order follows a taxonomy. Missing (NaN) unless
    there are k reference images, all labelled.
    """
    complete = _complete(value, label)
    spread = np.full(len(value), np.nan)
    spread[complete] = label[complete].std(axis=1)
    return spread


def _complete(value: np.ndarray, label: np.ndarray) -> np.ndarray:
    return np.isfinite(value).all(axis=1) & (label >= 0).all(axis=1)
