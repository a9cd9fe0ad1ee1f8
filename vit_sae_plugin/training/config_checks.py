"""Checks of single settings, each an error that names the setting, its value and what is wanted."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from vit_sae_plugin.near_names import near_names

_HOOKS_OUTSIDE_BLOCKS = (
    "hook_embed hook_pos_embed hook_full_embed ln_final.hook_scale ln_final.hook_normalized "
    "hook_image_embed"
).split()
_HOOKS_OF_A_BLOCK = (
    "hook_resid_pre hook_attn_in ln1.hook_scale ln1.hook_normalized attn.hook_q attn.hook_k "
    "attn.hook_v attn.hook_attn_scores attn.hook_pattern attn.hook_z attn.hook_result "
    "hook_attn_out hook_resid_mid hook_mlp_in ln2.hook_scale ln2.hook_normalized mlp.hook_pre "
    "mlp.hook_post hook_mlp_out hook_resid_post"
).split()


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise a ValueError unless ``value`` is one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        wanted = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} is {value!r}; want {wanted}")


def check_positive(**values: float) -> None:
    """Raise a ValueError naming the first value that isn't a finite number above 0."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}; want a number above 0")


def unknown_name_message(what: str, name: str, known: Iterable[str]) -> str:
    """One line that says there is no such name and lists near ones."""
    known = sorted(known)
    near = near_names(name, known, n=3) or known
    return f"there is no {what} {name!r}; near names: {', '.join(near)}"


def check_hook_name(hook_name: str) -> None:
    """Raise a ValueError unless some vision transformer could have a hook of this name."""
    layer = re.match(r"blocks\.\d+\.", hook_name)
    prefix = layer.group() if layer else "blocks.0."
    names = [*_HOOKS_OUTSIDE_BLOCKS, *(prefix + name for name in _HOOKS_OF_A_BLOCK)]
    if hook_name not in names:
        raise ValueError(unknown_name_message("hook", hook_name, names))
