"""Accuracy of groups before and after, with paired bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from vit_sae_plugin.evaluation.bootstrap import N_RESAMPLES, resampled_means


class GroupAccuracy:
    """Accuracy of every group under every condition, and how sure it is.

    Images are drawn anew within their group, the same ones for all conditions, so that differences
    of conditions have intervals, too. The least of several means is low by chance, the more so the
    smaller the groups: compare worst groups of the same images only.

    Args:
        correct: whether an image is classified rightly under each condition.
        group: of each image.
        n_groups: each of which has an image.
        weights: of the groups in the weighted mean, such as their shares of the training images.
        seed: of the bootstrap.
    """

    def __init__(
        self,
        correct: Bool[np.ndarray, "images conditions"],
        group: Int[np.ndarray, " images"],
        n_groups: int,
        *,
        weights: Float[np.ndarray, " groups"] | None = None,
        seed: int = 0,
    ):
        generator = np.random.default_rng(seed)
        members = [correct[group == at].astype(np.float64) for at in range(n_groups)]
        self.n = np.array([len(of_group) for of_group in members])
        self.by_group = np.stack([of_group.mean(0) for of_group in members])
        self.resampled = np.stack(
            [resampled_means(of_group, N_RESAMPLES, generator) for of_group in members], axis=1
        )
        self.weights = None if weights is None else weights / weights.sum()

    def table(self, reference: int | None = None) -> pd.DataFrame:
        """A row a condition, the first of which is the one before anything is changed.

        Args:
            reference: the condition that shows what could be reached, left out of the table.
                ``mended`` is the share of the way from the first condition's worst group to the
                reference's; without one, the share of the gap between mean and worst group that
                is closed.
        """
        share = self.n / self.n.sum()
        columns: dict[str, Float[np.ndarray, " conditions"]] = {}

        def put(name: str, point: np.ndarray, resampled: np.ndarray) -> None:
            columns[name] = point
            low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
            columns[f"{name}_low"], columns[f"{name}_high"] = low, high

        mean, means = share @ self.by_group, np.einsum("g,rgc->rc", share, self.resampled)
        worst, worsts = self.by_group.min(0), self.resampled.min(1)
        put("mean", mean, means)
        if self.weights is not None:
            weighted = np.einsum("g,rgc->rc", self.weights, self.resampled)
            put("weighted_mean", self.weights @ self.by_group, weighted)
        put("worst", worst, worsts)
        put("cost", mean[0] - mean, means[:, :1] - means)
        if reference is None:
            gap, gaps = mean - worst, means - worsts
            put("mended", _share(gap[0] - gap, gap[0]), _share(gaps[:, :1] - gaps, gaps[:, :1]))
        else:
            put(
                "mended",
                _share(worst - worst[0], worst[reference] - worst[0]),
                _share(
                    worsts - worsts[:, :1], worsts[:, reference : reference + 1] - worsts[:, :1]
                ),
            )
        columns["worst_group"] = self.by_group.argmin(0)
        return pd.DataFrame(columns)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    whole = np.broadcast_to(whole, part.shape)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def numbers_trimmed(ns: Sequence[int], most: int) -> list[int]:
    """Numbers of features to suppress, none above what there is.

    Raises:
        ValueError: there is no number, or one below 1.
    """
    if not ns or min(ns) < 1:
        raise ValueError(f"ns is {tuple(ns)}; want numbers of latents from 1 on")
    return sorted({min(n, most) for n in ns})
