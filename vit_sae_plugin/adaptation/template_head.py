"""Class weights from the text templates that a model was adapted beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from vit_sae_plugin.hooked_vit.text_tower import zero_shot_classifier
from vit_sae_plugin.prompt_templates import named_templates


class TemplateHead:
    """Classifies by text prompts whose templates are fixed: a ``ClassHead``.

    Args:
        templates: ``"openai"``, ``"shapes"``, or templates with ``{}``; None: as the model's name
            says.
        model_name: of the model before it was adapted.
    """

    def __init__(self, templates: str | list[str] | None, model_name: str) -> None:
        self.templates = named_templates(templates, model_name)

    def class_weights(
        self, encode_text: Callable[[list[str]], Tensor], class_names: Sequence[str]
    ) -> Tensor:
        """The unit-length mean of each class's text embeddings."""
        return zero_shot_classifier(encode_text, class_names, self.templates)
