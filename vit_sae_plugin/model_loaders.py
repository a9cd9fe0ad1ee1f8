"""Kinds of models that ``HookedViT.from_pretrained`` finds in folders, besides the libraries' own.

A kind is registered by the path of the function that loads it, so that nothing is imported before
a model of that kind is asked for, and the room that loads need not know the room that registers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelLoader:
    """One kind of model in a folder."""

    kind: str
    """Its name, and with a colon the beginning of its models' names: ``"adapted:FOLDER"``."""

    marker: str
    """The file by which a folder of this kind is known, so that ``"FOLDER"`` is enough."""

    function: str
    """``"module:name"`` of the function that loads: it is called with the folder and the arguments
    ``pretrained``, ``cache_dir``, ``trusted`` and those of ``text_settings``, and returns a
    ``LoadedModel``."""

    text_settings: tuple[str, ...] = ()
    """What a file may record to load it with, beside the folder; all are texts."""

    def load(self, model_name: str, **kwargs: Any) -> Any:
        """The model in the folder that a name stands for."""
        module, _, name = self.function.partition(":")
        load: Callable[..., Any] = getattr(import_module(module), name)
        return load(Path(model_name.removeprefix(f"{self.kind}:")), **kwargs)


_LOADERS: dict[str, ModelLoader] = {}


def register_model_loader(loader: ModelLoader) -> None:
    """Let ``HookedViT.from_pretrained`` find models of a kind; a second time replaces the first."""
    _LOADERS[loader.kind] = loader


def loader_of(model_name: str) -> ModelLoader | None:
    """The registered kind that a name begins with; None: one of the libraries loads it."""
    kind, colon, _ = model_name.partition(":")
    return _LOADERS.get(kind) if colon else None


def full_name(model_name: str) -> str:
    """A model's name with its kind in front, where it is a folder of a registered kind."""
    if loader_of(model_name) is None:
        for loader in _LOADERS.values():
            if (Path(model_name) / loader.marker).is_file():
                return f"{loader.kind}:{model_name}"
    return model_name
