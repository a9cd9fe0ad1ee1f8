"""The point with the smallest summed distance to a set of rows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

MAX_ITERATIONS = 100
RELATIVE_TOLERANCE = 1e-6


@torch.no_grad()
def geometric_median(rows: Float[Tensor, "n_rows d_in"]) -> Float[Tensor, " d_in"]:
    """``argmin_m Σ_i ‖rows_i − m‖₂`` by Weiszfeld's algorithm as Vardi and Zhang mended it
    (PNAS 97, 2000, eq. 2.6).

    Each iteration is a mean of the rows weighted by the inverse of their distance; rows that equal
    the point, whose weight would be infinite, hold it back by their number instead. It starts at
    the mean and stops after 100 iterations or when the point moves by less than a millionth of
    the mean distance. Unlike the mean it is not dragged along by a few rows of very large norm,
    such as the class token's.

    Args:
        rows: at least one row. Rows of 16-bit types are worked on in float32.

    Returns:
        The median, in the dtype of ``rows``.

    Raises:
        ValueError: ``rows`` is empty or not two-dimensional.
    """
    if rows.ndim != 2 or rows.shape[0] == 0:
        raise ValueError(
            f"rows are {list(rows.shape)}; want [n_rows, d_in] with n_rows 1 or more: flatten the "
            f"batch and token axes first"
        )
    points = rows.to(torch.promote_types(rows.dtype, torch.float32))
    # Under autocast the weighted means would be bfloat16 products.
    with torch.autocast(rows.device.type, enabled=False):
        return _weiszfeld(points).to(rows.dtype)


def _weiszfeld(points: Tensor) -> Tensor:
    median = points.mean(dim=0)
    for _ in range(MAX_ITERATIONS):
        distance = (points - median).norm(dim=-1)
        equal = distance <= RELATIVE_TOLERANCE * distance.mean()
        weight = torch.where(equal, 0.0, 1.0 / distance)
        if not weight.any():
            break  # all rows are equal
        target = (weight @ points) / weight.sum()
        pull = (weight @ (points - median)).norm()
        # That many rows at the point keep it there if the others' unit vectors sum to less.
        held_back = (equal.sum() / pull).clamp(max=1.0)
        new_median = torch.where(held_back < 1, torch.lerp(target, median, held_back), median)
        moved = (new_median - median).norm()
        median = new_median
        if moved <= RELATIVE_TOLERANCE * distance.mean():
            break
    return median
