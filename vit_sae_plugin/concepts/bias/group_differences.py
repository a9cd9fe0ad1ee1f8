"""Which features differ between groups of a class, and whether they belong to the class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_sae_plugin.concepts.bias.groups import Groups

_Z_95 = 1.959963984540054


class GroupMoments:
    """Number, sum and sum of squares of every feature in every group: all that is kept of images.

    Args:
        n_groups: number of groups.
        n_features: number of features.
    """

    def __init__(self, n_groups: int, n_features: int):
        self.n = np.zeros(n_groups)
        self.sum = np.zeros((n_groups, n_features))
        self.sum_of_squares = np.zeros((n_groups, n_features))

    def add(
        self, values: Float[Tensor, "images features"], group: Int[np.ndarray, " images"]
    ) -> None:
        """Add images."""
        values, index = values.cpu().double(), torch.from_numpy(group)
        torch.from_numpy(self.sum).index_add_(0, index, values)
        torch.from_numpy(self.sum_of_squares).index_add_(0, index, values.square())
        self.n += np.bincount(group, minlength=len(self.n))

    @property
    def mean(self) -> Float[np.ndarray, " features"]:
        """Of all images."""
        return self.sum.sum(0) / max(self.n.sum(), 1)


def group_differences(
    moments: GroupMoments,
    groups: Groups,
    *,
    alpha: float = 0.05,
    names: Mapping[int, str] | None = None,
) -> pd.DataFrame:
    """Features that differ between the values of an attribute within a class, ranked.

    Classes and attribute may be correlated in the images, so each is looked at with the other held
    fixed: a feature is described by an effect of its class plus one of its attribute, and what
    leaving either out costs is that one's share of the variance (less what chance gives: ε² of
    Kelley 1935). A feature whose class tells more than its attribute belongs to the
    task, and is ranked behind all others.

    Args:
        moments: of image-level features.
        groups: what the groups are.
        alpha: the false discovery rate at which a feature counts as different.
        names: feature → name, to be shown.

    Returns:
        A row a feature, the strongest first, with

        - ``value``, ``effect``, ``low``, ``high``: the attribute's value whose images differ most
          from the others of their class, by how many standard deviations within groups, with a
          95 % interval (normal approximation);
        - ``attribute_share``, ``class_share``: of the variance that the other leaves;
        - ``p_value``, ``q_value``: F test of the attribute within classes, and its correction for
          the number of features (Benjamini and Hochberg 1995);
        - ``suspect``: differs (``q_value < alpha``) and doesn't belong to the task;
        - ``mean``: of the feature over all images.
    """
    from scipy.stats import f as f_distribution
    from scipy.stats import false_discovery_control

    shape = (len(groups.class_names), len(groups.values))
    n = moments.n.reshape(shape)
    sums = moments.sum.reshape(*shape, -1)
    squares = moments.sum_of_squares.sum(0)

    both, n_both = _explained(n, sums, (0, 1))
    of_class, n_classes = _explained(n, sums, (0,))
    of_value, n_values = _explained(n, sums, (1,))
    free = max(n.sum() - n_both, 1)
    rest = np.maximum(squares - both, 0)
    rest[rest <= 1e-12 * squares] = 0  # rounding
    noise = rest / free
    attribute_share = _share(both - of_class, squares - of_class, n_both - n_classes, noise)
    class_share = _share(both - of_value, squares - of_value, n_both - n_values, noise)

    degrees = max(n_both - n_classes, 1)
    ratio = np.divide(
        (both - of_class) / degrees, noise, out=np.full_like(noise, np.inf), where=noise > 0
    )
    p_value = np.where(attribute_share > 0, f_distribution.sf(ratio, degrees, free), 1.0)
    q_value = false_discovery_control(p_value)

    effect, error = _effects(n, sums, noise, free)
    chosen = np.argmax(np.abs(effect) + 1e-9 * (effect > 0), axis=0)
    at = chosen, np.arange(len(chosen))
    suspect = (q_value < alpha) & (attribute_share > class_share)
    table = pd.DataFrame(
        {
            "value": np.array(groups.values)[chosen],
            "effect": effect[at],
            "low": effect[at] - _Z_95 * error[at],
            "high": effect[at] + _Z_95 * error[at],
            "attribute_share": attribute_share,
            "class_share": class_share,
            "p_value": p_value,
            "q_value": q_value,
            "suspect": suspect,
            "mean": moments.mean,
        }
    )
    table.index.name = "latent"
    if names is not None:
        table.insert(0, "name", [names.get(latent, "") for latent in table.index])
    order = np.lexsort((-attribute_share, ~suspect))
    return table.iloc[order]


def _explained(n: np.ndarray, sums: np.ndarray, factors: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Sum of squares that class (0), value (1), or the sum of an effect of each explains of each
    feature, its overall mean included; and how many numbers that model has."""
    cells = np.indices(n.shape).reshape(2, -1)
    design = np.hstack([np.eye(n.shape[factor])[cells[factor]] for factor in factors])
    weighted = design.T @ sums.reshape(len(design), -1)
    gram = design.T @ (n.reshape(-1, 1) * design)
    solved = np.linalg.pinv(gram, hermitian=True) @ weighted
    return (solved * weighted).sum(0), int(np.linalg.matrix_rank(gram, hermitian=True))


def _share(gain: np.ndarray, whole: np.ndarray, degrees: int, noise: np.ndarray) -> np.ndarray:
    gain = np.maximum(gain - degrees * noise, 0)
    return np.divide(gain, whole, out=np.zeros_like(gain), where=whole > 0)


def _effects(
    n: np.ndarray, sums: np.ndarray, noise: np.ndarray, free: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each value against the others of its class: standardised difference and its error,
    ``[values, features]``; classes are weighed by how well they tell the difference."""
    others = n.sum(1, keepdims=True) - n
    weight = n * others / np.maximum(n + others, 1)
    difference = sums / np.maximum(n, 1)[..., None]
    difference = difference - (sums.sum(1, keepdims=True) - sums) / np.maximum(others, 1)[..., None]
    total = np.maximum(weight.sum(0), np.finfo(float).tiny)[:, None]
    pooled = (weight[..., None] * difference).sum(0) / total
    scale = np.sqrt(noise)
    effect = np.divide(pooled, scale, out=np.zeros_like(pooled), where=scale > 0)
    known = weight.sum(0)[:, None] > 0
    error = np.sqrt(1 / total + effect**2 / (2 * free), out=np.zeros_like(effect), where=known)
    return effect, error
