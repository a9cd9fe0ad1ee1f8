"""A shard of the initial weights that one process would draw, without ever holding the rest."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

_NUMBERS_AT_A_TIME = 1 << 22


def draw_rows(n_rows: int, n_columns: int, own: slice, dtype: torch.dtype) -> Tensor:
    """Rows ``own`` of what ``nn.init.kaiming_uniform_`` draws for ``[n_rows, n_columns]``.

    All are drawn, on the CPU, each number taking one step of the global generator in the order of
    memory: so the shard is that of the whole, and what is drawn next is too. Beside the result
    only 16 MB (of float32) are held.
    """
    rows = torch.empty(own.stop - own.start, n_columns, dtype=dtype)
    for first, block in _blocks(n_rows, n_columns, dtype):
        start, stop = max(own.start, first), min(own.stop, first + len(block))
        if start < stop:
            rows[start - own.start : stop - own.start] = block[start - first : stop - first]
    return rows


def draw_columns(n_rows: int, n_columns: int, own: slice, dtype: torch.dtype) -> Tensor:
    """Columns ``own`` of the same."""
    columns = torch.empty(n_rows, own.stop - own.start, dtype=dtype)
    for first, block in _blocks(n_rows, n_columns, dtype):
        columns[first : first + len(block)] = block[:, own]
    return columns


def _blocks(n_rows: int, n_columns: int, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    n_at_a_time = max(1, _NUMBERS_AT_A_TIME // n_columns)
    for first in range(0, n_rows, n_at_a_time):
        n_rows_here = min(n_at_a_time, n_rows - first)
        # the fan that sets the range is the number of columns, whatever the rows
        yield first, nn.init.kaiming_uniform_(torch.empty(n_rows_here, n_columns, dtype=dtype))
