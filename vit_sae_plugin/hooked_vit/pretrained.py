"""Models by name: open_clip's names, ``shapes-clip``, ``hf:…`` and ``timm:…``."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import nn

from vit_sae_plugin.hooked_vit.errors import ModelNameError

SHAPES_CLIP = "shapes-clip"


@dataclass
class LoadedModel:
    """A model with what belongs to it."""

    module: nn.Module
    preprocess: Callable | None
    tokenizer: Callable | None
    from_pretrained_kwargs: dict[str, Any]


def load_pretrained(
    model_name: str,
    *,
    pretrained: str | bool | None,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    cache_dir: str | None,
    **kwargs: Any,
) -> LoadedModel:
    """Load by name; the arguments are those of ``HookedViT.from_pretrained``.

    Returns:
        The model in evaluation mode. ``from_pretrained_kwargs`` are the arguments that rebuild it
        on any machine: not the device and the folder of downloads.

    Raises:
        ModelNameError: the name or the weight tag is unknown.
        TypeError: an argument cannot be written down as JSON.
    """
    target = _dtype(dtype)
    if model_name.startswith("hf:"):
        from vit_sae_plugin.hooked_vit.pretrained_transformers import load_transformers

        if pretrained is not None:
            raise ModelNameError(
                f"pretrained={pretrained!r} has no meaning for {model_name!r}: the weights are "
                "part of the name. Leave it out (revision= chooses a version)."
            )
        loaded = load_transformers(model_name.removeprefix("hf:"), cache_dir=cache_dir, **kwargs)
    elif model_name.startswith("timm:"):
        from vit_sae_plugin.hooked_vit.pretrained_timm import load_timm

        loaded = load_timm(
            model_name.removeprefix("timm:"), pretrained=pretrained, cache_dir=cache_dir, **kwargs
        )
    else:
        loaded = load_open_clip(model_name, pretrained=pretrained, cache_dir=cache_dir, **kwargs)
    recorded = dict(kwargs)
    if pretrained is not None:
        recorded["pretrained"] = pretrained
    if target is not None:
        recorded["dtype"] = str(target).removeprefix("torch.")
    try:
        loaded.from_pretrained_kwargs = json.loads(json.dumps(recorded))
    except TypeError as error:
        raise TypeError(
            f"from_pretrained records its arguments with the SAEs trained on the model, so they "
            f"must be plain JSON data; got {recorded!r}. Build the model yourself and use "
            "HookedViT.from_module."
        ) from error
    loaded.module.eval().to(device=device, dtype=target)
    return loaded


def load_open_clip(
    model_name: str, *, pretrained: str | bool | None, cache_dir: str | None, **kwargs: Any
) -> LoadedModel:
    """A model of open_clip's factory, with its evaluation transform and tokenizer.

    Where the weight tag was trained with QuickGELU (all of OpenAI's), the model is built with it:
    open_clip itself only warns, and the activations would be wrong.
    """
    import open_clip

    path = _shapes_clip_folder() if model_name == SHAPES_CLIP else model_name
    has_weights_of_its_own = path.startswith(("local-dir:", "hf-hub:"))
    if has_weights_of_its_own and pretrained is not None:
        raise ModelNameError(
            f"pretrained={pretrained!r} has no meaning for {model_name!r}, which comes with its "
            "weights. Leave it out."
        )
    if not has_weights_of_its_own:
        _check_open_clip_name(model_name, pretrained)
        tag = open_clip.get_pretrained_cfg(model_name, pretrained) if pretrained else {}
        if (tag or {}).get("quick_gelu"):
            kwargs.setdefault("force_quick_gelu", True)
    module, _, preprocess = open_clip.create_model_and_transforms(
        path, pretrained=pretrained or None, cache_dir=cache_dir, **kwargs
    )
    tokenizer = open_clip.get_tokenizer(path, cache_dir=cache_dir)
    return LoadedModel(module, preprocess, tokenizer, {})


def _check_open_clip_name(model_name: str, pretrained: str | bool | None) -> None:
    import open_clip
    from open_clip.pretrained import list_pretrained_tags_by_model

    names = open_clip.list_models()
    if model_name not in names:
        raise ModelNameError(
            f"There is no open_clip model named {model_name!r}. Near names: "
            f"{near_models(model_name, [*names, SHAPES_CLIP])}. All: open_clip.list_models(). "
            f"Other kinds: {SHAPES_CLIP!r} (ships with this package), 'local-dir:folder', "
            "'hf-hub:org/name' (open_clip), 'hf:org/name' (transformers), 'timm:name'."
        )
    if isinstance(pretrained, bool):
        raise ModelNameError(
            f"pretrained={pretrained!r}: open_clip models need a weight tag such as 'openai', or "
            f"None for random weights. Tags of {model_name}: "
            f"{', '.join(list_pretrained_tags_by_model(model_name)) or 'none'}."
        )
    if pretrained:
        from pathlib import Path

        tags = list_pretrained_tags_by_model(model_name)
        if pretrained.lower().replace("-", "_") not in tags and not Path(pretrained).is_file():
            raise ModelNameError(
                f"{model_name} has no weights tagged {pretrained!r} (and there is no such file). "
                f"Its tags: {', '.join(tags) or 'none'}."
            )


def _shapes_clip_folder() -> str:
    folder = files("vit_sae_plugin") / "shapes_clip"
    if not (folder / "open_clip_config.json").is_file():
        raise FileNotFoundError(
            f"The packaged model {SHAPES_CLIP!r} is missing: {folder} has no "
            "open_clip_config.json. The installation is incomplete; install the package again."
        )
    return f"local-dir:{folder}"


def near_models(name: str, names: Iterable[str], n: int = 6) -> str:
    """The existing names most like ``name``, whatever their case."""
    by_lower = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=n, cutoff=0.4)
    return ", ".join(by_lower[other] for other in close) or "none is similar"


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if isinstance(dtype, str):
        found = getattr(torch, dtype.removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise ValueError(
                f"dtype={dtype!r} is no number format; use 'float32', 'float16' or 'bfloat16'."
            )
        return found
    return dtype
