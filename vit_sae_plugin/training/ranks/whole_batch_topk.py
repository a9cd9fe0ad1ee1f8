"""BatchTopK over a batch of which each process has some rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens import BatchTopKTrainingSAE
from sae_lens.saes.sae import TrainingSAE
from torch import Tensor, nn

from vit_sae_plugin.training.ranks.process_group import Ranks


class WholeBatchTopK(nn.Module):
    """Takes the place of SAELens's ``BatchTopK``: the largest latents of all processes' rows.

    Args:
        k: latents to keep of each row, on average.
        n_rows: rows of this process.
        n_rows_in_all: rows of all processes.
        ranks: the processes.
    """

    def __init__(self, k: float, n_rows: int, n_rows_in_all: int, ranks: Ranks) -> None:
        super().__init__()
        self.n_rows = n_rows
        self.n_kept = int(k * n_rows_in_all)
        self.ranks = ranks
        self.smallest = torch.tensor(torch.nan)
        """The smallest positive latent kept, by any of the processes; NaN if there is none."""

    @torch.compiler.disable
    def forward(self, hidden_pre: Float[Tensor, "rows d_sae"]) -> Float[Tensor, "rows d_sae"]:
        """The latents that are kept, and zeros."""
        acts = hidden_pre.relu().flatten()
        largest = acts.topk(min(self.n_kept, acts.numel()), sorted=False)
        values = largest.values * self.keeps(largest.values.detach())
        return torch.zeros_like(acts).scatter(-1, largest.indices, values).view_as(hidden_pre)

    @torch.no_grad()
    def keeps(self, own: Float[Tensor, " candidates"]) -> Bool[Tensor, " candidates"]:
        """Which of this process's largest latents are among the largest of all.

        Of equal latents at the boundary, lower ranks' are kept before higher ranks'.
        """
        own = own.nan_to_num(
            nan=torch.inf, posinf=torch.inf
        )  # NaN must reach the loss, and be seen
        is_candidate = own > 0 if self.n_rows > 0 else torch.zeros_like(own, dtype=torch.bool)
        by_rank = self.ranks.gather_parts(own[is_candidate])
        everyones = torch.cat(by_rank)
        if len(everyones) <= self.n_kept:
            self.smallest = everyones.min() if len(everyones) else own.new_tensor(torch.nan)
            return is_candidate
        boundary = everyones.topk(self.n_kept, sorted=False).values.min()
        self.smallest = boundary
        n_equal = self.n_kept - int((everyones > boundary).sum())
        n_equal -= sum(int((part == boundary).sum()) for part in by_rank[: self.ranks.rank])
        equal = is_candidate & (own == boundary)
        first_equal = equal & (equal.cumsum(0) <= n_equal)
        return is_candidate & ((own > boundary) | first_equal)


@contextmanager
def whole_batch_topk(
    sae: TrainingSAE[Any], n_rows: int, n_rows_in_all: int, ranks: Ranks
) -> Iterator[None]:
    """While entered, an SAE with BatchTopK keeps the largest latents of all processes' rows.

    On leaving, its learned threshold is what one process would have made it. Other SAEs are left
    as they are.
    """
    if not isinstance(sae, BatchTopKTrainingSAE):
        yield
        return
    own, before = sae.activation_fn, sae.topk_threshold
    selection = WholeBatchTopK(sae.cfg.k, n_rows, n_rows_in_all, ranks)
    sae.activation_fn = selection
    if hasattr(sae, "largest"):
        sae.largest = _largest_of_all(selection)
    try:
        yield
    finally:
        sae.activation_fn = own
        sae.__dict__.pop("largest", None)
    lr, smallest = sae.cfg.topk_threshold_lr, selection.smallest.to(before)
    moved = (1 - lr) * before + lr * smallest
    sae.topk_threshold = torch.where(smallest.isnan(), before, moved)


def _largest_of_all(selection: WholeBatchTopK) -> Callable[[Tensor], Any]:
    from vit_sae_plugin.saes.largest_latents import ActiveLatents, largest_of_batch

    def largest(hidden_pre: Tensor) -> ActiveLatents:
        active = largest_of_batch(hidden_pre, selection.n_kept)
        kept = selection.keeps(active.act)
        n_kept = torch.bincount(active.row()[kept], minlength=len(hidden_pre))
        starts = torch.cat([n_kept.new_zeros(1), n_kept.cumsum(0)])
        return replace(active, row_start=starts, latent=active.latent[kept], act=active.act[kept])

    return largest
