"""Models by name: which library loads it, and what is recorded to load it again."""

from __future__ import annotations

import json
from typing import Any

import torch

from vit_sae_plugin.hooked_vit.loading.loaded_model import LoadedModel, is_plain_open_clip
from vit_sae_plugin.model_loaders import loader_of


def load_pretrained(
    model_name: str,
    *,
    pretrained: str | bool | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    cache_dir: str | None = None,
    init_seed: int = 0,
    trusted: bool = True,
    **kwargs: Any,
) -> LoadedModel:
    """Load by name, in evaluation mode; the arguments are those of ``HookedViT.from_pretrained``.

    Args:
        trusted: False for names and settings out of a file, which must have passed
            ``check_recorded_settings``: then no library runs code that comes with a model, and
            weights are read as safetensors or with ``weights_only=True``.

    Raises:
        ModelNameError: the name or the weight tag is unknown.
        WeightsError: the weights cannot be read, or fetched.
        ValueError: ``dtype`` is no number format.
    """
    number_format = as_dtype(dtype)
    # Weights that no checkpoint fills are random: the same at every load.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed)
        loaded = _load(
            model_name, pretrained=pretrained, cache_dir=cache_dir, trusted=trusted, **kwargs
        )
    loaded.module.eval().to(device=device, dtype=number_format)
    return loaded


def _load(model_name: str, **kwargs: Any) -> LoadedModel:
    loader = loader_of(model_name)
    if loader is not None:
        return loader.load(model_name, **kwargs)
    if model_name.startswith("hf:"):
        from vit_sae_plugin.hooked_vit.loading.transformers_models import load_transformers

        return load_transformers(model_name.removeprefix("hf:"), **kwargs)
    if model_name.startswith("timm:"):
        from vit_sae_plugin.hooked_vit.loading.timm_models import load_timm

        return load_timm(model_name.removeprefix("timm:"), **kwargs)
    from vit_sae_plugin.hooked_vit.loading.open_clip_models import load_open_clip

    return load_open_clip(model_name, **kwargs)


def recorded_kwargs(
    model_name: str,
    pretrained: str | bool,
    dtype: str | torch.dtype | None,
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """What ``from_pretrained`` needs beside the name to build the model again on any machine, as
    plain JSON data: not the device, not the folder of downloads.

    Args:
        model_name: the name.
        pretrained: the weights that were loaded, as ``LoadedModel`` says it.
        dtype: the number format asked for.
        kwargs: the other arguments.

    Raises:
        TypeError: an argument cannot be written as JSON.
    """
    recorded = dict(kwargs)
    if pretrained is not True or is_plain_open_clip(model_name):
        recorded["pretrained"] = pretrained
    number_format = as_dtype(dtype)
    if number_format is not None:
        recorded["dtype"] = str(number_format).removeprefix("torch.")
    try:
        return json.loads(json.dumps(recorded))
    except TypeError as error:
        raise TypeError(
            f"the arguments are {recorded!r}; want plain JSON data, for they are recorded with the "
            "SAEs trained on the model. Or build the model yourself and use HookedViT.from_module"
        ) from error


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A number format given as such or by name.

    Raises:
        ValueError: there is no such format.
    """
    if not isinstance(dtype, str):
        return dtype
    found = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype is {dtype!r}; want 'float32', 'float16' or 'bfloat16'")
    return found
