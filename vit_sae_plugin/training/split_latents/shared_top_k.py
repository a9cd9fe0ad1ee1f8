"""The exact k largest latents of a row whose latents lie with several processes.

Each process sorts its own candidates. Which of them belong to the row's k largest then follows from
one number, how many: ``c_r``, with ``Σ_r c_r = k``. It is found from the k-th largest value ``t``
of all, which is searched for two bits at a time: a 32-bit float has an integer that is ordered as
it is, and 16 rounds of three counts each, summed over the processes, fix its bits. So what is sent
is small, and grows neither with the number of processes nor with k: 192 bytes for every row and k.

Of equal latents at ``t`` those with the lower numbers are kept, whatever the number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

from .latent_split import LatentSplit

_BITS, _BITS_OF_A_ROUND = 32, 2
_NO_CANDIDATE = -2139095041  # of minus infinity
_NAN = 2139095041  # above infinity's, so that it reaches the loss and is seen
_ABOVE_ALL = 2**31 - 1
_FEW = 16  # so few of all latents, one in so many, are found sooner than sorted
_SORTED_ROWS = 64  # at once in a thread, for little memory


@dataclass(frozen=True)
class SharedTopK:
    """This process's part of the ``k`` largest of each row, for every ``k`` of a list."""

    latents: Int[Tensor, "rows candidates"]
    """Numbers of this process's candidates, the largest first, of equals the lowest."""

    n_kept: Int32[Tensor, "rows levels"]
    """How many of them each level keeps: the first so many."""

    n_levels: int
    """Number of the first level that keeps every candidate of every row, plus one; all later ones
    are the same. At most the number of levels."""

    def kept(self, level: int = 0) -> Tensor:
        """True where a level keeps a candidate: ``[rows, candidates]``."""
        position = torch.arange(self.latents.shape[-1], device=self.latents.device)
        return position < self.n_kept[:, level, None]


@torch.no_grad()
def select_shared_top_k(
    values: Float[Tensor, "rows latents"],
    k_list: Sequence[int],
    split: LatentSplit,
    *,
    positive_only: bool,
) -> SharedTopK:
    """Which of this process's latents are among the ``k`` largest of all processes' together.

    Args:
        values: this process's latents. NaN counts as largest.
        k_list: rising.
        split: the processes; each has the same rows and list, and may have fewer latents, or none.
        positive_only: only latents above zero are candidates (as after ReLU); where there are
            fewer than k, all are kept.
    """
    descending, latents = _candidates(values, k_list[-1], positive_only)
    n_kept, keeps_all = _shares(descending, k_list, split)
    latents = _lowest_of_equals(values, latents, descending, n_kept)
    n_levels = next((i + 1 for i, every in enumerate(keeps_all) if every), len(k_list))
    return SharedTopK(latents, n_kept, n_levels)


def _candidates(
    values: Tensor, most: int, positive_only: bool
) -> tuple[Int32[Tensor, "rows candidates"], Int[Tensor, "rows candidates"]]:
    """The largest latents in order, as ordered integers, and their numbers.

    There is one more than can be kept, to see what follows the last.
    """
    n_latents = values.shape[-1]
    n_candidates = min(most + 1, n_latents)
    if positive_only:
        n_positive = (~(values <= 0)).sum(dim=-1)
        n_candidates = min(n_candidates, int(n_positive.max()) if len(values) else 0)
    if n_candidates * _FEW > n_latents and values.device.type == "cpu":
        ordered, latents = _sorted_by_numpy(values, n_candidates)
    elif n_candidates < n_latents:
        ordered, latents = values.topk(n_candidates, dim=-1)
    else:
        ordered, latents = values.sort(dim=-1, descending=True)
    if positive_only:
        ordered = ordered.masked_fill(ordered <= 0, -torch.inf)
    return _ordered_as_floats(ordered), latents


def _sorted_by_numpy(values: Tensor, n_candidates: int) -> tuple[Tensor, Tensor]:
    """``topk``, in which equals follow their numbers.

    NumPy sorts 64-bit integers several times as fast as PyTorch finds the largest numbers.
    """
    numbers, n_threads = torch.arange(values.shape[-1]), torch.get_num_threads()
    latents = torch.empty(len(values), n_candidates, dtype=torch.int64)
    n_rows = _SORTED_ROWS * n_threads
    with ThreadPoolExecutor(n_threads) as pool:
        for part, found in zip(values.split(n_rows), latents.split(n_rows), strict=True):
            keys = (~_ordered_as_floats(part)).long() << 32 | numbers
            list(pool.map(_sort_rows, keys.chunk(n_threads)))
            torch.bitwise_and(keys[:, :n_candidates], 0xFFFFFFFF, out=found)
    return values.gather(-1, latents), latents


def _sort_rows(keys: Tensor) -> None:
    keys.numpy().sort(axis=-1)


def _ordered_as_floats(values: Tensor) -> Int32[Tensor, "rows candidates"]:
    """Integers in the order of the numbers."""
    values = values.float() + 0.0  # of minus zero makes zero
    bits = values.contiguous().view(torch.int32)
    return torch.where(values.isnan(), _NAN, bits ^ ((bits >> 31) & 0x7FFFFFFF))


def _shares(
    descending: Int32[Tensor, "rows candidates"], k_list: Sequence[int], split: LatentSplit
) -> tuple[Int32[Tensor, "rows levels"], list[bool]]:
    """How many of this process's candidates each level keeps, and which levels keep all."""
    ascending = -descending
    k = torch.tensor(k_list, dtype=torch.int32, device=descending.device)

    def n_at_least(bounds: Tensor) -> Tensor:
        flat = -bounds.flatten(1).clamp(max=_ABOVE_ALL).to(torch.int32)
        found = torch.searchsorted(ascending, flat, right=True, out_int32=True)
        return found.view(bounds.shape)

    # The largest bound that at least k of all candidates reach; no candidate's, if fewer are there.
    bound = torch.full(
        (len(descending), len(k_list)), _NO_CANDIDATE, dtype=torch.int64, device=k.device
    )
    digits = torch.arange(1, 1 << _BITS_OF_A_ROUND, device=k.device)
    for shift in reversed(range(0, _BITS, _BITS_OF_A_ROUND)):
        n_reached = split.all_reduce_(n_at_least(bound.unsqueeze(-1) + (digits << shift)))
        bound += (n_reached >= k.unsqueeze(-1)).sum(dim=-1) << shift

    n_above = n_at_least(bound + 1)
    n_equal = n_at_least(bound) - n_above
    keeps_all = bound == _NO_CANDIDATE
    by_shard = split.all_gather(torch.stack([n_above, n_equal]))
    n_equal_before = by_shard[: split.shard, 1].sum(dim=0)
    n_left = k - by_shard[:, 0].sum(dim=0) - n_equal_before
    n_own = torch.minimum(n_left.clamp(min=0), n_equal).masked_fill(keeps_all, 0)
    return (n_above + n_own).to(torch.int32), keeps_all.all(dim=0).tolist()


def _lowest_of_equals(
    values: Tensor, latents: Tensor, descending: Tensor, n_kept: Tensor
) -> Tensor:
    """Candidates in an order in which equals follow their numbers, where a level parts equals.

    ``topk`` gives equals in any order, and of those at its end any.
    """
    n_candidates = latents.shape[-1]
    if n_candidates < 2:
        return latents
    last = (n_kept.long() - 1).clamp(min=0, max=n_candidates - 2)
    parted = descending.gather(-1, last) == descending.gather(-1, last + 1)
    parted &= (n_kept > 0) & (n_kept < n_candidates)
    rows = parted.any(dim=-1).nonzero().squeeze(-1)
    if len(rows):
        in_order = values[rows].sort(dim=-1, descending=True, stable=True).indices
        latents = latents.index_copy(0, rows, in_order[:, :n_candidates])
    return latents
