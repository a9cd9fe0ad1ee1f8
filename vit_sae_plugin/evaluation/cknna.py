"""CKNNA: do two representations of the same rows have the same neighbours?"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def cknna(
    x: Float[Tensor, "rows d_x"],
    y: Float[Tensor, "rows d_y"],
    *,
    n_neighbors: int = 10,
    unit_rows: bool = False,
    unbiased: bool = True,
    block_rows: int = 1024,
) -> float:
    """Centred kernel nearest-neighbour alignment with linear kernels; 1 is perfect.

    Huh et al. 2024 (arXiv 2405.07987, appendix A): CKA restricted to pairs (i, j) where j is among
    i's nearest neighbours, by dot product, in both spaces. The length of rows matters: they brought
    all rows to unit length first (``unit_rows``), MSAE's authors take them as they are. The two can
    order SAEs in opposite ways, so state which one it is.

    Args:
        x: one space.
        y: the other; row i of both is the same sample.
        n_neighbors: neighbours of each row.
        unit_rows: divide each row by its length first; rows of zeros stay.
        unbiased: use the unbiased estimator of HSIC (Song et al. 2012), in which a row is not its
            own neighbour; else the biased one, in which it may be.
        block_rows: rows of a kernel in memory at a time.

    Raises:
        ValueError: different numbers of rows, too few for that many neighbours, NaN or infinity.
    """
    spaces = [Neighbours(rows, n_neighbors, unit_rows, block_rows) for rows in (x, y)]
    return alignment(*spaces, unbiased=unbiased)


class Neighbours:
    """The nearest neighbours of each row by dot product: all that CKNNA needs of a space.

    Exact; kernels are computed ``block_rows`` rows at a time and only neighbours are kept, so
    memory is ``rows · (block_rows + n_neighbors)`` numbers and time grows with ``rows²``.

    Args:
        rows: the space; other arguments as for ``cknna``.
    """

    def __init__(
        self,
        rows: Float[Tensor, "rows d"],
        n_neighbors: int = 10,
        unit_rows: bool = False,
        block_rows: int = 1024,
    ):
        self.n, self.n_neighbors = len(rows), n_neighbors
        if not 1 <= n_neighbors < self.n or self.n < 4:
            raise ValueError(
                f"{self.n} rows are too few for {n_neighbors} neighbours; want more rows"
            )
        if not rows.isfinite().all():
            raise ValueError("a row holds NaN or infinity; want finite numbers")
        rows = functional.normalize(rows.float(), dim=-1) if unit_rows else rows.float()
        # One more than asked for: a row itself is left out, or not, later.
        found = [(part @ rows.T).topk(n_neighbors + 1, dim=1) for part in rows.split(block_rows)]
        self.values = torch.cat([part.values for part in found]).cpu().double()
        self.indices = torch.cat([part.indices for part in found]).cpu()

    def edges(self, leave_out_self: bool) -> tuple[Int[Tensor, " edges"], Float[Tensor, " edges"]]:
        """Sorted keys ``i · n + j`` of the edges i → j, and the kernel's value on each."""
        row = torch.arange(self.n)[:, None]
        kept = self.indices != row if leave_out_self else torch.ones_like(self.indices).bool()
        kept &= kept.cumsum(1) <= self.n_neighbors
        keys, order = (row * self.n + self.indices)[kept].sort()
        return keys, self.values[kept][order]


def alignment(x: Neighbours, y: Neighbours, *, unbiased: bool = True) -> float:
    """CKNNA of two spaces, see ``cknna``."""
    if x.n != y.n:
        raise ValueError(f"x has {x.n} rows and y {y.n}; want the same samples in both")
    x_edges, x_values = x.edges(leave_out_self=unbiased)
    y_edges, y_values = y.edges(leave_out_self=unbiased)
    in_y, in_x = torch.isin(x_edges, y_edges), torch.isin(y_edges, x_edges)
    hsic = _hsic_unbiased if unbiased else _hsic_biased
    shared = hsic(x_edges[in_y], x_values[in_y], y_values[in_x], x.n)
    x_alone = hsic(x_edges, x_values, x_values, x.n)
    y_alone = hsic(y_edges, y_values, y_values, x.n)
    scale = math.sqrt(max(x_alone * y_alone, 0.0))
    return shared / scale if scale else math.nan


class _SparseSums:
    """Sums over ``A`` and ``B``, two matrices that are zero except on the same edges."""

    def __init__(self, edges: Tensor, a: Tensor, b: Tensor, n: int):
        row, column = edges // n, edges % n
        self.total_a, self.total_b = a.sum().item(), b.sum().item()
        rows_a, columns_a = _sum_at(row, a, n), _sum_at(column, a, n)
        rows_b, columns_b = _sum_at(row, b, n), _sum_at(column, b, n)
        self.ab = (columns_a @ rows_b).item()  # 1ᵀ A B 1
        self.ba = (columns_b @ rows_a).item()
        mirrored = column * n + row
        at = torch.searchsorted(edges, mirrored).clamp(max=max(len(edges) - 1, 0))
        both_ways = edges[at] == mirrored if len(edges) else mirrored.bool()
        self.trace_ab = (a[both_ways] * b[at[both_ways]]).sum().item()


def _sum_at(index: Tensor, values: Tensor, n: int) -> Tensor:
    return torch.zeros(n, dtype=torch.float64).index_add_(0, index, values)


def _hsic_unbiased(edges: Tensor, a: Tensor, b: Tensor, n: int) -> float:
    s = _SparseSums(edges, a, b, n)
    total = s.trace_ab + s.total_a * s.total_b / ((n - 1) * (n - 2)) - 2 * s.ab / (n - 2)
    return total / (n * (n - 3))


def _hsic_biased(edges: Tensor, a: Tensor, b: Tensor, n: int) -> float:
    """``trace(A H B H)`` with ``H = I − 1/n``; its factor cancels in the ratio."""
    s = _SparseSums(edges, a, b, n)
    return s.trace_ab - (s.ab + s.ba) / n + s.total_a * s.total_b / n**2
