"""A format: which files it has, who made it, and the function that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vit_sae_plugin.pretrained.read_sae import ReadSAE


@dataclass(frozen=True)
class Format:
    """What is known of one project's files.

    ``read(files, **options)`` gets a ``SourceFiles``;
    its keyword arguments are the options that the user can state.
    """

    kind: str
    """The name in front of the colon."""
    project: str
    """The project, in words."""
    url: str
    """Where it is."""
    read: Callable[..., ReadSAE]
    licence: str | None = None
    """Of the published weights, where it is known for all of them."""
