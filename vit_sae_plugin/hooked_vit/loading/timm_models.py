"""``timm:…`` names."""

from __future__ import annotations

import pickle
from typing import Any

from vit_sae_plugin.hooked_vit.errors import ModelNameError, WeightsError
from vit_sae_plugin.hooked_vit.loading.loaded_model import LoadedModel, in_one_line
from vit_sae_plugin.near_names import near_names


def load_timm(
    name: str,
    *,
    pretrained: str | bool | None,
    cache_dir: str | None,
    trusted: bool,
    **kwargs: Any,
) -> LoadedModel:
    """A timm model with its evaluation transform.

    Args:
        name: timm's name, with its weight tag after a dot if there are several.
        pretrained: load weights (None: yes).
        cache_dir: where downloads are kept.
        trusted: makes no difference: timm reads weights with ``weights_only=True``, unless one of
            the settings says otherwise that a file may not hold.
        kwargs: go to ``timm.create_model``.

    Raises:
        ModelNameError: timm has no such model, or ``pretrained`` is a tag.
        WeightsError: the weights cannot be read, or fetched.
        ImportError: timm is not installed.
    """
    try:
        import timm
        from timm.data import create_transform, resolve_model_data_config
    except ImportError as error:
        raise ImportError(
            f"'timm:{name}' wants timm: pip install 'vit-sae-plugin[timm]'"
        ) from error

    if isinstance(pretrained, str):
        raise ModelNameError(
            f"pretrained is {pretrained!r}; want True or False: timm's weight tags are part of the "
            f"name, as 'timm:{name.partition('.')[0]}.{pretrained}'"
        )
    if not timm.is_model(name.partition(".")[0]) and not name.startswith("hf-hub:"):
        near = ", ".join(near_names(name, timm.list_models(), n=6, cutoff=0.4))
        raise ModelNameError(
            f"there is no timm model {name!r}; near names: {near or 'none is similar'} "
            "(all: timm.list_models())"
        )
    wants_weights = pretrained is not False
    try:
        module = timm.create_model(name, pretrained=wants_weights, cache_dir=cache_dir, **kwargs)
    except (RuntimeError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"timm can't load 'timm:{name}': {in_one_line(error)} (weights are downloaded once, "
            "which needs a network; pretrained=False gives random weights)"
        ) from error
    image_size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    args = {} if image_size is None else {"input_size": (3, *image_size)}
    data = resolve_model_data_config(module, args=args)
    preprocess = create_transform(**data, is_training=False)
    return LoadedModel(module, preprocess, None, pretrained=wants_weights)
