"""Readers of other projects' SAEs, which become SAEs of SAELens; no code in a file is ever run.

Importing this package imports no reader: ``vit_sae_plugin`` registers loaders at its import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_sae_plugin.inert_pickle import UnsafeFileError
    from vit_sae_plugin.tensor_files import UnreadableFileError, read_tensors

    from .kinds import FORMATS
    from .load import load_pretrained_sae, options_of, read_pretrained
    from .sae_lens_loaders import disk_loader, hub_loader, register_release
    from .sharing import share_sae
    from .source_files import HubError

_HOME_OF = {
    "FORMATS": ".kinds",
    "HubError": ".source_files",
    "UnreadableFileError": "vit_sae_plugin.tensor_files",
    "UnsafeFileError": "vit_sae_plugin.inert_pickle",
    "disk_loader": ".sae_lens_loaders",
    "hub_loader": ".sae_lens_loaders",
    "load_pretrained_sae": ".load",
    "options_of": ".load",
    "read_pretrained": ".load",
    "read_tensors": "vit_sae_plugin.tensor_files",
    "register_release": ".sae_lens_loaders",
    "share_sae": ".sharing",
}

__all__ = [
    "FORMATS",
    "HubError",
    "UnreadableFileError",
    "UnsafeFileError",
    "disk_loader",
    "hub_loader",
    "load_pretrained_sae",
    "options_of",
    "read_pretrained",
    "read_tensors",
    "register_release",
    "share_sae",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name], __name__), name)
