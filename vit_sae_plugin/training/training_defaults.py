"""How an architecture is trained unless the user says otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainingDefaults:
    """Settings that depend on the architecture; those written here are SAELens's."""

    lr: float = 3e-4
    """Learning rate."""
    lr_warm_up_steps: int = 0
    """Steps of linear warm-up, but at most a tenth of the run."""
    lr_decay_share: float = 0.0
    """Steps of linear decay to zero at the end, as a share of the run."""
    optimizer: str = "adam"
    """``"adam"`` or ``"adamw"``."""
    adam_eps: float = 1e-8
    """Added to the root of the squared gradient's mean."""
    dead_feature_window: int = 1000
    """A latent is dead after more training steps than this without firing."""
    clip_grad_norm: float | None = 1.0
    """Gradients are scaled down to this norm; None: never."""

    def settings(self, n_steps: int) -> dict[str, Any]:
        """As settings of a run of ``n_steps`` training steps."""
        return {
            "lr": self.lr,
            "lr_warm_up_steps": min(self.lr_warm_up_steps, n_steps // 10),
            "lr_decay_steps": round(self.lr_decay_share * n_steps),
            "optimizer": self.optimizer,
            "adam_eps": self.adam_eps,
            "dead_feature_window": self.dead_feature_window,
            "clip_grad_norm": self.clip_grad_norm,
            "n_batches_for_norm_estimate": max(1, min(_SAE_LENS_NORM_BATCHES, n_steps)),
        }


_SAE_LENS_NORM_BATCHES = 1000
_OF_GHOSTS = 64
_OF_MSAE = {"lr_decay_share": 0.2, "optimizer": "adamw", "adam_eps": 6.25e-10}

_OF_ARCHITECTURE = {
    # Lim et al., ICLR 2025, arXiv 2412.05276, and the released code
    "patchsae": TrainingDefaults(
        lr=4e-4, lr_warm_up_steps=500, dead_feature_window=_OF_GHOSTS, clip_grad_norm=None
    ),
    # Zaigrajew et al., ICML 2025, arXiv 2502.20578, appendix, and the released code
    "matryoshka_topk": TrainingDefaults(lr=1e-4, **_OF_MSAE),  # type: ignore[arg-type]
    "standard_relative_l1": TrainingDefaults(lr=5e-5, **_OF_MSAE),  # type: ignore[arg-type]
    # published nowhere: SAELens's, with PatchSAE's window, without which few ghosts ever act
    "standard_ghost": TrainingDefaults(dead_feature_window=_OF_GHOSTS),
    "topk_ghost": TrainingDefaults(dead_feature_window=_OF_GHOSTS),
}


def training_defaults(architecture: str) -> TrainingDefaults:
    """The published settings of this package's architectures, and SAELens's for all others."""
    return _OF_ARCHITECTURE.get(architecture, TrainingDefaults())
