"""What a file (an SAE's metadata, a run's configuration, a checkpoint) may say about its model.

A file comes from anyone, and the libraries' loaders take settings that run code: so only plain
settings pass, of plain types, and weights are read as safetensors or with ``weights_only=True``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vit_sae_plugin.hooked_vit.errors import UnsafeSettingError
from vit_sae_plugin.hooked_vit.loading.loaded_model import is_plain_open_clip
from vit_sae_plugin.model_loaders import loader_of

Check = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_size(value: Any) -> bool:
    sides = value if isinstance(value, list | tuple) else [value]
    return 0 < len(sides) <= 2 and all(isinstance(s, int) and not _is_bool(s) for s in sides)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_is_number(item) for item in value)


def _one_of(*values: Any) -> Check:
    return lambda value: any(type(value) is type(item) and value == item for item in values)


_ANY_LIBRARY: dict[str, Check] = {
    "dtype": _is_text,
    "init_seed": lambda value: isinstance(value, int) and not _is_bool(value),
    "pretrained": lambda value: value is None or isinstance(value, str | bool),
}

PLAIN_SETTINGS: dict[str, dict[str, Check]] = {
    "open_clip": {
        **_ANY_LIBRARY,
        "force_custom_text": _is_bool,
        "force_context_length": _is_number,
        "force_image_size": _is_size,
        "force_patch_dropout": _is_number,
        "force_quick_gelu": _is_bool,
        "image_interpolation": _one_of("bicubic", "bilinear", "nearest", "random"),
        "image_mean": _is_numbers,
        "image_resize_mode": _one_of("shortest", "longest", "squash"),
        "image_std": _is_numbers,
        "precision": _is_text,
    },
    "timm": {
        **_ANY_LIBRARY,
        "class_token": _is_bool,
        "dynamic_img_pad": _is_bool,
        "dynamic_img_size": _is_bool,
        "global_pool": _is_text,
        "img_size": _is_size,
        "in_chans": _is_number,
        "num_classes": _is_number,
        "patch_size": _is_size,
        "reg_tokens": _is_number,
    },
    "transformers": {
        **_ANY_LIBRARY,
        # Other values name code to be fetched.
        "attn_implementation": _one_of("eager", "sdpa", "flash_attention_2", "flex_attention"),
        "revision": _is_text,
        "subfolder": _is_text,
        "use_safetensors": _one_of(True),
        "variant": _is_text,
    },
}
"""Library to the settings that a file may hold, and what values they may have."""


def library_of(model_name: str) -> str:
    """The library that loads a name."""
    if model_name.startswith("hf:"):
        return "transformers"
    return "timm" if model_name.startswith("timm:") else "open_clip"


def check_recorded_settings(model_name: Any, from_pretrained_kwargs: Any) -> None:
    """Check that a model named in a file can be loaded without running the file's author's code.

    Args:
        model_name: what the file says for ``HookedViT.from_pretrained``'s first argument.
        from_pretrained_kwargs: what it says for the others.

    Raises:
        UnsafeSettingError: a setting is not among the plain ones; says how to allow it by hand.
    """
    if not isinstance(model_name, str) or not isinstance(from_pretrained_kwargs, Mapping):
        raise UnsafeSettingError(
            f"the file names the model {model_name!r} with {from_pretrained_kwargs!r}; want a name "
            "and a mapping of settings"
        )
    loader = loader_of(model_name)
    if loader is None:
        allowed = PLAIN_SETTINGS[library_of(model_name)]
    else:
        allowed = {**_ANY_LIBRARY, **dict.fromkeys(loader.text_settings, _is_text)}
    for name, value in from_pretrained_kwargs.items():
        check = allowed.get(name)
        if check is None or not check(value):
            wanted = "a plain value of it" if check else f"only {', '.join(sorted(allowed))}"
            raise UnsafeSettingError(
                f"the file asks to load {model_name!r} with {name}={value!r}, which a file may not "
                f"set, for it could run code; want {wanted}. If you trust it, load the model by "
                f"hand with HookedViT.from_pretrained({model_name!r}, {name}={value!r}) and pass "
                "it as the model"
            )


def complete_old_record(model_name: str, from_pretrained_kwargs: Mapping[str, Any]) -> dict:
    """The settings of an SAE's metadata, in which an open_clip name without weights used to mean
    random ones (now it means pretrained ones, and what was loaded is always recorded)."""
    settings = dict(from_pretrained_kwargs)
    if is_plain_open_clip(model_name) and settings.get("pretrained") is None:
        settings["pretrained"] = False
    return settings
