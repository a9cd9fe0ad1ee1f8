"""Models by name: from open_clip, transformers and timm, or as a file names them."""

from vit_sae_plugin.hooked_vit.loading.by_name import load_pretrained
from vit_sae_plugin.hooked_vit.loading.loaded_model import LoadedModel, describe_weights
from vit_sae_plugin.hooked_vit.loading.recorded import check_recorded_settings

__all__ = ["LoadedModel", "check_recorded_settings", "describe_weights", "load_pretrained"]
