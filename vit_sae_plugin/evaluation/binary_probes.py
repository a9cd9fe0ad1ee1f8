"""Logistic regressions of many concepts on a few features each, all fitted at once."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

_MAX_STEPS, _MAX_HALVINGS, _SMALL = 50, 20, 1e-10


def fit_binary_probes(
    x: Float[Tensor, "concepts n k"], y: Bool[Tensor, "concepts n"]
) -> tuple[Float[Tensor, "concepts k"], Float[Tensor, " concepts"]]:
    """For each concept ``P(y) = sigmoid(w·x + b)``, by Newton's method from zero.

    Minimised is ``½‖w‖² + Σ log-loss`` on features of standard deviation 1, as scikit-learn's
    ``LogisticRegression`` does on such features. A constant feature gets weight 0.

    Returns:
        Weights and biases for the features as they are.
    """
    x = x.double()
    target = y.double()
    mean, scale = x.mean(1, keepdim=True), x.std(1, keepdim=True, unbiased=False)
    constant = scale <= 1e-12 * mean.abs().clamp(min=1e-300)
    scaled = torch.where(constant, 0, (x - mean) / scale.masked_fill(constant, 1))
    scaled = torch.cat([scaled, torch.ones_like(scaled[..., :1])], -1)
    penalty = torch.ones(scaled.shape[-1], dtype=torch.float64)
    penalty[-1] = 0
    weights = torch.zeros(len(x), scaled.shape[-1], dtype=torch.float64)

    def loss(of: Tensor) -> Tensor:
        logits = torch.einsum("cnk,ck->cn", scaled, of)
        terms = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return terms.sum(1) + (penalty * of.square()).sum(1) / 2

    value = loss(weights)
    for _ in range(_MAX_STEPS):
        p = torch.einsum("cnk,ck->cn", scaled, weights).sigmoid()
        gradient = torch.einsum("cnk,cn->ck", scaled, p - target) + penalty * weights
        curvature = torch.einsum("cnk,cn,cnl->ckl", scaled, p * (1 - p), scaled)
        curvature = curvature + torch.diag(penalty + 1e-9)
        step = torch.linalg.solve(curvature, gradient)
        length = torch.ones(len(x), 1, dtype=torch.float64)
        for _ in range(_MAX_HALVINGS):
            reached = loss(weights - length * step)
            too_far = reached > value
            if not too_far.any():
                break
            length[too_far] /= 2
        better = (reached < value)[:, None]
        weights = torch.where(better, weights - length * step, weights)
        gain = value - torch.minimum(reached, value)
        value = torch.minimum(reached, value)
        if (gain <= _SMALL * (1 + value)).all():
            break
    slopes = (weights[:, :-1] / scale[:, 0]).masked_fill(constant[:, 0], 0)
    return slopes, weights[:, -1] - (slopes * mean[:, 0]).sum(1)
