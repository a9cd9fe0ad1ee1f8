"""Prompt templates: what is said around a class name in zero-shot classification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vit_sae_plugin.datasets.shape_captions import OPENINGS, article

if TYPE_CHECKING:
    from vit_sae_plugin.datasets import ImageSource

Template = str | Callable[[str], str]


def shape_scene_templates() -> tuple[Template, ...]:
    """Five templates in the words that ``shapes-clip`` knows: "a photo of an orange star", …"""
    return tuple(partial(_after, opening) for opening in dict.fromkeys(OPENINGS))


def _after(opening: str, class_name: str) -> str:
    return opening + article(class_name)


def openai_templates() -> tuple[Template, ...]:
    """The 80 templates that OpenAI used for CLIP on ImageNet, as open_clip ships them."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(OPENAI_IMAGENET_TEMPLATES)


def read_templates(path: str | Path) -> tuple[str, ...]:
    """Templates from a text file: one a line, with ``{}`` where the class name goes.

    Blank lines and lines that begin with ``#`` are skipped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no template, or one without exactly one ``{}``.
    """
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    templates = tuple(line for line in lines if line and not line.startswith("#"))
    if not templates:
        raise ValueError(f"{path}: holds no template; want one a line, such as 'a photo of a {{}}'")
    _check(templates)
    return templates


def named_templates(
    name: str | Path | Sequence[Template] | None,
    model_name: str | None = None,
    images: ImageSource | None = None,
) -> tuple[Template, ...]:
    """``"openai"``, ``"shapes"``, ``"own"``, a file, or templates themselves.

    Args:
        name: ``"own"`` are those that the images' authors classify them with. None: those in the
            words that the model was trained on, ``"shapes"`` for ``shapes-clip`` and ``"openai"``
            for all others.
        model_name: of the model that reads them.
        images: whose own templates are meant.

    Raises:
        ValueError: no template, one without exactly one ``{}``, or images without any of their own.
    """
    if name is None:
        name = "shapes" if model_name == "shapes-clip" else "openai"
    if name == "openai":
        return openai_templates()
    if name == "shapes":
        return shape_scene_templates()
    if name == "own":
        if images is None or not images.templates:
            raise ValueError(
                "templates is 'own', which only benchmark data sets have"
                + (f", and not {images.name}" if images is not None else "")
                + "; want 'openai', 'shapes' or a file"
            )
        return tuple(images.templates)
    if isinstance(name, str | Path):
        return read_templates(name)
    if not name:
        raise ValueError("templates is empty; want at least one, such as 'a photo of a {}'")
    _check(name)
    return tuple(name)


def _check(templates: Sequence[Template]) -> None:
    for template in templates:
        if isinstance(template, str) and template.count("{}") != 1:
            raise ValueError(f"template {template!r}: want exactly one '{{}}' for the class name")
