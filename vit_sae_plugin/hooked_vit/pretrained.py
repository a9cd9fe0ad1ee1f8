"""Models by name: which library loads it, and what is recorded to load it again."""

from __future__ import annotations

import json
from typing import Any

import torch

from vit_sae_plugin.hooked_vit.errors import ModelNameError
from vit_sae_plugin.hooked_vit.loaded_model import LoadedModel


def load_pretrained(
    model_name: str,
    *,
    pretrained: str | bool | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    cache_dir: str | None = None,
    init_seed: int = 0,
    **kwargs: Any,
) -> LoadedModel:
    """Load by name, in evaluation mode; the arguments are those of ``HookedViT.from_pretrained``.

    Raises:
        ModelNameError: the name or the weight tag is unknown.
        ValueError: ``dtype`` is no number format.
    """
    number_format = as_dtype(dtype)
    # Weights that no checkpoint fills are random: the same at every load.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed)
        loaded = _load(model_name, pretrained, cache_dir, kwargs)
    loaded.module.eval().to(device=device, dtype=number_format)
    return loaded


def _load(
    model_name: str, pretrained: str | bool | None, cache_dir: str | None, kwargs: dict[str, Any]
) -> LoadedModel:
    if model_name.startswith("hf:"):
        from vit_sae_plugin.hooked_vit.pretrained_transformers import load_transformers

        if pretrained is not None:
            raise ModelNameError(
                f"pretrained={pretrained!r} has no meaning for {model_name!r}: the weights are "
                "part of the name. Leave it out (revision= chooses a version)."
            )
        return load_transformers(model_name.removeprefix("hf:"), cache_dir=cache_dir, **kwargs)
    if model_name.startswith("timm:"):
        from vit_sae_plugin.hooked_vit.pretrained_timm import load_timm

        name = model_name.removeprefix("timm:")
        return load_timm(name, pretrained=pretrained, cache_dir=cache_dir, **kwargs)
    from vit_sae_plugin.hooked_vit.pretrained_open_clip import load_open_clip

    return load_open_clip(model_name, pretrained=pretrained, cache_dir=cache_dir, **kwargs)


def recorded_kwargs(
    pretrained: str | bool | None, dtype: str | torch.dtype | None, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """What ``from_pretrained`` needs beside the name to build the model again on any machine, as
    plain JSON data: not the device, not the folder of downloads.

    Raises:
        TypeError: an argument cannot be written as JSON.
    """
    recorded = dict(kwargs)
    if pretrained is not None:
        recorded["pretrained"] = pretrained
    number_format = as_dtype(dtype)
    if number_format is not None:
        recorded["dtype"] = str(number_format).removeprefix("torch.")
    try:
        return json.loads(json.dumps(recorded))
    except TypeError as error:
        raise TypeError(
            "from_pretrained records its arguments with the SAEs trained on the model, so they "
            f"must be plain JSON data; got {recorded!r}. Build the model yourself and use "
            "HookedViT.from_module."
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
        raise ValueError(
            f"dtype={dtype!r} is no number format; use 'float32', 'float16' or 'bfloat16'."
        )
    return found
