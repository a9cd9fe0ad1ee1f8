"""Sparse autoencoders for CLIP vision transformers, as a plugin for SAELens and TransformerLens.

Importing this package registers its architectures and its readers of other projects' SAEs with
SAELens. Everything else is imported on first use, so that the import costs what importing
``sae_lens`` costs and nothing heavier.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .pretrained.sae_lens_loaders import register_loaders
from .saes.registration import register

register()
register_loaders()

_HOME_OF = {
    "HookedViT": "hooked_vit",
    "HookedViTConfig": "hooked_vit",
    "AttachedSAE": "attached_sae",
    "HookedSAEViT": "attached_sae",
    "PatchSAE": "saes",
    "PatchSAEConfig": "saes",
    "PatchTrainingSAE": "saes",
    "PatchTrainingSAEConfig": "saes",
    "MatryoshkaTopKSAE": "saes",
    "MatryoshkaTopKSAEConfig": "saes",
    "MatryoshkaTopKTrainingSAE": "saes",
    "MatryoshkaTopKTrainingSAEConfig": "saes",
    "PatchAggregatedSAE": "saes",
    "PatchAggregatedSAEConfig": "saes",
    "LatentAtlas": "analysis",
    "analyze": "analysis",
    "ViTSAERunnerConfig": "training",
    "ViTSAETrainingRunner": "training",
    "ViTActivationsStore": "activations",
    "load_pretrained_sae": "pretrained",
}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vit-sae-plugin")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
