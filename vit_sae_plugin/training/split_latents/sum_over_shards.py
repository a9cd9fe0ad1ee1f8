"""The one place where gradients cross from one shard's latents to all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .latent_split import LatentSplit


class _SumOverShards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, split: LatentSplit) -> Tensor:
        # Each shard's part was rounded to its dtype already; their sum is rounded once.
        dtype = torch.promote_types(part.dtype, torch.float32)
        total = part.to(dtype, memory_format=torch.contiguous_format, copy=True)
        return split.all_reduce_(total).to(part.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


def sum_over_shards(part: Tensor, split: LatentSplit) -> Tensor:
    """``Σ_r part_r``, the same on every process, as a function of this process's part.

    The loss ``L`` is a function of the sum ``s``, and every process computes all of it. So its
    derivative by any one part is ``∂L/∂s``, which each process knows: going back, nothing is sent.
    """
    return part if split.mesh is None else _SumOverShards.apply(part, split)
