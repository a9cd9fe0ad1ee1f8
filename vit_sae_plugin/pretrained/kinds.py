"""The kinds of files that can be read, with their readers."""

from __future__ import annotations

from importlib import import_module

from vit_sae_plugin.pretrained import formats
from vit_sae_plugin.pretrained.format import Format

FORMATS: dict[str, Format] = {
    kind: import_module(f"{formats.__name__}.{kind}").FORMAT for kind in formats.KINDS
}
"""The reader of each kind of file, by the kind's name."""
