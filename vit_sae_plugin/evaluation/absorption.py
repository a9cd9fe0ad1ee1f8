"""Absorption over sibling classes: whether classes that are alike share their latents.

As ViSAEBench measures it: the Jaccard index of two siblings' ten best features, and how much better
a class is told by four features than by one. Where a feature of the parent has taken in what tells
the siblings apart, or each sibling's own feature has taken in the parent's, one is not enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Int
from torch import Tensor

from vit_sae_plugin.evaluation.concept_masks import Concept

N_BEST, KS = 10, (1, 4)


def absorption(
    concepts: Sequence[Concept],
    best: Int[Tensor, "concepts k"],
    f1: pd.Series,
    groups: Mapping[str, Sequence[str]],
) -> tuple[pd.DataFrame, float]:
    """How much the siblings of each group overlap.

    Args:
        concepts: the concepts probed.
        best: each one's features, the best first.
        f1: of its probes, by ``(kind, concept, k)``, with k = 1 and 4 among them.
        groups: group → names of its classes; those that weren't probed are passed over.

    Returns:
        A row for each group with two probed classes: ``n_pairs``, ``jaccard`` (mean over pairs of
        siblings) and ``f1_gap`` (mean over classes of F1 at k = 4 less at k = 1); and the mean
        Jaccard index of pairs that are siblings in no group, NaN if there are none.
    """
    column = {name: at for at, (_, name) in enumerate(concepts)}
    kind_of = {name: kind for kind, name in concepts}
    sets = [set(row[:N_BEST]) for row in best.tolist()]
    few, more = (f1.xs(k, level="k") for k in KS)
    rows, siblings = {}, set()
    for group, members in groups.items():
        known = sorted({column[name] for name in members if name in column})
        pairs = list(combinations(known, 2))
        if not pairs:
            continue
        siblings.update(pairs)
        keys = [concepts[at] for at in known]
        rows[group] = {
            "n_pairs": len(pairs),
            "jaccard": float(np.mean([_jaccard(sets[a], sets[b]) for a, b in pairs])),
            "f1_gap": float((more.loc[keys] - few.loc[keys]).mean()),
        }
    grouped = {name for members in groups.values() for name in members}
    candidates = [column[name] for name in kind_of if name in grouped]
    others = [p for p in combinations(sorted(candidates), 2) if p not in siblings]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["n_pairs", "jaccard", "f1_gap"])
    chance = float(np.mean([_jaccard(sets[a], sets[b]) for a, b in others])) if others else np.nan
    return table.rename_axis("group"), chance


def _jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other)
