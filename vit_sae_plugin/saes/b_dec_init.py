"""Where a decoder bias starts: a central point of the first batch of activations."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from .geometric_median import geometric_median

BDecInitMethod = Literal["geometric_median", "mean", "zeros"]


def check_b_dec_init_method(method: str) -> None:
    """Raise ValueError unless ``method`` is one of "geometric_median", "mean", "zeros"."""
    if method not in get_args(BDecInitMethod):
        raise ValueError(
            f"b_dec_init_method is {method!r}; want one of "
            f"{', '.join(map(repr, get_args(BDecInitMethod)))}"
        )


# An operator of its own is opaque to torch.compile, which can neither trace the iteration's
# stopping test nor should unroll it: so the first training step compiles with fullgraph=True.
@torch.library.custom_op("vit_sae_plugin::central_point", mutates_args=())
def _central_point(rows: Tensor, method: str) -> Tensor:
    if method == "zeros":
        return rows.new_zeros(rows.shape[-1])
    return geometric_median(rows) if method == "geometric_median" else rows.mean(dim=0)


@_central_point.register_fake
def _(rows: Tensor, method: str) -> Tensor:
    return rows.new_empty(rows.shape[-1])


@torch.no_grad()
def central_point(
    rows: Float[Tensor, "n_rows d_in"], method: BDecInitMethod
) -> Float[Tensor, " d_in"]:
    """The geometric median or the mean of ``rows``, or zeros."""
    check_b_dec_init_method(method)
    return _central_point(rows, method)
