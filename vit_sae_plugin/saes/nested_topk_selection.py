"""Which latents each of several nested top-k levels keeps, found in one go."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_sae_plugin.cpu_kernels import load_kernels, run_kernel

UNUSED = 255  # no level keeps the latent
MAX_LEVELS = UNUSED


@dataclass(frozen=True)
class NestedSelection:
    """The latents kept by the levels of a list of k, as the first level that keeps each.

    Levels are nested: what level ``i`` keeps, all later ones keep. Levels that keep every active
    latent of every row reconstruct the same, and count as one.
    """

    first_level: UInt8[Tensor, "rows d_sae"]
    """Number of the first level that keeps the latent; ``UNUSED`` where none does."""

    n_levels: int
    """How many different levels there are."""

    level_of_k: tuple[int, ...]
    """For each k of the list, the level that it is."""

    def n_fired(self) -> Float[Tensor, " d_sae"]:
        """In how many rows each latent is kept by some level."""
        first_level = self.first_level.contiguous()
        kernels = load_kernels(__file__) if first_level.device.type == "cpu" else None
        if kernels is None:
            return (first_level != UNUSED).sum(dim=0).float()
        n_fired = first_level.new_empty(first_level.shape[1], dtype=torch.int32)
        run_kernel(kernels.count_kept, first_level, n_fired, *first_level.shape)
        return n_fired.float()


@torch.compiler.disable
@torch.no_grad()
def select_nested_topk(acts: Float[Tensor, "rows d_sae"], k_list: Sequence[int]) -> NestedSelection:
    """The selection of the ``k`` largest latents of each row, for every ``k`` of a list.

    A latent at zero or below is kept by no level. Of equal latents at a level's boundary any may
    be kept, but exactly ``k`` are. NaN counts as largest, so that it reaches the loss and is seen.

    Args:
        acts: latents before or after ReLU; what is negative counts as zero.
        k_list: strictly increasing, none above ``d_sae``; at most 255.
    """
    kernels = load_kernels(__file__) if acts.device.type == "cpu" else None
    if kernels is None or acts.dtype == torch.float64:
        first_level, most_active = _select(acts, k_list)
    else:
        first_level, most_active = _select_on_cpu(acts.float().contiguous(), k_list, kernels)
    # Every level from the first that keeps all active latents on is one and the same.
    n_levels = min(sum(k < most_active for k in k_list) + 1, len(k_list))
    return NestedSelection(
        first_level, n_levels, tuple(min(i, n_levels - 1) for i in range(len(k_list)))
    )


def _select(acts: Tensor, k_list: Sequence[int]) -> tuple[Tensor, int]:
    acts = acts.relu()
    active = acts != 0
    most_active = int(active.sum(dim=-1).max()) if len(acts) else 0
    first_level = torch.full_like(acts, UNUSED, dtype=torch.uint8)
    values, latents = acts, None
    for level in reversed(range(len(k_list))):
        k = k_list[level]
        if k >= most_active:
            first_level.masked_fill_(active, level)
            continue
        values, position = values.topk(k, dim=-1, sorted=False)
        latents = position if latents is None else latents.gather(-1, position)
        first_level.scatter_(-1, latents, level)
    return first_level.masked_fill_(~active, UNUSED), most_active


def _select_on_cpu(acts: Tensor, k_list: Sequence[int], kernels: ctypes.CDLL) -> tuple[Tensor, int]:
    first_level = torch.empty_like(acts, dtype=torch.uint8)
    n_rows, d_sae = acts.shape
    arguments = (acts, first_level, torch.tensor(k_list), len(k_list), d_sae, n_rows)
    return first_level, run_kernel(kernels.select_levels, *arguments)
