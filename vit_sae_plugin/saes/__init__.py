"""Sparse autoencoder architectures, as SAELens classes, and the pieces they are made of."""

from vit_sae_plugin.saved_sae import load_saved_sae

from .export import export_as_standard, export_as_topk, save_exported
from .ghost_gradients import ghost_gradient_error
from .ghost_saes import (
    StandardGhostTrainingSAE,
    StandardGhostTrainingSAEConfig,
    TopKGhostTrainingSAE,
    TopKGhostTrainingSAEConfig,
)
from .l1_coefficient import equivalent_l1_coefficient
from .matryoshka_topk import MatryoshkaTopKSAE, MatryoshkaTopKSAEConfig
from .matryoshka_topk_training import (
    MatryoshkaTopKTrainingSAE,
    MatryoshkaTopKTrainingSAEConfig,
)
from .patch_aggregated import PatchAggregatedSAE, PatchAggregatedSAEConfig
from .patch_sae import PatchSAE, PatchSAEConfig, PatchTrainingSAE, PatchTrainingSAEConfig
from .registration import register
from .signed_topk import SignedTopKSAE, SignedTopKSAEConfig
from .sparse_topk_training import (
    SparseBatchTopKTrainingSAE,
    SparseTopKTrainingSAE,
    new_training_sae,
)
from .transcoder_training import (
    JumpReLUSkipTranscoderTrainingSAE,
    JumpReLUSkipTranscoderTrainingSAEConfig,
    JumpReLUTranscoderTrainingSAE,
    JumpReLUTranscoderTrainingSAEConfig,
    SkipTranscoderTrainingSAE,
    SkipTranscoderTrainingSAEConfig,
    TranscoderTrainingSAE,
    TranscoderTrainingSAEConfig,
)

__all__ = [
    "JumpReLUSkipTranscoderTrainingSAE",
    "JumpReLUSkipTranscoderTrainingSAEConfig",
    "JumpReLUTranscoderTrainingSAE",
    "JumpReLUTranscoderTrainingSAEConfig",
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
    "SignedTopKSAE",
    "SignedTopKSAEConfig",
    "SkipTranscoderTrainingSAE",
    "SkipTranscoderTrainingSAEConfig",
    "SparseBatchTopKTrainingSAE",
    "SparseTopKTrainingSAE",
    "StandardGhostTrainingSAE",
    "StandardGhostTrainingSAEConfig",
    "TopKGhostTrainingSAE",
    "TopKGhostTrainingSAEConfig",
    "TranscoderTrainingSAE",
    "TranscoderTrainingSAEConfig",
    "equivalent_l1_coefficient",
    "export_as_standard",
    "export_as_topk",
    "ghost_gradient_error",
    "load_saved_sae",
    "new_training_sae",
    "register",
    "save_exported",
]
