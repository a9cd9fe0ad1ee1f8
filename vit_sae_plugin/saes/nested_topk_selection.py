"""Which latents each of several nested top-k levels keeps, found with one shared partial sort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

MAX_LEVELS = 255  # first_level is 8 bits wide, and one value means "kept by no level"


@dataclass(frozen=True)
class NestedSelection:
    """The latents kept by the levels of a list of k, as the first level that keeps each.

    Levels are nested: what level ``i`` keeps, all later ones keep. Levels that keep every active
    latent of every row reconstruct the same, and count as one.
    """

    first_level: UInt8[Tensor, "rows d_sae"]
    """Number of the first level that keeps the latent; ``n_levels`` where none does."""

    n_levels: int
    """How many different levels there are."""

    level_of_k: tuple[int, ...]
    """For each k of the list, the level that it is."""


@torch.no_grad()
def select_nested_topk(acts: Float[Tensor, "rows d_sae"], k_list: Sequence[int]) -> NestedSelection:
    """The selection of the ``k`` largest latents of each row, for every ``k`` of a list.

    A latent at zero is kept by no level. Of equal latents at a level's boundary any may be kept,
    but exactly ``k`` are.

    Args:
        acts: latents after ReLU, none negative.
        k_list: strictly increasing, none above ``d_sae``.
    """
    active = acts != 0  # true of NaN, which must reach the loss and be seen
    most_active = int(active.sum(dim=-1).max()) if len(acts) else 0
    narrow = [k for k in k_list if k < most_active]
    n_levels = len(narrow) + (len(narrow) < len(k_list))
    first_level = torch.full_like(acts, n_levels, dtype=torch.uint8)
    if n_levels > len(narrow):
        first_level.masked_fill_(active, n_levels - 1)
    values, latents = acts, None
    for level in reversed(range(len(narrow))):
        values, position = values.topk(narrow[level], dim=-1, sorted=False)
        latents = position if latents is None else latents.gather(-1, position)
        first_level.scatter_(-1, latents, level)
    if narrow:
        first_level.masked_fill_(~active, n_levels)
    return NestedSelection(
        first_level, n_levels, tuple(min(i, n_levels - 1) for i in range(len(k_list)))
    )
