"""CKNNA: do two representations of the same rows have the same neighbours?"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def cknna(
    x: Float[Tensor, "rows d_x"],
    y: Float[Tensor, "rows d_y"],
    *,
    n_neighbors: int = 10,
    unbiased: bool = True,
    block_rows: int = 1024,
) -> float:
    """Centred kernel nearest-neighbour alignment with linear kernels; 1 is perfect.

    Huh et al. 2024 (arXiv 2405.07987, appendix A): CKA restricted to pairs (i, j) where j is among
    i's nearest neighbours, by dot product, in both spaces. Exact; kernels are computed
    ``block_rows`` rows at a time and only neighbours are kept, so memory is
    ``rows · (block_rows + n_neighbors)`` numbers and time grows with ``rows²``.

    Args:
        x: one space.
        y: the other; row i of both is the same sample.
        n_neighbors: neighbours of each row.
        unbiased: use the unbiased estimator of HSIC (Song et al. 2012), in which a row is not its
            own neighbour; else the biased one, in which it is.
        block_rows: rows of a kernel in memory at a time.

    Raises:
        ValueError: different numbers of rows, or too few for so many neighbours.
    """
    n = len(x)
    if len(y) != n:
        raise ValueError(f"x has {n} rows and y {len(y)}; want the same samples in both")
    if not 1 <= n_neighbors < n or (unbiased and n < 4):
        raise ValueError(f"{n} rows are too few for {n_neighbors} neighbours; want more rows")
    x_edges, x_values = _neighbour_edges(x, n_neighbors, unbiased, block_rows)
    y_edges, y_values = _neighbour_edges(y, n_neighbors, unbiased, block_rows)
    in_y, in_x = torch.isin(x_edges, y_edges), torch.isin(y_edges, x_edges)
    hsic = _hsic_unbiased if unbiased else _hsic_biased
    shared = hsic(x_edges[in_y], x_values[in_y], y_values[in_x], n)
    x_alone = hsic(x_edges, x_values, x_values, n)
    y_alone = hsic(y_edges, y_values, y_values, n)
    scale = math.sqrt(max(x_alone * y_alone, 0.0))
    return shared / scale if scale else math.nan


def _neighbour_edges(
    x: Tensor, n_neighbors: int, leave_out_self: bool, block_rows: int
) -> tuple[Int[Tensor, " edges"], Float[Tensor, " edges"]]:
    """Sorted keys ``i · n + j`` of the edges i → j, and the kernel's value on each."""
    n = len(x)
    x = x.float()
    keys, values = [], []
    for start in range(0, n, block_rows):
        kernel = x[start : start + block_rows] @ x.T
        rows = torch.arange(start, start + len(kernel), device=x.device)
        if leave_out_self:
            kernel[rows - start, rows] = -math.inf
        value, neighbour = kernel.topk(n_neighbors, dim=1)
        keys.append((rows[:, None] * n + neighbour).flatten().cpu())
        values.append(value.flatten().cpu().double())
    order = torch.cat(keys).argsort()
    return torch.cat(keys)[order], torch.cat(values)[order]


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
