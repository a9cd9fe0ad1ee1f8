"""``HookedViT``: vision transformers with TransformerLens's hooks, wrapped and not copied."""

from vit_sae_plugin.hooked_vit.config import HookedViTConfig
from vit_sae_plugin.hooked_vit.errors import (
    HookNameError,
    ModelNameError,
    UnsafeSettingError,
    UnsupportedTowerError,
    WeightsError,
)
from vit_sae_plugin.hooked_vit.hooked_vit import HookedViT
from vit_sae_plugin.hooked_vit.loading.loaded_model import describe_weights
from vit_sae_plugin.hooked_vit.loading.open_clip_models import embedding_width
from vit_sae_plugin.hooked_vit.token_layout import TokenLayout
from vit_sae_plugin.hooked_vit.tower_description import (
    AttentionDescription,
    BlockDescription,
    EmbeddingDescription,
    TowerDescription,
)

__all__ = [
    "AttentionDescription",
    "BlockDescription",
    "EmbeddingDescription",
    "HookNameError",
    "HookedViT",
    "HookedViTConfig",
    "ModelNameError",
    "TokenLayout",
    "TowerDescription",
    "UnsafeSettingError",
    "UnsupportedTowerError",
    "WeightsError",
    "describe_weights",
    "embedding_width",
]
