"""The squared error of every level of a nested reconstruction, in few passes over the levels."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def level_losses(
    decoded: Float[Tensor, "levels rows d_in"],
    target: Float[Tensor, "rows d_in"],
    scale: Float[Tensor, "rows 1"] | None = None,
) -> Float[Tensor, " levels"]:
    """Mean over rows and features of ``(decoded − target)²``, each row's times its ``scale``.

    Differentiable once, with respect to ``decoded`` and ``target``. Autograd of one loss a level
    would keep each level's difference, and copy the gradients of all together again.
    """
    return _LevelLosses.apply(decoded, target, scale)


class _LevelLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decoded: Tensor, target: Tensor, scale: Tensor | None) -> Tensor:
        ctx.save_for_backward(decoded, target, scale)
        losses = []
        for level in decoded:
            square = torch.linalg.vector_norm(level - target, dim=-1, keepdim=True).square()
            losses.append((square if scale is None else square * scale).sum())
        return torch.stack(losses) / target.numel()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        decoded, target, scale = ctx.saved_tensors
        factors = grad_outputs[0] * (2 / target.numel())
        grad = torch.empty_like(decoded)
        grad_target = torch.zeros_like(decoded[0])
        for level, factor, own in zip(decoded, factors, grad, strict=True):
            torch.sub(level, target, out=own)
            own *= factor if scale is None else factor * scale
            grad_target -= own
        return grad, grad_target.to(target.dtype), None
