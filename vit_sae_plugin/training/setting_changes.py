"""Settings with some of them changed, as a command line or a sweep's members change them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

_OTHERS = {
    "sae.d_sae": ("sae.expansion_factor",),
    "sae.expansion_factor": ("sae.d_sae",),
    "training_tokens": ("training_epochs",),
    "training_epochs": ("training_tokens",),
    "lr_decay_steps": ("lr_decay_fraction",),
    "lr_decay_fraction": ("lr_decay_steps",),
    "dataset_path": ("embeddings_path",),
    "embeddings_path": ("dataset_path",),
}
"""Settings that take another's place."""
_ANY_SAE = ("architecture", "d_in", "d_sae", "expansion_factor")
_GROUPS = ("", "sae", "logger")


def flat_changes(changes: Mapping[str, Any], what: str = "") -> dict[str, Any]:
    """Changes by their whole name: ``{"sae": {"k": 8}}`` and ``{"sae.k": 8}`` are the same.

    Args:
        what: in front of an error.

    Raises:
        ValueError: a group of settings that there isn't, or one that is no mapping.
    """
    flat: dict[str, Any] = {}
    for name, value in changes.items():
        group, _, _ = str(name).rpartition(".")
        if group not in _GROUPS:
            raise ValueError(f"{what}{name}: want FIELD, sae.FIELD or logger.FIELD")
        if name in _GROUPS and name:
            if not isinstance(value, dict):
                raise ValueError(f"{what}{name} is {value!r}; want settings by name")
            flat |= {f"{name}.{inner}": entry for inner, entry in value.items()}
        else:
            flat[str(name)] = value
    return flat


def with_changes(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the settings with ``changes``, by their whole names, in place of their own.

    What a change makes meaningless goes: a width given the other way, and with another
    architecture the settings of the former one.
    """
    settings = copy.deepcopy(settings)
    settings["sae"] = sae = settings.get("sae") or {}
    architecture = changes.get("sae.architecture")
    if architecture is not None and architecture != sae.get("architecture"):
        settings["sae"] = sae = {name: sae[name] for name in _ANY_SAE if name in sae}
    for name, value in changes.items():
        for other in _OTHERS.get(name, ()):
            if other not in changes:
                _target(settings, other).pop(other.rpartition(".")[2], None)
        _target(settings, name)[name.rpartition(".")[2]] = value
    return settings


def _target(settings: dict[str, Any], name: str) -> dict[str, Any]:
    group, _, _ = name.rpartition(".")
    if not group:
        return settings
    settings[group] = settings.get(group) or {}
    return settings[group]
