"""The rows most like a query, exactly: by FAISS where it is installed, else by blocked products."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_PRODUCTS_AT_ONCE = 2**24


def nearest(
    rows: Float[Tensor, "n d"],
    queries: Float[Tensor, "q d"],
    k: int,
    *,
    use_faiss: bool | None = None,
) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    """The k largest inner products of each query with the rows, and where they are.

    Both ways are exact and give the same neighbours, equal ones in the order of the rows (FAISS
    may choose others of equals at the very end of the list).

    Args:
        rows: what is searched.
        queries: what is looked for.
        k: how many; no more than there are rows.
        use_faiss: None: if it is installed.

    Raises:
        ValueError: k is below 1, the widths differ, or FAISS is asked for and not installed.
    """
    if k < 1:
        raise ValueError(f"k is {k}; want 1 or more neighbours")
    if rows.shape[1] != queries.shape[1]:
        raise ValueError(f"queries are {queries.shape[1]} wide; want {rows.shape[1]}, as the rows")
    k = min(k, len(rows))
    installed = find_spec("faiss") is not None
    if use_faiss and not installed:
        raise ValueError("use_faiss is True, but FAISS is not installed: pip install faiss-cpu")
    if installed if use_faiss is None else use_faiss:
        value, index = _by_faiss(rows, queries, k)
    else:
        value, index = _by_products(rows, queries, k)
    order = torch.from_numpy(np.lexsort((index.numpy(), -value.numpy())))
    return value.gather(1, order), index.gather(1, order)


def _by_faiss(rows: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    import faiss

    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows.float().contiguous().numpy())
    value, place = index.search(queries.float().contiguous().numpy(), k)
    return torch.from_numpy(value), torch.from_numpy(place).long()


def _by_products(rows: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    value = torch.empty(len(queries), 0)
    place = torch.empty(len(queries), 0, dtype=torch.long)
    step = max(k, _PRODUCTS_AT_ONCE // max(len(queries), 1))
    for start in range(0, len(rows), step):
        products = queries.float() @ rows[start : start + step].float().T
        value = torch.cat([value, products], dim=1)
        here = torch.arange(start, start + products.shape[1]).expand(len(queries), -1)
        place = torch.cat([place, here], dim=1)
        # a stable sort keeps the first of equals
        kept = value.argsort(dim=1, descending=True, stable=True)[:, :k]
        value, place = value.gather(1, kept), place.gather(1, kept)
    return value, place
