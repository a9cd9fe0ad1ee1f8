"""Prompt templates, under the name by which evaluations know them."""

from vit_sae_plugin.prompt_templates import (
    Template,
    named_templates,
    openai_templates,
    read_templates,
    shape_scene_templates,
)

__all__ = [
    "Template",
    "named_templates",
    "openai_templates",
    "read_templates",
    "shape_scene_templates",
]
