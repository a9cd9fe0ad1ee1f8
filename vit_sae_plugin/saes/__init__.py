"""Sparse autoencoder architectures, as SAELens classes, and the pieces they are made of."""

from .export import export_as_standard, export_as_topk, save_exported
from .ghost_gradients import ghost_gradient_error
from .ghost_saes import (
    StandardGhostTrainingSAE,
    StandardGhostTrainingSAEConfig,
    TopKGhostTrainingSAE,
    TopKGhostTrainingSAEConfig,
)
from .matryoshka_topk import MatryoshkaTopKSAE, MatryoshkaTopKSAEConfig
from .matryoshka_topk_training import (
    MatryoshkaTopKTrainingSAE,
    MatryoshkaTopKTrainingSAEConfig,
)
from .patch_aggregated import PatchAggregatedSAE, PatchAggregatedSAEConfig
from .patch_sae import PatchSAE, PatchSAEConfig, PatchTrainingSAE, PatchTrainingSAEConfig
from .registration import register

__all__ = [
    "MatryoshkaTopKSAE",
    "MatryoshkaTopKSAEConfig",
    "MatryoshkaTopKTrainingSAE",
    "MatryoshkaTopKTrainingSAEConfig",
    "PatchAggregatedSAE",
    "PatchAggregatedSAEConfig",
    "PatchSAE",
    "PatchSAEConfig",
    "PatchTrainingSAE",
    "PatchTrainingSAEConfig",
    "StandardGhostTrainingSAE",
    "StandardGhostTrainingSAEConfig",
    "TopKGhostTrainingSAE",
    "TopKGhostTrainingSAEConfig",
    "export_as_standard",
    "export_as_topk",
    "ghost_gradient_error",
    "register",
    "save_exported",
]
