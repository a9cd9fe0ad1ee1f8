"""Sparse autoencoders for CLIP vision transformers, as a plugin for SAELens and TransformerLens.

Importing this package registers its architectures and its readers of other projects' SAEs with
SAELens. Everything else is imported on first use, so that the import costs what importing
``sae_lens`` costs and nothing heavier.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .model_loaders import ModelLoader, register_model_loader
from .pretrained.sae_lens_loaders import register_loaders
from .saes.registration import register

register()
register_loaders()
register_model_loader(
    ModelLoader(
        kind="adapted",
        marker="adaptation.json",
        function="vit_sae_plugin.adaptation.saved_model:load_adapted_folder",
        text_settings=("adapter_sha256",),
    )
)

if TYPE_CHECKING:
    from .activations import ViTActivationsStore as ViTActivationsStore
    from .analysis import LatentAtlas as LatentAtlas
    from .analysis import analyze as analyze
    from .analysis import explain as explain
    from .analysis import heatmap as heatmap
    from .attached_sae import AttachedSAE as AttachedSAE
    from .attached_sae import HookedSAEViT as HookedSAEViT
    from .datasets import open_images as open_images
    from .evaluation import evaluate_sae as evaluate_sae
    from .evaluation import localize as localize
    from .hooked_vit import HookedViT as HookedViT
    from .hooked_vit import HookedViTConfig as HookedViTConfig
    from .pretrained import load_pretrained_sae as load_pretrained_sae
    from .report import write_report as write_report
    from .saes import MatryoshkaTopKSAE as MatryoshkaTopKSAE
    from .saes import MatryoshkaTopKSAEConfig as MatryoshkaTopKSAEConfig
    from .saes import MatryoshkaTopKTrainingSAE as MatryoshkaTopKTrainingSAE
    from .saes import MatryoshkaTopKTrainingSAEConfig as MatryoshkaTopKTrainingSAEConfig
    from .saes import PatchAggregatedSAE as PatchAggregatedSAE
    from .saes import PatchAggregatedSAEConfig as PatchAggregatedSAEConfig
    from .saes import PatchSAE as PatchSAE
    from .saes import PatchSAEConfig as PatchSAEConfig
    from .saes import PatchTrainingSAE as PatchTrainingSAE
    from .saes import PatchTrainingSAEConfig as PatchTrainingSAEConfig
    from .training import ViTSAERunnerConfig as ViTSAERunnerConfig
    from .training import ViTSAETrainingRunner as ViTSAETrainingRunner

_HOME_OF = {
    "ViTActivationsStore": "activations",
    "LatentAtlas": "analysis",
    "analyze": "analysis",
    "explain": "analysis",
    "heatmap": "analysis",
    "AttachedSAE": "attached_sae",
    "HookedSAEViT": "attached_sae",
    "open_images": "datasets",
    "evaluate_sae": "evaluation",
    "localize": "evaluation",
    "HookedViT": "hooked_vit",
    "HookedViTConfig": "hooked_vit",
    "load_pretrained_sae": "pretrained",
    "write_report": "report",
    "MatryoshkaTopKSAE": "saes",
    "MatryoshkaTopKSAEConfig": "saes",
    "MatryoshkaTopKTrainingSAE": "saes",
    "MatryoshkaTopKTrainingSAEConfig": "saes",
    "PatchAggregatedSAE": "saes",
    "PatchAggregatedSAEConfig": "saes",
    "PatchSAE": "saes",
    "PatchSAEConfig": "saes",
    "PatchTrainingSAE": "saes",
    "PatchTrainingSAEConfig": "saes",
    "ViTSAERunnerConfig": "training",
    "ViTSAETrainingRunner": "training",
}

__all__ = sorted(_HOME_OF)

if TYPE_CHECKING:
    __version__: str
else:
    # hidden from type checkers, for which a module with __getattr__ has every name there is
    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("vit-sae-plugin")
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
