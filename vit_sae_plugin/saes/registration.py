"""Make SAELens know this package's architectures."""

from __future__ import annotations

from typing import Any

from sae_lens import (
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    register_sae_class,
    register_sae_training_class,
)
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

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
from .relative_l1_sae import RelativeL1TrainingSAE, RelativeL1TrainingSAEConfig
from .signed_topk import SignedTopKSAE, SignedTopKSAEConfig
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

Classes = tuple[type[Any], type[Any]]

# Architecture -> (SAE class, config class). For inference some are SAELens's plain ones:
# these entries let SAE.load_from_disk open their training checkpoints.
SAE_CLASSES: dict[str, Classes] = {
    "patchsae": (PatchSAE, PatchSAEConfig),
    "matryoshka_topk": (MatryoshkaTopKSAE, MatryoshkaTopKSAEConfig),
    "patch_aggregated": (PatchAggregatedSAE, PatchAggregatedSAEConfig),
    "signed_topk": (SignedTopKSAE, SignedTopKSAEConfig),
    "standard_ghost": (StandardSAE, StandardSAEConfig),
    "topk_ghost": (TopKSAE, TopKSAEConfig),
    "standard_relative_l1": (StandardSAE, StandardSAEConfig),
}
TRAINING_SAE_CLASSES: dict[str, Classes] = {
    "patchsae": (PatchTrainingSAE, PatchTrainingSAEConfig),
    "matryoshka_topk": (MatryoshkaTopKTrainingSAE, MatryoshkaTopKTrainingSAEConfig),
    "standard_ghost": (StandardGhostTrainingSAE, StandardGhostTrainingSAEConfig),
    "topk_ghost": (TopKGhostTrainingSAE, TopKGhostTrainingSAEConfig),
    "standard_relative_l1": (RelativeL1TrainingSAE, RelativeL1TrainingSAEConfig),
    # for inference these are SAELens's own
    "transcoder": (TranscoderTrainingSAE, TranscoderTrainingSAEConfig),
    "skip_transcoder": (SkipTranscoderTrainingSAE, SkipTranscoderTrainingSAEConfig),
    "jumprelu_transcoder": (JumpReLUTranscoderTrainingSAE, JumpReLUTranscoderTrainingSAEConfig),
    "jumprelu_skip_transcoder": (
        JumpReLUSkipTranscoderTrainingSAE,
        JumpReLUSkipTranscoderTrainingSAEConfig,
    ),
}


def register() -> None:
    """Register all architectures of this package with SAELens; calling it again is harmless.

    Raises:
        ValueError: another package has registered one of the names.
    """
    for registry, register_class, ours in (
        (SAE_CLASS_REGISTRY, register_sae_class, SAE_CLASSES),
        (SAE_TRAINING_CLASS_REGISTRY, register_sae_training_class, TRAINING_SAE_CLASSES),
    ):
        for architecture, classes in ours.items():
            present = registry.get(architecture)
            if present is None:
                register_class(architecture, *classes)
            elif _names(present) == _names(classes):
                # After a reload of our modules the entry has to be the new classes, and SAELens's
                # own function refuses a second call.
                registry[architecture] = classes
            else:
                raise ValueError(
                    f"architecture {architecture!r} is already registered with SAELens by "
                    f"{_names(present)[0]}; vit_sae_plugin wants it for {_names(classes)[0]}: "
                    f"import only one of the two"
                )


def _names(classes: Classes) -> tuple[str, ...]:
    return tuple(f"{c.__module__}.{c.__qualname__}" for c in classes)
