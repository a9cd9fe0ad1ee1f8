"""The threshold of counts on the scale of an SAE.

PatchSAE counts a token as active above τ = 0.2, chosen for CLIP ViT-B/16. Activations of another
model may all be smaller, or all larger: they have the scale of its residual stream. So τ is by
default a fixed multiple of the SAE's *typical activation*, the mean of all its activations above
zero, which is its L1 ÷ its L0. The SAE that 0.2 was published for has L1 28.3 and L0 148.6 (Lim et
al., ICLR 2025): its typical activation is 0.19, and τ is 1.05 times that.
"""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

PUBLISHED_THRESHOLD = 0.2
"""PatchSAE's τ, in units of activation."""

_PUBLISHED_L1, _PUBLISHED_L0 = 28.3, 148.6
RELATIVE_THRESHOLD = PUBLISHED_THRESHOLD / (_PUBLISHED_L1 / _PUBLISHED_L0)
"""τ ÷ typical activation: 1.05."""


def typical_activation(latents: Iterable[Float[Tensor, "..."]]) -> float | None:
    """The mean of all activations above zero; None if there is none.

    Args:
        latents: those of a few images, some at a time.
    """
    total, n_active = 0.0, 0
    for some in latents:
        positive = some.clamp(min=0)
        total += float(positive.double().sum())
        n_active += int(positive.count_nonzero())
    return total / n_active if n_active else None


def threshold_of(typical: float | None) -> float:
    """The threshold for an SAE of this typical activation; 0 for one that never fires."""
    return 0.0 if typical is None else RELATIVE_THRESHOLD * typical
