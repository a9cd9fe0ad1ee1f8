"""The number formats in which a cache holds rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class RowFormat:
    """How rows lie in a file: little-endian, C order, nothing else in it."""

    name: str
    """As in the manifest: `"float32"`, `"bfloat16"`, `"float16"` or `"int8"`."""
    stored: str
    """NumPy's type of the numbers in the file; NumPy has no bfloat16, so its bits are uint16."""
    torch_dtype: torch.dtype
    """PyTorch's type of the same bits."""
    has_scales: bool = False
    """Whether a row is its numbers times a float32 that a second file holds for each row."""

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return np.dtype(self.stored).itemsize

    def row_bytes(self, d_in: int) -> int:
        """Bytes of a row, its scale included."""
        return d_in * self.itemsize + 4 * self.has_scales

    def encode(
        self, rows: Float[Tensor, "rows d_in"]
    ) -> tuple[Tensor, Float[Tensor, " rows"] | None]:
        """Numbers to store, and scales where the format has them.

        Raises:
            ValueError: a number isn't finite, or too large for the format.
        """
        scales = None
        if self.has_scales:
            rows = rows.float()
            scales = rows.abs().amax(dim=1) / 127
            # a row of zeros has scale 0, and stays zeros
            numbers = (rows / scales.clamp_min(1e-38).unsqueeze(1)).round().to(self.torch_dtype)
            is_finite = torch.isfinite(scales).all()
        else:
            numbers = rows.to(self.torch_dtype)
            is_finite = torch.isfinite(numbers).all()
        if not bool(is_finite):
            raise ValueError(self._not_finite(rows))
        return numbers, scales

    def decode(
        self, numbers: Tensor, scales: Tensor | None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "rows d_in"]:
        """What `encode` was given, as far as the format holds it."""
        if scales is None:
            return numbers.to(dtype)
        return (numbers.float() * scales.unsqueeze(1)).to(dtype)

    def as_tensor(self, stored: np.ndarray) -> Tensor:
        """Numbers from a file as PyTorch's own type, without a copy."""
        if self.torch_dtype is torch.bfloat16:
            return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(stored)

    def _not_finite(self, rows: Tensor) -> str:
        if bool(torch.isfinite(rows).all()):
            largest = float(rows.abs().max())
            return f"an activation is {largest:.3g}, more than {self.name} holds; want bfloat16"
        return (
            "some activations are NaN or infinite; a 16-bit model may have overflowed: want it in "
            "float32 or bfloat16"
        )


class RoundingLoss:
    """The share of rows' variance that rounding takes, summed up batch after batch."""

    def __init__(self) -> None:
        self._n_rows = 0
        self._error = self._squares = 0.0
        self._origin = self._sum = torch.zeros(1, dtype=torch.float64)

    def add(self, rows: Float[Tensor, "rows d_in"], rounded: Float[Tensor, "rows d_in"]) -> None:
        """Take in some rows, as they were and as they are stored."""
        if self._n_rows == 0:  # sums of squares cancel if the mean is far from zero
            self._origin = rows.double().mean(0)
            self._sum = torch.zeros_like(self._origin)
        centred = rows.double() - self._origin
        self._n_rows += len(rows)
        self._error += float((rows - rounded).double().square().sum())
        self._squares += float(centred.square().sum())
        self._sum = self._sum + centred.sum(0)

    @property
    def share(self) -> float:
        """Squared error over squared distance from the mean; 0 while there are no two rows."""
        if self._n_rows < 2:
            return 0.0
        variance = self._squares - float(self._sum.square().sum()) / self._n_rows
        return self._error / variance if variance > 0 else 0.0


ROW_FORMATS: Mapping[str, RowFormat] = {
    row_format.name: row_format
    for row_format in (
        RowFormat("float32", "<f4", torch.float32),
        RowFormat("bfloat16", "<u2", torch.bfloat16),
        RowFormat("float16", "<f2", torch.float16),
        RowFormat("int8", "|i1", torch.int8, has_scales=True),
    )
}


def row_format(name: str) -> RowFormat:
    """The format of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in ROW_FORMATS:
        raise ValueError(f"dtype is {name!r}; want one of {', '.join(ROW_FORMATS)}")
    return ROW_FORMATS[name]
