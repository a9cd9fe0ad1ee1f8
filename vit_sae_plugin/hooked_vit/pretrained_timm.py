"""``timm:…`` names."""

from __future__ import annotations

from typing import Any

from vit_sae_plugin.hooked_vit.errors import ModelNameError
from vit_sae_plugin.hooked_vit.loaded_model import LoadedModel, near_models


def load_timm(
    name: str, *, pretrained: str | bool | None, cache_dir: str | None, **kwargs: Any
) -> LoadedModel:
    """A timm model with its evaluation transform.

    Args:
        name: timm's name, with its weight tag after a dot if there are several.
        pretrained: load weights (None: yes).
        cache_dir: where downloads are kept.
        kwargs: go to ``timm.create_model``.

    Raises:
        ModelNameError: timm has no such model, or ``pretrained`` is a tag.
        ImportError: timm is not installed.
    """
    try:
        import timm
        from timm.data import create_transform, resolve_model_data_config
    except ImportError as error:
        raise ImportError(
            f"'timm:{name}' needs timm: pip install 'vit-sae-plugin[timm]'."
        ) from error

    if isinstance(pretrained, str):
        raise ModelNameError(
            f"pretrained={pretrained!r}: timm's weight tags are part of the name, as "
            f"'timm:{name.partition('.')[0]}.{pretrained}'; pretrained is True or False."
        )
    if not timm.is_model(name.partition(".")[0]) and not name.startswith("hf-hub:"):
        raise ModelNameError(
            f"There is no timm model named {name!r}. Near names: "
            f"{near_models(name, timm.list_models())}. All: timm.list_models()."
        )
    module = timm.create_model(
        name, pretrained=pretrained is not False, cache_dir=cache_dir, **kwargs
    )
    image_size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    args = {} if image_size is None else {"input_size": (3, *image_size)}
    data = resolve_model_data_config(module, args=args)
    return LoadedModel(module, create_transform(**data, is_training=False), None)
