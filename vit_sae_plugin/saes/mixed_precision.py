"""Matrix products in a lower precision than their factors, as autocast makes them.

Autocast reaches neither what is written into given memory nor the inside of a hand-written
backward pass. Where a processor multiplies that format (AVX512-BF16, AMX), such a product takes a
fraction of the time; sums, lists and weights stay as they are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The number format of such a tensor's products under autocast; None: its own.

    That is so outside of autocast, which leaves double precision alone, too.
    """
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def multiply(
    a: Float[Tensor, "n k"],
    b: Float[Tensor, "k m"],
    dtype: torch.dtype | None,
    out: Float[Tensor, "n m"],
    *,
    adds: bool = False,
) -> Float[Tensor, "n m"]:
    """``a @ b``, written to ``out`` or added to it; no gradients.

    Args:
        dtype: format of the factors, and of the product before it gets to ``out``; None: theirs.
    """
    if dtype is None:
        return out.addmm_(a, b, beta=int(adds))
    made = a.to(dtype) @ b.to(dtype)
    return out.add_(made) if adds else out.copy_(made)
