"""A top-k SAE without ReLU: the largest pre-activations keep their sign.

CLIP-Scope and saev encode like this. SAELens's ``topk`` applies ReLU to what it keeps, and its
``abstopk`` chooses by magnitude, so neither computes the same where fewer than k pre-activations
are positive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sae_lens import TopKSAE, TopKSAEConfig
from torch import Tensor, nn
from typing_extensions import override


@dataclass
class SignedTopKSAEConfig(TopKSAEConfig):
    """The same fields as SAELens's ``topk``."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "signed_topk"


class SignedTopKSAE(TopKSAE):
    """``f = TopK_k((x − b_dec) W_enc + b_enc)``, ``x̂ = f W_dec + b_dec``; ``f`` may be negative."""

    cfg: SignedTopKSAEConfig  # type: ignore[assignment]

    @override
    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return _SignedTopK(self.cfg.k)


class _SignedTopK(nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    @override
    def forward(self, hidden_pre: Tensor) -> Tensor:
        values, latents = hidden_pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(hidden_pre).scatter(-1, latents, values)
