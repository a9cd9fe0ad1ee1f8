"""Means over concepts of localization's scores, and paired differences, with their intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vit_sae_plugin.evaluation.bootstrap import Interval, bootstrap_mean

SCORES = ("auroc", "average_precision", "iou", "pointing_game")
ALL, MEAN_OF_KINDS = "all", "mean of kinds"


def with_intervals(table: pd.DataFrame, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``summary`` and ``differences`` of ``localize``.

    Args:
        table: scores by ``selected_by``, ``method``, ``kind`` and ``concept``; each method has the
            same concepts, and the first is the one that others are compared with.
        seed: of the bootstrap.
    """
    summary, differences = [], []
    for selected_by, chosen in table.groupby(level="selected_by", sort=False):
        chosen = chosen.droplevel("selected_by")
        methods = list(chosen.index.unique("method"))
        concepts = chosen.loc[methods[0]].index
        # [concept, method, score]
        scores = np.stack(
            [chosen.loc[name].loc[concepts, list(SCORES)].to_numpy(float) for name in methods], 1
        )
        kinds = concepts.get_level_values("kind")
        for kind, (members, strata) in _groups(kinds).items():
            of_kind = scores[members]
            means = bootstrap_mean(of_kind, strata=strata, seed=seed)
            summary.append(_table(means, selected_by, kind, methods, len(members)))
            if methods[1:]:
                less = bootstrap_mean(of_kind[:, :1] - of_kind[:, 1:], strata=strata, seed=seed)
                differences.append(_table(less, selected_by, kind, methods[1:], len(members)))
    joined = pd.concat(summary)
    less_each = pd.concat(differences) if differences else joined.iloc[:0]
    return joined, less_each.rename_axis(["selected_by", "kind", f"{methods[0]}_less"])


def _groups(kinds: pd.Index) -> dict[str, tuple[np.ndarray, list[str] | None]]:
    """Which concepts a row of the table is about, and the strata that weigh the same in it."""
    groups: dict[str, tuple[np.ndarray, list[str] | None]] = {
        kind: (np.flatnonzero(kinds == kind), None) for kind in kinds.unique()
    }
    everything = np.arange(len(kinds))
    return groups | {ALL: (everything, None), MEAN_OF_KINDS: (everything, list(kinds))}


def _table(
    interval: Interval, selected_by: str, kind: str, methods: list[str], n_concepts: int
) -> pd.DataFrame:
    columns: dict[str, np.ndarray | int] = {"n_concepts": n_concepts}
    for at, score in enumerate(SCORES):
        for name, values in zip(("", "_low", "_high"), interval, strict=True):
            columns[score + name] = values[:, at]
    index = pd.MultiIndex.from_product(
        [[selected_by], [kind], methods], names=["selected_by", "kind", "method"]
    )
    return pd.DataFrame(columns, index=index)
